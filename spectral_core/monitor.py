"""Spectra of a model's projections while it trains, as plain dicts for any logger."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spectral_core.capture import choose_layers
from spectral_core.head_jacobians import attention_jacobians
from spectral_core.layouts import Layout
from spectral_core.projections import Projection, find_projections
from spectral_core.spectrum import singular_values

__all__ = ["SpectralMonitor"]


class SpectralMonitor:
    """Condition numbers and norms of W + C, layer by layer, every so many steps.

    `step(i)` gives a flat dict, such as {"spectral/layer03/q/kappa": 41.2, …}:

    * `kappa`: σ_max/σ_min of the worst head (of the whole matrix where the number of heads is not known),
    * `sigma_max`: the largest singular value of all heads,
    * with a `batch` also "spectral/layer03/kappa_j" and "…/saturation", the worst κ(J) and the mean saturation over
      heads at that batch, which cost far more.

    Layers are numbered in the order of the model's attention modules; `names` has their names. Works on plain and
    conditioned models, compiled or not, and inside DistributedDataParallel and `fully_shard`, where every process must
    call `step` and all get the same numbers.

    Args:
        model: any model of `find_projections`.
        every: steps between two looks, a positive integer.
        batch: for `attention_jacobians`, or None.
        layouts: as in `find_projections`.

    Attributes:
        history: all dicts so far, each with its "step".
        names: of the attention modules.

    Raises:
        ValueError: `every` not a positive integer, a model without projections, or with `batch` one with fused layers.
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
        self.model, self.every, self.batch, self.layouts = model, every, batch, layouts
        if batch is not None:
            choose_layers(model, None)  # refuses now what `attention_jacobians` would refuse at the first look
        self.history: list[dict[str, float]] = []
        self.names = list(dict.fromkeys(p.attention for p in find_projections(model, layouts=layouts)))

    @torch.no_grad()
    def step(self, i: int) -> dict[str, float] | None:
        """The values at training step `i`, or None where it is not a multiple of `every`."""
        if i % self.every:
            return None
        values = self._spectra()
        if self.batch is not None:
            values |= self._jacobians()
        self.history.append({"step": i, **values})
        return values

    def _spectra(self) -> dict[str, float]:
        stacks: dict[tuple, list[tuple[str, Tensor]]] = defaultdict(list)
        gathered: dict[int, Tensor] = {}
        with parametrize.cached():  # a conditioned weight that holds three roles is computed once
            for p in find_projections(self.model, layouts=self.layouts):
                w = heads_in_use(p, gathered)
                key = f"spectral/layer{self.names.index(p.attention):02d}/{p.role}"
                stacks[(*w.shape, w.dtype, w.device)].append((key, w))
        values: dict[str, float] = {}
        for same in stacks.values():  # equal shapes in one call
            s = singular_values(torch.stack([w for _, w in same]))
            largest, smallest = s[..., 0], s[..., -1]
            kappa = torch.where(smallest > 0, largest / smallest, torch.inf).amax(-1).tolist()
            for (key, _), worst, norm in zip(same, kappa, largest.amax(-1).tolist(), strict=True):
                values |= {f"{key}/kappa": worst, f"{key}/sigma_max": norm}
        return dict(sorted(values.items()))

    def _jacobians(self) -> dict[str, float]:
        assert self.batch is not None
        by_layer = defaultdict(list)
        for record in attention_jacobians(self.model, self.batch):
            by_layer[self.names.index(record.layer.partition("#")[0])].append(record)
        values = {}
        for layer, records in by_layer.items():
            values[f"spectral/layer{layer:02d}/kappa_j"] = max(float(r.condition_number.max()) for r in records)
            values[f"spectral/layer{layer:02d}/saturation"] = float(torch.stack([r.saturation for r in records]).mean())
        return values


def heads_in_use(p: Projection, gathered: dict[int, Tensor]) -> Tensor:
    """W + C of one role, (heads, rows of one, in), or (1, out, in) where heads are not known; gathered if sharded."""
    stored = p.stored
    if not hasattr(stored, "full_tensor"):
        w = p.weight
    else:
        stored = gathered.setdefault(id(stored), stored.full_tensor())
        if parametrize.is_parametrized(p.module, p.parameter):
            for step in p.module.parametrizations[p.parameter]:  # type: ignore[index, union-attr]
                stored = step(stored)
        w = p.layout.take(stored, p.role)
    return w.detach().unflatten(0, (p.layout.heads_of(p.role) or 1, -1))
