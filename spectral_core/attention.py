"""Multi-head self-attention with separate query, key and value layers, ready to be conditioned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_core.conditioning import condition
from spectral_core.corrections import Correction
from spectral_core.jacobian import AttentionJacobian

__all__ = ["SpectralConditionedAttention"]


class SpectralConditionedAttention(nn.Module):
    """softmax(s X(W_Q + C_Q)(W_K + C_K)ᵀXᵀ) X(W_V + C_V), then an output layer (the paper's SpecA).

    Args:
        dim: model width D, a multiple of `num_heads`.
        num_heads: heads of width d = D / num_heads.
        correction: a `Correction`, a dict of them by role ("q", "k", "v"), or None for plain attention.
        bias: whether the four linear layers have a bias.
        qk_norm: normalise each head's queries and keys (RMS, with a learned scale), as large ViTs do against
            saturation.

    Raises:
        ValueError: `dim` not a positive multiple of `num_heads`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        correction: Correction | dict[str, Correction] | None = None,
        bias: bool = False,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim < 1 or dim % num_heads:
            raise ValueError(
                f"expected dim to be a positive multiple of num_heads, got dim={dim}, num_heads={num_heads}"
            )
        self.dim, self.num_heads = dim, num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=bias) for _ in range(4))
        self.norm_q, self.norm_k = (nn.RMSNorm(dim // num_heads) if qk_norm else nn.Identity() for _ in range(2))
        if correction is not None:
            condition(self, correction)

    def forward(
        self, x: Tensor, *, is_causal: bool = False, need_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x (…, n, D) -> (…, n, D); with `need_weights` also the map (…, heads, n, n)."""
        q, k, v = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        q, k = self.norm_q(q), self.norm_k(k)
        out = self.out(F.scaled_dot_product_attention(q, k, v, is_causal=is_causal).transpose(-3, -2).flatten(-2))
        if not need_weights:
            return out
        logits = q @ k.mT * q.shape[-1] ** -0.5
        if is_causal:
            logits = logits.masked_fill(torch.ones_like(logits, dtype=torch.bool).triu(1), -torch.inf)
        return out, logits.softmax(-1)

    def head_weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """The corrected W_Q, W_K, W_V of every head, acting on the right: three (heads, D, d), detached."""
        d = self.dim // self.num_heads
        layers = (self.query, self.key, self.value)
        # nn.Linear stores (out, in): rows h·d … (h+1)·d are head h
        q, k, v = (layer.weight.detach().unflatten(0, (self.num_heads, d)).mT for layer in layers)
        return q, k, v

    def jacobian(self, x: Tensor) -> AttentionJacobian:
        """The Jacobian of every head at x (…, n, D), batched as (…, heads); biases are not modelled.

        Raises:
            ValueError: the layers have biases, queries and keys are normalised, or x is refused by
                `AttentionJacobian`.
        """
        if self.has_qk_norm:
            raise ValueError("jacobian: expected attention without qk_norm; spectral_core.probe differentiates it")
        if self.query.bias is not None:
            raise ValueError("jacobian: expected attention without biases, got bias=True")
        return AttentionJacobian(x.unsqueeze(-3), *self.head_weights())

    @property
    def has_qk_norm(self) -> bool:
        """Whether queries and keys are normalised."""
        return not isinstance(self.norm_q, nn.Identity)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)
