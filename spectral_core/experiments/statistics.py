"""What paired seeds say: gains with intervals, p values corrected for many arms, rank correlations.

A gain is an improvement: positive where the first arm is better, whether a metric should be high or low. Runs that
diverged are never dropped: `fill` counts them as the worst value seen in the task.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

__all__ = ["RESAMPLES", "Correlation", "Difference", "fill", "holm", "paired_gain", "rank_correlation", "worst"]

RESAMPLES = 10_000
LEVELS = (2.5, 97.5)
Interval = tuple[float, float]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Difference:
    """Gain of one arm over another over their common seeds.

    Attributes:
        count: common seeds; mean: of the gains, NaN without a common seed.
        t, bootstrap: 95 % intervals, None where `note` says why.
        p: two-sided, of the paired t test.
    """

    count: int
    mean: float
    t: Interval | None = None
    bootstrap: Interval | None = None
    p: float | None = None
    note: str = ""

    @property
    def wins(self) -> bool:
        """Whether the t interval lies above zero."""
        return self.t is not None and self.t[0] > 0

    @property
    def loses(self) -> bool:
        """Whether the t interval lies below zero."""
        return self.t is not None and self.t[1] < 0


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ over `count` points in `units` groups; its 95 % bootstrap interval resamples whole groups."""

    count: int
    units: int
    rho: float | None
    interval: Interval | None = None


def worst(values: Iterable[float], *, higher_is_better: bool) -> float:
    """The worst finite value, NaN where there is none."""
    finite = [v for v in values if math.isfinite(v)]
    return (min(finite) if higher_is_better else max(finite)) if finite else math.nan


def fill(values: Mapping[Key, float], value: float) -> dict[Key, float]:
    """The values with `value` in place of those that are not finite, so that a diverged run still counts."""
    return {key: v if math.isfinite(v) else value for key, v in values.items()}


def paired_gain(
    new: Mapping[int, float], old: Mapping[int, float], *, higher_is_better: bool, seed: int = 0
) -> Difference:
    """By how much `new` improves on `old` over the seeds that both have; positive is better.

    Args:
        new, old: seed -> finite value.
        higher_is_better: of the values.
        seed: of the bootstrap.

    >>> paired_gain({0: 1.0, 1: 2.0, 2: 3.0}, {0: 2.0, 1: 4.0, 2: 6.0}, higher_is_better=False).mean
    2.0
    """
    seeds = sorted(new.keys() & old.keys())
    sign = 1.0 if higher_is_better else -1.0
    gains = np.array([sign * (new[s] - old[s]) for s in seeds])
    if not np.isfinite(gains).all():
        raise ValueError("paired values: expected finite numbers, got NaN or infinity; fill diverged runs first")
    n = len(gains)
    if n < 2:
        note = "no common seed" if n == 0 else "one common seed, so no interval"
        return Difference(n, float(gains[0]) if n else math.nan, note=note)
    mean, error = float(gains.mean()), float(gains.std(ddof=1)) / math.sqrt(n)
    if error <= 1e-12 * max(abs(v) for s in seeds for v in (new[s], old[s])):
        # equal gains leave no spread to judge by: rounded metrics and filled values do this, certainty does not
        return Difference(n, mean, note="all gains equal, so no interval", p=1.0 if mean == 0 else None)

    from scipy import stats

    half = float(stats.t.ppf(0.975, n - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    picks = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    low, high = np.percentile(gains[picks].mean(axis=1), LEVELS)
    return Difference(n, mean, (mean - half, mean + half), (float(low), float(high)), p)


def holm(p_values: Mapping[Key, float | None]) -> dict[Key, float | None]:
    """Holm's corrected p values, valid together; None, where nothing was tested, stays None and does not count.

    >>> holm({"a": 0.01, "b": 0.04, "c": None})
    {'a': 0.02, 'b': 0.04, 'c': None}
    """
    tested = sorted((p, i) for i, p in enumerate(p_values.values()) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, place) in enumerate(tested):
        running = max(running, min(1.0, (len(tested) - rank) * p))
        corrected[place] = running
    return dict(zip(p_values, corrected, strict=True))


def rank_correlation(
    x: Sequence[float], y: Sequence[float], units: Sequence[Hashable] | None = None, *, seed: int = 0
) -> Correlation:
    """Spearman's ρ of x (n,) and y (n,), ties at their middle rank; ∞ is the highest rank.

    Args:
        x, y: without NaN.
        units: group of each point, resampled as a whole since seeds of one arm are not independent; default one each.
        seed: of the bootstrap.
    """
    n = len(x)
    names = list(range(n)) if units is None else list(units)
    if not n == len(y) == len(names):
        raise ValueError(f"rank correlation: expected x, y and units of one length, got {n}, {len(y)}, {len(names)}")
    if np.isnan([*x, *y]).any():
        raise ValueError("rank correlation: expected numbers, got NaN; leave those points out and say how many")
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    group, groups = np.array([number[name] for name in names], dtype=int), len(number)
    if n < 3:
        return Correlation(n, groups, None)
    rho = float(_spearman(x, y, np.ones((1, n)))[0])
    if math.isnan(rho):
        return Correlation(n, groups, None)
    if groups < 3:
        return Correlation(n, groups, rho)
    random, values = np.random.default_rng(seed), []
    for _ in range(0, RESAMPLES, 500):  # at most 500 × n numbers at a time
        counts = random.multinomial(groups, np.full(groups, 1 / groups), size=500)
        values.append(_spearman(x, y, counts[:, group].astype(float)))
    every = np.concatenate(values)
    usable = every[~np.isnan(every)]  # resamples of one value only have no correlation
    if len(usable) < 0.9 * RESAMPLES:
        return Correlation(n, groups, rho)
    low, high = np.percentile(usable, LEVELS)
    return Correlation(n, groups, rho, (float(low), float(high)))


def _spearman(x: Sequence[float], y: Sequence[float], weights: Any) -> Any:
    """ρ (b,) of b resamples, where point i is present weights[:, i] times; NaN for a constant."""
    a, b = _ranks(x, weights), _ranks(y, weights)
    total = weights.sum(axis=1, keepdims=True)
    a -= (weights * a).sum(axis=1, keepdims=True) / total
    b -= (weights * b).sum(axis=1, keepdims=True) / total
    scale = np.sqrt((weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 1e-9, (weights * a * b).sum(axis=1) / scale, np.nan)


def _ranks(values: Sequence[float], weights: Any) -> Any:
    """Middle ranks (b, n) of values (n,) repeated weights (b, n) times, without sorting every resample."""
    _, place = np.unique(np.asarray(values, dtype=float), return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    totals = np.add.reduceat(weights[:, order], starts, axis=1)
    return (np.cumsum(totals, axis=1) - totals / 2 + 0.5)[:, place]
