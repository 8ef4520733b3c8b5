"""Lesson 6, saturation: the checks of its exercises, as data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spectral_core.bounds import suggest_lambda
from spectral_core.lessons.lesson_06_heads import gaussian
from spectral_core.lessons.registry import Case, Exercise

__all__ = ["ENTRIES"]


def lambda_sat(n: int, d_k: int, scale: float) -> float:
    """The λ with s λ² d_k = log n."""
    return math.sqrt(math.log(n) / (scale * d_k))


LAMBDA_SAT = Exercise(
    "06.lambda-sat", "λ_sat for any scale",
    (
        Case("ViT-B/16: n = 197, d_k = 64, scale 1/√d_k = 1/8 gives 0.812", "reference", lambda: (197, 64, 0.125),
             lambda *sizes: suggest_lambda(197, 64), "solve s λ² d_k = log n for λ"),
        Case("at λ_sat the logit of a token with itself is log n", "property", lambda: (50, 16, 0.3),
             lambda n, d_k, s: math.log(n), "s λ² d_k = log n, with the natural logarithm",
             observe=lambda fn, n, d_k, s: s * fn(n, d_k, s) ** 2 * d_k),
        Case("without a scale, s = 1, a head of width 16 saturates at half the λ", "property", lambda: (30, 16, 0.25),
             lambda *sizes: 2.0, "the scale is an argument: use it, not 1/√d_k",
             observe=lambda fn, n, d_k, s: fn(n, d_k, s) / fn(n, d_k, 1.0)),
        Case("a single token attends to itself anyway: 0", "edge", lambda: (1, 16, 0.25), lambda *sizes: 0.0,
             "log 1 = 0"),
    ),
    (
        ("the square root is missing: λ² is what you have", lambda n, d_k, s: math.log(n) / (s * d_k)),
        ("the self-logit is s λ² d_k, d_k products of λ²: the width d_k is missing",
         lambda n, d_k, s: math.sqrt(math.log(n) / s)),
        ("you took 1/√d_k for the scale; it is the argument `scale`", lambda n, d_k, s: lambda_sat(n, d_k, d_k**-0.5)),
        ("the scale is missing: the self-logit is s λ² d_k", lambda n, d_k, s: lambda_sat(n, d_k, 1.0)),
        ("log must be the natural logarithm, as in e^(self-logit) = n",
         lambda n, d_k, s: math.sqrt(math.log2(n) / (s * d_k))),
        ("log must be the natural logarithm, as in e^(self-logit) = n, not that to base 10",
         lambda n, d_k, s: math.sqrt(math.log10(n) / (s * d_k))),
        ("it is log n, not n: the exponential of the logit has to reach n",
         lambda n, d_k, s: math.sqrt(n / (s * d_k))),
    ),
    lambda_sat,
)  # fmt: skip


def _maps(*lead: int, seed: int) -> Tensor:
    """Attention maps (…, 6, 6) with logits of standard deviation 3."""
    return (3 * gaussian(*lead, 6, 6, seed=seed)).softmax(-1)


def entropy(p: Tensor) -> Tensor:
    """(…, n) -> (…): −Σ p log p in nats."""
    return -torch.special.xlogy(p, p).sum(-1)


ENTROPY = Exercise(
    "06.entropy", "the entropy of attention rows",
    (
        Case("uniform over 8 tokens: log 8 = 2.079 nats", "reference", lambda: (torch.full((3, 8), 0.125).double(),),
             lambda p: torch.full((3,), math.log(8)).double(), "H = −Σ p log p over the last dimension"),
        Case("a batch of maps keeps its shape: (2, 6, 6) gives (2, 6)", "reference", lambda: (_maps(2, seed=0),),
             lambda p: torch.distributions.Categorical(probs=p).entropy(), "sum over the last dimension alone"),
        Case("half on each of two tokens, nothing elsewhere: log 2", "edge",
             lambda: (torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]).double(),),
             lambda p: torch.full((2,), math.log(2)).double(),
             "0 · log 0 counts as 0, but in floating point it is nan: torch.special.xlogy(p, p), or p.clamp(min=…) "
             "inside the logarithm"),
        Case("one-hot rows: 0", "edge", lambda: (torch.eye(4).double(),), lambda p: torch.zeros(4).double(),
             "0 · log 0 counts as 0, but in floating point it is nan: torch.special.xlogy(p, p), or p.clamp(min=…) "
             "inside the logarithm"),
        Case("e^H lies between 1 and n: how many tokens a row looks at", "property", lambda: (_maps(5, seed=1),),
             lambda p: torch.ones(5, 6).bool(), "H = −Σ p log p with the natural logarithm",
             observe=lambda fn, p: (torch.as_tensor(fn(p)).exp() - 3.5).abs() <= 2.5 + 1e-6),
    ),
    (
        ("the sign: log p is negative, so H = −Σ p log p", lambda p: -entropy(p)),
        ("nats are asked for: the natural logarithm, not log2", lambda p: entropy(p) / math.log(2)),
        ("one number for each row is asked for, not their mean", lambda p: entropy(p).mean()),
        ("you summed over the whole tensor: sum over the last dimension alone", lambda p: entropy(p).sum()),
        ("wrong dimension: rows of P are the last dimension, so sum(-1)",
         lambda p: -torch.special.xlogy(p, p).sum(-2)),
        ("each log p needs its weight p", lambda p: -p.clamp(min=1e-30).log().sum(-1)),
    ),
    entropy,
)  # fmt: skip


def switched_off(p: Tensor, level: float) -> Tensor:
    """(…, n, n) -> (…): share of rows with max_j p_ij above `level`."""
    return (p.amax(-1) > level).double().mean(-1)


HALF_OFF = [[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0], [0.25, 0.25, 0.25, 0.25], [0.6, 0.4, 0.0, 0.0]]

EVEN = [[0.0, 0.0, 0.0, 1.0], [0.5, 0.0, 0.0, 0.5], [0.25, 0.25, 0.25, 0.25], [0.75, 0.25, 0.0, 0.0]]

SWITCHED_OFF = Exercise(
    "06.switched-off", "the share of rows that are off",
    (
        Case("two of four rows are one-hot, at the same token: 0.5", "reference",
             lambda: (torch.tensor(HALF_OFF).double(), 0.99), lambda p, level: torch.tensor(0.5).double(),
             "count the rows whose largest weight is above `level`"),
        Case("a batch of 3 maps gives 3 numbers", "reference", lambda: (_maps(3, seed=2), 0.8), switched_off,
             "mean over the rows of each map: the last dimension that is left"),
        Case("a row that looks at one *other* token is off, too", "edge",
             lambda: (torch.eye(5).roll(1, 0).double(), 0.99), lambda p, level: torch.tensor(1.0).double(),
             "the largest weight of the row counts, wherever it stands"),
        Case("uniform attention: 0", "edge", lambda: (torch.full((4, 4), 0.25).double(), 0.99),
             lambda p, level: torch.tensor(0.0).double(), "no weight is above `level`"),
        Case("at a level of 0.3 a row with two weights above it counts once: 0.75", "edge",
             lambda: (torch.tensor(EVEN).double(), 0.3), lambda p, level: torch.tensor(0.75).double(),
             "first the largest weight of each row, then the comparison"),
        Case("a largest weight of exactly `level` is not above it: 0.5", "edge",
             lambda: (torch.tensor(EVEN).double(), 0.5), lambda p, level: torch.tensor(0.5).double(),
             "above means >"),
        Case("a higher level never counts more rows", "property", lambda: (_maps(4, seed=3), 0.5),
             lambda p, level: torch.ones(4).bool(), "count what is above `level`, not below",
             observe=lambda fn, p, level: torch.as_tensor(fn(p, 0.9)) <= torch.as_tensor(fn(p, level))),
    ),
    (
        ("you look at the diagonal: a row can be stuck on another token", lambda p, level:
         (p.diagonal(dim1=-2, dim2=-1) > level).double().mean(-1)),
        ("you took the largest weight of each column: a row of P is one token's attention, amax(-1)",
         lambda p, level: (p.amax(-2) > level).double().mean(-1)),
        ("you count weights, not rows: first the largest of each row, then the comparison",
         lambda p, level: (p > level).double().mean((-1, -2))),
        ("you count weights, not rows: two weights of one row can both be above a low level",
         lambda p, level: (p > level).double().sum((-1, -2)) / p.shape[-1]),
        ("you count a row whose largest weight is just `level`; above means >, not >=",
         lambda p, level: (p.amax(-1) >= level).double().mean(-1)),
        ("you count the rows that are on", lambda p, level: 1 - switched_off(p, level)),
        ("that is how many rows are off; the share is asked for", lambda p, level:
         (p.amax(-1) > level).double().sum(-1)),
        ("one number for each map: you averaged over the batch as well", lambda p, level:
         (p.amax(-1) > level).double().mean()),
        ("that is the mean of max p: compare with `level` first, then average",
         lambda p, level: p.amax(-1).mean(-1)),
    ),
    switched_off,
)  # fmt: skip

ENTRIES = (LAMBDA_SAT, ENTROPY, SWITCHED_OFF)
