"""What `condition`, `fold` and a conditioned forward cost on full-size models.

    python benchmarks/drop_in.py [--threads 2] [--repeats 5]

Each model is built from its configuration, without a download, in a process of its own, in which a small model was
conditioned before, so that nothing is counted that is loaded once. For λI: seconds of `condition` and of `fold`; memory
that stays (resident set, before and after) and that is needed on the way (its peak); a forward of one image or 64
tokens, conditioned and folded over plain, turn by turn. Targets for ViT-B/16: under 1 s, at most 1 MB. The report
computes κ when it is printed: for ViT-B/16 that time too. Writes results/drop_in.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from spectral_core import IdentityCorrection, SpectralConditionedAttention, condition, fold
from spectral_core.torchvision_schemas import declare_missing

declare_missing()

PAGE = Path(__file__).parent.parent / "results" / "drop_in.md"
MODELS = {
    "vit_base_patch16_224": "ViT-B/16 (timm)",
    "deit_base_distilled_patch16_224": "DeiT-B (timm)",
    "swin_base_patch4_window7_224": "Swin-B (timm)",
    "xcit_medium_24_p16_224": "XCiT-M24 (timm)",
    "davit_base": "DaViT-B (timm)",
    "bert": "BERT base (transformers)",
    "gpt2": "GPT-2 124 M (transformers)",
}


def build(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """A full-size model and an input for it."""
    if name in ("bert", "gpt2"):
        import transformers

        kind = {"bert": ("BertConfig", "BertModel"), "gpt2": ("GPT2Config", "GPT2Model")}[name]
        config, model = (getattr(transformers, part) for part in kind)
        return model(config()).eval(), torch.randint(0, 1000, (1, 64))
    import timm

    return timm.create_model(name).eval(), torch.randn(1, 3, 224, 224)


def resident(key: str) -> float:
    """VmRSS or VmHWM of this process, MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def seconds(call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@torch.no_grad()
def measure(name: str, repeats: int) -> dict:
    """One row, in this process."""
    warm = SpectralConditionedAttention(64, 4, correction=IdentityCorrection(1.0))
    fold(warm)
    model, x = build(name)
    model(x)
    plain, conditioned, folded = [], [], []
    times, held, peak, folds = [], [], [], []
    for _ in range(repeats):
        plain.append(seconds(lambda: model(x)))
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak so far
        before = resident("VmRSS")
        times.append(seconds(lambda: condition(model, IdentityCorrection(1.0))))
        held.append(resident("VmRSS") - before)
        peak.append(resident("VmHWM") - before)
        conditioned.append(seconds(lambda: model(x)))
        folds.append(seconds(lambda: fold(model)))
        folded.append(seconds(lambda: model(x)))
    row = {
        "projections": len(condition(model, IdentityCorrection(1.0))),
        "parameters": sum(p.numel() for p in model.parameters()),
        "condition": statistics.median(times),
        "held": max(held),
        "peak": max(peak),
        "fold": statistics.median(folds),
        "plain": statistics.median(plain),
        "conditioned": statistics.median(c / p for c, p in zip(conditioned, plain, strict=True)),
        "folded": statistics.median(f / p for f, p in zip(folded, plain, strict=True)),
    }
    if name.startswith("vit"):
        fold(model)
        report = condition(model, IdentityCorrection(1.0))
        row["report"] = seconds(lambda: str(report))
    return row


def table(rows: dict[str, dict]) -> str:
    lines = [
        "| model | parameters | projections | condition, s | stays, MB | peak, MB | fold, s | forward, s | conditioned "
        "| folded |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, r in rows.items():
        lines.append(
            f"| {MODELS[name]} | {r['parameters'] / 1e6:.0f} M | {r['projections']} | {r['condition']:.3f} "
            f"| {r['held']:.2f} | {r['peak']:.2f} | {r['fold']:.3f} | {r['plain']:.2f} | {r['conditioned']:.2f} "
            f"| {r['folded']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch in each process")
    parser.add_argument("--repeats", type=int, default=5, help="rounds for each model; medians are shown")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.repeats)))
        return
    rows = {}
    for name, shown in MODELS.items():
        print(f"{shown} ...", file=sys.stderr)
        command = [sys.executable, __file__, "--one", name]
        command += ["--threads", str(arguments.threads), "--repeats", str(arguments.repeats)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows[name] = json.loads(done.stdout.splitlines()[-1])
    report = rows["vit_base_patch16_224"]["report"]
    text = f"""# What conditioning a full-size model costs

`python benchmarks/drop_in.py`: λI on Q, K and V, float32, torch {torch.__version__}, {arguments.threads} threads of
{os.cpu_count()} cores, {platform.machine()}; medians of {arguments.repeats} rounds, for memory the largest. Conditioned
and folded are forwards of one image or 64 tokens over a plain one, turn by turn; at such a batch the addition weighs
most.

{table(rows)}

Printing the report of ViT-B/16, κ before and after of 36 matrices by float64 SVDs, takes {report:.1f} s, and happens
only when somebody looks.
"""
    PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
