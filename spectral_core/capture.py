"""One forward pass through a model, and what each attention layer of it did there.

Recorded are the tokens that enter the query, key and value layers, fused or not, and the arguments of
`F.scaled_dot_product_attention`. What they mean for the Jacobian is in `head_plans.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from spectral_core.layouts import ROLES, Layout
from spectral_core.projections import Projection, find_projections


@dataclass
class Call:
    """What one pass through an attention module left behind."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: list[Tensor] = field(default_factory=list)  # of the module, and what its other linear layers read
    query: Tensor | None = None
    key: Tensor | None = None
    mask: Tensor | None = None
    is_causal: bool = False
    scale: float | None = None


Roles = dict[str, Projection]


def choose_layers(
    model: nn.Module, layers: Iterable[int | str] | None, layouts: Mapping[str, Layout] | None = None
) -> dict[str, Roles]:
    """{name of the attention module: {role: its projection}}."""
    found: dict[str, Roles] = {}
    for projection in find_projections(model, layouts=layouts):
        found.setdefault(projection.attention, {})[projection.role] = projection
    if layers is None:
        return found
    names = list(found)
    chosen = []
    for layer in [layers] if isinstance(layers, (int, str)) else layers:
        if isinstance(layer, int) and not isinstance(layer, bool) and -len(names) <= layer < len(names):
            chosen.append(names[layer])
        elif isinstance(layer, str) and layer in found:
            chosen.append(layer)
        else:
            raise ValueError(f"layers: expected positions below {len(names)} or names among {names}, got {layer!r}")
    return {name: found[name] for name in names if name in chosen}


def capture_calls(
    model: nn.Module,
    batch: Tensor | Sequence[Any] | Mapping[str, Any],
    chosen: dict[str, Roles],
    refused: dict[str, str] | None = None,
) -> list[tuple[str, Call]]:
    """Run the model once and return each call of each chosen attention module, in the order of execution."""
    calls: list[tuple[str, Call]] = []
    current: list[Call] = []
    seen = dict.fromkeys(chosen, 0)
    handles = []

    def enter(name: str):
        def hook(*_: Any) -> None:
            seen[name] += 1
            current.append(Call())
            calls.append((name if seen[name] == 1 else f"{name}#{seen[name]}", current[-1]))

        return hook

    def leave(module: nn.Module, _: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        note(first.transpose(0, 1) if isinstance(first, Tensor) and _is_sequence_first(module, first) else first)
        current.pop()

    def note(value: Any) -> None:
        if current and isinstance(value, Tensor):
            current[-1].outputs.append(value.detach())

    def see(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        note(next(iter([*arguments, *named.values()]), None))

    def store(roles: str):
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Any]) -> None:
            if current:
                current[-1].inputs |= _inputs(module, roles, arguments, named)

        return hook

    try:
        for name, roles in chosen.items():
            module = model.get_submodule(name)
            handles.append(module.register_forward_pre_hook(enter(name)))
            handles.append(module.register_forward_hook(leave))
            holders = {p.module: "".join(r for r, q in roles.items() if q.module is p.module) for p in roles.values()}
            for holder, held in holders.items():
                handles.append(holder.register_forward_pre_hook(store(held), with_kwargs=True))
            others = [m for m in module.modules() if isinstance(m, nn.Linear) and m not in holders]
            handles += [m.register_forward_pre_hook(see, with_kwargs=True) for m in others]
        with evaluation(model), _fast_path_off(), torch.compiler.set_stance("force_eager"), _Attention(current):
            call_model(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name, count in seen.items() if count == 0]
    if refused is not None:
        refused |= {name: f"{name}: expected it to run on this batch, got no call" for name in missing}
    elif missing:
        raise ValueError(
            f"expected every chosen attention layer to run on this batch, got no call of {missing}; choose with layers="
        )
    return calls


def _inputs(module: nn.Module, roles: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Tensor]:
    """What each role is computed from, by the arguments of the module that holds the weights, (…, n, D)."""
    if not isinstance(module, nn.MultiheadAttention):
        tokens = [*arguments, *named.values()]
        return {role: tokens[0].detach() for role in roles if tokens and isinstance(tokens[0], Tensor)}
    given = dict(zip(("query", "key", "value"), arguments, strict=False)) | named
    found = {role: given[key].detach() for role, key in zip(ROLES, ("query", "key", "value"), strict=True)}
    swap = _is_sequence_first(module, found["q"])
    return {role: t.transpose(0, 1) if swap else t for role, t in found.items() if role in roles}


def _is_sequence_first(module: nn.Module, t: Tensor) -> bool:
    return isinstance(module, nn.MultiheadAttention) and not module.batch_first and t.ndim == 3


@contextmanager
def _fast_path_off() -> Iterator[None]:
    """nn.MultiheadAttention's fused kernel for evaluation hides what it does."""
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in its own mode again."""
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad(), own_cache():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


@contextmanager
def own_cache() -> Iterator[None]:
    """Nothing computed inside, without a graph, stays in the caller's `parametrize.cached()`."""
    cached = dict(parametrize._cache)
    try:
        parametrize._cache.clear()
        yield
    finally:
        parametrize._cache.clear()
        parametrize._cache.update(cached)


def call_model(model: nn.Module, batch: Tensor | Sequence[Any] | Mapping[str, Any]) -> Any:
    """The model's output for a tensor, a tuple of arguments, or a mapping of keyword arguments."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch) if isinstance(batch, Tensor) else model(*batch)


class _Attention(TorchFunctionMode):
    """Notes the arguments of `F.scaled_dot_product_attention` in the call that is current."""

    def __init__(self, current: list[Call]) -> None:
        super().__init__()
        self.current = current

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and self.current:
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
            given = dict(zip(names, args, strict=False)) | kwargs
            call = self.current[-1]
            call.query, call.key = given["query"].detach(), given["key"].detach()
            call.mask, call.scale = given.get("attn_mask"), given.get("scale")
            call.is_causal = bool(given.get("is_causal", False))
        return func(*args, **kwargs)
