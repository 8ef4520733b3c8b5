"""Lesson 1, condition numbers: its views, predictions and quiz, as data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spectral_core import plots
from spectral_core.lessons.registry import Option, Question, Slider, View
from spectral_core.polar_correction import PolarCorrection
from spectral_core.spectrum import condition_number, singular_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ENTRIES", "gradient_descent", "random_matrix", "with_spectrum"]


def random_matrix(m: int, n: int, seed: int = 0) -> Tensor:
    """An m × n Gaussian matrix in float64, entries of variance 1/n."""
    return torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) / n**0.5


def with_spectrum(values: list[float], seed: int = 0, m: int | None = None) -> Tensor:
    """A matrix (m, len(values)) with these singular values and random singular vectors, in float64."""
    n = len(values)
    u, v = (torch.linalg.qr(random_matrix(k, n, seed + i)).Q for i, k in enumerate((m or n, n)))
    return u * torch.tensor(values, dtype=torch.float64) @ v.mT


def gradient_descent(a: Tensor, y: Tensor, steps: int) -> list[float]:
    """‖A w − y‖ / ‖y‖ of gradient descent on ½‖A w − y‖² from w = 0 with the best fixed step, steps + 1 values."""
    sigma = singular_values(a)
    eta = 2 / (sigma[0] ** 2 + sigma[-1] ** 2)
    w, out = a.new_zeros(a.shape[1]), []
    for _ in range(steps + 1):
        residual = a @ w - y
        out.append(float(residual.norm() / y.norm()))
        w = w - eta * a.mT @ residual
    return out


def draw_open(kappa: float, steps: int) -> Figure:
    """Two matrices of one norm, κ = 3 and `kappa`: the residual of gradient descent on each."""
    y = random_matrix(8, 1, seed=3)[:, 0]
    lines = {}
    for k in (3.0, kappa):
        values = torch.logspace(0, -math.log10(k), 8, dtype=torch.float64)
        a = with_spectrum((values / values.norm()).tolist())
        lines[f"κ = {k:g}"] = gradient_descent(a, y, steps)
    return plots.curves(lines, title="Same size, same norm, same target", y_label="residual ‖Aw − y‖ / ‖y‖")


def draw_descent(kappa: float, step: float, angle: float, steps: int) -> Figure:
    """Gradient descent on ½(x² + y²/κ), so L = 1, from a point at `angle`° off the steep axis with step `step` / L."""
    x, y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    a, b = 1 - step, 1 - step / kappa
    path = [(x * a**t, y * b**t) for t in range(int(steps) + 1)]
    return plots.descent(path, kappa, max(abs(a), abs(b)))


def draw_shift(n: int, seed: int) -> Figure:
    """κ(W + λI) of an n × n Gaussian W for λ from 0 to 4 σ_max."""
    w = random_matrix(int(n), int(n), seed=int(seed))
    lams = torch.linspace(0, 4, 121, dtype=torch.float64)
    shifted = w + (lams * singular_values(w)[0])[:, None, None] * torch.eye(int(n), dtype=w.dtype)
    polar = float(condition_number(PolarCorrection()(w)))
    kappa = float(condition_number(w))
    return plots.shifted_kappa(lams.tolist(), condition_number(shifted).tolist(), kappa=kappa, polar=polar)


VIEWS = (
    View("01.open", draw_open, (
        Slider("kappa", "κ of the second matrix", 3, 10_000, 1, 3_000, "ratio of its largest to smallest stretch"),
        Slider("steps", "steps", 20, 400, 20, 100, "gradient steps drawn"),
    )),
    View("01.descent", draw_descent, (
        Slider("kappa", "κ", 1, 100, 1, 20, "condition number of the Hessian"),
        Slider("step", "step · L", 0.1, 2.1, 0.05, 1.8, "step size times the curvature L; best at 2κ/(κ + 1)"),
        Slider("angle", "start angle (°)", 0, 90, 5, 45, "0: along the steep axis, 90: along the flat one"),
        Slider("steps", "steps", 5, 100, 5, 40, "gradient steps drawn"),
    )),
    View("01.shift", draw_shift, (
        Slider("n", "size n", 4, 64, 4, 32, "W is an n × n Gaussian matrix"),
        Slider("seed", "seed", 0, 9, 1, 1, "which random matrix"),
    )),
)  # fmt: skip

QUESTIONS = (
    Question(
        "01.scale",
        "We multiply a matrix by 100 and take the best fixed step for it. How many gradient steps does least squares "
        "with it need now?",
        {
            "a": Option("100 times fewer", "The gradients do grow, but the largest stable step shrinks as much."),
            "b": Option("the same number", "κ is a ratio of two stretches; the factor 100 cancels, and the best "
                        "step shrinks by 100² to compensate."),
            "c": Option("10 000 times more", "The best step does shrink by 100², but the curvature grows by "
                        "100²: they cancel."),
        },
        "b",
    ),
    Question(
        "01.identity",
        "We add λI to a random square matrix, with λ half its largest singular value. What happens to κ?",
        {
            "a": Option("it always falls", "That is what 'conditioning' suggests, but a singular value near −λ in "
                        "the wrong direction lands near zero."),
            "b": Option("it stays the same", "That would need every singular value to move by the same factor."),
            "c": Option("it may fall or rise", "Only λ above σ_max is large enough to be sure that no direction of W "
                        "can cancel λI."),
        },
        "c",
    ),
    Question(
        "01.quiz-rank",
        "A 100 × 64 matrix has three columns of zeros. What are κ and κ⁺?",
        {
            "a": Option("κ = ∞, κ⁺ finite, at rank 61 or less", "κ counts all 64 singular values, zeros included; "
                        "κ⁺ stops at the rank, so the rank belongs next to it."),
            "b": Option("both infinite", "κ⁺ leaves out the singular values that count as zero."),
            "c": Option("both finite", "κ divides by the smallest of all 64 singular values, and three are zero."),
        },
        "a",
    ),
    Question(
        "01.quiz-square",
        "Least squares on A with κ(A) = 10. Roughly how many steps for a thousandth of the residual?",
        {
            "a": Option("about 35", "That is κ/2 · ln 1000, right if 10 were the condition number of the Hessian. "
                        "The Hessian is AᵀA, with κ = 100."),
            "b": Option("about 350", "κ²/2 · ln 1000 = 50 · 6.9."),
            "c": Option("about 50", "That forgets the logarithm of the accuracy."),
        },
        "b",
    ),
    Question(
        "01.quiz-norm",
        "W has spectral norm 0.1, and so has 0.1·I. Which of the two is better conditioned?",
        {
            "a": Option("0.1·I, unless all singular values of W are equal", "κ(0.1·I) = 1, the least there is, and "
                        "κ(W) is 1 only when W stretches all directions alike."),
            "b": Option("they are equal: the norms agree", "The norm is σ_max alone; κ also needs σ_min."),
            "c": Option("W: it has more directions", "Both have all of them; what counts is how differently they "
                        "are stretched."),
        },
        "a",
    ),
)  # fmt: skip

ENTRIES = (*VIEWS, *QUESTIONS)
