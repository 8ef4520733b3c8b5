"""Put corrections on a model's query, key and value weights, and fold them away or take them off again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import parametrize

from spectral_core._checks import check_choice
from spectral_core.conditioned_weight import (
    SCOPES,
    ConditionedWeight,
    conditioned_weights,
    parameter_order,
    put_on,
    take_off,
)
from spectral_core.corrections import Correction
from spectral_core.layouts import ROLES, Layout
from spectral_core.matching import Patterns, matches, near_names
from spectral_core.projections import Projection, Unmatched, find_projections, stored_parameter, survey
from spectral_core.readiness import check_ready
from spectral_core.report import ConditionedProjection, ConditioningReport, warn_of_worse

__all__ = ["advance", "condition", "fold", "unfold"]


def condition(
    model: nn.Module,
    correction: Correction | dict[str, Correction],
    *,
    projections: str = "qkv",
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    scope: str = "matrix",
    layouts: Mapping[str, Layout] | None = None,
) -> ConditioningReport:
    r"""Replace each W by W + C, in place, through `torch.nn.utils.parametrize`.

    Parameters stay the same objects, so an optimizer made before still works, with its state. The correction itself is
    shared, not copied: `correction.update(...)` changes it everywhere, from the next forward pass on. A weight that is
    tied, used in several places, is corrected once, in all of them. Nothing is changed when an error is raised.

    Condition before `torch.compile`, DistributedDataParallel or `fully_shard`. Checkpoints with plain keys load before
    and after; `plain_state_dict` writes them. `model.parameters()` gives the same parameters in another order, so
    load an optimizer's saved state into an optimizer made before conditioning.

    Args:
        model: any model of `find_projections`.
        correction: one for all roles, or a dict by role, e.g. {"q": IdentityCorrection(1.0)}. It sees (out, in)
            matrices, whatever the storage.
        projections: the roles to correct, any subset of "qkv" (with a dict, its keys decide).
        include, exclude: which modules, by their dotted names: a glob "blocks.0.*", a regular expression
            r".*\.(q_proj|v_proj)", or a list of those in which plain names match the end of a name, ["q_proj"].
        scope: "matrix", each of Q, K and V as one matrix; "head", each head by itself; "packed", a fused weight as
            one matrix, whatever roles it holds.
        layouts: where the weights are in modules that are not known; see `find_projections`.

    Returns:
        A report of every projection with κ before and after, computed when it is looked at, and of every
        attention-like module that was left alone. Where κ takes no noticeable time it is looked at here, and one that
        became worse is a warning.

    Raises:
        ValueError: no projection found or left after the filters; a weight that is already conditioned, quantised,
            sharded, on the meta device, not finite, or tied to something that would not be conditioned in the same
            way; a number of heads that is not known; or bad arguments.
    """
    check_choice(scope, "scope", SCOPES)
    by_role = _corrections_by_role(correction, projections)
    found, unmatched = survey(model, layouts=layouts)
    if not found:
        find_projections(model, layouts=layouts)  # raises
    chosen = _choose(found, by_role, include, exclude)
    tied = check_ready(model, found, chosen, by_role, scope)
    weights = _weights(chosen, by_role, scope)
    _try_out(chosen, weights)
    for (module, parameter), weight in weights.items():
        put_on(module, parameter, weight)
    left = [*_left_out(model, found, chosen), *unmatched]
    report = ConditioningReport(tuple(_lines(chosen, weights, tied, scope)), scope, tuple(left))
    if report.is_quick:
        warn_of_worse(report, stacklevel=3)
    return report


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
        ValueError: a weight is sharded, or carries a parametrization of someone else's beside the correction, or a
            correction refuses it now; weights before that one are folded, the others still conditioned.
    """
    conditioned = _whole_weights(model, "fold")
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for _, module, parameter, _ in conditioned:
        owners.setdefault(id(stored_parameter(module, parameter)), []).append((module, parameter))
    for places in owners.values():  # a tied weight once, then off everywhere: an error leaves no C to be added twice
        module, parameter = places[0]
        with torch.no_grad():
            stored_parameter(module, parameter).copy_(getattr(module, parameter))
        for module, parameter in places:
            take_off(module, parameter)
    return model


def unfold(model: nn.Module) -> nn.Module:
    """Remove the corrections and keep W: the opposite of `condition`, but for what was trained in between.

    Raises:
        ValueError: a weight is sharded, or carries a parametrization of someone else's beside the correction.
    """
    for _, module, parameter, _ in _whole_weights(model, "unfold"):
        take_off(module, parameter)
    return model


@contextmanager
def corrected(projections: list[Projection], by_role: dict[str, Correction]) -> Iterator[None]:
    """The model of `projections` with corrections on for a while; afterwards it is what it was, to the last bit."""
    weights = _weights([p for p in projections if p.role in by_role], by_role, "matrix")
    done = []
    try:
        for (module, parameter), weight in weights.items():
            put_on(module, parameter, weight)
            done.append((module, parameter))
        yield
    finally:
        for module, parameter in done:
            take_off(module, parameter)


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


