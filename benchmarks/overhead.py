"""What a correction costs a training step, side by side with its rivals in one run.

    python benchmarks/overhead.py [--model course course-small vit-s] [--steps 200] [--threads 2] [--fresh]

Two models on real digits: the course's ViT (batch 64; with Xavier's weights and with small ones), and one of
ViT-S/16's size (12 blocks of width 384, 6 heads, 197 tokens, 22 M parameters; digits enlarged to 224×224, batch 8).
All arms take turns, step by step, on the same batches; every time is divided by that of the plain model's step of the
same turn. At the larger model all arms but the plain one and the default rule stop after 20 steps. A factor is
refreshed in some steps only: the total over all steps counts that, a median would hide it. Finished models are kept
in results/overhead.json; --fresh forgets them. Writes results/overhead.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from spectral_core import Correction, IdentityCorrection, PolarCorrection, condition, find_projections, fold
from spectral_core.data import load_digits
from spectral_core.models import VisionTransformer, course_vit

ROOT = Path(__file__).parent.parent
STORE, PAGE = ROOT / "results" / "overhead.json", ROOT / "results" / "overhead.md"
WARMUP = 20


class SvdCorrection(Correction):
    """The paper's exact correction as one would write it: an SVD at every forward pass."""

    def __init__(self, double: bool = False) -> None:
        super().__init__()
        self.double_precision = double

    def correct(self, w: Tensor) -> Tensor:
        u, s, vh = torch.linalg.svd(w.detach().double() if self.double_precision else w.detach(), full_matrices=False)
        return w + (s[0] * (u @ vh)).to(w.dtype)


