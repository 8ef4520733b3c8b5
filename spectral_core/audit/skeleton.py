"""Where queries, keys and values are in a checkpoint: a tree of empty modules from its names, and what is found in it.

The tree holds parameters on the meta device, which have shapes and no memory, so that `find_projections`' rules for
models serve for checkpoints too. What a class decides in a model (whether `c_attn` is a Conv1D, how `query_key_value`
is interleaved) is decided here by the configuration's "model_type", or stated by the caller.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from spectral_core.audit.configuration import config_of, contradictions, heads_of, odd_values
from spectral_core.audit.store import AuditError, Checkpoint
from spectral_core.families import configured_layouts
from spectral_core.layouts import Layout
from spectral_core.matching import matches
from spectral_core.projections import (
    FUSED_NAME,
    SEPARATE_NAMES,
    Projection,
    Unmatched,
    submodule,
    survey,
)

__all__ = ["Located", "locate", "tensor_name"]

DEEPEST = 200  # parts of a name; real ones have about ten
ROLE_NAMES = {name for names in SEPARATE_NAMES for name in names}


@dataclass(frozen=True)
class Located:
    """The projections of a checkpoint; their modules are empty, `label` and `layout` say where to read."""

    projections: list[Projection]
    unmatched: list[Unmatched]
    problems: list[str]  # contradictions between configuration and shapes


def locate(
    checkpoint: Checkpoint,
    *,
    model: nn.Module | None = None,
    layouts: Mapping[str, Layout] | None = None,
    heads: int | None = None,
) -> Located:
    """Find the projections of `checkpoint`.

    Args:
        model: the model itself on the meta device, where it can be built (timm); else a tree is made from the names.
        layouts: as in `find_projections`, for what is not known.
        heads: of every attention module, where no configuration says it.

    Raises:
        AuditError: none found; lists what looks like attention, and what to do.
    """
    config = checkpoint.config or {}
    problems: list[str] = []
    stated = dict(layouts or {})
    if checkpoint.config is not None:
        problems += odd_values(config)
    if model is None:
        model, unnamed = build_tree(_known_shapes(checkpoint))
        problems += [f"{name!r}: expected the name of a parameter, got one that no module can have" for name in unnamed]
        for name, module in model.named_modules():
            own = config_of(name, config)
            # where `find_projections` looks; in __dict__, since a child of the module may have any name
            module.__dict__["config"] = SimpleNamespace(num_heads=heads or heads_of(name, own))
            stated |= _by_configuration(name, module, own, layouts or {}, problems)
    try:
        projections, unmatched = survey(model, layouts=stated)
    except ValueError as error:
        raise AuditError(str(error)) from error
    if not projections:
        raise AuditError(
            f"{checkpoint.target}: expected query, key and value weights that are known, got "
            f"{_what_there_is(checkpoint, unmatched)}. {_advice(checkpoint, problems)}"
        )
    projections = [_fitting(p, problems) for p in projections]
    if heads:
        _check_heads(heads, projections, problems)
    if checkpoint.config is not None and not heads:
        known = [p for p in projections if p.stored.shape == checkpoint.tensors[tensor_name(p)].shape]
        problems += contradictions(known, config)
    return Located(projections, [u for u in unmatched if _is_attention(submodule(model, u.name))], problems)


def tensor_name(p: Projection) -> str:
    """The name of a projection's parameter in the checkpoint."""
    return f"{p.name}.{p.parameter}".lstrip(".")


def build_tree(shapes: Mapping[str, tuple[int, ...]]) -> tuple[nn.Module, list[str]]:
    """Modules nested as the dots in the names say, with parameters on the meta device, and names of matrices left out.

    Matrices called weight become `nn.Linear`.
    """
    unnamed = []
    linear = {name.removesuffix(".weight") for name, s in shapes.items() if name.endswith(".weight") and len(s) == 2}
    nodes: dict[str, nn.Module] = {"": _node("checkpoint")}
    for name, shape in shapes.items():
        *path, leaf = name.split(".")
        if len(path) >= DEEPEST or "" in (*path, leaf):
            unnamed += [name] * (len(shape) > 1)
            continue
        for depth in range(1, len(path) + 1):
            where = ".".join(path[:depth])
            if where not in nodes:
                nodes[where] = nn.Linear(1, 1, bias=False, device="meta") if where in linear else _node(path[depth - 1])
                # not add_module: names in a file may be anything, "forward" too
                nodes[".".join(path[: depth - 1])]._modules[path[depth - 1]] = nodes[where]
        parameter = nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)
        nodes[".".join(path)]._parameters[leaf] = parameter
    return nodes[""], unnamed


