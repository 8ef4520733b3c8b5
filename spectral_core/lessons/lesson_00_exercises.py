"""Lesson 0, start here: the checks of its two warm-up exercises, as data."""

from __future__ import annotations

import math
from collections.abc import Sequence

from spectral_core.lessons.registry import Case, Exercise

__all__ = ["ENTRIES"]


def stretch_ratio(values: Sequence[float]) -> float:
    """Largest over smallest; ∞ when the smallest is 0."""
    return math.inf if min(values) == 0 else max(values) / min(values)


RATIO = Exercise(
    "00.ratio", "largest over smallest",
    (
        Case("stretches 6, 2 and 3: the ratio is 3", "reference", lambda: ([6.0, 2.0, 3.0],), lambda v: 3.0,
             "divide the largest by the smallest"),
        Case("scale does not matter: ten times the stretches, the same ratio (difference 0)", "property",
             lambda: ([5.0, 1.0, 0.5],), lambda v: 0.0, "a ratio, not a difference",
             observe=lambda fn, v: fn([10 * value for value in v]) - fn(v)),
        Case("order does not matter: 1 first or last gives 8 (difference 0)", "property", lambda: ([1.0, 4.0, 8.0],),
             lambda v: 0.0, "take the largest and the smallest, wherever they stand",
             observe=lambda fn, v: (fn(v) - 8) + (fn(v[::-1]) - 8)),
        Case("a stretch of 0: infinite", "edge", lambda: ([4.0, 0.0],), lambda v: math.inf,
             "a direction that is lost for good: return float('inf')"),
    ),
    (
        ("the ratio is upside down: it is 1 or more",
         lambda v: math.inf if max(v) == 0 else min(v) / max(v)),
        ("that is the difference; κ is a ratio", lambda v: max(v) - min(v)),
        ("you divide the first by the last: the list need not be sorted",
         lambda v: math.inf if v[-1] == 0 else v[0] / v[-1]),
        ("that is the largest alone, a size", max),
    ),
    stretch_ratio,
)  # fmt: skip


def choose(lams: Sequence[float], kappas: Sequence[float], saturations: Sequence[float], limit: float) -> float:
    """The λ of the smallest κ(J) among those whose saturation is at most `limit`."""
    allowed = [(kappa, lam) for lam, kappa, full in zip(lams, kappas, saturations, strict=True) if full <= limit]
    return min(allowed)[1]


def _row(kappas: list[float], saturations: list[float], limit: float = 0.6) -> tuple:
    return [0.0, 1.0, 2.0, 10.0], kappas, saturations, limit


CHOOSE = Exercise(
    "00.choose", "the better of two dials",
    (
        Case("κ(J) 900, 42, 14, 11 with saturation 0.1, 0.5, 0.9, 1.0 and limit 0.6: λ = 1", "reference",
             lambda: _row([900.0, 42.0, 14.0, 11.0], [0.1, 0.5, 0.9, 1.0]), lambda *a: 1.0,
             "leave out every λ whose saturation is above the limit, then take the smallest κ(J)"),
        Case("with a limit of 1 everything is allowed: λ = 10", "edge",
             lambda: _row([900.0, 42.0, 14.0, 11.0], [0.1, 0.5, 0.9, 1.0], 1.0), lambda *a: 10.0,
             "a saturation equal to the limit is allowed: <= and not <"),
        Case("when κ(J) rises with λ, zero is the answer", "property",
             lambda: _row([5.0, 42.0, 140.0, 9000.0], [0.1, 0.2, 0.3, 0.4]), lambda *a: 0.0,
             "the smallest κ(J), not the largest λ that is allowed"),
        Case("κ(J) may be infinite where attention is off", "edge",
             lambda: _row([900.0, 42.0, 60.0, math.inf], [0.1, 0.5, 0.55, 0.6]), lambda *a: 1.0,
             "an infinite κ(J) is never the smallest"),
    ),
    (
        ("the saturation is not looked at: that is how λ = 10 wins",
         lambda lams, kappas, full, limit: min(zip(kappas, lams, strict=True))[1]),
        ("you return κ(J): the answer is the λ that belongs to it",
         lambda lams, kappas, full, limit: min(k for k, f in zip(kappas, full, strict=True) if f <= limit)),
        ("you take the largest λ within the limit, whatever its κ(J)",
         lambda lams, kappas, full, limit: max(v for v, f in zip(lams, full, strict=True) if f <= limit)),
        ("a saturation equal to the limit is allowed: <= and not <",
         lambda lams, kappas, full, limit: min((k, v) for v, k, f in zip(lams, kappas, full, strict=True)
                                               if f < limit)[1]),
    ),
    choose,
)  # fmt: skip

ENTRIES = (RATIO, CHOOSE)
