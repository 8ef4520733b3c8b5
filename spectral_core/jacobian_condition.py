"""κ(J) by three ways, each with a statement of how far to trust it.

* "gram": all eigenvalues of J Jᵀ, 4/3 m³ operations for m rows. Squaring costs digits: the smallest eigenvalue is
  off by about eps κ², so σ_min is refined on J itself (`lanczos.smallest`), after which the error is near eps κ.
* "cholesky": the extremes only. σ_max by Golub-Kahan Lanczos, σ_min by the same refinement on a Cholesky factor of
  J Jᵀ, m³/3 operations.
* "svd": QR and SVD of the column-compressed J (m × r(2 d_k + d_v), r = rank of X); does not square κ.

Above κ = 2·10⁶ a Gram matrix in float64 no longer tells a small eigenvalue from none. "gram" and "cholesky" then give
a lower bound, σ_max over the smallest Rayleigh quotient found, and say so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectral_core.jacobian_operator import Operator, bytes_needed, svd_flops
from spectral_core.lanczos import EPS, ROUND, TINY, Ritz, largest, random_block, smallest
from spectral_core.spectrum import summarize

METHODS = ("auto", "gram", "cholesky", "svd")
GRAM_FLOOR = 1e3 * EPS  # λ_min/λ_max below which a Gram matrix says nothing of λ_min: κ > 2.1e6
GRAM_ROWS = 512  # auto: up to here all eigenvalues cost no more than the extremes alone
SVD_FLOPS = 2e12  # auto: what an SVD may cost, about a minute on two cores
TOLERANCE = 3e-9  # residual of the smallest pair
RESOLVED = 1e-3  # a relative error above this is not a result


@dataclass(frozen=True)
class JacobianCondition:
    """κ of a Jacobian with what is needed to judge it; every tensor field has the leading dimensions.

    Attributes:
        value: κ = σ_max / σ_min over min(rows, columns) singular values; inf when rank deficient. Where `converged`
            is False it is a lower bound of κ.
        effective_value: κ⁺ over the `rank` singular values above the tolerance; nan where the rank is not known.
        sigma_max, sigma_min: the extremes over all min(rows, columns) singular values; where `converged` is False,
            `sigma_min` is an upper bound.
        rank: numerical rank (int64); -1 where "cholesky" did not converge and so does not know it. W_Q → W_Q M,
            W_K → W_K M⁻ᵀ leaves attention unchanged, which costs W_Q and W_K together d_k² a head (the gauge rank):
            with more rows than the columns less that, κ is inf and only κ⁺ means anything. `note` says when.
        method: "gram", "cholesky" or "svd", the way that was taken; "gram+svd" or "cholesky+svd" for a batch of
            which "auto" sent only the hard members to the SVD.
        residual: ‖J v − σ u‖ / σ, the larger of the two extreme pairs, where they were formed; otherwise the
            rounding error of the dense decomposition that stands for it.
        converged: whether float64 resolves `sigma_min` along that way.
        bound: relative error of `value`, |value / κ − 1| ≤ bound, rounding included; inf where not converged.
        note: in words, what limits the result; empty when nothing does.
    """

    value: Tensor
    effective_value: Tensor
    sigma_max: Tensor
    sigma_min: Tensor
    rank: Tensor
    method: str
    residual: Tensor
    converged: Tensor
    bound: Tensor
    note: str = ""

    def __float__(self) -> float:
        return float(self.value)


@dataclass(frozen=True)
class JacobianExtremes:
    """The k largest and the k smallest of the min(rows, columns) singular values, each (…, k), most extreme first.

    Attributes:
        largest, smallest: singular values.
        largest_residual, smallest_residual: ‖J v − σ u‖ / σ of each; a singular value lies within that share of σ.
        converged: (…), whether every residual is at most 1e-3 and float64 resolves the smallest.
    """

    largest: Tensor
    smallest: Tensor
    largest_residual: Tensor
    smallest_residual: Tensor
    converged: Tensor


def condition(op: Operator, method: str, count: int, limit: int | None, max_bytes: int | None) -> JacobianCondition:
    """κ by `method`; `count` = min(rows, columns) before compression, `limit` the gauge rank where it is below that."""
    ways = {"gram": by_gram, "cholesky": by_cholesky, "svd": by_svd}
    first = first_way(op, limit) if method == "auto" else method
    result = ways[first](op, count, limit)
    if method != "auto" or first == "svd" or bool(result.converged.all()):
        return result
    hard = (~result.converged).flatten().nonzero().flatten()
    affordable = svd_flops(op) * len(hard) <= SVD_FLOPS
    if not affordable or (max_bytes is not None and bytes_needed(op.select(hard[:1]), "svd") > max_bytes):
        return result
    # one SVD at a time: they are not batched on a CPU, and each needs room
    return _merge(result, [(int(i), by_svd(op.select(hard[j : j + 1]), count, limit)) for j, i in enumerate(hard)])


def first_way(op: Operator, limit: int | None) -> str:
    """What "auto" tries first."""
    if op.is_plain_v or op.rows > op.columns or limit is not None:  # tall, or singular by gauge: the rank is wanted
        return "svd"
    return "gram" if op.size <= GRAM_ROWS else "cholesky"


def _merge(result: JacobianCondition, found: list[tuple[int, JacobianCondition]]) -> JacobianCondition:
    """`result` with members of the batch replaced, by flat index."""
    changes: dict[str, Tensor] = {}
    for name in ("value", "effective_value", "sigma_max", "sigma_min", "rank", "residual", "converged", "bound"):
        old = getattr(result, name)
        flat = old.reshape(-1).clone()
        for i, one in found:
            flat[i] = getattr(one, name).squeeze()
        changes[name] = flat.reshape(old.shape)
    whole = len(found) == result.value.numel()
    notes = "; ".join(dict.fromkeys(one.note for _, one in found if one.note))
    return replace(result, method="svd" if whole else f"{result.method}+svd", note=notes, **changes)


def by_svd(op: Operator, count: int, limit: int | None) -> JacobianCondition:
    values = singular_values(op, count)
    s = summarize(values, max(op.rows, op.columns) * EPS)
    kappa = s.condition_number
    # LAPACK: every singular value within a modest multiple of eps σ_max
    error = op.unit * op.rounding(values[..., 0] / op.unit)
    error = torch.where(kappa.isfinite(), error / values[..., -1].clamp(min=TINY), EPS)
    resolved = error <= 10 * RESOLVED
    return _result(
        "svd", torch.where(resolved, kappa, kappa / (1 + error)), s.effective_condition_number, values[..., 0],
        values[..., -1], s.rank, error, error, limit, resolved,
    )


def singular_values(op: Operator, count: int) -> Tensor:
    """All `count` singular values, descending, by QR and SVD of the compressed J."""
    if op.is_plain_v:  # J_V = PY ⊗ I: each singular value of PY, d_v times
        values = torch.linalg.svdvals(op.head.py.squeeze(-3)).repeat_interleave(op.head.d_v, -1)
    else:
        matrix = op.dense()
        tall = matrix.mT if matrix.shape[-1] > matrix.shape[-2] else matrix
        values = torch.linalg.svdvals(torch.linalg.qr(tall, mode="r").R) * op.unit.unsqueeze(-1)
    # values that the compression drops are exact zeros
    return torch.nn.functional.pad(values, (0, max(0, count - values.shape[-1])))[..., :count]


def by_gram(op: Operator, count: int, limit: int | None) -> JacobianCondition:
    gram = op.gram()
    eigenvalues = torch.linalg.eigvalsh(gram, UPLO="U").flip(-1).clamp(min=0)
    top, bottom = eigenvalues[..., 0], eigenvalues[..., -1]
    values = eigenvalues.sqrt()
    sigma_max, sigma_min = values[..., 0], values[..., -1]
    rough = EPS * op.size**0.5 * top / bottom.clamp(min=TINY)
    if bool((rough > 1e-10).any()) and bool((top > 0).any()):
        low = _lowest(op, sigma_max, 1, gram)
        sigma_min, error = low.values[..., 0], low.residual[..., 0]
    else:
        error = rough
    resolved = (bottom > GRAM_FLOOR * top) & (top > 0) & (sigma_min > 0)
    rank = (eigenvalues > GRAM_FLOOR * top.unsqueeze(-1)).sum(-1)
    effective = summarize(values, GRAM_FLOOR**0.5).effective_condition_number
    return _from_gram(op, "gram", count, limit, sigma_max, sigma_min, error, resolved, rank, effective)


def by_cholesky(op: Operator, count: int, limit: int | None) -> JacobianCondition:
    high, low, resolved = extreme_pairs(op, 1)
    sigma_max, sigma_min = high.values[..., 0], low.values[..., 0]
    error = torch.maximum(high.residual[..., 0], low.residual[..., 0])
    rank = torch.where(sigma_max > 0, torch.where(resolved, op.size, -1), 0)
    effective = torch.where(resolved, sigma_max / sigma_min, torch.nan)
    return _from_gram(op, "cholesky", count, limit, sigma_max, sigma_min, error, resolved, rank, effective)


def extreme_pairs(op: Operator, k: int) -> tuple[Ritz, Ritz, Tensor]:
    """k largest, k smallest, and whether a Gram matrix resolves the smallest, (…)."""
    start = random_block(op.lead, op.size, max(4, k + 2), op.unit.device)
    high = largest(op.forward, op.backward, start, min(k, op.size))
    low = _lowest(op, high.values[..., 0], k)
    return high, low, (low.values[..., 0] > GRAM_FLOOR**0.5 * high.values[..., 0]) & (high.values[..., 0] > 0)


def extremes(op: Operator, count: int, k: int) -> JacobianExtremes:
    """The k largest and k smallest of `count` singular values."""
    high, low, resolved = extreme_pairs(op, k)
    unit, zeros = op.unit.unsqueeze(-1), min(k, count - op.size)
    pad = torch.nn.functional.pad  # values that the compression dropped are exact zeros
    smallest_values = pad(low.values, (zeros, 0))[..., :k]
    residual = pad(low.residual, (zeros, 0))[..., :k]
    converged = ((high.residual <= RESOLVED).all(-1) & (residual <= RESOLVED).all(-1)) & (resolved | (zeros == k))
    return JacobianExtremes(unit * high.values, unit * smallest_values, high.residual, residual, converged)


def _lowest(op: Operator, sigma_max: Tensor, k: int, gram: Tensor | None = None) -> Ritz:
    """The k smallest singular values of J, with a Cholesky factor of its Gram matrix (of `gram`, in place, if given).

    A float32 factor, half the time and memory, serves up to κ near 1e4; where it has not led to the end, float64.
    """
    start = random_block(op.lead, op.size, max(4, k + 2), op.unit.device, seed=1)
    if gram is None:
        found = _with_factor(op, sigma_max, k, op.gram(torch.float32), start, max_steps=8 * ROUND)
        if bool((found.residual <= TOLERANCE).all()):
            return found
        del found
    return _with_factor(op, sigma_max, k, op.gram() if gram is None else gram, start, max_steps=48)


def _with_factor(op: Operator, sigma_max: Tensor, k: int, gram: Tensor, start: Tensor, max_steps: int) -> Ritz:
    dtype = gram.dtype
    shift = (64 if dtype == torch.float64 else 8) * torch.finfo(dtype).eps * sigma_max.square()
    for _ in range(4):  # the factor is a preconditioner: a shift that makes it exist costs steps, not digits
        gram.diagonal(dim1=-2, dim2=-1).add_(shift.clamp(min=1e-30).unsqueeze(-1).to(dtype))
        factor = gram.mT  # LAPACK reads the lower triangle by columns: the upper one by rows, no copy is made
        info = torch.empty(gram.shape[:-2], dtype=torch.int32, device=gram.device)
        torch.linalg.cholesky_ex(factor, out=(factor, info))
        if not bool(info.any()):
            break
        gram, shift = op.gram(dtype), 100 * shift
    return smallest(
        op.forward, op.backward, factor, start, min(k, op.size), top=sigma_max, tolerance=TOLERANCE, max_steps=max_steps
    )


def _from_gram(
    op: Operator, method: str, count: int, limit: int | None, sigma_max: Tensor, sigma_min: Tensor, error: Tensor,
    resolved: Tensor, rank: Tensor, effective: Tensor,
) -> JacobianCondition:
    zero = sigma_max == 0
    resolved = (resolved & (error <= RESOLVED)) | zero
    # Rayleigh quotients bound σ_min from above and σ_max from below, up to rounding
    rounding = op.rounding(sigma_max)
    at_least = sigma_max / (sigma_min + rounding).clamp(min=TINY)
    value = torch.where(resolved, sigma_max / sigma_min, at_least)
    value = torch.where(zero, torch.inf, value)
    effective = torch.where(resolved & ~zero, value, effective)  # full rank: the refined extremes
    if count > op.size:  # columns that vanish: σ_min = 0 without any arithmetic
        value, sigma_min = torch.full_like(value, torch.inf), torch.zeros_like(sigma_min)
    relative = torch.where(value.isfinite(), rounding / sigma_min.clamp(min=TINY), 0)
    bound = torch.where(resolved, error + relative, torch.inf)
    return _result(
        method, value, effective, op.unit * sigma_max, op.unit * sigma_min, rank, error, bound, limit, resolved
    )


def _result(
    method: str, value: Tensor, effective: Tensor, sigma_max: Tensor, sigma_min: Tensor, rank: Tensor, residual: Tensor,
    bound: Tensor, limit: int | None, converged: Tensor,
) -> JacobianCondition:
    notes = []
    if limit is not None:
        notes.append(
            f"gauge: W_Q → W_Q M, W_K → W_K M⁻ᵀ leaves attention unchanged, so the rank is at most {limit} and κ is "
            "inf; read κ⁺ and the rank"
        )
    if not bool(converged.all()):
        hint = "" if method == "svd" else '; method="svd" resolves more, at the price of an SVD of J'
        notes.append(f"σ_min is below what float64 resolves by {method!r}: value is a lower bound{hint}")
    return JacobianCondition(
        value=value, effective_value=effective, sigma_max=sigma_max, sigma_min=sigma_min, rank=rank, method=method,
        residual=residual, converged=converged, bound=torch.where(converged, bound, torch.inf), note="; ".join(notes),
    )