class Scale(nn.Module):
    """A learned factor: γ of σReparam, Ŵ = γ W / σ(W) (arXiv 2303.06296)."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(()))

    def forward(self, w: Tensor) -> Tensor:
        return self.gamma * w


def each(change: Callable[[nn.Module], object]) -> Callable[[nn.Module], None]:
    def apply(model: nn.Module) -> None:
        for p in find_projections(model):
            change(p.module)

    return apply


def sigma_reparam(module: nn.Module) -> None:
    parametrizations.spectral_norm(module, "weight")
    parametrize.register_parametrization(module, "weight", Scale())


def folded(model: nn.Module) -> None:
    condition(model, PolarCorrection())
    fold(model)


#: name: (what is done to the model, whether it runs for all steps)
ARMS: dict[str, tuple[Callable[[nn.Module], object], bool]] = {
    "plain": (lambda model: None, True),
    "plain, once more": (lambda model: None, False),
    "λI, λ = 0.3": (lambda model: condition(model, IdentityCorrection(0.3)), False),
    "polar, default rule": (lambda model: condition(model, PolarCorrection()), True),
    "polar, every 10 steps": (lambda model: condition(model, PolarCorrection(every=10)), False),
    "polar, every step": (lambda model: condition(model, PolarCorrection(every=1)), False),
    "SVD, every step, float32": (lambda model: condition(model, SvdCorrection()), False),
    "SVD, every step, float64": (lambda model: condition(model, SvdCorrection(double=True)), False),
    "polar, then folded": (folded, False),
    "torch spectral_norm": (each(parametrizations.spectral_norm), False),
    "σReparam (spectral_norm and a factor)": (each(sigma_reparam), False),
    "torch orthogonal": (each(parametrizations.orthogonal), False),
}


@dataclass
class Case:
    """A model with its batches."""

    title: str
    build: Callable[[], VisionTransformer]
    batch_size: int
    lr: float
    enlarge: bool
    few: int  # steps of the arms that are not on trial


CASES = {
    "course": Case("the course's ViT, Xavier, batch 64, AdamW 10⁻³", course_vit, 64, 1e-3, False, 200),
    "course-small": Case(
        "the course's ViT, truncated normal 0.02, batch 64, AdamW 10⁻³: weights that double within some 30 steps",
        lambda: course_vit("trunc-normal"), 64, 1e-3, False, 200,
    ),
    "vit-s": Case(
        "ViT-S/16 size, truncated normal 0.02, batch 8, AdamW 10⁻⁴",
        lambda: VisionTransformer(
            224, 16, dim=384, depth=12, num_heads=6, mlp_ratio=4, channels=3, class_token=True, init="trunc-normal"
        ),
        8, 1e-4, True, 20,
    ),
}  # fmt: skip


def batches(case: Case, seed: int):
    data = load_digits("mnist")
    generator = torch.Generator().manual_seed(seed)
    while True:
        picked = torch.randint(len(data.train_y), (case.batch_size,), generator=generator)
        x = data.train_x[picked]
        if case.enlarge:
            x = F.interpolate(x, size=224, mode="bilinear").expand(-1, 3, -1, -1)
        yield x, data.train_y[picked]


@dataclass
class Run:
    model: nn.Module
    optimizer: torch.optim.Optimizer
    seconds: list[float]
    loss: float = float("nan")

    def step(self, x: Tensor, y: Tensor, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        began = time.perf_counter()
        loss = F.cross_entropy(self.model(x), y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - began)
        self.loss = float(loss.detach())


def polar_of(model: nn.Module) -> PolarCorrection | None:
    return next((m for m in model.modules() if isinstance(m, PolarCorrection)), None)


@torch.no_grad()
def worst_kappa(model: nn.Module) -> float:
    values = [torch.linalg.svdvals(p.weight.double()) for p in find_projections(model)]
    return max(float(v[0] / v[-1]) for v in values)


def measure(case: Case, options: argparse.Namespace) -> dict:
    runs: dict[str, Run] = {}
    first = case.build()
    for name, (prepare, _) in ARMS.items():
        model = copy.deepcopy(first)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a small λ makes some κ worse, which is not the subject here
            prepare(model)
        runs[name] = Run(model, torch.optim.AdamW(model.parameters(), lr=case.lr, weight_decay=0.05), [])
    source = batches(case, options.seed)
    x, y = next(source)
    for run in runs.values():  # a warm-up at rate 0, not timed
        run.step(x, y, 0.0)
        run.seconds.clear()
        if (correction := polar_of(run.model)) is not None:
            correction.calls = correction.looks = correction.refreshes = 0
    with Progress() as progress:
        for turn in progress.track(range(options.steps), description=case.title):
            x, y = next(source)
            lr = case.lr * min(1.0, (turn + 1) / WARMUP)
            names = [name for name, (_, whole) in ARMS.items() if whole or turn < case.few]
            for name in names[turn % len(names) :] + names[: turn % len(names)]:  # nobody always comes first
                runs[name].step(x, y, lr)
    plain = runs["plain"].seconds
    rows = {}
    for name, run in runs.items():
        ratios = [a / b for a, b in zip(run.seconds, plain, strict=False)]
        correction = polar_of(run.model)
        rows[name] = {
            "steps": len(ratios), "milliseconds": 1e3 * statistics.median(run.seconds),
            "median": statistics.median(ratios), "total": sum(run.seconds) / sum(plain[: len(run.seconds)]),
            "loss": run.loss,
        }  # fmt: skip
        if correction is not None:
            rows[name] |= {"calls": correction.calls, "looks": correction.looks, "refreshes": correction.refreshes}
    return {"title": case.title, "rows": rows, "kappa": largest_kappa(case, options), "seed": options.seed}


def largest_kappa(case: Case, options: argparse.Namespace) -> float:
    """κ(W + C) under the default rule, the largest over weights and every 20th forward pass, in a run of its own."""
    model, found = case.build(), []
    condition(model, PolarCorrection())
    optimizer = torch.optim.AdamW(model.parameters(), lr=case.lr, weight_decay=0.05)
    for turn, (x, y) in zip(range(options.steps), batches(case, options.seed), strict=False):
        loss = F.cross_entropy(model(x), y)
        if turn % 20 == 19:  # before the weights change: these are the ones that were used
            found.append(worst_kappa(model))
        optimizer.param_groups[0]["lr"] = case.lr * min(1.0, (turn + 1) / WARMUP)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return max(found)


def page(store: dict[str, dict], options: argparse.Namespace) -> str:
    lines = [
        "# What a correction costs a training step", "",
        f"`python benchmarks/overhead.py --steps {options.steps} --threads {options.threads}`: "
        f"torch {torch.__version__}, Python {platform.python_version()}, {options.threads} CPU threads of "
        f"{platform.machine()}.", "",
        "Every step is divided by the plain model's step of the same turn. Median: of those ratios. Total: all seconds "
        "over the plain model's, refreshes included. Refreshes and looks are per weight and step. All corrections act "
        "on W_Q, W_K and W_V as whole matrices.", "",
    ]  # fmt: skip
    for name in (n for n in CASES if n in store):
        result = store[name]
        lines += [f"## {result['title']}", ""]
        lines += ["| arm | steps | ms a step | median | total | refreshes | looks |"]
        lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
        for arm, row in result["rows"].items():
            used = [f"{row[k] / row['calls']:.3f}" if "calls" in row else "" for k in ("refreshes", "looks")]
            numbers = [f"{row['milliseconds']:.1f}", f"{row['median']:.3f}", f"{row['total']:.3f}"]
            lines.append(f"| {arm} | {row['steps']} | {' | '.join(numbers)} | {used[0]} | {used[1]} |")
        svd, polar = result["rows"]["SVD, every step, float32"], result["rows"]["polar, every step"]
        double = result["rows"]["SVD, every step, float64"]
        lines += [
            "", f"Polar at every step against an SVD at every step, overhead over overhead: "
            f"{(polar['total'] - 1) / (svd['total'] - 1):.2f} of the float32 SVD's, "
            f"{(polar['total'] - 1) / (double['total'] - 1):.2f} of the float64 one's. "
            f"Largest κ(W + C) under the default rule, looked at every 20 steps: {result['kappa']:.4f}.", "",
        ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=CASES, default=list(CASES), help="which models (default all)")
    parser.add_argument("--steps", type=int, default=200, help="steps of the plain and the default arm (default 200)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the batches (default 0)")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    store = {} if options.fresh or not STORE.exists() else json.loads(STORE.read_text())
    for name in options.model:
        if name not in store:
            store[name] = measure(CASES[name], options)
            STORE.write_text(json.dumps(store, indent=1) + "\n", encoding="utf-8")
    text = page(store, options)
    PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
