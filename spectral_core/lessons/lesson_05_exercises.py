"""Lesson 5, the λI shortcut: the checks of its exercises, as data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spectral_core.lessons.lesson_01 import with_spectrum
from spectral_core.lessons.lesson_05 import certain_lambda, gaussians, stacked_identity, success_rate, wilson
from spectral_core.lessons.registry import Case, Exercise
from spectral_core.spectrum import condition_number

__all__ = ["ENTRIES"]


def _ends(w: Tensor) -> tuple[float, float]:
    s = torch.linalg.svdvals(w)
    return float(s[0]), float(s[-1])


def _by_ends(formula: Callable[[float, float], float]) -> Callable[[Tensor], float]:
    return lambda w: formula(*_ends(w))


def _falls(fn: Callable[[Tensor], Any], w: Tensor) -> tuple[float, float]:
    """1 or 0: whether κ falls just above the answer, and whether it falls just below."""
    lam, eye, kappa = float(fn(w)), torch.eye(*w.shape, dtype=w.dtype), condition_number(w)
    above, below = (float(condition_number(w + c * lam * eye) < kappa) for c in (1.01, 0.99))
    return above, below


CERTAIN = Exercise(
    "05.certain", "when λI helps for certain",
    (
        Case("diag(3, 1): σ_max = 3 and κ = 3 give λ = 6", "reference",
             lambda: (torch.diag(torch.tensor([3.0, 1.0]).double()),), lambda w: 6.0,
             "solve (λ + σ_max)/(λ − σ_max) = κ for λ: it is σ_max (κ + 1)/(κ − 1)"),
        Case("a tall matrix with singular values 5, 4, 2", "reference", lambda: (with_spectrum([5.0, 4.0, 2.0], m=7),),
             lambda w: 35 / 3, "only the largest and the smallest singular value count, and the shape does not"),
        Case("λ is measured in units of W: 100 W needs 100 times as much", "property", lambda: (gaussians(1, 6, 4)[0],),
             lambda w: 100.0, "your answer should grow in proportion to W", observe=lambda fn, w: fn(100 * w) / fn(w)),
        Case("no smaller λ will do: for diag(−3, 3, 1) κ falls 1 % above your λ, and not 1 % below", "property",
             lambda: (torch.diag(torch.tensor([-3.0, 3.0, 1.0]).double()),), lambda w: (1.0, 0.0),
             "the guarantee (λ + σ_max)/(λ − σ_max) is reached by this matrix; set it equal to κ(W)", observe=_falls),
        Case("a rank deficient matrix, κ = ∞: any λ above σ_max = 2 will do", "edge",
             lambda: (torch.diag(torch.tensor([2.0, 1.0, 0.0]).double()),), lambda w: 2.0,
             "(κ + 1)/(κ − 1) tends to 1 as κ → ∞; with σ_max and σ_min in place of κ there is no division by zero"),
        Case("κ = 1 cannot be improved: λ = ∞", "edge", lambda: (with_spectrum([1.0, 1.0, 1.0]),),
             lambda w: math.inf, "return infinity when σ_max − σ_min is at most 1e-12 σ_max"),
    ),
    (
        ("your fraction is upside down: (κ + 1)/(κ − 1) is above 1, and λ has to be above σ_max",
         _by_ends(lambda a, b: a * (a - b) / (a + b))),
        ("that is σ_max alone: above it W + λI cannot be singular, but κ need not fall yet", _by_ends(lambda a, b: a)),
        ("σ_max is missing in front: (κ + 1)/(κ − 1) has no unit, λ has that of W",
         _by_ends(lambda a, b: (a + b) / (a - b) if a - b > 1e-12 * a else math.inf)),
        ("σ_min stands in front: λ has to beat the largest singular value",
         _by_ends(lambda a, b: b * (a + b) / (a - b) if a - b > 1e-12 * a else math.inf)),
        ("that is the Frobenius norm of W in front, not σ_max",
         lambda w: certain_lambda(w) * float(w.norm()) / _ends(w)[0]),
        ("κ = 1 up to rounding: σ_max − σ_min is some 1e-16 there, compare it with a tolerance",
         _by_ends(lambda a, b: a * (a + b) / (a - b) if a != b else 1e16)),
    ),
    certain_lambda,
)  # fmt: skip


def worst_matrix(lam: float, n: int, kappa: float) -> Tensor:
    """An n × n matrix W with κ(W) = kappa and W + lam · I singular."""
    return -lam * torch.diag(torch.linspace(1, kappa, n, dtype=torch.float64))


def _kappas(fn: Callable[..., Any], lam: float, n: int, kappa: float) -> tuple[float, float]:
    """(κ(W), κ(W + λI)) of the answer W."""
    w = torch.as_tensor(fn(lam, n, kappa)).double()
    left = torch.linalg.svdvals(w + lam * torch.eye(n).double())
    # what is left counts as zero beside λ, not beside itself: at W = −λI all of it is rounding
    after = math.inf if left[-1] <= 1e-5 * lam else float(left[0] / left[-1])
    return float(condition_number(w, rtol=1e-6)), after


def _diagonal(entries: Callable[[float, int, float], Tensor]) -> Callable[[float, int, float], Tensor]:
    return lambda lam, n, kappa: torch.diag(entries(lam, n, kappa).double())


def _ramp(n: int, kappa: float) -> Tensor:
    return torch.linspace(1, kappa, n)


WORST = Exercise(
    "05.worst", "a matrix that λI ruins",
    (
        Case("λ = 2, n = 5: κ(W) = 7, and κ(W + 2I) = ∞", "reference", lambda: (2.0, 5, 7.0),
             lambda *a: (7.0, math.inf),
             "one eigenvalue has to be −λ, and the singular values have to span a factor of kappa", observe=_kappas),
        Case("the paper's λ = 10, n = 64, and a healthy κ(W) = 1.81", "reference", lambda: (10.0, 64, 1.81),
             lambda *a: (1.81, math.inf), "λ sets the size of W here: some direction must go to −10 times itself",
             observe=_kappas),
        Case("for all λ there is one: λ = 0.3, 4, 50 with κ(W) = 3", "property", lambda: (3,),
             lambda n: (3.0, math.inf) * 3, "let W grow with λ, for it has to cancel λI",
             observe=lambda fn, n: tuple(k for lam in (0.3, 4.0, 50.0) for k in _kappas(fn, lam, n, 3.0))),
        Case("even κ(W) = 1 can be ruined: W = −λI", "edge", lambda: (1.5, 3, 1.0), lambda *a: (1.0, math.inf),
             "with kappa = 1 all singular values are equal: nothing is left of −λI + λI", observe=_kappas),
    ),
    (
        ("the sign is wrong: W must turn a direction around, W x = −λ x", lambda *a: -worst_matrix(*a)),
        ("W does not grow with λ: the eigenvalue to cancel is −λ, not −1", lambda lam, n, k: worst_matrix(1.0, n, k)),
        ("you have κ(W) = 1 whatever was asked: spread the other singular values up to kappa · λ",
         lambda lam, n, k: -lam * torch.eye(n).double()),
        ("your W itself is singular, so κ(W) is infinite before λI comes",
         _diagonal(lambda lam, n, k: -lam * (_ramp(n, k) - 1))),
        ("you have κ² in place of κ: diagonal entries are singular values here, up to the sign",
         _diagonal(lambda lam, n, k: -lam * _ramp(n, k) ** 2)),
    ),
    worst_matrix,
)  # fmt: skip


def _hits(draws: Tensor, shift: Tensor | float) -> int:
    """How many of the draws have a smaller κ after `shift` · I."""
    eye = torch.eye(*draws.shape[-2:], dtype=draws.dtype)
    return int((condition_number(draws + shift * eye) < condition_number(draws)).sum())


def _norms(draws: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(draws, 2)[:, None, None]


def _wald(draws: Tensor, lam: float) -> tuple[float, float, float]:
    p = success_rate(draws, lam)[0]
    half = 1.96 * math.sqrt(p * (1 - p) / len(draws))
    return p, p - half, p + half


def _failures(draws: Tensor, lam: float) -> tuple[float, float, float]:
    share, low, high = success_rate(draws, lam)
    return 1 - share, 1 - high, 1 - low


RATE = Exercise(
    "05.rate", "how often λI helps",
    (
        Case("100 matrices of 8 × 8 at λ = 0.5 σ_max", "reference", lambda: (gaussians(100, 8, 8, seed=1), 0.5),
             success_rate, "count κ(W + λ σ_max I) < κ(W), then the share with Wilson's interval"),
        Case("60 tall matrices, 12 × 3", "reference", lambda: (gaussians(60, 12, 3, std=0.02, seed=2), 0.4),
             success_rate, "the identity is rectangular here: torch.eye(m, n)"),
        Case("scale does not matter: 1000 · draws have the same rate (difference 0)", "property",
             lambda: (gaussians(50, 6, 6, seed=3), 0.6), lambda *a: (0.0, 0.0, 0.0),
             "λ is in units of each matrix's own σ_max",
             observe=lambda fn, d, lam: tuple(float(a) - float(b) for a, b in zip(fn(1000 * d, lam), fn(d, lam),
                                                                                  strict=True))),
        Case("λ = 0 changes nothing: share 0, and the interval is not a point", "edge",
             lambda: (gaussians(20, 4, 4, seed=4), 0.0), lambda d, lam: (0.0, 0.0, 0.16113),
             "κ must be strictly smaller; and 0 of 20 does not prove that the probability is 0", rtol=1e-3, atol=1e-3),
        Case("λ = 6 σ_max helps all 30: the interval ends at 1 and begins below", "edge",
             lambda: (gaussians(30, 5, 5, seed=5), 6.0), lambda d, lam: (1.0, 0.88648, 1.0),
             "with Wilson's interval 30 of 30 means: above 0.886", rtol=1e-3, atol=1e-3),
    ),
    (
        ("λ is absolute in your count: add λ · σ_max of each matrix, times I",
         lambda d, lam: wilson(_hits(d, lam), len(d))),
        ("you used one σ_max for all: each matrix has its own", lambda d, lam:
         wilson(_hits(d, lam * _norms(d).amax()), len(d))),
        ("κ that stays the same is no success: use <, not <=", lambda d, lam:
         success_rate(d, lam) if lam else wilson(len(d), len(d))),
        ("you counted the failures: κ(W + λI) < κ(W) is a success", _failures),
        ("that is the textbook interval p ± 1.96 √(p(1 − p)/N), a single point at 0 and at 1; use Wilson's", _wald),
        ("return three numbers: share, low, high", lambda d, lam: success_rate(d, lam)[0]),
        ("the order is share, low, high", lambda d, lam: tuple(success_rate(d, lam)[i] for i in (1, 0, 2))),
    ),
    success_rate,
)  # fmt: skip


STACKED = Exercise(
    "05.stacked", "the identity of each head",
    (
        Case("D = 4, two heads: [I, I] with I of shape 4 × 2", "reference", lambda: (4, 2),
             lambda *a: torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]),
             "every head gets ones at (1, 1), (2, 2), … of its own d columns"),
        Case("each head sees the first d coordinates: head 3 of D = 12 with 3 heads", "property", lambda: (12, 3),
             lambda *a: torch.eye(12, 4), "columns 2d … 3d are head 3, and they are I of shape D × d",
             observe=lambda fn, dim, heads: torch.as_tensor(fn(dim, heads))[:, 8:]),
        Case("as one matrix it is singular: rank d, and σ_max = √heads", "property", lambda: (12, 3),
             lambda *a: (4, 3**0.5), "equal columns in different heads: √heads comes d times, then zeros",
             observe=lambda fn, dim, heads: (torch.linalg.matrix_rank(torch.as_tensor(fn(dim, heads)).double()),
                                             torch.linalg.matrix_norm(torch.as_tensor(fn(dim, heads)).double(), 2))),
        Case("one head: both readings are the same, I", "edge", lambda: (5, 1), lambda *a: torch.eye(5),
             "with one head there is nothing to repeat"),
    ),
    (
        ("that is the identity of the fused matrix: head h would see coordinates (h − 1)d + 1 … hd",
         lambda dim, heads: torch.eye(dim)),
        ("it is transposed: heads lie side by side, as columns (`repeat(1, heads)`), when W acts on the right",
         lambda dim, heads: stacked_identity(dim, heads).mT),
        ("that is the identity of one head, D × d: put `heads` of them side by side",
         lambda dim, heads: torch.eye(dim, dim // heads)),
        ("each head has d = D / heads columns, not `heads` of them",
         lambda dim, heads: torch.eye(dim, heads).repeat(1, dim // heads)),
    ),
    stacked_identity,
)  # fmt: skip

ENTRIES = (CERTAIN, WORST, RATE, STACKED)
