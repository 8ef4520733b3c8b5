"""What SpectralMonitor adds to a training step when it looks every 50 steps.

    python benchmarks/monitor.py [--threads 2] [--steps 20] [--every 50]

Two models with AdamW: the course's ViT (batch 64 of 28 × 28 digits) and BERT with six layers (width 768, 12 heads,
batch 8 × 128 tokens). In turn: some steps, one look, so that both see the same machine. Shown are medians, and a look
as a share of `every` steps; target: at most 2 %. A look with `batch=` adds κ(J) of every head at one example, shown
beside it for the ViT. Writes results/monitor.md.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from spectral_core import SpectralMonitor
from spectral_core.data import load_digits
from spectral_core.models import course_vit
from spectral_core.torchvision_schemas import declare_missing

PAGE = Path(__file__).parent.parent / "results" / "monitor.md"


def vit():
    """The course's ViT and one training loss of it."""
    data, model = load_digits("mnist"), course_vit()
    images, labels = data.train_x[:64], data.train_y[:64]
    return model, lambda: F.cross_entropy(model(images), labels), data.train_x[:1]


def bert():
    """Six layers of BERT base and a loss on its outputs."""
    declare_missing()
    import transformers

    model = transformers.BertModel(transformers.BertConfig(num_hidden_layers=6))
    ids = torch.randint(0, 30000, (8, 128), generator=torch.Generator().manual_seed(0))
    return model, lambda: model(ids).last_hidden_state.square().mean(), None


def measure(model, loss, batch, steps: int, turns: int = 5) -> tuple[float, float]:
    """Median seconds of a step and of a look."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    monitor = SpectralMonitor(model, every=1, batch=batch)
    step_s, look_s = [], []
    for turn in range(turns + 1):
        for _ in range(max(1, steps // turns)):
            began = time.perf_counter()
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            step_s.append(time.perf_counter() - began)
        began = time.perf_counter()
        monitor.step(turn)
        look_s.append(time.perf_counter() - began)
        if turn == 0:  # warms up
            step_s.clear()
            look_s.clear()
    return statistics.median(step_s), statistics.median(look_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--steps", type=int, default=20, help="timed for each model")
    parser.add_argument("--every", type=int, default=50, help="steps between two looks, for the share")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = []
    cases = [("the course's ViT", vit, False), ("the course's ViT, with κ(J)", vit, True)]
    for name, build, with_batch in [*cases, ("BERT, 6 layers of 768", bert, False)]:
        model, loss, batch = build()
        step, look = measure(model, loss, batch if with_batch else None, arguments.steps)
        share = look / (arguments.every * step)
        rows.append(f"| {name} | {1e3 * step:.1f} | {1e3 * look:.1f} | {100 * share:.2f} % |")
    lines = [
        "# SpectralMonitor beside a training step",
        "",
        f"`python benchmarks/monitor.py`, {arguments.threads} threads, {platform.machine()}, "
        f"torch {torch.__version__}.",
        "",
        f"| model | step, ms | look, ms | a look every {arguments.every} steps costs |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
        "Medians. A look takes the exact singular values of every head's W + C, in float64; with `batch=` also the "
        "exact κ(J) of every head at one example, which belongs at a few points of a run, not at every 50th step.",
    ]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
