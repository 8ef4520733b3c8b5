"""The odd quintic p(x) = a x + b x³ + c x⁵ that maps an interval [ℓ, u] nearest to 1, for polar iterations.

Applied to a matrix as X (a I + b XᵀX + c (XᵀX)²), p acts on the singular values and leaves the singular vectors.
Amsel, Persson, Musco, Gower: "The Polar Express", arXiv 2505.16932, section 3: composing, step by step, the best
polynomial for the interval that the step before has left is the best of all compositions. A table holds for the one
ℓ it was made for; here the coefficients are derived for the ℓ at hand.

>>> quintic = best_quintic(1e-3, 1.0)
>>> [round(value, 3) for value in (quintic.a, quintic.b, quintic.c, quintic.error)]
[8.47, -25.108, 18.629, 0.992]
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

__all__ = ["Quintic", "best_quintic"]


class Quintic(NamedTuple):
    """Coefficients of p, and `error` = max |1 − p(x)| over the interval."""

    a: float
    b: float
    c: float
    error: float

    def __call__(self, x: float) -> float:
        return x * (self.a + x * x * (self.b + x * x * self.c))


#: 1 − p(x) = (5/2)(1 − x)³ + …: the best where ℓ and u are both next to 1, and monotone on [0, 1]
TAYLOR = Quintic(15 / 8, -10 / 8, 3 / 8, 0.0)


@lru_cache(maxsize=1024)
def best_quintic(low: float, high: float) -> Quintic:
    """The minimax quintic on [low, high], by the exchange algorithm of Remez.

    The error alternates in sign at low < q < r < high, where q and r are the extrema of p between the ends: given q
    and r the four coefficients (a, b, c, error) solve a linear system, and given those q and r have a closed form.

    Args:
        low, high: 0 < low ≤ high.

    Raises:
        ValueError: not 0 < low ≤ high < ∞.
    """
    if not 0 < low <= high < math.inf:
        raise ValueError(f"best_quintic: expected 0 < low <= high, got {low!r} and {high!r}")
    middle = (low + high) / 2
    if high - low < 1e-3 * middle:  # the four points would coincide: the Taylor polynomial, scaled, is as good
        a, b, c = TAYLOR.a / middle, TAYLOR.b / middle**3, TAYLOR.c / middle**5
        flat = Quintic(a, b, c, 0.0)
        return flat._replace(error=max(abs(1 - flat(low)), abs(1 - flat(high)), 1e-15))
    q, r = (3 * low + high) / 4, (low + 3 * high) / 4
    for _ in range(64):
        points = np.array([low, q, r, high])
        columns = np.stack([points, points**3, points**5, [1, -1, 1, -1]], axis=1)
        a, b, c, error = (float(value) for value in np.linalg.solve(columns, np.ones(4)))
        spread = math.sqrt(max(9 * b * b - 20 * a * c, 0.0))
        q, r, before = math.sqrt((-3 * b - spread) / (10 * c)), math.sqrt((-3 * b + spread) / (10 * c)), (q, r)
        if abs(q - before[0]) + abs(r - before[1]) < 1e-12 * high:
            break
    return Quintic(a, b, c, abs(error))
