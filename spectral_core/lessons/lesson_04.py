"""Lesson 4, the polar correction: its iterations, views, predictions and quiz, as data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from spectral_core.lessons.lesson_01 import random_matrix
from spectral_core.lessons.lesson_04_arms import drift
from spectral_core.lessons.registry import Choice, Option, Question, Slider, View
from spectral_core.minimax import best_quintic
from spectral_core.plots.polar import lines_against, polar_iterate
from spectral_core.spectrum import singular_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ENTRIES", "METHODS", "PRODUCTS", "minimax_steps", "polynomials"]

METHODS = ("Newton–Schulz", "minimax", "Muon")
PRODUCTS = {"Newton–Schulz": 2, "minimax": 3, "Muon": 3}  # matrix products a step


def newton(x: float) -> float:
    """1.5 x − 0.5 x³."""
    return 1.5 * x - 0.5 * x**3


def muon(x: float) -> float:
    """Muon's fixed quintic."""
    return 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5


def polynomials(method: str, steps: int, low: float = 1e-3) -> list[Callable[[float], float]]:
    """The polynomials of the first `steps` steps; minimax ones for singular values in [low, 1]."""
    if method != "minimax":
        return [newton if method == "Newton–Schulz" else muon] * steps
    out: list[Callable[[float], float]] = []
    high = 1.0
    for _ in range(steps):
        quintic = best_quintic(low, high)
        out.append(quintic.__call__)
        low, high = 1 - quintic.error, 1 + quintic.error
    return out


def iterate(x: float, method: str, steps: int, low: float = 1e-3) -> float:
    """A singular value after so many steps."""
    return _chain(polynomials(method, steps, low), x)


def _chain(functions: list[Callable[[float], float]], x: float) -> float:
    for function in functions:
        x = function(x)
    return x


def minimax_steps(low: float, tol: float) -> int:
    """Steps of minimax quintics until every singular value of [low, 1] is within `tol` of 1."""
    steps, high = 0, 1.0
    while max(1 - low, high - 1) > tol:
        error = best_quintic(low, high).error
        low, high, steps = 1 - error, 1 + error, steps + 1
    return steps


def newton_steps(sigma: float, tol: float) -> int:
    """Steps of Newton–Schulz until σ is within `tol` of 1."""
    steps = 0
    while abs(1 - sigma) > tol:
        sigma, steps = newton(sigma), steps + 1
    return steps


def draw_open(n: int, seed: int) -> Figure:
    """κ(W + σ_max X) of a Gaussian n × n W against matrix products, X the iterate of each method."""
    s = singular_values(random_matrix(int(n), int(n), int(seed)))
    spectral, frobenius = (s / s[0]).tolist(), (s / s.norm()).tolist()
    lines = {}
    for method in METHODS:
        steps = 54 // PRODUCTS[method]
        # Muon starts at W/‖W‖_F, as its authors do; only minimax is told the smallest singular value
        start, kappas = frobenius if method == "Muon" else spectral, []
        steppers = polynomials(method, steps, spectral[-1])
        x = start
        for p in [lambda value: value, *steppers]:
            x = [p(value) for value in x]
            total = [w + q for w, q in zip(spectral, x, strict=True)]
            kappas.append(max(total) / min(total))
        lines[method] = ([PRODUCTS[method] * k for k in range(steps + 1)], kappas)
    title = f"One {n:g} × {n:g} matrix, κ = {1 / spectral[-1]:.0f}, and a factor X built from products alone"
    return lines_against(
        lines, x_label="matrix products", y_label="κ(W + σ_max X)", log="y", guides={"κ = 2": 2.0}, title=title,
        places="upper right",
    )  # fmt: skip


def draw_iterate(exponent: float, steps: int, method: str) -> Figure:
    """A 2 × 2 matrix with singular values 1 and 10^exponent after `steps` steps of a method."""
    low, steps = 10.0**exponent, int(steps)
    functions = polynomials(method, steps, low)
    title = (
        f"{method}, {steps} steps = {PRODUCTS[method] * steps} products: σ = {low:.3g} → "
        f"{_chain(functions, low):.3g}, σ = 1 → {_chain(functions, 1.0):.3g}"
    )
    return polar_iterate(lambda x: _chain(functions, x), low, title=title)


def draw_cost(exponent: float) -> Figure:
    """Matrix products until all singular values are within 10^exponent of 1, against κ."""
    tol, kappas = 10.0**exponent, [10 ** (i / 4) for i in range(1, 33)]
    newtons = [2 * newton_steps(1 / kappa, tol) for kappa in kappas]
    minimax = [3 * minimax_steps(1 / kappa, tol) for kappa in kappas]
    return lines_against(
        {"Newton–Schulz": (kappas, newtons), "minimax quintics": (kappas, minimax)}, log="x", x_label="κ(W)",
        y_label="matrix products", title=f"Products until every singular value is within {tol:.0e} of 1",
    )  # fmt: skip


