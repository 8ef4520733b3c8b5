"""κ(J), saturation and attention map of one head of a small transformer while it trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_core.attention import SpectralConditionedAttention
from spectral_core.jacobian import AttentionJacobian
from spectral_core.models import Transformer
from spectral_core.spectrum import condition_number, spectrum

__all__ = ["HeadProbe", "differentiated_jacobian", "probe_head"]

SMALL = 256  # rows of J up to which its SVD costs no more than a Gram matrix and a proof


@dataclass(frozen=True)
class HeadProbe:
    """One head of a model at one example.

    Attributes:
        kappa_w: κ of the whole corrected D × D matrix of the layer, by role "q", "k", "v".
        kappa_j: exact κ of the head's Jacobian with respect to W_Q, W_K, W_V; inf when rank deficient.
        saturation: mean over tokens of max_j p_ij.
        block_norms: Frobenius norms of the Q, K and V blocks of J.
        attention: P, (n, n).
    """

    kappa_w: dict[str, float]
    kappa_j: float
    saturation: float
    block_norms: dict[str, float]
    attention: Tensor


@torch.no_grad()
def probe_head(model: Transformer, example: Tensor, *, layer: int = 0, head: int = 0) -> HeadProbe:
    """κ(W), the exact κ(J), saturation and attention map of one head at one example, given without its batch."""
    attention = model.block(layer).attention
    x = model.attention_input(example.unsqueeze(0), layer)[0]
    weights = {"q": attention.query.weight, "k": attention.key.weight, "v": attention.value.weight}
    kappa_w = {role: float(condition_number(w)) for role, w in weights.items()}
    if attention.has_qk_norm:
        blocks, p = differentiated_jacobian(attention, x, head, is_causal=model.is_causal)
        kappa_j = spectrum(torch.cat(list(blocks.values()), 1)).condition_number
        norms = {role: block.norm() for role, block in blocks.items()}
    else:
        jac = AttentionJacobian(x, *(w[head] for w in attention.head_weights()), is_causal=model.is_causal)
        way = "svd" if jac.shape[0] <= SMALL else "auto"  # κ of small weights is beyond a Gram matrix, or near it
        kappa_j, norms, p = jac.condition_number(method=way).value, jac.norms(), jac.attention()
    return HeadProbe(
        kappa_w=kappa_w, kappa_j=float(kappa_j), saturation=float(p.amax(-1).mean()),
        block_norms={role: float(norm) for role, norm in norms.items()}, attention=p,
    )


def differentiated_jacobian(
    attention: SpectralConditionedAttention, x: Tensor, head: int, *, is_causal: bool = False
) -> tuple[dict[str, Tensor], Tensor]:
    """J of one head by automatic differentiation, norms of queries and keys included, and its map P.

    The closed form knows no such norms. For small heads: every row of J is one backward pass.

    Args:
        attention: with `qk_norm` or without.
        x: (n, D).

    Returns:
        ({"q": (n d, D d), "k": …, "v": …}, (n, n)), float64.
    """
    x = x.detach().double()
    weights = {role: w[head].double() for role, w in zip("qkv", attention.head_weights(), strict=True)}
    scales = [getattr(norm, "weight", None) for norm in (attention.norm_q, attention.norm_k)]
    eps = torch.finfo(torch.float32).eps  # of nn.RMSNorm in the model's own precision

    def normed(t: Tensor, scale: Tensor | None) -> Tensor:
        return t if scale is None else t * (t.square().mean(-1, keepdim=True) + eps).rsqrt() * scale.detach().double()

    def attend(w: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        q, k = (normed(x @ w[role], scale) for role, scale in zip("qk", scales, strict=True))
        logits = q @ k.mT * q.shape[-1] ** -0.5
        if is_causal:
            logits = logits.masked_fill(torch.ones_like(logits, dtype=torch.bool).triu(1), -torch.inf)
        p = logits.softmax(-1)
        return (p @ (x @ w["v"])).flatten(), p

    with torch.enable_grad():
        jacobians, p = torch.func.jacrev(attend, has_aux=True)(weights)
    return {role: block.flatten(1) for role, block in jacobians.items()}, p
