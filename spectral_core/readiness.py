"""Whether the weights that someone wants to condition can be: the checks before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from spectral_core._checks import check_tensor
from spectral_core.corrections import Correction
from spectral_core.projections import Projection

__all__ = ["check_ready", "check_weight"]


def check_ready(
    model: nn.Module,
    found: list[Projection],
    chosen: list[Projection],
    by_role: Mapping[str, Correction] | None = None,
    scope: str = "matrix",
) -> dict[int, list[str]]:
    """Refuse weights that are conditioned already, not plain finite floating parameters, or tied in a way that fails.

    Args:
        model: whose weights they are.
        found: all projections of the model.
        chosen: those that are to be changed.
        by_role: the corrections; None: tied weights are refused.
        scope: of the corrections.

    Returns:
        {id of the parameter: the names under which it is used} for tied ones.

    Raises:
        ValueError: with the name of the weight, what was found and what to do.
    """
    uses = _uses(model)
    for p in chosen:
        if parametrize.is_parametrized(p.module, p.parameter):
            raise ValueError(
                f"{p.label}: expected a plain weight, got one that is already parametrized; fold(model) first"
            )
        check_weight(p)
        p.layout.section_sizes(p.stored.shape, p.label)
        if scope == "head" and p.layout.heads_of(p.role) is None:
            raise ValueError(
                f'{p.label}: scope "head" needs the number of heads, which {p.attention or "the model"} does not tell; '
                "state it with layouts={...: Layout(..., heads=)}, or take scope=\"matrix\""
            )
        _check_packed(p, chosen, by_role or {}, scope)
        _check_tied(p, found, chosen, by_role, uses.get(id(p.stored), []), scope)
    return {key: [use.name for use in places] for key, places in uses.items() if len(places) > 1}


def check_weight(p: Projection) -> None:
    """Refuse what is not a plain, finite, floating parameter of this process.

    Raises:
        ValueError: meta, sharded, partitioned, quantised, not a parameter, or with inf or nan entries.
    """
    w = p.stored
    if hasattr(w, "placements"):
        raise ValueError(
            f"{p.label}: expected a weight that is whole in this process, got a DTensor that is already sharded; "
            "condition the model first and call fully_shard afterwards"
        )
    if hasattr(w, "ds_shape"):
        raise ValueError(
            f"{p.label}: expected a weight that is whole in this process, got one that ZeRO-3 has partitioned; "
            "condition the model before it is given to DeepSpeed"
        )
    if not isinstance(w, Tensor) or p.parameter not in {**p.module._parameters, **p.module._buffers}:
        raise ValueError(f"{p.label}: expected a parameter, got {type(w).__name__} that the module computes")
    if is_lazy(w):
        raise ValueError(f"{p.label}: expected a weight with values, got {type(w).__name__}; run the model once first")
    if w.is_meta:
        raise ValueError(
            f"{p.label}: expected a weight with values, got one on the meta device; load the checkpoint first "
            "(model.to_empty(device=...) and load_state_dict, or from_pretrained without a meta device)"
        )
    if not w.is_floating_point() or w.element_size() < 2 or type(w) not in (nn.Parameter, Tensor):
        raise ValueError(
            f"{p.label}: expected a plain floating-point weight, got {type(w).__name__} of {w.dtype} and shape "
            f"{tuple(w.shape)}: it looks quantised; condition and fold the full-precision model, then quantise it"
        )
    check_tensor(w, f"{p.name}.{p.parameter}".lstrip("."))


@dataclass(frozen=True)
class _Use:
    """One place where a parameter is used."""

    name: str
    module: nn.Module
    parameter: str


def _uses(model: nn.Module) -> dict[int, list[_Use]]:
    """{id of a parameter: its uses}; a module under two names is two uses."""
    uses: dict[int, list[_Use]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            full = f"{prefix}.{key}".lstrip(".")
            uses.setdefault(id(parameter), []).append(_Use(full.removesuffix(".weight"), module, key))
    return uses


def _check_tied(
    p: Projection,
    found: list[Projection],
    chosen: list[Projection],
    by_role: Mapping[str, Correction] | None,
    uses: list[_Use],
    scope: str,
) -> None:
    """A tied weight must be a projection wherever it is used, chosen everywhere, with one layout and correction."""
    names = [use.name for use in uses]
    users = [other for other in found if other.stored is p.stored]
    whole = all(len(user.layout.roles) == 1 for user in users)
    users = [user for user in users if whole or user.role == p.role]
    if len(names) < 2 and len(users) < 2:
        return
    shared = f"{p.label}: expected a weight of its own, got one shared by {names or [user.label for user in users]}"
    if by_role is None:
        raise ValueError(f"{shared}; untie it first")
    strangers = [use.name for use in uses if not any(use.module is user.module for user in users)]
    if strangers:
        raise ValueError(f"{shared}, of which {strangers} are not projections; untie it first")
    missing = [f"{user.label} ({user.role})" for user in users if user not in chosen]
    if missing:
        raise ValueError(f"{shared}, of which {missing} are left out; choose all or none of them, or untie it first")
    corrections = {id(by_role[user.role]) for user in users}
    layouts = set()
    for user in users:
        one = user.layout
        heads = one.heads_of(user.role) if scope == "head" else None
        layouts.add((one.sizes, one.groups, one.transposed, heads, None if whole else one.roles))
    if len(corrections) > 1 or len(layouts) > 1:
        raise ValueError(f"{shared} with several corrections or layouts; give all of them the same, or untie it first")


def _check_packed(p: Projection, chosen: list[Projection], by_role: Mapping[str, Correction], scope: str) -> None:
    if scope != "packed":
        return
    roles = [role for role in p.layout.roles if role != "-"]
    if len(p.layout.roles) < 2:
        raise ValueError(
            f'{p.label}: scope "packed" is for a weight that holds several roles, got {p.layout.kind!r}; take "matrix" '
            'or "head"'
        )
    here = {q.role for q in chosen if q.module is p.module and q.parameter == p.parameter}
    if here != set(roles) or len({id(by_role[role]) for role in here}) > 1:
        raise ValueError(
            f'{p.label}: scope "packed" corrects {p.layout.kind} as one matrix: expected one correction for all of '
            f"{roles}, got roles {sorted(here)}"
        )
