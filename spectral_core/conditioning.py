"""Put corrections on a model's query, key and value weights, and fold them away again."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.utils import parametrize

from spectral_core._checks import check_choice, check_tensor
from spectral_core.corrections import Correction
from spectral_core.projections import ROLES, Projection, find_projections
from spectral_core.spectrum import condition_number

__all__ = ["ConditionedProjection", "ConditioningReport", "advance", "condition", "fold"]


@dataclass(frozen=True)
class ConditionedProjection:
    """One line of the report: κ of the whole stored matrix before and after the correction."""

    name: str
    role: str
    shape: tuple[int, ...]
    correction: str
    kappa_before: float
    kappa_after: float


@dataclass(frozen=True)
class ConditioningReport:
    """What `condition` did; iterates over its `ConditionedProjection`s and prints as a table."""

    projections: tuple[ConditionedProjection, ...]
    scope: str

    def __iter__(self) -> Iterator[ConditionedProjection]:
        return iter(self.projections)

    def __len__(self) -> int:
        return len(self.projections)

    def __str__(self) -> str:
        width = max(len(p.name) for p in self.projections)
        head = f"{'projection':<{width}}  role  {'shape':>11}  {'κ before':>9}  {'κ after':>9}"
        lines = [f"{head}  (scope: {self.scope})"]
        for p in self.projections:
            shape = "×".join(map(str, p.shape))
            worse = "  worse" if p.kappa_after > p.kappa_before else ""
            kappas = f"{p.kappa_before:9.3g}  {p.kappa_after:9.3g}{worse}"
            lines.append(f"{p.name:<{width}}  {p.role:<4}  {shape:>11}  {kappas}")
        return "\n".join(lines)


def condition(
    model: nn.Module,
    correction: Correction | dict[str, Correction],
    *,
    projections: str = "qkv",
    include: str | list[str] | None = None,
    exclude: str | list[str] | None = None,
    scope: str = "matrix",
) -> ConditioningReport:
    """Replace each W by W + C, in place, through `torch.nn.utils.parametrize`.

    Parameters stay the same objects, so an optimizer made before still works. The correction itself is shared,
    not copied: `correction.update(...)` changes it everywhere, from the next forward pass on. Nothing is changed
    when an error is raised.

    Args:
        model: a model with separate `nn.Linear` query, key and value layers.
        correction: one for all roles, or a dict by role, e.g. {"q": IdentityCorrection(1.0)}.
        projections: the roles to correct, any subset of "qkv" (with a dict, its keys decide).
        include, exclude: glob or list of globs on the dotted module name, e.g. "blocks.0.*".
        scope: "matrix", each stored matrix as a whole.

    Returns:
        A report with κ before and after for every projection. A κ that became worse is also a warning.

    Raises:
        ValueError: no projection found or left after the filters, a weight that is already conditioned, shared
            by two modules or not finite, or bad arguments.
    """
    check_choice(scope, "scope", ("matrix",))
    by_role = _corrections_by_role(correction, projections)
    chosen = [p for p in find_projections(model) if p.role in by_role and _selected(p.name, include, exclude)]
    if not chosen:
        names = [p.name for p in find_projections(model)]
        raise ValueError(
            f"expected at least one projection, got none with roles {''.join(by_role)!r}, include={include!r}, "
            f"exclude={exclude!r}; the model has {names}"
        )
    check_free(model, chosen)
    lines = []
    for p in chosen:
        before = float(condition_number(p.weight.detach()))
        with torch.no_grad():  # a learnable λ would carry a gradient
            after = float(condition_number(by_role[p.role](p.weight.detach())))
        lines.append(ConditionedProjection(p.name, p.role, tuple(p.weight.shape), repr(by_role[p.role]), before, after))
    for p in chosen:
        parametrize.register_parametrization(p.module, p.parameter, by_role[p.role])
    _warn_of_worse(lines)
    return ConditioningReport(tuple(lines), scope)


def advance(model: nn.Module, step: int | None = None) -> None:
    """Tell every correction of `model` that training is at `step`, or one step on: for scheduled λ.

    Raises:
        ValueError: `step` not an integer ≥ 0, or a schedule that did not return a finite number.
    """
    for module in model.modules():
        if isinstance(module, Correction):
            module.advance(step)


def fold(model: nn.Module) -> nn.Module:
    """Write W + C into the plain weights and remove the corrections; same `state_dict` keys as before `condition`.

    Raises:
        ValueError: a weight carries a parametrization of someone else's beside the correction.
    """
    conditioned = []
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for parameter, stack in module.parametrizations.items():
            ours = [isinstance(step, Correction) for step in stack]
            if any(ours) and not all(ours):
                raise ValueError(
                    f"{name}.{parameter}: expected corrections only, got the parametrizations "
                    f"{[type(step).__name__ for step in stack]}; remove the others first"
                )
            if any(ours):
                conditioned.append((module, parameter))
    for module, parameter in conditioned:
        _take_off(module, parameter, keep=True)
    return model


@contextmanager
def corrected(projections: list[Projection], by_role: dict[str, Correction]) -> Iterator[None]:
    """The model of `projections` with corrections on for a while; afterwards it is what it was, to the last bit."""
    chosen = [p for p in projections if p.role in by_role]
    done: list[Projection] = []
    try:
        for p in chosen:
            parametrize.register_parametrization(p.module, p.parameter, by_role[p.role])
            done.append(p)
        yield
    finally:
        for p in done:
            _take_off(p.module, p.parameter, keep=False)


def _take_off(module: nn.Module, parameter: str, *, keep: bool) -> None:
    """Remove the parametrizations of one weight, and leave W + C (`keep`) or W."""
    parametrize.remove_parametrizations(module, parameter, leave_parametrized=keep)
    # the weight goes back in front of the bias: optimizers save their state by the order of parameters
    for key, value in list(module.named_parameters(recurse=False)):
        if key != parameter:
            delattr(module, key)
            module.register_parameter(key, value)


def _warn_of_worse(lines: list[ConditionedProjection]) -> None:
    worse = [line for line in lines if line.kappa_after > line.kappa_before]
    if worse:
        shown = "; ".join(f"{w.name}: κ {w.kappa_before:.3g} -> {w.kappa_after:.3g}, {w.correction}" for w in worse[:5])
        more = f"; and {len(worse) - 5} more" if len(worse) > 5 else ""
        warnings.warn(
            f"the correction made κ worse for {len(worse)} of {len(lines)} projections ({shown}{more}); another λ or "
            "PolarCorrection may do better, calibrate(model, batch) looks for one",
            stacklevel=3,
        )


def _corrections_by_role(correction: object, projections: str) -> dict[str, Correction]:
    if not isinstance(projections, str) or not projections or set(projections) - set(ROLES):
        raise ValueError(f'projections: expected a non-empty subset of "qkv", got {projections!r}')
    by_role: dict = correction if isinstance(correction, dict) else {r: correction for r in ROLES if r in projections}
    if not by_role or set(by_role) - set(ROLES):
        raise ValueError(f'correction: expected a dict with keys among "q", "k", "v", got keys {list(by_role)}')
    for role, value in by_role.items():
        if not isinstance(value, Correction):
            raise ValueError(f"correction for {role!r}: expected a Correction, got {type(value).__name__}")
    return by_role


def _selected(name: str, include: str | list[str] | None, exclude: str | list[str] | None) -> bool:
    def matches(patterns: str | list[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns))

    return (include is None or matches(include)) and not (exclude is not None and matches(exclude))


def check_free(model: nn.Module, chosen: list[Projection]) -> None:
    """Refuse weights that are already conditioned, shared, or not finite, before anything is changed."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(f"{name}.{key}" if name else key)
    users: dict[int, list[str]] = {}  # named_modules lists a module once, however many roles it plays
    for p in find_projections(model):
        users.setdefault(id(p.module), []).append(p.name)
    for p in chosen:
        if parametrize.is_parametrized(p.module, p.parameter):
            raise ValueError(
                f"{p.name}: expected a plain weight, got one that is already parametrized; fold(model) first"
            )
        check_tensor(p.weight, f"{p.name}.{p.parameter}")
        shared = max(owners[id(p.weight)], users[id(p.module)], key=len)
        if len(shared) > 1:
            raise ValueError(f"{p.name}: expected a weight of its own, got one shared by {shared}; untie it first")
