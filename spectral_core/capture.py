"""One forward pass through a model, and what each attention layer of it did there.

Recorded are the tokens that enter the query, key and value layers and the arguments of
`F.scaled_dot_product_attention`: heads, scale and mask are then the model's own. Where attention is written out
instead, they are guessed and the guess is checked against the layer's own output. Queries that were changed on the
way (rotary positions, norms), position biases and the like are refused: their Jacobian is a different one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spectral_core._checks import check_tensor
from spectral_core.jacobian import AttentionJacobian
from spectral_core.projections import HEAD_COUNTS, ROLES, find_projections

SCALES = ("scale", "scaling")
MASKED = -1e4  # additive masks: at or below this, attention is off
LEAVE_OUT = "leave it out with layers="


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


def choose_layers(model: nn.Module, layers: Iterable[int | str] | None) -> dict[str, dict[str, nn.Linear]]:
    """{name of the attention module: {role: its linear layer}}."""
    found: dict[str, dict[str, nn.Linear]] = {}
    for projection in find_projections(model):
        if not isinstance(projection.module, nn.Linear) or not projection.layout.is_whole(projection.stored):
            raise ValueError(
                f"{projection.label}: expected separate nn.Linear layers for query, key and value, got the layout "
                f"{projection.layout.kind!r}: Jacobians of fused layers are not built yet"
            )
        found.setdefault(projection.attention, {})[projection.role] = projection.module
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
    model: nn.Module, batch: Tensor | Sequence[Any] | Mapping[str, Any], chosen: dict[str, dict[str, nn.Linear]]
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

    def leave(_: nn.Module, __: Any, output: Any) -> None:
        note(output[0] if isinstance(output, tuple) else output)
        current.pop()

    def note(value: Any) -> None:
        if current and isinstance(value, Tensor):
            current[-1].outputs.append(value.detach())

    def store(role: str):
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if current:
                current[-1].inputs[role] = arguments[0].detach()

        return hook

    try:
        for name, layers in chosen.items():
            module = model.get_submodule(name)
            handles.append(module.register_forward_pre_hook(enter(name)))
            handles.append(module.register_forward_hook(leave))
            handles += [layer.register_forward_pre_hook(store(role)) for role, layer in layers.items()]
            others = [m for m in module.modules() if isinstance(m, nn.Linear) and m not in layers.values()]
            handles += [m.register_forward_pre_hook(lambda _, arguments: note(arguments[0])) for m in others]
        with evaluation(model), _Attention(current):
            call_model(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name, count in seen.items() if count == 0]
    if missing:
        raise ValueError(
            f"expected every chosen attention layer to run on this batch, got no call of {missing}; choose with layers="
        )
    return calls


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in its own mode again."""
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


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


@dataclass(frozen=True)
class Plan:
    """The tensors of one attention call: examples e, heads h."""

    name: str
    heads: list[int]
    x: Tensor  # (e, n, D)
    x_kv: Tensor | None  # (e, m, E)
    weights: dict[str, Tensor]  # role: (h, D, d)
    b_q: Tensor | None  # (h, d)
    scale: float | None
    is_causal: bool
    mask: Tensor | None  # (e | 1, h | 1, n, m)

    @property
    def pairs(self) -> int:
        return len(self.x) * len(self.heads)

    def jacobian(self, examples: slice, heads: slice) -> AttentionJacobian:
        def cut(t: Tensor, part: slice) -> Tensor:
            return t if len(t) == 1 else t[part]

        mask = None if self.mask is None else cut(cut(self.mask, examples).transpose(0, 1), heads).transpose(0, 1)
        return AttentionJacobian(
            self.x[examples].unsqueeze(1), *(self.weights[role][heads] for role in ROLES), scale=self.scale,
            is_causal=self.is_causal, mask=mask, x_kv=None if self.x_kv is None else self.x_kv[examples].unsqueeze(1),
            b_q=None if self.b_q is None else self.b_q[heads],
        )


