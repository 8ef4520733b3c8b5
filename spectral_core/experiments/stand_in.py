"""The softmax attention that a layer's weights would be, for layers whose own Jacobian is another one.

Swin adds a position bias, XCiT and DaViT attend over channels, Nyströmformer approximates. Their W_Q, W_K and W_V at
the tokens that they see still define a plain softmax attention, and its κ(J) is what this project can compute. It
stands in for the layer, and every number from it says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spectral_core.attention import SpectralConditionedAttention
from spectral_core.capture import capture_calls, choose_layers

__all__ = ["LARGEST", "StandIn", "stand_in"]

LARGEST = 4096  # rows of a Jacobian that is worth its price while models train
TOKENS = 48  # of one example: κ(J) of more costs with their third power


class StandIn(nn.Module):
    """Attention layers side by side, each at tokens of its own; called with anything, it runs them all.

    Attributes:
        rows: of the largest Jacobian that these layers have at all their tokens.
    """

    def __init__(
        self,
        layers: Sequence[SpectralConditionedAttention],
        tokens: Sequence[Tensor],
        causal: Sequence[bool],
        rows: int,
    ) -> None:
        super().__init__()
        self.layers, self.tokens, self.causal, self.rows = nn.ModuleList(layers), list(tokens), list(causal), rows

    def forward(self, _: Tensor) -> None:
        for layer, tokens, is_causal in zip(self.layers, self.tokens, self.causal, strict=True):
            layer(tokens, is_causal=is_causal)


def stand_in(
    model: nn.Module, inputs: Tensor | Sequence[Any] | Mapping[str, Any], layers: Sequence[int] | None = None
) -> StandIn:
    """The layers of `model` at what they see on `inputs`, biases left out; the weights are copies.

    Args:
        model: any model of `find_projections`.
        inputs: what the model is called with.
        layers: positions of attention layers; None for all. Those with other widths of queries, keys and values are
            left out.

    Raises:
        ValueError: no layer can be stood in for.
    """
    chosen = choose_layers(model, layers)
    made, seen, causal, rows_of_j = [], [], [], 0
    for name, call in capture_calls(model, inputs, chosen, {}):
        roles = chosen.get(name)
        if roles is None or set(roles) != set("qkv") or "q" not in call.inputs:
            continue
        weights = {role: p.weight.detach().float().cpu() for role, p in roles.items()}
        heads = roles["q"].layout.heads_of("q") or getattr(model.get_submodule(name), "num_heads", None)
        dim = weights["q"].shape[1]
        if any(w.shape != (dim, dim) for w in weights.values()) or not heads or dim % heads:
            continue
        layer = SpectralConditionedAttention(dim, heads)
        with torch.no_grad():
            for role, own in (("q", layer.query), ("k", layer.key), ("v", layer.value)):
                own.weight.copy_(weights[role])
        tokens = call.inputs["q"].detach().float().cpu()
        rows_of_j = max(rows_of_j, tokens.shape[-2] * dim // heads)
        made.append(layer)
        causal.append(call.is_causal)
        seen.append(tokens.reshape(-1, *tokens.shape[-2:])[:1, :TOKENS])
    if not made:
        raise ValueError("expected an attention layer with square query, key and value weights, got none")
    return StandIn(made, seen, causal, rows_of_j)
