"""What a few seeds say: a mean, or a geometric mean of paired ratios, each with its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["interval", "ratio_interval"]


def interval(values: Tensor | Sequence[float]) -> tuple[float, float]:
    """Mean of values (n,), n ≥ 2, and half the width of its 95 % interval by Student's t.

    >>> mean, half = interval([1.0, 2.0, 3.0])
    >>> round(mean, 2), round(half, 2)                       # 4.303 · 1 / √3
    (2.0, 2.48)
    """
    from scipy import stats

    v = torch.as_tensor(values, dtype=torch.float64)
    return float(v.mean()), float(stats.t.ppf(0.975, len(v) - 1)) * float(v.std()) / len(v) ** 0.5


def ratio_interval(new: Sequence[float], old: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean of new / old over paired seeds, and both ends of its 95 % interval; ∞ where one is infinite."""
    if any(map(math.isinf, (*new, *old))):
        return math.inf, math.inf, math.inf
    mean, half = interval([math.log(a / b) for a, b in zip(new, old, strict=True)])
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)
