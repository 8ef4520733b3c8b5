"""Singular values, condition numbers and ranks of (batches of) matrices.

Two conventions, never mixed silently:

* κ(W)  = σ_max / σ_min over all min(m, n) singular values; `inf` when W is rank deficient.
* κ⁺(W) = σ_max / (smallest singular value above rtol · σ_max), always reported with the rank.

All arithmetic is float64, whatever the input: a float32 SVD loses σ_min near κ = 1e7.

>>> import torch
>>> condition_number(torch.diag(torch.tensor([4.0, 2.0, 1.0])))
tensor(4.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_core._checks import check_number, check_tensor, to_float64

__all__ = ["Spectrum", "condition_number", "default_rtol", "singular_values", "spectrum"]


@dataclass(frozen=True)
class Spectrum:
    """Spectral summary of W (…, m, n). Every field has W's leading dimensions.

    Attributes:
        singular_values: (…, min(m, n)), descending.
        condition_number: κ, σ_max / σ_min; inf when rank deficient.
        effective_condition_number: κ⁺, σ_max / σ_rank; nan for a zero matrix, which has no σ above the tolerance.
        rank: number of singular values above rtol · σ_max (int64).
        stable_rank: ‖W‖_F² / σ_max²; 0 for a zero matrix.
        rtol: the relative tolerance that was used.
    """

    singular_values: Tensor
    condition_number: Tensor
    effective_condition_number: Tensor
    rank: Tensor
    stable_rank: Tensor
    rtol: float


def default_rtol(m: int, n: int, dtype: torch.dtype) -> float:
    """Relative tolerance below which a singular value counts as zero.

    The larger of the float64 SVD's own error, max(m, n) · eps(float64) (as `torch.linalg.matrix_rank`), and
    the precision to which the entries are known, eps of the stored dtype (half types are taken as float32).
    """
    stored = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    return max(max(m, n) * torch.finfo(torch.float64).eps, stored)


def singular_values(w: Tensor) -> Tensor:
    """Singular values in descending order, computed in float64.

    Args:
        w: (…, m, n), floating point.

    Returns:
        (…, min(m, n)), in float64 for float64 input and in float32 otherwise; differentiable once.

    Raises:
        ValueError: not a floating tensor, fewer than two dimensions, empty, or not finite.
    """
    check_tensor(w, "w")
    return _cast_like(_svdvals(w), w)


def condition_number(w: Tensor, *, rtol: float | None = None) -> Tensor:
    """κ(W) = σ_max / σ_min, `inf` when W is rank deficient at `rtol`.

    Args:
        w: (…, m, n), floating point.
        rtol: singular values at or below rtol · σ_max count as zero; `default_rtol` when None.

    Returns:
        (…), dtype as in `singular_values`.

    Raises:
        ValueError: as `singular_values`, and for an `rtol` that is not in [0, 1].
    """
    return spectrum(w, rtol=rtol).condition_number


def spectrum(w: Tensor, *, rtol: float | None = None) -> Spectrum:
    """Singular values, κ, κ⁺, rank and stable rank of W (…, m, n) in one SVD; see `Spectrum`.

    Raises:
        ValueError: as `condition_number`.
    """
    check_tensor(w, "w")
    if rtol is None:
        rtol = default_rtol(w.shape[-2], w.shape[-1], w.dtype)
    else:
        rtol = check_number(rtol, "rtol", minimum=0.0, maximum=1.0)
    return summarize(_svdvals(w), rtol, like=w)


def summarize(values: Tensor, rtol: float, *, like: Tensor | None = None) -> Spectrum:
    """Build a `Spectrum` from descending singular values (…, k) in float64."""
    top = values[..., 0]
    rank = ((values > rtol * top.unsqueeze(-1)) & (values > 0)).sum(-1)
    full = rank == values.shape[-1]
    smallest = values.gather(-1, (rank - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
    effective = torch.where(rank > 0, top / smallest, torch.full_like(top, math.nan))
    kappa = torch.where(full, effective, torch.full_like(top, math.inf))
    # scale by σ_max first: σ² overflows or underflows for extreme matrices
    stable = (values / top.where(top > 0, 1.0).unsqueeze(-1)).square().sum(-1)
    out = values if like is None else like
    return Spectrum(
        singular_values=_cast_like(values, out),
        condition_number=_cast_like(kappa, out),
        effective_condition_number=_cast_like(effective, out),
        rank=rank,
        stable_rank=_cast_like(stable, out),
        rtol=rtol,
    )


def _svdvals(w: Tensor) -> Tensor:
    """Descending, in float64; of tall matrices, which LAPACK takes through QR: six times as fast as the wide ones."""
    values = to_float64(w)
    return torch.linalg.svdvals(values.mT if values.shape[-2] < values.shape[-1] else values)


def _cast_like(result: Tensor, w: Tensor) -> Tensor:
    return result.to(device=w.device, dtype=torch.promote_types(w.dtype, torch.float32))
