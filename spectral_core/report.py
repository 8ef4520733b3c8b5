"""What `condition` did: every weight with κ before and after, and every attention-like module that was left alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from spectral_core._progress import progress_bar
from spectral_core.conditioned_weight import ConditionedWeight
from spectral_core.projections import Unmatched
from spectral_core.spectrum import condition_number

__all__ = ["ConditionedProjection", "ConditioningReport"]

QUICK = 1e8  # Σ m n min(m, n) up to which all κ together take 0.03 to 0.25 s on two cores (measured, 3 to 180 matrices)


@dataclass(frozen=True)
class ConditionedProjection:
    """One line of the report. κ is computed, in float64 by an SVD, when it is first asked for, and then kept.

    Attributes:
        name: dotted name of the module that holds the weight, with the parameter if that is not called "weight".
        role: "q", "k" or "v"; all roles of the parameter with scope "packed".
        shape: (out, in) of the matrix that is corrected, or (heads, out, in) with scope "head".
        correction: as it prints.
        layout: how the role lies in the parameter, in words.
        tied: names under which the same weight is used elsewhere.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    correction: str
    layout: str
    tied: tuple[str, ...]
    _module: nn.Module = field(repr=False, compare=False)
    _parameter: str = field(repr=False, compare=False)
    _weight: ConditionedWeight = field(repr=False, compare=False)

    @property
    def kappa_before(self) -> float:
        """κ(W); of the worst head with scope "head". nan if the weight was folded before anyone looked."""
        return self._kappas[0]

    @property
    def kappa_after(self) -> float:
        """κ(W + C), in the same sense, for the weight as it was when first looked at."""
        return self._kappas[1]

    @property
    def is_worse(self) -> bool:
        """Whether the correction made κ worse."""
        return self.kappa_after > self.kappa_before

    @property
    def work(self) -> float:
        """m n min(m, n), times the heads: what κ costs, but for a factor."""
        return math.prod(self.shape) * min(self.shape[-2:])

    @cached_property
    def _kappas(self) -> tuple[float, float]:
        if not parametrize.is_parametrized(self._module, self._parameter):
            return math.nan, math.nan
        stack: Any = self._module.parametrizations[self._parameter]  # type: ignore[index, union-attr]
        if stack[0] is not self._weight:
            return math.nan, math.nan
        w = stack.original
        w = w.full_tensor() if hasattr(w, "full_tensor") else w  # sharded by now: every process must look
        role = self.role[0]
        with torch.no_grad():
            both = self._weight.plain(w, role), self._weight.corrected(w, role)
        before, after = (float(condition_number(matrix.detach()).max()) for matrix in both)
        return before, after


@dataclass(frozen=True)
class ConditioningReport:
    """What `condition` did; iterates over its `ConditionedProjection`s and prints as a table.

    Attributes:
        projections: every matrix that is corrected.
        scope: "matrix", "head" or "packed".
        unmatched: attention-like modules that were left alone, with the reason.
    """

    projections: tuple[ConditionedProjection, ...]
    scope: str
    unmatched: tuple[Unmatched, ...] = ()

    def __iter__(self) -> Iterator[ConditionedProjection]:
        return iter(self.projections)

    def __len__(self) -> int:
        return len(self.projections)

    @property
    def is_quick(self) -> bool:
        """Whether looking at every κ takes no noticeable time."""
        return sum(line.work for line in self) <= QUICK

    def __str__(self) -> str:
        with progress_bar("condition numbers", len(self)) as advance:
            for line in self:
                _ = line.kappa_after
                advance(1)
        width = max(len("projection"), *(len(p.name) for p in self))
        what = f"scope: {self.scope}" + (", κ of the worst head" if self.scope == "head" else "")
        lines = [f"{'projection':<{width}}  role  {'shape':>11}  {'κ before':>9}  {'κ after':>9}  ({what})"]
        for p in self:
            kappas = f"{p.kappa_before:9.3g}  {p.kappa_after:9.3g}{'  worse' if p.is_worse else ''}"
            notes = [p.layout] * (p.layout != "separate") + [f"tied with {', '.join(p.tied)}"] * bool(p.tied)
            shape = "×".join(map(str, p.shape))
            lines.append(f"{p.name:<{width}}  {p.role:<4}  {shape:>11}  {kappas}  {'; '.join(notes)}".rstrip())
        if any(math.isnan(p.kappa_before) for p in self):
            lines.append("nan: the correction was taken off before its κ was looked at")
        if self.unmatched:
            lines.append("attention-like modules left alone:")
            lines += [f"  {u.name or '(root)'} ({u.kind}): {u.reason}" for u in self.unmatched]
        return "\n".join(lines)


def warn_of_worse(report: ConditioningReport, stacklevel: int) -> None:
    """A warning with both numbers for every κ that became worse."""
    worse = [line for line in report if line.is_worse]
    if worse:
        shown = "; ".join(f"{w.name}: κ {w.kappa_before:.3g} -> {w.kappa_after:.3g}, {w.correction}" for w in worse[:5])
        more = f"; and {len(worse) - 5} more" if len(worse) > 5 else ""
        warnings.warn(
            f"the correction made κ worse for {len(worse)} of {len(report)} projections ({shown}{more}); another λ or "
            "PolarCorrection may do better, calibrate(model, batch) looks for one",
            stacklevel=stacklevel,
        )
