"""Both sides of Theorem 3.4, factor by factor, and how saturated an attention map is.

Theorem 3.4 (arXiv 2603.07162): κ(J) ≤ κ(X)³ κ(Λ) κ(W_V) (κ(W_Q) + κ(W_K)) + κ(X) κ(P).

Λ is singular at every X (its rows sum to zero), so with κ = σ_max/σ_min the right side is always infinite.
Here every factor is κ⁺, over the numerical rank; under that reading the inequality is usually true, loose by
orders of magnitude, and sometimes false, because κ⁺ is not submultiplicative. `holds` tells which.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_core._head import attention_weights, check_head, resolve_scale
from spectral_core.jacobian import AttentionJacobian
from spectral_core.lanczos import EPS
from spectral_core.spectrum import spectrum, summarize

__all__ = ["JacobianBound", "jacobian_bound", "saturation"]


@dataclass(frozen=True)
class JacobianBound:
    """Every factor of Theorem 3.4 as κ⁺, each with the leading dimensions of what it is made of.

    Attributes:
        kappa_x, kappa_lambda, kappa_wq, kappa_wk, kappa_wv, kappa_softmax: the factors on the right; κ(Λ) is inf
            when attention is saturated to rounding, so that Λ = 0.
        left: κ⁺(J) with respect to W_Q, W_K, W_V.
        right: the bound.
        holds: left ≤ right, to rounding.
        rank: numerical rank of J.
        convention: how every κ in this record is to be read.
    """

    kappa_x: Tensor
    kappa_lambda: Tensor
    kappa_wq: Tensor
    kappa_wk: Tensor
    kappa_wv: Tensor
    kappa_softmax: Tensor
    left: Tensor
    right: Tensor
    holds: Tensor
    rank: Tensor
    convention: str = "effective (κ⁺ over the numerical rank, per head)"


def jacobian_bound(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, *, scale: float | None = None) -> JacobianBound:
    """Both sides of Theorem 3.4 for a head; arguments and errors as in `AttentionJacobian`."""
    head = AttentionJacobian(x, w_q, w_k, w_v, scale=scale)
    x, w_q, w_k, w_v = check_head(x, w_q, w_k, w_v)
    p = head.attention()
    kappa = {name: _effective(value) for name, value in {"x": x, "q": w_q, "k": w_k, "v": w_v, "p": p}.items()}
    blocks = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    # Λ is block diagonal: its singular values are those of the n blocks together
    values = torch.linalg.eigvalsh(blocks).abs().flatten(-2).sort(-1, descending=True).values
    # fully saturated attention has Λ = 0, the end of a path on which κ(Λ) grows without limit
    kappa_lambda = summarize(values, head.n**2 * EPS).effective_condition_number.nan_to_num(nan=torch.inf)
    right = kappa["x"] ** 3 * kappa_lambda * kappa["v"] * (kappa["q"] + kappa["k"]) + kappa["x"] * kappa["p"]
    j = summarize(head.singular_values(), max(head.shape) * EPS)
    left = j.effective_condition_number
    return JacobianBound(
        kappa_x=kappa["x"], kappa_lambda=kappa_lambda, kappa_wq=kappa["q"], kappa_wk=kappa["k"], kappa_wv=kappa["v"],
        kappa_softmax=kappa["p"], left=left, right=right, holds=left <= right * (1 + 1e-9), rank=j.rank,
    )


def saturation(x: Tensor, w_q: Tensor, w_k: Tensor, *, scale: float | None = None) -> Tensor:
    """Mean over rows of max_j p_ij: 1/n for uniform attention, 1 when every token attends to one token only.

    Args:
        x: (…, n, D); w_q, w_k: (…, D, d_k); scale: 1/√d_k when None.

    Returns:
        (…), float64.

    Raises:
        ValueError: as `AttentionJacobian`.
    """
    x, w_q, w_k = check_head(x, w_q, w_k)
    return attention_weights(x @ w_q, x @ w_k, resolve_scale(scale, w_k.shape[-1])).amax(-1).mean(-1)


def _effective(w: Tensor) -> Tensor:
    return spectrum(w).effective_condition_number
