"""Lesson 4: the arms of its signature result, a weight that drifts, and tables of results/ read back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from spectral_core.corrections import Correction
from spectral_core.lessons.heads import DigitHead, digit_head
from spectral_core.lessons.lesson_01 import random_matrix
from spectral_core.models import VisionTransformer
from spectral_core.polar import largest_singular_value
from spectral_core.polar_correction import PolarCorrection
from spectral_core.projections import find_projections
from spectral_core.spectrum import condition_number, singular_values

__all__ = [
    "ARMS", "ENTRIES", "Grown", "RandomOrthogonal", "arm_heads", "arm_kappas", "drift",
    "results_table", "whole_weight",
]  # fmt: skip


class RandomOrthogonal(Correction):
    """W + σ_max R with a random orthogonal R in place of the polar factor."""

    def __init__(self, seed: int = 0, *, preserve: str | None = None) -> None:
        super().__init__(preserve=preserve)
        self.seed = seed

    def correct(self, w: Tensor) -> Tensor:
        draw = torch.randn(w.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(self.seed))
        return w + largest_singular_value(w) * torch.linalg.qr(draw).Q.to(w.dtype)


class Grown(Correction):
    """W times the number that gives it the Frobenius norm of `other(W)`: its size, the old κ."""

    def __init__(self, other: Correction) -> None:
        super().__init__()
        self.other = other

    def correct(self, w: Tensor) -> Tensor:
        return w * (self.other(w.detach()).norm() / w.detach().norm())


ARMS: dict[str, Callable[[int], Correction | None]] = {
    "plain": lambda seed: None,
    "polar": lambda seed: PolarCorrection(),
    "grown": lambda seed: Grown(PolarCorrection()),
    "random Q": lambda seed: RandomOrthogonal(seed),
    "grown less": lambda seed: Grown(RandomOrthogonal(seed)),
    "polar, ‖W‖ kept": lambda seed: PolarCorrection(preserve="frobenius"),
    "random Q, ‖W‖ kept": lambda seed: RandomOrthogonal(seed, preserve="frobenius"),
    "polar × 10": lambda seed: PolarCorrection(10.0),
}


def arm_heads(init: str, seeds: Sequence[int], names: Sequence[str] = tuple(ARMS)) -> dict[str, list[DigitHead]]:
    """Arm -> a head a seed, which is also the digit; W_Q, W_K and W_V of the layer are corrected alike."""
    out: dict[str, list[DigitHead]] = {}
    for name in names:
        out[name] = []
        for seed in seeds:
            fixes = {role: fix for i, role in enumerate("qkv") if (fix := ARMS[name](3 * seed + i)) is not None}
            out[name].append(digit_head(fixes, init=init, seed=seed, image=seed))
    return out


@lru_cache(maxsize=64)
def whole_weight(role: str, init: str, seed: int) -> Tensor:
    """The whole 32 × 32 weight of the layer that `digit_head` takes its head from, as stored, in float64."""
    attention = VisionTransformer(init=init, seed=seed).block(0).attention
    return next(p.weight for p in find_projections(attention) if p.role == role).detach().double()


def arm_kappas(init: str, seeds: Sequence[int], name: str) -> list[float]:
    """κ of the whole W_Q of the layer in that arm, a value a seed."""
    out = []
    for seed in seeds:
        w, fix = whole_weight("q", init, seed), ARMS[name](3 * seed)
        out.append(float(condition_number(w if fix is None else fix(w))))
    return out


def results_table(page: str, heading: str) -> dict[str, dict[str, str]]:
    """The table under `heading` of a page in results/: first column -> column -> cell.

    Raises:
        ValueError: no such heading.
    """
    if f"## {heading}\n" not in page:
        raise ValueError(f"expected a heading {heading!r} in the page, got none")
    part = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
    names, _, *body = rows
    return {row[0]: dict(zip(names, row, strict=True)) for row in body}


def _norm_and_factor(w: Tensor) -> tuple[Tensor, Tensor]:
    """σ_max and the polar factor, by an SVD: this measures, and a matrix of 32 rows is small."""
    u, s, vh = torch.linalg.svd(w)
    return s[0], u @ vh


def drift(pace: float, steps: int, seed: int, n: int = 32) -> dict[str, list[float]]:
    """A Gaussian weight on a random walk: κ of W + C for C kept and for C carried along, and Weyl's bound.

    Each step adds a Gaussian matrix of spectral norm pace · σ_max(W₀). Also what is carried: ‖Q − its true factor‖,
    and "distance", ‖W − W₀‖ / σ_max(W₀).
    """
    w = start = random_matrix(n, n, seed)
    sigma, kept = _norm_and_factor(w)
    carried = kept
    out: dict[str, list[float]] = {name: [] for name in ("distance", "kept", "carried", "bound", "before", "error")}
    generator = torch.Generator().manual_seed(1000 + seed)
    for _ in range(steps):
        move = torch.randn(n, n, dtype=torch.float64, generator=generator)
        w = w + pace * sigma * move / singular_values(move)[0]
        now, true = _norm_and_factor(w)
        out["before"].append(float(condition_number(w + now * carried)))
        carried = _norm_and_factor(w + now * carried)[1]
        far = float(singular_values(w - start)[0] / sigma)
        out["distance"].append(far)
        out["kept"].append(float(condition_number(w + sigma * kept)))
        out["carried"].append(float(condition_number(w + now * carried)))
        out["bound"].append((2 + far) / (1 - far) if far < 1 else math.inf)
        out["error"].append(float(singular_values(carried - true)[0]))
    return out


ENTRIES = ()
