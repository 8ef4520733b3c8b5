"""Lesson 8, training a ViT: the checks of its exercises, as data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_core.lessons.registry import Case, Exercise

__all__ = ["ENTRIES"]


def _t(n: int) -> float:
    """The 97.5 % point of Student's t with n − 1 degrees of freedom."""
    from scipy import stats

    return float(stats.t.ppf(0.975, n - 1))


def _arms(n: int, seed: int, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """Two arms over n seeds that have a share of their luck in common."""
    generator = torch.Generator().manual_seed(seed)
    common, a, b = torch.randn(3, n, dtype=torch.float64, generator=generator)
    return 1.0 + share * common + 0.2 * a, 1.5 + share * common + 0.2 * b


def paired_interval(a: Tensor, b: Tensor) -> Tensor:
    """(mean, low, high) of the differences a − b, with the 95 % interval of Student's t."""
    d = a - b
    half = _t(len(d)) * d.std() / len(d) ** 0.5
    return torch.stack([d.mean(), d.mean() - half, d.mean() + half])


def _with_half(a: Tensor, b: Tensor, half: Tensor) -> Tensor:
    mean = (a - b).mean()
    return torch.stack([mean, mean - half, mean + half])


def _unpaired(a: Tensor, b: Tensor) -> Tensor:
    return _with_half(a, b, _t(len(a)) * ((a.var() + b.var()) / len(a)).sqrt())


PAIRED = Exercise(
    "08.paired", "the paired interval",
    (
        Case("differences 1, 2, 3: mean 2, and 2 ± 4.303 · 1/√3", "reference",
             lambda: (torch.tensor([2.0, 4.0, 6.0]).double(), torch.tensor([1.0, 2.0, 3.0]).double()),
             lambda a, b: torch.tensor([2.0, 2 - 4.302652730 / 3**0.5, 2 + 4.302652730 / 3**0.5]).double(),
             "half width: t · s/√n with t = 4.303 for n = 3 and s = 1"),
        Case("eight seeds of two arms with common luck", "reference", lambda: _arms(8, seed=0), paired_interval,
             "take the differences a − b first, then their mean and standard deviation"),
        Case("luck that both arms share drops out: 100 times more of it, the same interval (difference 0)", "property",
             lambda: _arms(6, seed=1), lambda a, b: torch.zeros(3).double(),
             "the interval must be that of the differences, not of a and of b",
             observe=lambda fn, a, b: _as_tensor(fn(a + 100 * _trend(a), b + 100 * _trend(b))) - _as_tensor(fn(a, b)),
             atol=1e-5),
        Case("two seeds, the fewest there can be: t = 12.7", "edge",
             lambda: (torch.tensor([1.0, 2.0]).double(), torch.tensor([0.5, 0.5]).double()), paired_interval,
             "n − 1 = 1 degree of freedom, and the sample standard deviation with n − 1"),
    ),
    (
        ("you have the unpaired interval, from the variances of a and of b: take the differences first", _unpaired),
        ("1.96 is for a known standard deviation: with a few seeds take Student's t with n − 1 degrees of freedom",
         lambda a, b: _with_half(a, b, 1.959964 * (a - b).std() / len(a) ** 0.5)),
        ("the √n is missing: s is the spread of one difference, s/√n that of their mean",
         lambda a, b: _with_half(a, b, _t(len(a)) * (a - b).std())),
        ("the standard deviation divides by n: take the sample one, with n − 1",
         lambda a, b: _with_half(a, b, _t(len(a)) * (a - b).std(unbiased=False) / len(a) ** 0.5)),
        ("n seeds have n − 1 degrees of freedom, not n",
         lambda a, b: _with_half(a, b, _t(len(a) + 1) * (a - b).std() / len(a) ** 0.5)),
        ("use the 97.5 % point: 2.5 % are cut off on each side",
         lambda a, b: _with_half(a, b, _one_sided(len(a)) * (a - b).std() / len(a) ** 0.5)),
        ("the sign is wrong: a less b", lambda a, b: paired_interval(b, a)),
        ("return three numbers, mean, low and high: you returned the half width",
         lambda a, b: torch.stack([(m := (a - b).mean()), paired_interval(a, b)[2] - m])),
    ),
    paired_interval,
)  # fmt: skip


def _one_sided(n: int) -> float:
    from scipy import stats

    return float(stats.t.ppf(0.95, n - 1))


def _trend(a: Tensor) -> Tensor:
    return torch.arange(len(a), dtype=a.dtype)


def _as_tensor(value: object) -> Tensor:
    return torch.as_tensor(value).detach().cpu().double()


def steps_to_loss(losses: Sequence[float], target: float, window: int) -> float:
    """Steps until the mean of the last `window` losses is at or below the target; ∞ if it never is."""
    values = [float(v) for v in losses]
    for t in range(window, len(values) + 1):
        if sum(values[t - window : t]) / window <= target:
            return t
    return math.inf


def _noisy(seed: int = 0) -> Tensor:
    steps = torch.arange(60, dtype=torch.float64)
    return 2.0 * torch.exp(-steps / 25) + 0.3 * torch.randn(60, generator=torch.Generator().manual_seed(seed)).double()


def _partial(losses: Tensor, target: float, window: int) -> float:
    return next((t for t in range(1, len(losses) + 1) if losses[max(0, t - window) : t].mean() <= target), math.inf)


def _last(losses: Tensor, target: float, window: int) -> float:
    above = [t for t in range(window, len(losses) + 1) if losses[t - window : t].mean() > target]
    return (above[-1] + 1 if above[-1] < len(losses) else math.inf) if above else window


def _ahead(losses: Tensor, target: float, window: int) -> float:
    return next((t + 1 for t in range(len(losses) - window + 1) if losses[t : t + window].mean() <= target), math.inf)


STEPS = Exercise(
    "08.steps", "steps to a loss",
    (
        Case("losses 4, 3, 2, 1, window 2, target 2.5: three steps", "reference",
             lambda: (torch.tensor([4.0, 3.0, 2.0, 1.0]).double(), 2.5, 2), lambda *a: 3,
             "after three steps the last two losses are 3 and 2, and their mean is 2.5: at the target counts"),
        Case("a noisy curve of 60 steps, window 8", "reference", lambda: (_noisy(), 0.8, 8), steps_to_loss,
             "the mean of the last `window` losses, at the first step where it is at or below the target"),
        Case("one lucky batch is not enough", "property",
             lambda: (torch.tensor([3.0, 0.0, 3.0, 3.0, 1.0, 1.0, 1.0, 3.0, 3.0]).double(), 1.0, 3), lambda *a: 7,
             "a single loss below the target does not count, only the mean of the last `window`"),
        Case("a low first loss does not count before there are `window` losses", "property",
             lambda: (torch.tensor([0.0, 5.0, 5.0, 0.0, 0.0]).double(), 1.0, 2), lambda *a: 5,
             "wait until there are `window` losses"),
        Case("a target that is never reached: ∞", "edge", lambda: (_noisy(1) + 1.0, 0.5, 5), lambda *a: math.inf,
             'return float("inf"): the run did not get there, and no number of steps is true'),
    ),
    (
        ("count from 1: after index t the run has done t + 1 steps", lambda x, y, w: steps_to_loss(x, y, w) - 1),
        ("wait until there are `window` losses: yours averages fewer at the start", _partial),
        ("a single batch decides: take the mean of the last `window` losses", lambda x, y, w: steps_to_loss(x, y, 1)),
        ("you look ahead: the mean of the *last* `window` losses, not of the next ones", _ahead),
        ("the first crossing is asked for, not the last", _last),
        ("a run that never gets there needs ∞ steps, not all the steps it had",
         lambda x, y, w: min(steps_to_loss(x, y, w), float(len(x)))),
        ("a run that never gets there has no −1 either: return ∞, so that it compares as slower",
         lambda x, y, w: -1 if math.isinf(steps_to_loss(x, y, w)) else steps_to_loss(x, y, w)),
    ),
    steps_to_loss,
)  # fmt: skip


def holm(p_values: Tensor) -> Tensor:
    """Holm's adjusted p-values, in the order given."""
    m = len(p_values)
    order = p_values.argsort()
    factors = torch.arange(m, 0, -1, dtype=p_values.dtype)
    out = torch.empty_like(p_values)
    out[order] = (factors * p_values[order]).cummax(0).values.clamp(max=1.0)
    return out


def _adjusted(p: Tensor, factors: Tensor, *, running: bool = True, cap: bool = True, back: bool = True) -> Tensor:
    order = p.argsort()
    sizes = factors * p[order]
    sizes = sizes.cummax(0).values if running else sizes
    sizes = sizes.clamp(max=1.0) if cap else sizes
    out = torch.empty_like(p)
    out[order] = sizes
    return out if back else sizes


def _down(p: Tensor) -> Tensor:
    return torch.arange(len(p), 0, -1, dtype=p.dtype)


def _hochberg(p: Tensor) -> Tensor:
    """Benjamini and Hochberg's adjusted p-values, which bound another quantity."""
    order, m = p.argsort(), len(p)
    sizes = m / torch.arange(1, m + 1, dtype=p.dtype) * p[order]
    out = torch.empty_like(p)
    out[order] = sizes.flip(0).cummin(0).values.flip(0)
    return out


HOLM = Exercise(
    "08.holm", "Holm's correction",
    (
        Case("0.03, 0.01, 0.04 become 0.06, 0.03, 0.06", "reference",
             lambda: (torch.tensor([0.03, 0.01, 0.04]).double(),),
             lambda p: torch.tensor([0.06, 0.03, 0.06]).double(),
             "smallest times 3, next times 2, next times 1, and never below the one before"),
        Case("eight p-values, none above 1 afterwards", "reference",
             lambda: (torch.tensor([0.9, 0.004, 0.2, 0.03, 0.6, 0.007, 0.5, 0.012]).double(),), holm,
             "the i-th smallest (from 0) times m − i, then a running maximum, then at most 1"),
        Case("shuffled in, shuffled out: every value stays at its place (difference 0)", "property",
             lambda: (torch.tensor([0.001, 0.02, 0.011, 0.4]).double(),), lambda p: torch.zeros(4).double(),
             "put the adjusted values back where their p-values stood",
             observe=lambda fn, p: _as_tensor(fn(p[[2, 0, 3, 1]])) - _as_tensor(fn(p))[[2, 0, 3, 1]]),
        Case("one comparison needs no correction", "edge", lambda: (torch.tensor([0.03]).double(),), lambda p: p,
             "with m = 1 the factor is 1"),
    ),
    (
        ("that is Bonferroni: only the smallest takes the factor m, the next m − 1, and so on",
         lambda p: (len(p) * p).clamp(max=1.0)),
        ("the running maximum is missing: a larger p-value may not end below a smaller one",
         lambda p: _adjusted(p, _down(p), running=False)),
        ("a p-value is at most 1", lambda p: _adjusted(p, _down(p), cap=False)),
        ("the values are sorted: put each back where its p-value stood", lambda p: _adjusted(p, _down(p), back=False)),
        ("the factors run the wrong way: the smallest p-value takes the largest factor",
         lambda p: _adjusted(p, _down(p).flip(0))),
        ("the factors are one too small: m, m − 1, …, 1", lambda p: _adjusted(p, _down(p) - 1)),
        ("that is Benjamini and Hochberg: it bounds the share of false finds, not the chance of any", _hochberg),
    ),
    holm,
)  # fmt: skip

ENTRIES = (PAIRED, STEPS, HOLM)
