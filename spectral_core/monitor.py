"""Spectra of a model's projections while it trains, as plain dicts for any logger."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spectral_core.capture import own_cache
from spectral_core.head_jacobians import attention_jacobians
from spectral_core.layouts import Layout
from spectral_core.projections import Projection, find_projections
from spectral_core.spectrum import spectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SpectralMonitor"]

Stacks = dict[tuple, list[tuple[str, Tensor]]]  # shape, dtype and device: (key, heads)


class SpectralMonitor:
    """Condition numbers and norms of W + C, layer by layer, every so many steps.

    `step(i)` gives a flat dict, such as {"spectral/layer03/q/kappa": 41.2, …}:

    * `kappa`: `condition_number` of the worst head (of the whole matrix where the number of heads is not known), inf
      when rank deficient,
    * `sigma_max`: the largest singular value of all heads,
    * with a `batch` also "spectral/layer03/kappa_j" and "…/saturation", the worst κ(J) and the mean saturation over
      heads at that batch, which cost far more.

    Layers are numbered in the order of the model's attention modules; `names` has their names. Works on plain and
    conditioned models, compiled or not, in DistributedDataParallel and `fully_shard`: every process calls `step`, the
    first one alone computes and gets the numbers, the others get None.

        writer = SummaryWriter()                             # TensorBoard
        for key, value in (monitor.step(i) or {}).items():
            writer.add_scalar(key, value, i)

        if (values := monitor.step(i)) is not None:
            wandb.log(values, step=i)                        # or trackio.log(values, step=i)

    Args:
        model: any model of `find_projections`.
        every: steps between two looks, a positive integer.
        batch: for `attention_jacobians`, or None.
        layouts: as in `find_projections`.

    Attributes:
        history: all dicts so far, each with its "step"; `pandas.DataFrame(monitor.history)` is a table of them.
        names: of the attention modules.

    Raises:
        ValueError: `every` not a positive integer, a model without projections, or an unknown setting.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 50,
        batch: Tensor | Sequence[Any] | Mapping[str, Any] | None = None,
        layouts: Mapping[str, Layout] | None = None,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every: expected a positive integer, got {every!r}")
        self.model, self.every, self.batch, self.layouts = _unwrapped(model), every, batch, layouts
        self.history: list[dict[str, float]] = []
        self.names = list(dict.fromkeys(_name(p.attention) for p in find_projections(self.model, layouts=layouts)))

    @torch.no_grad()
    def step(self, i: int) -> dict[str, float] | None:
        """The values at training step `i`, or None where it is not a multiple of `every` or the process not the first.

        Weights that are not finite give nan. Layers whose Jacobian is not built have no κ(J), which is said once.

        Raises:
            ValueError: `batch` with a model in shards, or one that does not fit the model.
        """
        if i % self.every:
            return None
        is_first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
        projections = find_projections(self.model, layouts=self.layouts)
        is_sharded = any(hasattr(p.stored, "full_tensor") for p in projections)
        if not (is_first or is_sharded):
            return None
        if is_sharded and self.batch is not None:
            raise ValueError("batch: expected None for a model in shards, whose heads no process has as a whole")
        stacks = self._stacks(projections)  # collective where weights are sharded
        if not is_first:
            return None
        values = _spectra(stacks)
        if self.batch is not None:
            with own_cache():
                values |= self._jacobians()
        self.history.append({"step": i, **values})
        return values

    def plot(self) -> Figure:
        """κ of Q, K and V of every layer over the steps, and κ(J) and saturation where they were measured.

        Raises:
            ImportError: matplotlib is missing; the message names the extra that brings it.
            ValueError: nothing was recorded yet.
        """
        from spectral_core.plots import spectral_history

        if not self.history:
            raise ValueError("history: expected at least one record, got none; call step(0) first")
        return spectral_history(self.history)

    def _stacks(self, projections: list[Projection]) -> Stacks:
        """Heads of equal shape together, with the key of each role."""
        stacks: Stacks = defaultdict(list)
        used: dict[tuple[int, str], Tensor] = {}
        for p in projections:
            w = heads_in_use(p, used)
            key = f"spectral/layer{self.names.index(_name(p.attention)):02d}/{p.role}"
            stacks[(*w.shape, w.dtype, w.device)].append((key, w))
        return stacks

    def _jacobians(self) -> dict[str, float]:
        assert self.batch is not None
        by_layer = defaultdict(list)
        refused: dict[str, str] = {}
        found = attention_jacobians(self.model, self.batch, layouts=self.layouts, refused=refused, progress=False)
        for record in found:
            by_layer[self.names.index(_name(record.layer.partition("#")[0]))].append(record)
        if refused and not self.history:
            warnings.warn(f"no κ(J) of {len(refused)} layers: {next(iter(refused.values()))}", stacklevel=3)
        values = {}
        for layer, records in by_layer.items():
            values[f"spectral/layer{layer:02d}/kappa_j"] = max(float(r.condition_number.max()) for r in records)
            values[f"spectral/layer{layer:02d}/saturation"] = float(torch.stack([r.saturation for r in records]).mean())
        return values


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model itself: outside the graph of `torch.compile`, and free of DistributedDataParallel's collectives."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _name(attention: str) -> str:
    """As it is without `torch.compile`, which may come later."""
    return ".".join(part for part in attention.split(".") if part != "_orig_mod")


def _spectra(stacks: Stacks) -> dict[str, float]:
    values: dict[str, float] = {}
    for same in stacks.values():  # equal shapes in one call
        stack = torch.stack([w for _, w in same])
        sound = torch.isfinite(stack).flatten(1).all(1)  # a run that diverges must not end here, in one process alone
        found = spectrum(stack.where(sound.view(-1, 1, 1, 1), 0))
        kappa, largest = found.condition_number.amax(-1), found.singular_values[..., 0].amax(-1)
        for (key, _), good, worst, norm in zip(same, sound.tolist(), kappa.tolist(), largest.tolist(), strict=True):
            values |= {f"{key}/kappa": worst if good else math.nan, f"{key}/sigma_max": norm if good else math.nan}
    return dict(sorted(values.items()))


def heads_in_use(p: Projection, used: dict[tuple[int, str], Tensor]) -> Tensor:
    """W + C of one role, (heads, rows of one, in), or (1, out, in) if heads are not known; gathered if sharded.

    `used` keeps whole parameters for their other roles; parametrize.cached() would keep them for the caller too, and
    without a graph.
    """
    key = (id(p.module), p.parameter)
    if key not in used:
        w = p.stored
        used[key] = _corrected(p, w.full_tensor() if hasattr(w, "full_tensor") else w).detach()
    return p.layout.take(used[key], p.role).unflatten(0, (p.layout.heads_of(p.role) or 1, -1))


def _corrected(p: Projection, w: Tensor) -> Tensor:
    """The parameter in use, without a trace: nothing that a parametrization keeps moves on."""
    if not parametrize.is_parametrized(p.module, p.parameter):
        return w
    stack: Any = p.module.parametrizations[p.parameter]  # type: ignore[index, union-attr]
    if not stack.is_tensor or not bool(torch.isfinite(w).all()):
        return w  # made of several parameters, and then in use as it is; or diverged, which corrections refuse
    modes = {module: module.training for module in stack.modules()}
    try:
        stack.eval()
        for step in stack:
            w = step(w)
        return w
    finally:
        for module, mode in modes.items():
            module.training = mode