def _whole_weights(model: nn.Module, what: str) -> list[tuple[str, nn.Module, str, ConditionedWeight]]:
    """All conditioned weights, refused where they are sharded."""
    conditioned = conditioned_weights(model)
    for name, module, parameter, _ in conditioned:
        if hasattr(stored_parameter(module, parameter), "placements"):
            raise ValueError(
                f"{what}: {name}.{parameter}: expected a weight that is not sharded, got a DTensor; gather a "
                "checkpoint with plain_state_dict(model, get_model_state_dict(model, options=...), folded=True) and "
                "load it into a plain model"
            )
    return conditioned


def _choose(
    found: list[Projection], by_role: dict[str, Correction], include: Patterns | None, exclude: Patterns | None
) -> list[Projection]:
    include, exclude = (
        list(p) if isinstance(p, Iterable) and not isinstance(p, str) else p for p in (include, exclude)
    )  # an iterator would be read once only

    def selected(p: Projection, patterns: Patterns) -> bool:
        return matches(p.name, patterns) or (p.label != p.name and matches(p.label, patterns))

    for name, patterns in (("include", include), ("exclude", exclude)):
        try:
            matches("", patterns or [])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    chosen = [
        p for p in found
        if p.role in by_role
        and (include is None or selected(p, include))
        and not (exclude is not None and selected(p, exclude))
    ]  # fmt: skip
    if not chosen:
        names = list(dict.fromkeys(p.label for p in found))
        near = near_names(include, names) if include is not None else []
        more = f", … ({len(names)} in all)" if len(names) > 12 else ""
        raise ValueError(
            f"expected at least one projection, got none with roles {''.join(by_role)!r}, include={include!r}, "
            f"exclude={exclude!r}; "
            + (f"near names: {near}; " if near else "")
            + f"the model has {names[:12]}{more}; a string is a glob on the whole name, "
            'a list like ["q_proj"] matches the ends of names'
        )
    return chosen


def _weights(
    chosen: list[Projection], by_role: dict[str, Correction], scope: str
) -> dict[tuple[nn.Module, str], ConditionedWeight]:
    """One parametrization for each stored parameter; two roles that share a whole matrix get it once."""
    members: dict[tuple[nn.Module, str], list[Projection]] = {}
    for p in chosen:
        members.setdefault((p.module, p.parameter), []).append(p)
    weights = {}
    for (module, parameter), group in members.items():
        layout = group[0].layout
        roles = [p.role for p in group if p.role in layout.roles]
        corrections = {role: by_role[role] for role in roles}
        weights[module, parameter] = ConditionedWeight(layout, corrections, scope, parameter_order(module))
    return weights


def _try_out(chosen: list[Projection], weights: dict[tuple[nn.Module, str], ConditionedWeight]) -> None:
    """Run every correction once that does not promise to take any matrix; they may refuse, or answer nonsense."""
    names = {(p.module, p.parameter): p for p in chosen}
    for key, weight in weights.items():
        if all(correction.takes_any_matrix for correction in weight.corrections.values()):
            continue
        p = names[key]
        for role in weight.corrections:
            w = weight.plain(p.stored, role).detach()
            try:
                with torch.no_grad():
                    out = weight.corrected(p.stored, role)
            except ValueError as error:
                raise ValueError(f"{p.label} ({role}): {error}") from error
            if out.shape != w.shape or out.dtype != w.dtype:
                raise ValueError(
                    f"{p.label}: expected {weight.corrections[role]} to keep shape {tuple(w.shape)} and {w.dtype}, got "
                    f"{tuple(out.shape)} and {out.dtype}"
                )


def _lines(
    chosen: list[Projection],
    weights: dict[tuple[nn.Module, str], ConditionedWeight],
    tied: dict[int, list[str]],
    scope: str,
) -> Iterator[ConditionedProjection]:
    seen = set()
    for p in chosen:
        weight = weights[p.module, p.parameter]
        role = "".join(weight.corrections) if scope == "packed" else p.role
        key = id(p.stored), role
        if key in seen or role[0] not in weight.corrections:  # a whole matrix in two roles is listed under the first
            continue
        seen.add(key)
        shape = tuple(weight.plain(p.stored, role[0]).shape)
        names = tuple(name for name in tied.get(id(p.stored), []) if name != p.label)
        correction = repr(weight.corrections[role[0]])
        yield ConditionedProjection(
            p.label, role, shape, correction, p.layout.kind, names, p.module, p.parameter, weight
        )


def _left_out(model: nn.Module, found: list[Projection], chosen: list[Projection]) -> Iterator[Unmatched]:
    """Attention modules of which nothing was chosen."""
    used = {p.attention for p in chosen}
    for name in dict.fromkeys(p.attention for p in found if p.attention not in used):
        kind = parametrize.type_before_parametrizations(model.get_submodule(name)).__name__
        yield Unmatched(name, kind, "left out by include, exclude or projections")
