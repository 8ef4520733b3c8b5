"""Attention heads for the lessons: the first head of a small ViT at the tokens of a real digit, and random ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from spectral_core.corrections import Correction
from spectral_core.data import load_digits
from spectral_core.jacobian import AttentionJacobian
from spectral_core.models import VisionTransformer
from spectral_core.projections import find_projections

__all__ = ["DigitHead", "digit_head", "query_key_share", "random_head"]


@dataclass(frozen=True)
class DigitHead:
    """Tokens x (n, D) and the corrected weights (D, d) of one head, in float64."""

    x: Tensor
    w_q: Tensor
    w_k: Tensor
    w_v: Tensor

    @cached_property
    def jacobian(self) -> AttentionJacobian:
        """The Jacobian of this head at these tokens."""
        return AttentionJacobian(self.x, self.w_q, self.w_k, self.w_v)

    @cached_property
    def kappa(self) -> float:
        """κ(J) with respect to W_Q, W_K and W_V; ∞ when rank deficient."""
        return float(self.jacobian.condition_number())

    @property
    def saturation(self) -> float:
        """Mean over tokens of max_j p_ij."""
        return float(self.jacobian.attention().amax(-1).mean())

    @cached_property
    def norms(self) -> dict[str, float]:
        """Frobenius norm of each block of J, by role."""
        return {role: float(norm) for role, norm in self.jacobian.norms().items()}

    @property
    def query_key_share(self) -> float:
        """Norm of the Q and K blocks together, as a share of ‖J‖: near 0 when Q and K cannot learn."""
        return query_key_share(self.norms)


def query_key_share(norms: Mapping[str, float]) -> float:
    """Norm of the Q and K blocks of J together, as a share of ‖J‖, from the norms of its blocks by role."""
    q, k, v = (norms[role] for role in "qkv")
    return ((q * q + k * k) / (q * q + k * k + v * v)) ** 0.5


def digit_head(
    corrections: Mapping[str, Correction] | None = None,
    *,
    init: str = "trunc-normal",
    seed: int = 0,
    image: int = 0,
) -> DigitHead:
    """Head 1 of block 1 of the demo's ViT (16 tokens, D = 32, d = 16) at initialisation.

    Args:
        corrections: by role "q", "k", "v", applied to the layer's whole 32 × 32 matrix as `condition` does.
        init, seed: of the model, as in `VisionTransformer`.
        image: which held-out digit gives the tokens; 0 is the one in the demo.
    """
    model = VisionTransformer(init=init, seed=seed)
    attention = model.block(0).attention
    with torch.no_grad():
        x = model.attention_input(load_digits().test_x[image : image + 1])[0]
        weights = []
        for projection in find_projections(attention):
            fix = (corrections or {}).get(projection.role)
            stored = projection.weight if fix is None else fix(projection.weight)
            weights.append(stored[: attention.dim // attention.num_heads].mT.double())  # head 1, acting on the right
    return DigitHead(x.double(), *weights)


def random_head(n: int, dim: int, d_k: int, d_v: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gaussian x (n, dim), w_q and w_k (dim, d_k), w_v (dim, d_v) in float64: small enough to print."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((n, dim), (dim, d_k), (dim, d_k), (dim, d_v))
    x, w_q, w_k, w_v = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
    return x, w_q, w_k, w_v
