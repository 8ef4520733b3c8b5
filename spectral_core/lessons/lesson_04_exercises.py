"""Lesson 4, the polar correction: the checks of its exercises, as data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spectral_core.lessons.lesson_01 import random_matrix, with_spectrum
from spectral_core.lessons.registry import Case, Exercise
from spectral_core.polar_correction import PolarCorrection

__all__ = ["ENTRIES"]


def newton_schulz(w: Tensor, steps: int) -> Tensor:
    """X ← 1.5 X − 0.5 X XᵀX, `steps` times from W / ‖W‖_F."""
    x = w / w.norm()
    for _ in range(steps):
        x = 1.5 * x - 0.5 * x @ x.mT @ x
    return x


def _iterated(step, w: Tensor, steps: int) -> Tensor:
    x = w / w.norm()
    for _ in range(steps):
        x = step(x)
    return x


def _unscaled(w: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        w = 1.5 * w - 0.5 * w @ w.mT @ w
    return w


def _spectral(w: Tensor, steps: int) -> Tensor:
    x = w / torch.linalg.matrix_norm(w, 2)
    for _ in range(steps):
        x = 1.5 * x - 0.5 * x @ x.mT @ x
    return x


def _by_svd(w: Tensor, steps: int) -> Tensor:
    u, _, vh = torch.linalg.svd(w, full_matrices=False)
    return u @ vh


def _diagonal(*values: float) -> Tensor:
    return torch.diag(torch.tensor(values, dtype=torch.float64))


NEWTON = Exercise(
    "04.newton-schulz", "the polar factor from products",
    (
        Case("diag(0.4, 0.3), one step: diag(0.8, 0.6) becomes diag(0.944, 0.792)", "reference",
             lambda: (_diagonal(0.4, 0.3), 1), lambda w, steps: _diagonal(0.944, 0.792),
             "start at W/‖W‖_F, then X ← 1.5 X − 0.5 X XᵀX"),
        Case("two steps on a random 4 × 4 matrix", "reference", lambda: (random_matrix(4, 4, seed=3), 2), newton_schulz,
             "the cube is X XᵀX, in this order"),
        Case("40 steps on a 9 × 4 matrix give U Vᵀ, as an SVD does", "property",
             lambda: (with_spectrum([3.0, 2.0, 1.0, 0.2], seed=1, m=9), 40), _by_svd,
             "X XᵀX keeps the shape of X: m × n, n × m, m × n"),
        Case("a wide W ends with orthonormal rows", "property",
             lambda: (with_spectrum([2.0, 1.0, 0.5], seed=2, m=7).mT, 40), lambda w, steps: torch.eye(3).double(),
             "X XᵀX works for any shape; do not assume that W is tall", observe=lambda fn, w, steps: fn(w, steps) @
             fn(w, steps).mT),
        Case("size does not matter: 1000 W gives what W gives (difference 0)", "property",
             lambda: (random_matrix(5, 5, seed=4), 3), lambda w, steps: torch.zeros(5, 5).double(),
             "divide by ‖W‖_F first", observe=lambda fn, w, steps: fn(1000 * w, steps) - fn(w, steps)),
        Case("a singular value of 0 stays 0: no polynomial without a constant term can lift it", "edge",
             lambda: (_diagonal(2.0, 0.0), 30), lambda w, steps: _diagonal(1.0, 0.0),
             "nothing but X and X XᵀX may be added"),
    ),
    (
        ("W is not divided by ‖W‖_F: a singular value above √5 runs away", _unscaled),
        ("you divided by σ_max; it works, and faster, but the exercise starts at W/‖W‖_F, without an SVD", _spectral),
        ("the cube is taken entry by entry: it has to be the matrix product X XᵀX",
         lambda w, steps: _iterated(lambda x: 1.5 * x - 0.5 * x**3, w, steps)),
        ("you have X X X where X XᵀX belongs: only that acts on singular values",
         lambda w, steps: _iterated(lambda x: 1.5 * x - 0.5 * x @ x @ x, w, steps)),
        ("one step too many", lambda w, steps: newton_schulz(w, steps + 1)),
        ("one step is missing", lambda w, steps: newton_schulz(w, steps - 1)),
        ("the sign of the cubic term: 1.5 X *minus* 0.5 X XᵀX",
         lambda w, steps: _iterated(lambda x: 1.5 * x + 0.5 * x @ x.mT @ x, w, steps)),
    ),
    newton_schulz,
)  # fmt: skip


def steps_to(sigma: float, tol: float) -> int:
    """Steps of σ ← 1.5 σ − 0.5 σ³ until |1 − σ| ≤ tol."""
    steps = 0
    while abs(1 - sigma) > tol:
        sigma = 1.5 * sigma - 0.5 * sigma**3
        steps += 1
    return steps


def _at_least_one(sigma: float, tol: float) -> int:
    return max(1, steps_to(sigma, tol))


def _growth_only(sigma: float, tol: float) -> int:
    return math.ceil(math.log(1 / sigma) / math.log(1.5))


STEPS = Exercise(
    "04.steps", "how many steps",
    (
        Case("σ = 0.001 to within 10⁻⁶: 21 steps", "reference", lambda: (1e-3, 1e-6), lambda sigma, tol: 21,
             "apply p until |1 − σ| ≤ tol, and count"),
        Case("σ = 0.5 to within 0.001: 0.5, 0.6875, 0.869, 0.975, 0.9991 are 4 steps", "reference",
             lambda: (0.5, 1e-3), lambda sigma, tol: 4, "count the steps, not the values: the start is step 0"),
        Case("σ = 1 is there already: 0 steps", "edge", lambda: (1.0, 1e-9), lambda sigma, tol: 0,
             "test before the first step"),
        Case("a tiny σ, 10⁻²⁰: every step multiplies it by 1.5", "property", lambda: (1e-20, 1e-6), steps_to,
             "while σ is small, p(σ) ≈ 1.5 σ"),
        Case("near 1 the error is squared: from 10⁻⁴ to 10⁻⁷ is one more step (difference 1)", "property",
             lambda: (0.01, 1e-4), lambda sigma, tol: steps_to(sigma, 1e-7) - steps_to(sigma, 1e-4),
             "count with the tolerance that is given",
             observe=lambda fn, sigma, tol: fn(sigma, 1e-7) - fn(sigma, tol)),
    ),
    (
        ("you count one step even where none is needed: test before the first step", _at_least_one),
        ("you count one too many: the start itself is no step", lambda sigma, tol: steps_to(sigma, tol) + 1),
        ("you count matrix products, two a step: the exercise asks for steps",
         lambda sigma, tol: 2 * steps_to(sigma, tol)),
        ("growth by 1.5 is not all: from about 0.8 on, the last few steps square the error", _growth_only),
        ("the tolerance is not used: it has to end at |1 − σ| ≤ tol", lambda sigma, tol: steps_to(sigma, 1e-6)),
    ),
    steps_to,
)  # fmt: skip


def corrected_spectrum(s: Tensor, keep_norm: bool) -> Tensor:
    """Singular values of W + C, and rescaled to ‖W‖_F if `keep_norm`."""
    out = s + s.max()
    return out * (s.norm() / out.norm()) if keep_norm else out


def _rescaled(s: Tensor, factor: Tensor, keep_norm: bool) -> Tensor:
    return (s + s.max()) * factor if keep_norm else s + s.max()


def _values(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _of_package(s: Tensor, keep_norm: bool) -> Tensor:
    corrected = PolarCorrection(preserve="frobenius" if keep_norm else None)(with_spectrum(s.tolist(), seed=5))
    return torch.linalg.svdvals(corrected)


SPECTRUM = Exercise(
    "04.spectrum", "the spectrum after the correction",
    (
        Case("(4, 1) becomes (8, 5)", "reference", lambda: (_values(4.0, 1.0), False),
             lambda s, keep: _values(8.0, 5.0), "every singular value gains σ_max"),
        Case("with the norm kept, what the package gives", "reference",
             lambda: (_values(3.0, 2.0, 0.5, 0.1), True), _of_package,
             "multiply σ + σ_max by ‖W‖_F / ‖W + C‖_F, the roots of the sums of squares"),
        Case("keeping the norm leaves κ = 1.6 of (4, 1) as it is", "property", lambda: (_values(4.0, 1.0), True),
             lambda s, keep: 1.6, "one number for all singular values: a ratio does not notice",
             observe=lambda fn, s, keep: fn(s, keep).max() / fn(s, keep).min()),
        Case("keeping the norm keeps the sum of squares, 17 of (4, 1)", "property", lambda: (_values(4.0, 1.0), True),
             lambda s, keep: 17.0, "the Frobenius norm is the root of the sum of squares",
             observe=lambda fn, s, keep: (fn(s, keep) ** 2).sum()),
        Case("a singular W, values in any order: (0, 3, 1) becomes (3, 6, 4), κ = 2", "edge",
             lambda: (_values(0.0, 3.0, 1.0), False), lambda s, keep: _values(3.0, 6.0, 4.0),
             "take the maximum, wherever it stands"),
    ),
    (
        ("the largest need not come first: s.max(), not s[0]",
         lambda s, keep: (s + s[0]) * (s.norm() / (s + s[0]).norm() if keep else 1.0)),
        ("`keep_norm` is not used", lambda s, keep: s + s.max()),
        ("you rescale also where `keep_norm` is False", lambda s, keep: corrected_spectrum(s, True)),
        ("the factor is upside down: ‖W‖ / ‖W + C‖",
         lambda s, keep: _rescaled(s, (s + s.max()).norm() / s.norm(), keep)),
        ("the norms are squared: take the root of the sum of squares",
         lambda s, keep: _rescaled(s, (s.norm() / (s + s.max()).norm()) ** 2, keep)),
        ("you kept σ_max: that is the spectral norm, not Frobenius'",
         lambda s, keep: _rescaled(s, torch.tensor(0.5, dtype=s.dtype), keep)),
        ("you used the sum of the singular values: Frobenius' norm is the root of their squares' sum",
         lambda s, keep: _rescaled(s, s.sum() / (s + s.max()).sum(), keep)),
        ("C alone has all singular values σ_max: W's own have to be added", lambda s, keep: 0 * s + s.max()),
    ),
    corrected_spectrum,
)  # fmt: skip

ENTRIES = (NEWTON, STEPS, SPECTRUM)