def draw_drift(pace: float, seed: int) -> Figure:
    """κ(W + C) while W walks away from where C was made."""
    walk, steps = drift(pace, 100, int(seed)), list(range(1, 101))
    lines = {
        "Weyl's bound for C kept": (steps, walk["bound"]),
        "C kept": (steps, walk["kept"]),
        "C carried along": (steps, walk["carried"]),
    }
    title = f"After 100 steps W has moved by {walk['distance'][-1]:.2f} σ_max"
    return lines_against(
        lines, x_label="steps of W", y_label="κ(W + C)", title=title, guides={"κ = 2": 2.0}, top=4.0,
        places="upper left",
    )  # fmt: skip


SEED = Slider("seed", "seed", 0, 9, 1, 0, "which random matrix")

VIEWS = (
    View("04.open", draw_open, (
        Slider("n", "size n", 16, 96, 16, 64, "W is an n × n Gaussian matrix"), SEED,
    )),
    View("04.iterate", draw_iterate, (
        Slider("exponent", "log₁₀ σ_min", -6, -0.5, 0.5, -2, "the shorter half-axis, the longer one is 1"),
        Slider("steps", "steps k", 0, 40, 1, 8, "polynomials applied one after another"),
        Choice("method", "method", METHODS, "Newton–Schulz", "which polynomials"),
    )),
    View("04.cost", draw_cost, (
        Slider("exponent", "log₁₀ tolerance", -12, -1, 1, -6, "how near to 1 every singular value has to come"),
    )),
    View("04.drift", draw_drift, (
        Slider("pace", "step / σ_max", 0.005, 0.1, 0.005, 0.05, "spectral norm of one step, next to that of W"), SEED,
    )),
)  # fmt: skip

QUESTIONS = (
    Question(
        "04.warm",
        "W has moved a little since its polar factor Q was made. To save work you start Newton–Schulz at Q in place of "
        "W/‖W‖. Where does it end?",
        {
            "a": Option("at the new polar factor, after one or two steps", "The iteration sees W only through its "
                        "starting point. Started at Q it has never heard of the new W."),
            "b": Option("at Q again: it never sees the new W", "All singular values of Q are 1 already, and 1 is where "
                        "p stays: 1.5 − 0.5 = 1."),
            "c": Option("nowhere, it diverges", "Singular values between 0 and √3 converge, and those of Q are 1."),
        },
        "b",
    ),
    Question(
        "04.head",
        "A head with Xavier weights; the whole W_Q of its layer has a κ between 40 and about 1 000. The polar "
        "correction takes W_Q, W_K and W_V to κ ≤ 2. What happens to κ(J) of the head?",
        {
            "a": Option("it falls, since every weight is better conditioned", "J depends on the softmax too, and the "
                        "correction makes the logits several times larger."),
            "b": Option("it stays about where it was", "It moves by orders of magnitude."),
            "c": Option("it rises, more than tenfold on every digit", "The weights grow as well, and attention "
                        "saturates. The same growth without any conditioning does the same."),
        },
        "c",
    ),
    Question(
        "04.quiz-muon",
        "Muon's five steps leave singular values between about 0.7 and 1.2, or below. What do more of them do?",
        {
            "a": Option("they bring all to 1, only slowly", "p(1) = 0.701 with these coefficients: 1 is not a fixed "
                        "point, so nothing can converge to it."),
            "b": Option("they lift the small ones into that band, and no further", "The band is mapped into itself. "
                        "Good enough for an update's direction, not for κ ≤ 2."),
            "c": Option("they diverge", "The polynomial maps [0, 1.21] into itself."),
        },
        "b",
    ),
    Question(
        "04.quiz-cost",
        "κ(W) goes from 10³ to 10⁶. How many more steps does Newton–Schulz need?",
        {
            "a": Option("a thousand times as many", "Small σ grow by a factor 1.5 a step, so it is the logarithm that "
                        "counts."),
            "b": Option("about 17 more", "ln 1000 / ln 1.5 = 17; the end, where the error is squared at each step, "
                        "costs the same for both."),
            "c": Option("none: the convergence is quadratic", "Only near 1. Far below, a step multiplies by 1.5."),
        },
        "b",
    ),
    Question(
        "04.quiz-scale",
        "With C added, κ(J) of a head fell fifteenfold. Which control says whether conditioning did it?",
        {
            "a": Option("the same W multiplied by a number until its norm is that of W + C", "Same size, the old κ(W): "
                        "if κ(J) falls as much there, it was the size."),
            "b": Option("another seed", "Needed for the spread, but it changes size and conditioning together again."),
            "c": Option("κ(W + C) ≤ 2, looked at once more", "That is known by proof, and says nothing of J."),
        },
        "a",
    ),
)  # fmt: skip

ENTRIES = (*VIEWS, *QUESTIONS)
