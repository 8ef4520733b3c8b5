"""The polar factor from matrix products beside an SVD: time, and five measures of what came out.

    python benchmarks/polar.py [--threads 2] [--seed 0] [--repeats 7]

Ways, on the same float32 matrix, turn by turn:

* products: `polar_factor`, float32; and with dtype=torch.bfloat16;
* SVD float32, SVD float64: `torch.linalg.svd`, then U Vᵀ, the matrix converted where needed;
* Muon, 5 steps: its fixed quintic (3.4445, −4.7750, 2.0315), scaled by ‖W‖_F, in float32, which does not converge.

Measures, in float64: orthogonality ‖QᵀQ − I‖_F/√n; residual ‖W − Q H‖_F/‖W‖_F, H the symmetric part of QᵀW; PSD,
−λ_min(H)/σ_max where negative; dual, 1 − ⟨Q, W⟩/‖W‖_*; bound, σ_max(Q) − 1 where positive. Last, κ(W + σ_max Q), at
most 2 for the true factor. Writes results/polar.md.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor

from spectral_core import polar_factor

PAGE = Path(__file__).parent.parent / "results" / "polar.md"
SHAPES = ((384, 384), (768, 768), (768, 64), (3072, 768))


def svd_route(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    def route(w: Tensor) -> Tensor:
        u, _, vh = torch.linalg.svd(w.to(dtype), full_matrices=False)
        return (u @ vh).to(w.dtype)

    return route


def muon(w: Tensor) -> Tensor:
    a, b, c = 3.4445, -4.7750, 2.0315
    x = w / w.norm()
    wide = x.shape[0] < x.shape[1]
    x = x.mT if wide else x
    for _ in range(5):
        gram = x.mT @ x
        x = a * x + x @ (b * gram + c * gram @ gram)
    return x.mT if wide else x


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "products, float32": polar_factor,
    "products, bfloat16": lambda w: polar_factor(w, dtype=torch.bfloat16),
    "SVD, float32": svd_route(torch.float32),
    "SVD, float64": svd_route(torch.float64),
    "Muon, 5 steps": muon,
}


def matrices(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    out = {f"Gaussian {m}×{n}": torch.randn(m, n, generator=generator) for m, n in SHAPES}
    for power in (2, 4, 6):
        u, v = (torch.linalg.qr(torch.randn(768, 768, dtype=torch.float64, generator=generator)).Q for _ in range(2))
        values = torch.logspace(0, -power, 768, dtype=torch.float64)
        out[f"log-spaced 768×768, κ = 10^{power}"] = (u * values @ v).float()
    return out


def measures(w: Tensor, q: Tensor) -> list[float]:
    w, q = w.double(), q.double()
    n = q.shape[1]
    h = q.mT @ w
    h = (h + h.mT) / 2
    values = torch.linalg.svdvals(w)
    stale = torch.linalg.svdvals(w + values[0] * q)
    return [float(value) for value in (
        (q.mT @ q - torch.eye(n)).norm() / n**0.5, (w - q @ h).norm() / w.norm(),
        (-torch.linalg.eigvalsh(h)[0] / values[0]).clamp(min=0), 1 - (q * w).sum() / values.sum(),
        (torch.linalg.svdvals(q)[0] - 1).clamp(min=0), stale[0] / stale[-1],
    )]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the matrices (default 0)")
    parser.add_argument("--repeats", type=int, default=7, help="timings of each way, the median counts (default 7)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = [
        "# The polar factor from matrix products, beside an SVD", "",
        f"`python benchmarks/polar.py --threads {options.threads} --seed {options.seed} --repeats {options.repeats}`: "
        f"torch {torch.__version__}, Python {platform.python_version()}, {options.threads} CPU threads. The measures "
        "are explained there; 0 is perfect in the first five. Time is the median; × is how many times faster than each "
        "SVD.",
        "",
    ]  # fmt: skip
    cases = matrices(options.seed)
    with Progress() as progress:
        bar = progress.add_task("matrices", total=len(cases))
        for name, w in cases.items():
            seconds: dict[str, list[float]] = {way: [] for way in WAYS}
            for turn in range(options.repeats + 1):
                for way, run in WAYS.items():
                    began = time.perf_counter()
                    run(w)
                    if turn:  # the first is a warm-up
                        seconds[way].append(time.perf_counter() - began)
            median = {way: statistics.median(s) for way, s in seconds.items()}
            lines += [f"## {name}", "", "| way | ms | × SVD float32 | × SVD float64 | orthogonality | residual | PSD | "
                      "dual | bound | κ(W + σQ) |", "| --- |" + " ---: |" * 9]  # fmt: skip
            for way, run in WAYS.items():
                *five, kappa = measures(w, run(w))
                speed = [median[other] / median[way] for other in ("SVD, float32", "SVD, float64")]
                cells = [f"{1e3 * median[way]:.1f}", *(f"{s:.2f}" for s in speed), *(f"{m:.0e}" for m in five)]
                lines.append(f"| {way} | {' | '.join(cells)} | {kappa:.4f} |")
            lines.append("")
            progress.advance(bar)
    text = "\n".join(lines)
    PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
