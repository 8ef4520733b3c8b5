"""Initialisations of the query, key and value weights that conditioning is compared with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from spectral_core._checks import check_choice, check_number
from spectral_core.layouts import Layout
from spectral_core.projections import HEAD_COUNTS, Projection, find_projections
from spectral_core.readiness import check_ready

__all__ = ["initialize"]

SCHEMES = ("conditioned", "orthogonal", "xavier", "identity-shift")


@torch.no_grad()
def initialize(
    model: nn.Module,
    scheme: str,
    *,
    lam: float = 10.0,
    seed: int = 0,
    layouts: Mapping[str, Layout] | None = None,
) -> nn.Module:
    """Set the query, key and value weights of `model` in place; biases and everything else stay.

    * "conditioned": Conditioned Initialization (the same authors' follow-up at ICLR 2026): W_V the identity, W_Q and
      W_K independent semi-orthogonal matrices, head by head.
    * "orthogonal": each whole matrix semi-orthogonal (`nn.init.orthogonal_`).
    * "xavier": Glorot's uniform (`nn.init.xavier_uniform_`).
    * "identity-shift": W + λ I added to the weights as they are. Without weight decay every optimiser that sees
      gradients alone (SGD, Adam, Muon) then follows the trajectory of `IdentityCorrection(lam)` to rounding;
      with decoupled weight decay they part, since that one decays towards λ I and this one towards 0.

    Args:
        model: any model of `find_projections`, not conditioned.
        scheme: one of the four.
        lam: λ of "identity-shift".
        seed: of the draws; the global generator is neither read nor moved.
        layouts: as in `find_projections`.

    Returns:
        The model.

    Raises:
        ValueError: an unknown scheme, no projections, a weight that is conditioned, shared or not finite, or for
            "conditioned" an attention module that does not tell its number of heads, or has heads wider than D.
    """
    check_choice(scheme, "scheme", SCHEMES)
    shift = check_number(lam, "lam")
    projections = find_projections(model, layouts=layouts)
    check_ready(model, projections, projections)
    if scheme == "conditioned":  # all heads are looked at before anything is changed
        widths = {(p.label, p.role): _head_width(p) for p in projections if p.role != "v"}
    generator = torch.Generator().manual_seed(seed)
    for p in projections:
        w = p.weight
        if scheme == "identity-shift":
            p.assign(w + shift * torch.eye(*w.shape, dtype=w.dtype, device=w.device))
            continue
        fresh = torch.empty(w.shape)  # drawn on the CPU in float32: the same on every device
        if scheme == "conditioned" and p.role == "v":
            nn.init.eye_(fresh)
        elif scheme == "xavier":
            nn.init.xavier_uniform_(fresh, generator=generator)
        else:
            width = widths[p.label, p.role] if scheme == "conditioned" else len(fresh)
            for head in fresh.split(width):  # (out, in): consecutive rows are one head
                nn.init.orthogonal_(head, generator=generator)
        p.assign(fresh.to(w))
    return model


def _head_width(p: Projection) -> int:
    """Rows of one head, from the head count that the attention module carries."""
    heads = p.layout.heads_of(p.role)
    rows, columns = p.weight.shape
    if heads is None or rows % heads:
        raise ValueError(
            f'{p.label}: scheme "conditioned" is head by head: expected the attention module to carry its number of '
            f"heads under one of {HEAD_COUNTS}, got {heads or 'none'} for {rows} rows"
        )
    if rows // heads > columns:
        raise ValueError(f"{p.label}: expected heads no wider than the model, got width {rows // heads} > {columns}")
    return rows // heads
