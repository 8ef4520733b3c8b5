"""Where the query, key and value weights of a model are, and how they lie in storage.

Found are three `nn.Linear` layers of one module under a known triple of names, the attention classes listed in
`families.py`, and what the caller states with `layouts=`. Everything else that looks like attention is listed with the
reason why it was not taken: a name is not a layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from spectral_core.families import known_layouts
from spectral_core.layouts import ROLES, Layout
from spectral_core.matching import matches, near_names

__all__ = ["Projection", "Unmatched", "find_projections", "survey"]

SEPARATE_NAMES = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("query_proj", "key_proj", "value_proj"),
    ("to_q", "to_k", "to_v"),
    ("q_lin", "k_lin", "v_lin"),
    ("wq", "wk", "wv"),
    ("q", "k", "v"),
)
HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "groups")
ATTENTION_CLASS = re.compile(r"att|xca", re.I)
FUSED_NAME = re.compile(r"(in_proj_|to_|w_?)?(qkv|kv|qk|query_key_value|key_value)(_proj|_weight)?|c_attn|w_pack", re.I)


@dataclass(frozen=True)
class Projection:
    """One projection weight of one attention module.

    Attributes:
        name: dotted name of the module that holds the weight, from the root of the model.
        role: "q", "k" or "v".
        module: that module.
        parameter: name of the parameter in it.
        layout: which rows or columns of the parameter hold the role, a `Layout`; prints as "separate", "q|k|v", ….
        attention: dotted name of the attention module that it belongs to.
    """

    name: str
    role: str
    module: nn.Module
    parameter: str
    layout: Layout
    attention: str = ""

    @property
    def stored(self) -> Tensor:
        """The parameter as stored, in its own shape, without a correction."""
        return stored_parameter(self.module, self.parameter)

    @property
    def weight(self) -> Tensor:
        """The weight of this role that the model uses now, correction included, (out, in)."""
        return self.layout.take(getattr(self.module, self.parameter), self.role)

    @property
    def bias(self) -> Tensor | None:
        """What is added to the outputs of this role, (out,), or None."""
        if isinstance(self.module, nn.MultiheadAttention):
            packed = self.module.in_proj_bias
            return None if packed is None else packed.chunk(3)[ROLES.index(self.role)]
        bias = getattr(self.module, "bias", None)
        if not isinstance(bias, Tensor) or self.parameter != "weight" or self.stored.ndim != 2:
            return None
        column = bias.unsqueeze(0 if self.layout.transposed else 1)  # lies as the outputs of the weight do
        return self.layout.take(column, self.role).squeeze(-1)

    @property
    def label(self) -> str:
        """`name`, with the parameter where that is not simply "weight"."""
        return self.name if self.parameter == "weight" else f"{self.name}.{self.parameter}".lstrip(".")

    def assign(self, value: Tensor) -> None:
        """Write an (out, in) matrix into the rows of this role; other roles stay."""
        with torch.no_grad():
            self.stored.copy_(self.layout.put(self.stored, {self.role: value}))


@dataclass(frozen=True)
class Unmatched:
    """An attention-like module that was left alone, and why."""

    name: str
    kind: str  # its class
    reason: str


def find_projections(model: nn.Module, *, layouts: Mapping[str, Layout] | None = None) -> list[Projection]:
    """All query, key and value weights of `model`, in module order.

    Args:
        model: any module; nothing is changed.
        layouts: for what is not known, {pattern: layout}. A pattern is a glob, a regular expression or the end of a
            name after a dot; it names the module that holds the weight ("blocks.*.qkv"), or the parameter itself
            ("blocks.*.qkv_weight"). What it says comes before what is known.

    Raises:
        ValueError: none found, with a list of the modules that look like attention, their parameters and why they were
            not taken; or a pattern in `layouts` that fits no parameter, several that fit the same, or a layout that
            does not fit its parameter.
    """
    found, unmatched = survey(model, layouts=layouts)
    if not found:
        raise ValueError(
            f"expected a model with query, key and value weights that are known, got {type(model).__name__} with "
            f"{describe_unmatched(unmatched)}. State where they are: "
            'find_projections(model, layouts={"*.name": Layout("qkv")}), and the same for condition'
        )
    return found


def survey(
    model: nn.Module, *, layouts: Mapping[str, Layout] | None = None
) -> tuple[list[Projection], list[Unmatched]]:
    """What `find_projections` finds (maybe nothing), and what looks like attention but was not taken."""
    stated = _stated(model, layouts or {})
    taken = {(p.name, p.parameter) for projections in stated.values() for p in projections}
    found: list[Projection] = []
    owners: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList) or "_orig_mod" in module._modules:
            continue  # the second is what torch.compile puts around a module, and answers for it
        here = [p for p in _in_module(name, module) if (p.name, p.parameter) not in taken] + stated.get(name, [])
        if here:
            owners.add(name)
            found += here
    return found, list(_unmatched(model, owners))


def stored_parameter(module: nn.Module, parameter: str) -> Tensor:
    """The parameter as stored, under a parametrization too."""
    if parametrize.is_parametrized(module, parameter):
        stack: Any = module.parametrizations[parameter]  # type: ignore[index, union-attr]
        if stack.is_tensor:
            return stack.original
    own = module._parameters.get(parameter)  # names in a file may be anything, "forward" too
    return getattr(module, parameter) if own is None else own


def submodule(model: nn.Module, name: str) -> nn.Module:
    """The module of that dotted name, whatever its parts are called."""
    for part in name.split(".") if name else ():
        model = model._modules[part]  # type: ignore[assignment]
    return model


def describe_unmatched(unmatched: list[Unmatched]) -> str:
    """A list in one line."""
    if not unmatched:
        return "no attention-like module"
    lines = [f"{u.name or '(root)'}: {u.kind}, {u.reason}" for u in unmatched[:12]]
    more = f"; and {len(unmatched) - 12} more" if len(unmatched) > 12 else ""
    return "these attention-like modules: " + "; ".join(lines) + more


def _in_module(name: str, module: nn.Module) -> list[Projection]:
    """The projections that belong to one attention module: of a known class, or three layers with known names."""
    for names in SEPARATE_NAMES:
        layers = [getattr(module, child, None) for child in names]
        if all(isinstance(layer, nn.Linear) for layer in layers):
            layouts = {f"{child}.weight": Layout(role) for role, child in zip(ROLES, names, strict=True)}
            return _projections(name, module, layouts)
    return _projections(name, module, known_layouts(module))


def _projections(owner: str, module: nn.Module, layouts: dict[str, Layout]) -> list[Projection]:
    found = []
    for path, layout in layouts.items():
        child, _, parameter = path.rpartition(".")
        holder = submodule(module, child)
        where = ".".join(filter(None, (owner, child)))
        found += [Projection(where, role, holder, parameter, layout, owner) for role in layout.roles if role != "-"]
    counts = _head_counts(module, found)
    return [replace(p, layout=p.layout.with_heads(*counts)) for p in found]


def _head_counts(attention: nn.Module, found: list[Projection]) -> tuple[int | None, int | None]:
    """Heads of queries, and of keys and values: stated in the attention module or its config, and by the rows of K."""
    rows = {}
    for p in found:
        if is_lazy(p.stored) or p.stored.ndim < 2 or not p.stored.is_floating_point():
            return None, None  # refused where it matters
        sizes = p.layout.section_sizes(p.stored.shape, p.label)
        rows[p.role] = sizes[p.layout.roles.index(p.role)] * p.layout.groups
    for source in (attention, getattr(attention, "config", None)):
        for key in HEAD_COUNTS:
            heads = getattr(source, key, None)
            if isinstance(heads, int) and not isinstance(heads, bool) and heads > 0 and "q" in rows:
                width, rest = divmod(rows["q"], heads)
                if rest or rows.get("k", width) % width:
                    continue
                return heads, rows.get("k", rows["q"]) // width
    return None, None


def _stated(model: nn.Module, layouts: Mapping[str, Layout]) -> dict[str, list[Projection]]:
    """{attention module: projections} for what the caller states."""
    parameters = dict(_parameters(model)) if layouts else {}
    claimed: dict[str, str] = {}
    by_owner: dict[str, dict[str, Layout]] = {}
    for pattern, layout in layouts.items():
        if not isinstance(layout, Layout):
            raise ValueError(f"layouts[{pattern!r}]: expected a Layout, got {type(layout).__name__}")
        hits = [full for full in parameters if _is_meant(full, pattern)]
        if not hits:
            near = near_names([pattern], [full.removesuffix(".weight") for full in parameters])
            hint = f"near names: {near}" if near else f"parameters there are: {list(parameters)[:20]}"
            raise ValueError(f"layouts: expected {pattern!r} to name a module or parameter, got no match; {hint}")
        for full in hits:
            if full in claimed:
                raise ValueError(f"{full}: expected one layout, got two, by {claimed[full]!r} and by {pattern!r}")
            claimed[full] = pattern
            holder, key, shape = parameters[full]
            if len(shape) == 3 and isinstance(submodule(model, holder), nn.modules.conv._ConvNd):
                raise ValueError(
                    f"{full}: expected a matrix, heads of matrices or a 2-D convolution, got a 1-D convolution "
                    f"of shape {tuple(shape)}; use an nn.Linear, which does the same where the kernel is 1"
                )
            layout.section_sizes(shape, full)
            owner = holder.rpartition(".")[0] if key == "weight" else holder
            by_owner.setdefault(owner, {})[full[len(owner) :].lstrip(".")] = layout
    return {owner: _projections(owner, submodule(model, owner), paths) for owner, paths in by_owner.items()}


def _parameters(model: nn.Module) -> Iterator[tuple[str, tuple[str, str, torch.Size]]]:
    """(full name, (module, parameter, shape)), parametrized ones under the names that they had."""
    for name, module in model.named_modules():
        if not isinstance(module, parametrize.ParametrizationList):
            keys = [key for key, _ in module.named_parameters(recurse=False)]
            keys += list(module.parametrizations) if parametrize.is_parametrized(module) else []  # type: ignore[arg-type]
            for key in keys:
                yield f"{name}.{key}".lstrip("."), (name, key, stored_parameter(module, key).shape)


def _is_meant(full: str, pattern: str) -> bool:
    """By the parameter's full name, or by its module's when it is called weight; whole, or the end after a dot."""
    return matches(full, [pattern]) or (full.endswith(".weight") and matches(full.removesuffix(".weight"), [pattern]))


def _unmatched(model: nn.Module, owners: set[str]) -> Iterator[Unmatched]:
    """Modules that look like attention, hold parameters, and are not part of, around or above what was found."""
    candidates: dict[str, tuple[nn.Module, str]] = {}
    for name, module in model.named_modules():
        kind = parametrize.type_before_parametrizations(module).__name__
        fused = [child for child, _ in _children(module) if FUSED_NAME.fullmatch(child)]
        if (fused or ATTENTION_CLASS.search(kind)) and any(p.ndim > 1 for p in module.parameters()):
            candidates[name] = module, kind

    def prefix(name: str) -> str:
        return f"{name}." if name else ""

    taken = [prefix(owner) for owner in owners if owner]  # everything is inside the root
    for name, (module, kind) in candidates.items():
        if name in owners:
            continue
        inside = any(prefix(name).startswith(owner) for owner in taken)
        below = [*taken, *map(prefix, candidates)]
        around = any(other.startswith(prefix(name)) and other != prefix(name) for other in below)
        if not (inside or around):
            yield Unmatched(name, kind, _reason(module))


def _children(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The matrices one level down, as (name of the child or parameter, tensor)."""
    for key, value in module.named_parameters(recurse=False):
        yield key, value
    for key, child in module.named_children():
        # asking a conditioned layer for its weight would compute it
        if "weight" in child._parameters or parametrize.is_parametrized(child, "weight"):
            yield key, stored_parameter(child, "weight")


def _reason(module: nn.Module) -> str:
    fused = [(key, w) for key, w in _children(module) if FUSED_NAME.fullmatch(key)]
    if fused:
        shown = ", ".join(f"{key} {tuple(w.shape)}" for key, w in fused)
        return f"ambiguous layout: {shown} may hold its roles in any order; state it with layouts="
    shapes = ", ".join(f"{name} {tuple(p.shape)}" for name, p in module.named_parameters())
    return f"no query, key and value weights under known names in ({shapes}); state them with layouts="
