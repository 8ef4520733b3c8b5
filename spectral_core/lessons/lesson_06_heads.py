"""Lesson 6, the heads it measures: Gaussian tokens behind a LayerNorm, λI + W, and where λ passes halfway."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from spectral_core.jacobian import AttentionJacobian

__all__ = [
    "ENTRIES", "gaussian", "halfway", "halfway_law", "head_at", "logits_at", "max_mass", "self_mass", "tokens", "twin",
    "weights",
]  # fmt: skip

ENTRIES = ()
STD = 0.02  # of the entries of W_Q, W_K and W_V, as in vision transformers


def gaussian(*shape: int, std: float = 1.0, seed: int = 0) -> Tensor:
    """Normal numbers in float64, the same for the same seed."""
    return std * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tokens(n: int, dim: int, *, rho: float = 0.0, seed: int = 0) -> Tensor:
    """n Gaussian tokens after a LayerNorm, (n, dim): mean 0 and mean square 1 each, correlation `rho` in pairs."""
    shared, own = gaussian(1, dim, seed=2 * seed), gaussian(n, dim, seed=2 * seed + 1)
    return torch.nn.functional.layer_norm(math.sqrt(rho) * shared + math.sqrt(1 - rho) * own, (dim,))


def weights(dim: int, *widths: int, std: float = STD, seed: int = 0) -> list[Tensor]:
    """A Gaussian (dim, width) matrix for each width."""
    return [gaussian(dim, width, std=std, seed=1000 + 10 * seed + i) for i, width in enumerate(widths)]


def head_at(
    lam: float, n: int, d_k: int, *, dim: int = 64, d_v: int = 8, rho: float = 0.0, seed: int = 0
) -> AttentionJacobian:
    """A head with λI + W as W_Q, W_K and W_V, at `tokens`."""
    corrected = [w + lam * torch.eye(*w.shape, dtype=w.dtype) for w in weights(dim, d_k, d_k, d_v, seed=seed)]
    return AttentionJacobian(tokens(n, dim, rho=rho, seed=seed), *corrected)


def logits_at(x: Tensor, w_q: Tensor, w_k: Tensor, scale: float) -> Callable[[float, float], Tensor]:
    """The function (λ_Q, λ_K) -> logits of the head with λ_Q I + W_Q and λ_K I + W_K, (n, n)."""
    d_k = w_q.shape[-1]
    eye = torch.eye(x.shape[-1], d_k, dtype=x.dtype)
    q, k, first = x @ w_q, x @ w_k, x @ eye
    parts = [scale * a @ b.mT for a, b in ((q, k), (first, k), (q, first), (first, first))]
    return lambda lam_q, lam_k: parts[0] + lam_q * parts[1] + lam_k * parts[2] + lam_q * lam_k * parts[3]


def max_mass(p: Tensor) -> float:
    """Mean over tokens of max_j p_ij."""
    return float(p.amax(-1).mean())


def self_mass(p: Tensor) -> float:
    """Mean over tokens of p_ii."""
    return float(p.diagonal().mean())


def halfway(
    n: int,
    d_k: int,
    *,
    dim: int = 256,
    std: float = STD,
    rho: float = 0.0,
    scale: float | None = None,
    seed: int = 0,
    dial: Callable[[Tensor], float] = max_mass,
) -> float:
    """The λ on W_Q and W_K at which `dial` of P passes (1 + 1/n)/2, by bisection over 0 … 12.

    0 if it starts above, ∞ if it never gets there. `std` is that of the entries of W, `rho` the correlation of tokens.
    """
    w_q, w_k = weights(dim, d_k, d_k, std=std, seed=seed)
    logits = logits_at(tokens(n, dim, rho=rho, seed=seed), w_q, w_k, d_k**-0.5 if scale is None else scale)
    if dial(logits(0.0, 0.0).softmax(-1)) >= (1 + 1 / n) / 2:
        return 0.0
    if dial(logits(12.0, 12.0).softmax(-1)) < (1 + 1 / n) / 2:
        return math.inf
    low, high = 0.0, 12.0
    for _ in range(16):
        middle = (low + high) / 2
        if dial(logits(middle, middle).softmax(-1)) < (1 + 1 / n) / 2:
            low = middle
        else:
            high = middle
    return high


def halfway_law(n: int, d_k: int, spread: float = 0.0, *, rho: float = 0.0) -> float:
    """The λ at which a token's own weight is 1/2 by the second estimate; nan where that has no solution.

    From λ²√d_k = log n/(1 − ρ) + (λ² + spread)²/2, where `spread` = τ²D is the standard deviation of logits at λ = 0
    between independent tokens, and `rho` the correlation of tokens.
    """
    root = math.sqrt(d_k)
    inside = d_k - 2 * root * spread - 2 * math.log(n) / (1 - rho)
    return math.sqrt(root - spread - math.sqrt(inside)) if inside >= 0 else math.nan


def twin(off: AttentionJacobian, n: int, d_k: int, *, seed: int = 0) -> tuple[float, AttentionJacobian]:
    """The λ in 0.4 … 1 at which `head_at` has the κ(J) of `off`, found by bisection, and that head."""
    wanted, low, high = float(off.condition_number()), 0.4, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        if float(head_at(middle, n, d_k, seed=seed).condition_number()) > wanted:
            low = middle
        else:
            high = middle
    return high, head_at(high, n, d_k, seed=seed)
