"""Initialisations of the query, key and value weights that conditioning is compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spectral_core._checks import check_choice, check_number
from spectral_core.capture import HEAD_COUNTS
from spectral_core.conditioning import check_free
from spectral_core.projections import Projection, find_projections

__all__ = ["initialize"]

SCHEMES = ("conditioned", "orthogonal", "xavier", "identity-shift")


@torch.no_grad()
def initialize(model: nn.Module, scheme: str, *, lam: float = 10.0, seed: int = 0) -> nn.Module:
    """Set the query, key and value weights of `model` in place; biases and everything else stay.

    * "conditioned": Conditioned Initialization (the same authors' follow-up at ICLR 2026): W_V the identity, W_Q and
      W_K independent semi-orthogonal matrices, head by head.
    * "orthogonal": each whole matrix semi-orthogonal (`nn.init.orthogonal_`).
    * "xavier": Glorot's uniform (`nn.init.xavier_uniform_`).
    * "identity-shift": W + λ I added to the weights as they are. Without weight decay every optimiser that sees
      gradients alone (SGD, Adam, Muon) then follows the trajectory of `IdentityCorrection(lam)` to rounding;
      with decoupled weight decay they part, since that one decays towards λ I and this one towards 0.

    Args:
        model: with separate `nn.Linear` query, key and value layers, not conditioned.
        scheme: one of the four.
        lam: λ of "identity-shift".
        seed: of the draws; the global generator is neither read nor moved.

    Returns:
        The model.

    Raises:
        ValueError: an unknown scheme, no projections, a weight that is conditioned, shared or not finite, or for
            "conditioned" an attention module that does not tell its number of heads, or has heads wider than D.
    """
    check_choice(scheme, "scheme", SCHEMES)
    shift = check_number(lam, "lam")
    projections = find_projections(model)
    check_free(model, projections)
    if scheme == "conditioned":  # all heads are looked at before anything is changed
        widths = {p.name: _head_width(model, p, projections) for p in projections if p.role != "v"}
    generator = torch.Generator().manual_seed(seed)
    for p in projections:
        w = p.weight
        if scheme == "identity-shift":
            w.add_(torch.eye(*w.shape, dtype=w.dtype, device=w.device), alpha=shift)
        elif scheme == "conditioned" and p.role == "v":
            nn.init.eye_(w)
        else:
            fresh = torch.empty(w.shape)  # drawn on the CPU in float32: the same on every device
            if scheme == "xavier":
                nn.init.xavier_uniform_(fresh, generator=generator)
            else:
                width = widths[p.name] if scheme == "conditioned" else len(fresh)
                for head in fresh.split(width):  # (out, in): consecutive rows are one head
                    nn.init.orthogonal_(head, generator=generator)
            w.copy_(fresh)
    return model


def _head_width(model: nn.Module, p: Projection, projections: list[Projection]) -> int:
    """Rows of one head, from the head count that the attention module carries."""
    owner = p.name.rpartition(".")[0]
    module = model.get_submodule(owner)
    counts = [value for key in HEAD_COUNTS if isinstance(value := getattr(module, key, None), int) and value > 0]
    query: Tensor = next(o for o in projections if o.role == "q" and o.name.rpartition(".")[0] == owner).weight
    if not counts or query.shape[0] % counts[0]:
        raise ValueError(
            f'{p.name}: scheme "conditioned" is head by head: expected the attention module to carry its number of '
            f"heads under one of {HEAD_COUNTS}, got {counts or 'none'} for {query.shape[0]} rows"
        )
    width = query.shape[0] // counts[0]
    if width > query.shape[1]:
        raise ValueError(f"{p.name}: expected heads no wider than the model, got width {width} > {query.shape[1]}")
    return width