def _fitting(p: Projection, problems: list[str]) -> Projection:
    """The projection, without heads that its rows cannot be split into."""
    try:
        p.layout.section_sizes(p.stored.shape, p.label)
    except ValueError as error:
        problems.append(str(error))
        return replace(p, layout=replace(p.layout, heads=None, kv_heads=None))
    return p


def _check_heads(heads: int, projections: list[Projection], problems: list[str]) -> None:
    """The number that the caller stated must fit every layer."""
    unfit = {p.attention: p for p in projections if p.role == "q" and p.layout.heads != heads}
    if not unfit:
        return
    first = next(iter(unfit.values()))
    sizes = first.layout.section_sizes(first.stored.shape, first.label)
    rows = sizes[first.layout.roles.index("q")] * first.layout.groups
    message = f"heads: expected a number that divides the rows of the queries, got {heads} for {rows} rows"
    if len(unfit) == len({p.attention for p in projections}):
        raise AuditError(message)
    problems.append(f"{message} in {', '.join(list(unfit)[:3])} ({len(unfit)} layers)")


def _node(kind: str) -> nn.Module:
    """An empty module whose class has the name that it has in the checkpoint, for messages."""
    return type(re.sub(r"\W", "_", kind) or "module", (nn.Module,), {})()


def _known_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """All shapes; one in a missing file is taken from the same place in another layer."""
    known = {name: s.shape for name, s in checkpoint.tensors.items() if s.shape is not None and 0 not in s.shape}
    like = {re.sub(r"[0-9]+", "#", name): shape for name, shape in known.items()}
    guesses = {name: like.get(re.sub(r"[0-9]+", "#", name), (1, 1)) for name in checkpoint.tensors}
    return guesses | known


def _by_configuration(
    name: str, module: nn.Module, config: Mapping[str, Any], given: Mapping[str, Layout], problems: list[str]
) -> dict[Any, Layout]:
    """{the exact name of a fused parameter: its layout} of one module, without those that the caller states."""
    heads = module.__dict__["config"].num_heads
    try:
        layouts = configured_layouts(config, heads, set(module._modules))
    except ValueError as error:  # numbers that no weight can have
        problems.append(f"config.json contradicts the weights: {name}: {error}")
        layouts = {}
    packed = module._parameters.get("in_proj_weight")
    if packed is not None and "out_proj" in module._modules and packed.shape[0] == 3 * packed.shape[-1]:
        layouts = {"in_proj_weight": Layout("qkv")}  # torch's own nn.MultiheadAttention
    found = {}
    for path, layout in layouts.items():
        full = f"{name}.{path}".lstrip(".")
        if any(matches(full, [p]) or matches(full.removesuffix(".weight"), [p]) for p in given):
            continue
        try:
            child, _, leaf = path.rpartition(".")
            stored = submodule(module, child)._parameters.get(leaf)
            if stored is None:
                continue
            layout.section_sizes(stored.shape, full)
        except ValueError as error:
            problems.append(f"config.json contradicts the weights: {error}")
        else:
            found[re.compile(re.escape(full))] = layout
    return found


def _is_attention(module: nn.Module) -> bool:
    """A name alone is none: MobileBERT calls a single dense layer attention."""
    named = [*module._parameters, *module._modules]
    if any(FUSED_NAME.fullmatch(name) or name in ROLE_NAMES for name in named):
        return True
    return sum(p.ndim > 1 for p in module.parameters()) > 1


def _what_there_is(checkpoint: Checkpoint, unmatched: list[Unmatched]) -> str:
    if not unmatched:
        return f"{len(checkpoint.tensors)} tensors ({', '.join(list(checkpoint.tensors)[:4])}, …)"
    shown = "; ".join(f"{u.name or '(root)'}: {u.reason}" for u in unmatched[:3])
    more = f"; and {len(unmatched) - 3} more" if len(unmatched) > 3 else ""
    return f"these attention-like modules: {shown}{more}"


def _advice(checkpoint: Checkpoint, problems: list[str]) -> str:
    if problems:
        return "; ".join(problems[:3])
    if any(stored.problem for stored in checkpoint.tensors.values()):
        return "; ".join(checkpoint.problems[:3])
    return (
        "On the command line: --layout '*.qkv=qkv' --heads N; or name the timm model that they belong to: audit "
        "vit_small_patch16_224 --checkpoint FILE"
    )
