"""How fast the paper's ViT-B trains on this machine, plain and corrected, for the page of costs (results/cost.md).

    python benchmarks/throughput.py --device cuda [--seconds 8] [--json results/throughput.json]
    python benchmarks/throughput.py --page          # results/cost.md from the numbers that are there

One training step of timm's vit_base_patch16_224 on random images: forward and backward under bfloat16 autocast, AdamW.
The data are random: reading and augmenting ImageNet is not part of the numbers.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from spectral_core import IdentityCorrection, PolarCorrection, condition
from spectral_core.experiments.store import describe_machine, versions
from spectral_core.torchvision_schemas import declare_missing

declare_missing()
import timm

ARMS = {"plain": None, "λI": IdentityCorrection(1.0), "polar": PolarCorrection()}


def measure(name: str, device: str, batch: int, seconds: float, compiled: bool, model_name: str) -> dict:
    """Images a second of one arm."""
    torch.manual_seed(0)
    model = timm.create_model(model_name, num_classes=1000).to(device)
    if ARMS[name] is not None:
        condition(model, ARMS[name])
    call = torch.compile(model) if compiled else model
    kind = {"fused": True} if device.startswith("cuda") else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, **kind)
    x, y = torch.randn(batch, 3, 224, 224, device=device), torch.randint(0, 1000, (batch,), device=device)

    def step() -> None:
        with torch.autocast(device.partition(":")[0], torch.bfloat16):
            loss = F.cross_entropy(call(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    begun = time.perf_counter()
    for _ in range(3):
        step()
    wait()
    warm = time.perf_counter() - begun
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        step()
        wait()
        count += 1
    spent = time.perf_counter() - begun
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.startswith("cuda") else None
    return {"arm": name, "compiled": compiled, "batch": batch, "images_per_s": batch * count / spent, "steps": count,
            "warm_up_s": warm, "peak_gib": memory}  # fmt: skip


IMAGES, EPOCHS = 1_281_167, 300  # ImageNet-1k, and the usual schedule of ViT-B
PAPER = "29:29 plain, 29:33 with λI, 41:38 with an SVD (unit not given; hours:minutes is likely)"


def page(found: dict) -> str:
    """What 300 epochs of ImageNet cost at the measured speeds, as Markdown."""
    machine, rows = found["machine"], found["rows"]
    plain = {row["compiled"]: row["images_per_s"] for row in rows if row["arm"] == "plain"}
    lines = [
        "# What ViT-B on ImageNet costs, plain and corrected", "",
        "`python benchmarks/throughput.py --device cuda`, then `--page`. **Measured**: training steps of timm's",
        f"{found['model']} (forward and backward in bfloat16 by autocast, AdamW, batches of {rows[0]['batch']}) on one",
        f"{machine['device']}, torch {found['versions']['torch']}, Python {machine['python']}, one run of some "
        "seconds each. The images are random and in", "memory: reading and augmenting ImageNet is not part of it.", "",
        "| | torch.compile | images/s | time against plain | memory, GiB | 300 epochs, one GPU, h | eight GPUs, h |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for row in rows:
        hours = IMAGES * EPOCHS / row["images_per_s"] / 3600
        lines.append(
            f"| {row['arm']} | {'yes' if row['compiled'] else 'no'} | {row['images_per_s']:.0f} | "
            f"× {plain[row['compiled']] / row['images_per_s']:.3f} | {row['peak_gib']:.1f} | {hours:.1f} | "
            f"{hours / 8:.1f} to {hours / 8 / 0.85:.1f} |"
        )
    return "\n".join([
        *lines, "",
        f"**Estimated**: hours are {IMAGES:,} images × {EPOCHS} epochs over the measured speed. Eight GPUs were not "
        "measured: the range", "is for scaling efficiencies of 100 % and 85 %, and a data pipeline that keeps up "
        "(eight need about "
        f"{8 * max(plain.values()):,.0f} decoded images", "a second). Evaluation and checkpoints come on top.", "",
        "* λI costs what two extra additions a layer cost; folded after training, nothing.",
        "* The polar correction was measured in its first seconds, when weights move fastest and factors are made anew",
        "  most often; on a longer run it costs less ([steps](overhead.md)). Under `torch.compile` it makes a factor",
        "  at every call and is left out.",
        f"* The paper reports, at full size and on hardware that is not known: {PAPER}.", "",
        "The same at full scale, once ImageNet lies in a folder with `train/` and `val/`:", "",
        "```bash", "spectral-core evidence --tasks vit --arms plain,xavier,calibrated,polar --seeds 5 --size full \\",
        "    --folder imagenet --device cuda --dtype bfloat16",
        "accelerate launch --multi_gpu --num_processes 8 -m spectral_core train vit --arm polar --lr 0.001 \\",
        "    --size full --folder imagenet --device cuda --dtype bfloat16", "```", "",
    ])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--json", type=Path, default=Path("results/throughput.json"))
    parser.add_argument("--page", action="store_true", help="write cost.md beside the JSON, measure nothing")
    given = parser.parse_args()
    if given.page:
        found = json.loads(given.json.read_text(encoding="utf-8"))
        given.json.with_name("cost.md").write_text(page(found), encoding="utf-8")
        return
    torch.set_float32_matmul_precision("high")
    rows = []
    for compiled in (False,) if given.no_compile else (False, True):
        for name in ARMS:
            if compiled and name == "polar":
                continue  # a new factor at every call under torch.compile: not how one would train
            rows.append(measure(name, given.device, given.batch, given.seconds, compiled, given.model))
            print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
            given.json.parent.mkdir(parents=True, exist_ok=True)
            given.json.write_text(json.dumps({
                "model": given.model, "machine": describe_machine(given.device), "versions": versions(), "rows": rows,
            }, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")  # fmt: skip


if __name__ == "__main__":
    main()
