"""Spectra of the projections of a checkpoint, one tensor in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spectral_core._checks import to_float64
from spectral_core._progress import progress_bar
from spectral_core.audit.reading import one_line
from spectral_core.audit.skeleton import tensor_name
from spectral_core.audit.store import AuditError, Checkpoint
from spectral_core.projections import Projection
from spectral_core.spectrum import default_rtol, spectrum

__all__ = ["MatrixAudit", "measure", "random_kappa"]

nan = math.nan


@dataclass(frozen=True)
class MatrixAudit:
    """One matrix of a checkpoint: a role of one layer, whole or one head of it. Arithmetic is float64.

    Attributes:
        layer: name of the attention module; index: its place among them, from 0.
        role: "q", "k" or "v".
        head: index of the head, or None for the whole matrix.
        tensor, layout, dtype: where it is stored, and how.
        shape: (out, in).
        kappa: σ_max/σ_min; inf when rank deficient; nan where there is no spectrum, and `note` says why.
        kappa_plus: κ⁺, σ_max over the smallest singular value above the tolerance; rank: how many are above it.
        sigma_max, sigma_min, stable_rank: stable rank is ‖W‖_F²/σ_max².
        singular_values: descending.
        note: why there is no number, or what is special about it.
    """

    layer: str
    index: int
    role: str
    head: int | None
    tensor: str
    layout: str
    dtype: str
    shape: tuple[int, int]
    kappa: float = nan
    kappa_plus: float = nan
    rank: int = 0
    sigma_max: float = nan
    sigma_min: float = nan
    stable_rank: float = nan
    singular_values: tuple[float, ...] = field(default=(), repr=False)
    note: str = ""

    @property
    def is_measured(self) -> bool:
        return not math.isnan(self.kappa)

    @property
    def random(self) -> float:
        """κ that a Gaussian matrix of this shape has, about."""
        return random_kappa(*self.shape)

    @property
    def where(self) -> str:
        """In words: "layer 3, K, head 7"."""
        return f"layer {self.index}, {self.role.upper()}" + ("" if self.head is None else f", head {self.head}")


def random_kappa(m: int, n: int) -> float:
    """κ of a Gaussian m × n matrix, about: (√a + √b)/(√a − √(b − 1)) with a ≥ b.

    The median of square ones is 3.67 n (Edelman 1988), which this gives as 4 n; tall ones concentrate on it.
    """
    a, b = max(m, n), min(m, n)
    if b < 1:
        return nan
    return (math.sqrt(a) + math.sqrt(b)) / (math.sqrt(a) - math.sqrt(b - 1))


def measure(
    checkpoint: Checkpoint,
    projections: list[Projection],
    *,
    layers: list[str],
    scope: str = "both",
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> list[MatrixAudit]:
    """Every projection as a whole matrix ("matrix"), every head ("head"), or "both", in the order of `layers`.

    A tensor that cannot be read, is no floating-point one, or has entries that are not finite gets a row that says so.
    Where the number of heads is not known there are whole matrices alone.
    """
    order = {name: i for i, name in enumerate(layers)}
    by_tensor: dict[str, list[Projection]] = {}
    for p in projections:
        by_tensor.setdefault(tensor_name(p), []).append(p)
    shapes = {name: here[0].stored.shape for name, here in by_tensor.items()}
    work = {name: math.prod(shape) * min(shape[-2:]) // 10**5 + 1 for name, shape in shapes.items()}
    scales = [name for name in checkpoint.tensors if "scale" in name]
    rows: list[MatrixAudit] = []
    with progress_bar("reading weights", sum(work.values()), shown=progress) as advance:
        for name, here in by_tensor.items():
            rows += _measure_tensor(checkpoint, name, here, order, scope, torch.device(device), scales)
            advance(work[name])
    roles = "qkv"
    return sorted(rows, key=lambda r: (r.index, roles.index(r.role), -1 if r.head is None else r.head))


def _measure_tensor(
    checkpoint: Checkpoint, name: str, here: list[Projection], order: dict[str, int], scope: str, device: torch.device,
    scales: list[str],
) -> list[MatrixAudit]:  # fmt: skip
    stored, out = checkpoint.tensors[name], []
    value, problem = None, ""
    try:
        value = checkpoint.read(name)
        problem = _unfit(value, name, stored.dtype, here[0], scales)
        value = value.to(device)
    except (AuditError, RuntimeError, MemoryError) as error:
        problem = one_line(error)
    for p in here:
        sizes = p.layout.section_sizes(p.stored.shape, name)
        outputs = sizes[p.layout.roles.index(p.role)] * p.layout.groups
        about: dict[str, Any] = dict(
            layer=p.attention, index=order[p.attention], role=p.role, tensor=name, layout=p.layout.kind,
            dtype=stored.dtype, shape=(outputs, p.layout.matrix(p.stored).shape[-1]),
        )
        if problem or value is None:
            out.append(MatrixAudit(head=None, note=problem, **about))
            continue
        try:
            out += list(_measure_role(p.layout.take(value, p.role), p.layout.heads_of(p.role), scope, about))
        except (RuntimeError, MemoryError, ValueError) as error:  # out of memory, an SVD that does not converge
            out.append(MatrixAudit(head=None, note=f"no spectrum: {one_line(error)}", **about))
    return out


def _unfit(value: Tensor, name: str, dtype: str, p: Projection, scales: list[str]) -> str:
    """Why a tensor that was read has no spectrum, or an empty string."""
    if not value.numel():
        return f"is empty, of shape {tuple(value.shape)}"
    if not value.is_floating_point():
        return f"dtype {dtype}: expected floating-point weights, got another type (quantised?)"
    own = next((key for key in scales if key.startswith(name) and "scale" in key[len(name) :]), None)
    if own:
        return f"quantised with {own}: expected the weights themselves; save the model in bfloat16 first"
    if value.shape != p.stored.shape:
        return f"expected the shape {tuple(p.stored.shape)}, got {tuple(value.shape)}"
    return ""


def _measure_role(w: Tensor, heads: int | None, scope: str, about: dict[str, Any]) -> Iterator[MatrixAudit]:
    """Rows for the (out, in) matrix of one role."""
    values = to_float64(w)
    dtype = w.dtype if w.element_size() > 1 else torch.float32  # of which `default_rtol` takes the precision
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        yield MatrixAudit(head=None, note=f"{bad:,} of {values.numel():,} entries are nan or infinite", **about)
        return
    if scope != "head" or not heads:
        yield from _rows(values.unsqueeze(0), dtype, [None], about)
    if scope != "matrix" and heads:
        split = values.unflatten(0, (heads, -1))
        yield from _rows(split, dtype, [*range(heads)], about | {"shape": tuple(split.shape[1:])})


def _rows(
    stack: Tensor, dtype: torch.dtype, heads: list[int | None], about: dict[str, Any]
) -> Iterator[MatrixAudit]:
    """One row for each matrix of a (count, out, in) stack in float64."""
    largest = stack.abs().amax().clamp(min=5e-324)
    unit = torch.exp2(largest.log2().floor())  # a power of two, which costs no digit: σ² must not leave float64
    result = spectrum(stack / unit, rtol=default_rtol(stack.shape[-2], stack.shape[-1], dtype))
    full = min(stack.shape[-2:])
    columns = (
        result.condition_number, result.effective_condition_number, result.rank, result.stable_rank,
        result.singular_values * unit,
    )  # fmt: skip
    for head, kappa, plus, rank, stable, values in zip(heads, *(c.tolist() for c in columns), strict=True):
        note = "" if rank == full else "all zero" if rank == 0 else f"rank {rank} of {full}"
        if math.isinf(values[0]):
            note = f"{note}; σ_max is beyond float64".lstrip("; ")
        yield MatrixAudit(
            head=head, kappa=kappa, kappa_plus=plus, rank=rank, sigma_max=values[0], sigma_min=values[-1],
            stable_rank=stable, singular_values=tuple(values), note=note, **about,
        )
