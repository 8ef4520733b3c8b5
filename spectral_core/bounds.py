"""Both sides of Theorem 3.4, factor by factor, and how saturated an attention map is.

Theorem 3.4 (arXiv 2603.07162): κ(J) ≤ κ(X)³ κ(Λ) κ(W_V) (κ(W_Q) + κ(W_K)) + κ(X) κ(P).

Two readings of κ, and the theorem needs to be told which:

* "full", κ = σ_max/σ_min over all min(rows, columns) values: Λ is singular at every X, since its rows sum to zero, so
  the right side is always infinite and the inequality says nothing;
* "effective", κ⁺ over the numerical rank: the right side is finite, usually larger than the left by orders of
  magnitude, and sometimes smaller, because κ⁺ is not submultiplicative. `holds` tells which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_core._checks import check_choice, check_number
from spectral_core._head import attention_weights, check_head, resolve_scale
from spectral_core.jacobian import AttentionJacobian
from spectral_core.lanczos import EPS
from spectral_core.spectrum import Spectrum, spectrum, summarize

__all__ = ["JacobianBound", "bound_factors", "jacobian_bound", "saturation", "suggest_lambda"]


CONVENTIONS = {
    "effective": "effective (κ⁺ over the numerical rank, per head)",
    "full": "full (κ over all min(rows, columns) singular values, per head)",
}


@dataclass(frozen=True)
class JacobianBound:
    """Every factor of Theorem 3.4, each with the leading dimensions of what it is made of.

    Attributes:
        kappa_x, kappa_lambda, kappa_wq, kappa_wk, kappa_wv, kappa_softmax: the factors on the right; κ(Λ) is inf
            when attention is saturated to rounding, so that Λ = 0, and always by the "full" convention.
        left: κ of J with respect to W_Q, W_K, W_V.
        right: the bound.
        holds: left ≤ right, to rounding; empty of meaning where right is inf.
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
    convention: str = CONVENTIONS["effective"]


def jacobian_bound(
    x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, *, scale: float | None = None, is_causal: bool = False,
    mask: Tensor | None = None, convention: str = "effective",
) -> JacobianBound:
    """Both sides of Theorem 3.4 for every head and example of a batch.

    Args:
        x, w_q, w_k, w_v, scale, is_causal, mask: as in `AttentionJacobian`; leading dimensions broadcast.
        convention: "effective" or "full", as the module says.

    Raises:
        ValueError: as `AttentionJacobian`, and for an unknown convention.

    An ordinary head, far below its bound; by the full convention the bound is empty:

    >>> g = torch.Generator().manual_seed(0)
    >>> x, *w = (torch.randn(*s, dtype=torch.float64, generator=g) / 2 for s in ((8, 16), (16, 8), (16, 8), (16, 8)))
    >>> bound = jacobian_bound(x, *w)
    >>> bool(bound.holds), bool(bound.right > 10 * bound.left)
    (True, True)
    >>> float(jacobian_bound(x, *w, convention="full").right)
    inf

    A draw for which the literal inequality fails, although X and all weights are perfectly conditioned (κ = 1):

    >>> g = torch.Generator().manual_seed(0)
    >>> x, *w = (torch.linalg.qr(torch.randn(16, 8, dtype=torch.float64, generator=g)).Q for _ in range(4))
    >>> bound = jacobian_bound(x.T, *w)
    >>> bool(bound.holds), round(float(bound.left)), round(float(bound.right))
    (False, 4796, 4795)
    """
    check_choice(convention, "convention", tuple(CONVENTIONS))
    head = AttentionJacobian(x, w_q, w_k, w_v, scale=scale, is_causal=is_causal, mask=mask)
    x, w_q, w_k, w_v = check_head(x, w_q, w_k, w_v)
    factors = bound_factors(x, w_q, w_k, w_v, head.attention(), convention=convention)
    j = summarize(head.singular_values(), max(head.shape) * EPS)
    left, right = _read(j, convention), factors["right"]
    return JacobianBound(
        **factors, left=left, holds=left <= right * (1 + 1e-9), rank=j.rank, convention=CONVENTIONS[convention]
    )


def bound_factors(
    x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, p: Tensor, *, convention: str = "effective"
) -> dict[str, Tensor]:
    """The right side of Theorem 3.4 and its factors, by the names of `JacobianBound`, for the attention map `p`.

    Args:
        x, w_q, w_k, w_v: float64, as in `AttentionJacobian`.
        p: (…, n, n).
        convention: "effective" or "full".
    """
    named = {"x": x, "wq": w_q, "wk": w_k, "wv": w_v, "softmax": p}
    kappa = {name: _read(spectrum(value), convention) for name, value in named.items()}
    blocks = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    # Λ is block diagonal: its singular values are those of the n blocks together
    values = torch.linalg.eigvalsh(blocks).abs().flatten(-2).sort(-1, descending=True).values
    # fully saturated attention has Λ = 0, the end of a path on which κ(Λ) grows without limit
    kappa["lambda"] = _read(summarize(values, p.shape[-1] ** 2 * EPS), convention)
    kappa["lambda"] = torch.where(kappa["lambda"].isnan(), torch.inf, kappa["lambda"])
    weights = kappa["wv"] * (kappa["wq"] + kappa["wk"])
    right = kappa["x"] ** 3 * kappa["lambda"] * weights + kappa["x"] * kappa["softmax"]
    return {f"kappa_{name}": value for name, value in kappa.items()} | {"right": right}


def _read(s: Spectrum, convention: str) -> Tensor:
    return s.effective_condition_number if convention == "effective" else s.condition_number


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


def suggest_lambda(n: int, d_k: int) -> float:
    """The λ on W_Q and W_K above which λ I drives attention to the identity: λ_sat = (log n / √d_k)^½.

    With LayerNormed tokens, ‖x_i‖² ≈ D, and the usual scale 1/√d_k, λ I on both adds about λ² √d_k to a token's
    logit with itself. Against n − 1 other tokens that takes over when it passes log n. A limit, not an optimum: W_V
    has no such limit, W_Q and W_K that are large already leave less room, and correlated tokens leave more.
    `calibrate` measures what this estimates.

    Args:
        n: tokens, ≥ 2.
        d_k: width of a head, ≥ 1.

    Raises:
        ValueError: n < 2 or d_k < 1, or not whole numbers.

    >>> round(suggest_lambda(197, 64), 2)   # ViT-B/16; the paper's default is 10
    0.81
    """
    for name, value, minimum in (("n", n, 2), ("d_k", d_k, 1)):
        if check_number(value, name, minimum=minimum) != int(value):
            raise ValueError(f"{name}: expected a whole number, got {value!r}")
    return math.sqrt(math.log(n) / math.sqrt(d_k))