def lay_out(name: str, module: nn.Module, layers: dict[str, nn.Linear], call: Call, wanted: list[int] | None) -> Plan:
    """The heads of one call; ValueError when it is not plain softmax attention, or a head does not exist."""
    if set(call.inputs) != set(ROLES):
        raise ValueError(f"{name}: expected its query, key and value layers to run, got {sorted(call.inputs)}")
    tokens = {role: t.reshape(-1, *t.shape[-2:]) for role, t in call.inputs.items()}
    for role, t in tokens.items():
        check_tensor(t, f"{name}: input of its {role} layer")
    if not torch.equal(tokens["k"], tokens["v"]):
        raise ValueError(
            f"{name}: expected keys and values from the same tokens, got different inputs (positions added to the "
            f"keys alone?); {LEAVE_OUT}"
        )
    with torch.no_grad():
        projected = {role: layer(tokens[role]) for role, layer in layers.items()}
    if call.query is None or call.key is None:
        count = _infer(name, module, projected, call)
    else:
        count = call.query.shape[-3] if call.query.ndim > 2 else 1
        _check_unchanged(name, "queries", projected["q"], call.query)
        _check_unchanged(name, "keys", projected["k"], call.key)
    picked = list(range(count)) if wanted is None else wanted
    for head in picked:
        if isinstance(head, bool) or not isinstance(head, int) or not 0 <= head < count:
            raise ValueError(f"heads: expected indices from 0 to {count - 1} ({name}), got {head!r}")
    width = layers["q"].out_features // count
    groups = layers["k"].out_features // width  # fewer than heads with grouped queries

    def split(rows: Tensor, parts: int) -> Tensor:
        # nn.Linear stores (out, in): consecutive rows are one head; groups of keys and values are repeated
        return rows.detach().unflatten(0, (parts, -1)).repeat_interleave(count // parts, 0)[picked]

    bias, x = layers["q"].bias, tokens["q"]
    return Plan(
        name=name, heads=picked, x=x, x_kv=None if torch.equal(tokens["k"], x) else tokens["k"],
        weights={role: split(layer.weight, count if role == "q" else groups).mT for role, layer in layers.items()},
        b_q=None if bias is None else split(bias, count), scale=call.scale, is_causal=call.is_causal,
        mask=_boolean_mask(name, call.mask, picked),
    )


def _infer(name: str, module: nn.Module, projected: dict[str, Tensor], call: Call) -> int:
    """Heads, scale and causality of attention that was written out, confirmed by the layer's own output."""
    counts = [value for key in HEAD_COUNTS if isinstance(value := getattr(module, key, None), int) and value > 0]
    tried = []
    for count in dict.fromkeys(counts):
        width = projected["q"].shape[-1] // count
        if not width or any(t.shape[-1] % width for t in projected.values()) or count % (
            groups := projected["k"].shape[-1] // width
        ):
            continue
        q, k, v = (projected[role].double().unflatten(-1, (-1, width)).transpose(-3, -2) for role in ROLES)
        k, v = (t.repeat_interleave(count // groups, -3) for t in (k, v))
        own = [float(s) for key in SCALES if isinstance(s := getattr(module, key, None), float)]
        scales = dict.fromkeys([q.shape[-1] ** -0.5, *own, 1.0])
        for scale, is_causal in product(scales, (False, True)):
            if is_causal and q.shape[-2] != k.shape[-2]:
                continue
            out = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=scale)
            out = out.transpose(-3, -2).flatten(-2)
            tried.append(f"{count} heads, scale {scale:.3g}{', causal' if is_causal else ''}")
            for seen in call.outputs:
                # float32 arithmetic in another order: far nearer than any other reading of the layer
                if seen.numel() == out.numel() and torch.allclose(
                    seen.reshape(out.shape).double(), out, rtol=0, atol=2e-4 * float(out.abs().max())
                ):
                    call.scale, call.is_causal = scale, is_causal
                    return count
    raise ValueError(
        f"{name}: expected softmax attention through F.scaled_dot_product_attention, or written out so that its output "
        f"confirms heads, scale and mask; got neither (tried {tried or 'nothing: no head count found'}); choose the "
        f'"sdpa" implementation of the model, or {LEAVE_OUT}'
    )


def _check_unchanged(name: str, what: str, projected: Tensor, seen: Tensor) -> None:
    """Refuse a layer whose queries or keys are not what its linear layer gave."""
    heads = projected.unflatten(-1, (-1, seen.shape[-1])).transpose(-3, -2)
    seen = seen.reshape(len(heads), -1, *seen.shape[-2:])
    if seen.shape[1] != heads.shape[1]:  # grouped heads were repeated before the call
        heads = heads.repeat_interleave(seen.shape[1] // heads.shape[1], 1)
    # two roundings of the same product differ by a few eps of its largest entry
    tolerance = 64 * torch.finfo(seen.dtype).eps * float(heads.abs().max())
    if heads.shape != seen.shape or float((heads - seen).abs().max()) > tolerance:
        raise ValueError(
            f"{name}: expected {what} straight from their linear layer, got {what} that are changed before attention "
            f"(rotary positions or a norm?), and another Jacobian with them; {LEAVE_OUT}"
        )


def _boolean_mask(name: str, mask: Tensor | None, picked: list[int]) -> Tensor | None:
    """(examples | 1, heads | 1, n, m), True where attention is allowed."""
    if mask is None:
        return None
    mask = mask.detach()
    if mask.dtype != torch.bool:
        allowed = mask > MASKED
        if bool((mask[allowed] != 0).any()):
            raise ValueError(
                f"{name}: expected a mask of 0 and large negative numbers, got other values (a position "
                f"bias?); {LEAVE_OUT}"
            )
        mask = allowed
    mask = mask.reshape(*(1,) * (4 - mask.ndim), *mask.shape)
    return mask if mask.shape[1] == 1 else mask[:, picked]
