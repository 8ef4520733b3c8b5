"""Lesson 1, condition numbers: the checks of its exercises, as data."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from spectral_core.lessons.lesson_01 import gradient_descent, random_matrix, with_spectrum
from spectral_core.lessons.registry import Case, Exercise
from spectral_core.polar_correction import PolarCorrection
from spectral_core.spectrum import condition_number, spectrum

__all__ = ["ENTRIES"]


def _last_over_first(w: Tensor) -> Tensor:
    s = torch.linalg.svdvals(w)
    return s[-1] / s[0]


def kappa(w: Tensor) -> Tensor:
    """σ_max/σ_min, ∞ from 1e-12 on."""
    return condition_number(w, rtol=1e-12)


KAPPA = Exercise(
    "01.kappa", "the condition number",
    (
        Case("diag(4, 2, 1) has κ = 4", "reference", lambda: (torch.diag(torch.tensor([4.0, 2.0, 1.0]).double()),),
             lambda w: 4.0, "κ is the largest singular value over the smallest"),
        Case("the scale of W does not matter: κ(100 W) / κ(W) = 1", "property", lambda: (random_matrix(5, 3),),
             lambda w: 1.0, "something in your formula does not grow with W as the rest does",
             observe=lambda fn, w: fn(100 * w) / fn(w)),
        Case("a tall Gaussian matrix", "reference", lambda: (random_matrix(9, 4, seed=1),), condition_number,
             "take all min(m, n) singular values, from torch.linalg.svdvals(w)"),
        Case("a matrix of rank 2 with 3 columns has κ = ∞", "edge", lambda: (with_spectrum([2.0, 1.0, 0.0], m=4),),
             lambda w: math.inf,
             "rounding leaves σ_min near 1e-16 in place of 0: compare it with a tolerance, not with 0"),
    ),
    (
        ("your ratio is upside down: it is σ_max / σ_min, never below 1", _last_over_first),
        ("you have κ²: the eigenvalues of WᵀW are squared singular values",
         lambda w: torch.linalg.svdvals(w)[0] ** 2 / torch.linalg.svdvals(w)[-1] ** 2),
        ("you have the largest singular value alone, which measures size and not conditioning",
         lambda w: torch.linalg.svdvals(w)[0]),
        ("you divide the Frobenius norm, not σ_max, by σ_min", lambda w: w.norm() / torch.linalg.svdvals(w)[-1]),
        ("you compare with exact zero, but σ_min of a singular matrix is rounding: use a tolerance",
         lambda w: torch.linalg.svdvals(w)[0] / torch.linalg.svdvals(w)[-1]),
    ),
    kappa,
)  # fmt: skip


def _effective(w: Tensor, rtol: float) -> tuple[Tensor, Tensor]:
    result = spectrum(w, rtol=rtol)
    return result.effective_condition_number, result.rank


def _keeping(w: Tensor, keep: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    s = torch.linalg.svdvals(w)
    kept = s[keep(s)]
    return kept[0] / kept[-1], torch.tensor(len(kept))


EFFECTIVE = Exercise(
    "01.effective", "κ⁺ and the rank",
    (
        Case("singular values 8, 4, 2 and a zero: κ⁺ = 4 at rank 3", "reference",
             lambda: (with_spectrum([8.0, 4.0, 2.0, 0.0], m=6), 1e-10), lambda w, rtol: (4.0, 3),
             "count the singular values above rtol · σ_max, and divide σ_max by the last of those"),
        Case("the tolerance is relative: 1e6 · W has the same κ⁺ and rank", "property",
             lambda: (1e6 * with_spectrum([8.0, 4.0, 1e-9]), 1e-6), lambda w, rtol: (2.0, 2),
             "compare with rtol · σ_max, not with rtol itself"),
        Case("with nothing near zero κ⁺ is κ and the rank is full", "edge", lambda: (random_matrix(7, 4), 1e-10),
             _effective, "with no singular value below the tolerance all of them count"),
        Case("a larger tolerance lowers the rank: values 1, 0.1, 0.01 at rtol = 0.05", "property",
             lambda: (with_spectrum([1.0, 0.1, 0.01]), 0.05), lambda w, rtol: (10.0, 2),
             "the cut is at rtol · σ_max, here 0.05"),
    ),
    (
        ("your tolerance is absolute: compare the singular values with rtol · σ_max",
         lambda w, rtol: _keeping(w, lambda s: s > rtol)),
        ("you kept every singular value: leave out those at or below rtol · σ_max",
         lambda w, rtol: _keeping(w, lambda s: s >= 0)),
        ("your ratio is upside down: σ_max over the smallest one that counts",
         lambda w, rtol: (1 / _effective(w, rtol)[0], _effective(w, rtol)[1])),
        ("return both numbers, (κ⁺, rank), in this order", lambda w, rtol: _effective(w, rtol)[0]),
        ("you have the two numbers the other way round: (κ⁺, rank)", lambda w, rtol: _effective(w, rtol)[::-1]),
    ),
    _effective,
)  # fmt: skip


def steps_needed(a: Tensor, eps: float) -> int:
    """Least whole t with ((κ² − 1)/(κ² + 1))^t ≤ eps, at least 1."""
    return _steps(float(condition_number(a)) ** 2, eps)


def _steps(kappa_h: float, eps: float) -> int:
    rate = (kappa_h - 1) / (kappa_h + 1)
    return max(1, math.ceil(math.log(eps) / math.log(rate))) if rate > 1e-12 else 1


def _residual_left(fn, a: Tensor, eps: float) -> float:
    y = random_matrix(a.shape[0], 1, seed=9)[:, 0]
    left = gradient_descent(a, y, max(0, min(int(fn(a, eps)), 5_000)))[-1]
    return max(0.0, left - eps)


def _kappa(a: Tensor) -> float:
    return float(condition_number(a))


STEPS = Exercise(
    "01.steps", "how many steps",
    (
        Case("κ(A) = 10 and a thousandth of the residual: 346 steps", "reference",
             lambda: (with_spectrum([10.0, 5.0, 1.0]), 1e-3), steps_needed,
             "the factor a step is (κ² − 1)/(κ² + 1) with κ = κ(A); find the least whole t with factor^t ≤ eps"),
        Case("it is enough: real gradient descent is at eps after so many steps (excess 0)", "property",
             lambda: (with_spectrum([1.0, 0.6, 0.15], seed=5), 1e-3), lambda a, eps: 0.0,
             "your number is too small for the slowest direction", observe=_residual_left),
        Case("scale does not matter: 100 A needs as many steps as A (difference 0)", "property",
             lambda: (with_spectrum([1.0, 0.3], seed=2), 1e-2), lambda a, eps: 0,
             "your formula has a singular value in it that is not divided by another one",
             observe=lambda fn, a, eps: fn(100 * a, eps) - fn(a, eps)),
        Case("an orthogonal matrix needs one step", "edge", lambda: (with_spectrum([1.0, 1.0, 1.0]), 1e-3),
             lambda a, eps: 1, "at κ = 1 the factor is 0 (or rounding of it), and log 0 has to be avoided"),
    ),
    (
        ("the Hessian of ½‖Aw − y‖² is AᵀA: its condition number is κ(A)², and you used κ(A)",
         lambda a, eps: _steps(_kappa(a), eps)),
        ("that is the rate of the step 1/σ_max², not of the best one, 2/(σ_max² + σ_min²)",
         lambda a, eps: math.ceil(math.log(eps) / math.log(1 - 1 / _kappa(a) ** 2))),
        ("you rounded down: the last step is missing", lambda a, eps: _steps(_kappa(a) ** 2, eps) - 1),
        ("you have the approximation κ²/2 · log(1/eps); the exact count uses log(eps) / log(factor)",
         lambda a, eps: math.ceil(_kappa(a) ** 2 / 2 * math.log(1 / eps))),
        ("you squared once too often: log(eps)/log(factor) wants the κ of AᵀA, which is κ(A)², not κ(A)⁴",
         lambda a, eps: _steps(_kappa(a) ** 4, eps)),
    ),
    steps_needed,
)  # fmt: skip


def _polar_mistake(w: Tensor, kind: str) -> Tensor:
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    by_kind = {"unscaled": w + u @ vh, "replaced": s[0] * u @ vh, "untransposed": w + s[0] * u @ vh.mT}
    return by_kind[kind]


def _correct(w: Tensor) -> Tensor:
    return PolarCorrection()(w)


POLAR = Exercise(
    "01.polar", "the polar correction",
    (
        Case("every singular value grows by σ_max: 8, 4, 1 become 16, 12, 9", "reference",
             lambda: (with_spectrum([8.0, 4.0, 1.0], m=5),), lambda w: torch.tensor([16.0, 12.0, 9.0]),
             "add σ_max · U Vᵀ, with U and Vᵀ from the SVD of W", observe=lambda fn, w: torch.linalg.svdvals(fn(w))),
        Case("κ falls to 2κ/(κ + 1), below 2", "property", lambda: (random_matrix(6, 6, seed=4),),
             lambda w: 2 * condition_number(w) / (condition_number(w) + 1),
             "σ_max of the result should be 2 σ_max(W), its σ_min σ_max(W) + σ_min(W)",
             observe=lambda fn, w: condition_number(fn(w))),
        Case("it turns with W: rotating W rotates the result", "property", lambda: (random_matrix(4, 4, seed=6),),
             lambda w: with_spectrum([1.0] * 4, seed=8) @ _correct(w),
             "the correction must use W's own directions U and V, not a fixed matrix such as I",
             observe=lambda fn, w: fn(with_spectrum([1.0] * 4, seed=8) @ w)),
        Case("a singular W ends at κ = 2 exactly", "edge", lambda: (with_spectrum([3.0, 1.0, 0.0]),), lambda w: 2.0,
             "the zero singular value becomes σ_max, the largest 2 σ_max",
             observe=lambda fn, w: condition_number(fn(w))),
    ),
    (
        ("you added σ_max · I: the correction needs W's own directions, U Vᵀ",
         lambda w: w + torch.linalg.svdvals(w)[0] * torch.eye(*w.shape, dtype=w.dtype)),
        ("U Vᵀ is there but not its factor σ_max", lambda w: _polar_mistake(w, "unscaled")),
        ("you replaced W by σ_max · U Vᵀ; the correction is added to W", lambda w: _polar_mistake(w, "replaced")),
        ("torch.linalg.svd returns Vᵀ already: do not transpose it again",
         lambda w: _polar_mistake(w, "untransposed")),
    ),
    _correct,
)  # fmt: skip

ENTRIES = (KAPPA, EFFECTIVE, STEPS, POLAR)
