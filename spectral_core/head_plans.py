"""From one captured call of an attention layer to the tensors of its heads' Jacobians.

Heads, scale and mask are the model's own where it calls `F.scaled_dot_product_attention`. Where attention is written
out instead, they are guessed and the guess is checked against the layer's own output. Queries that were changed on the
way (rotary positions, norms), position biases and the like are refused: their Jacobian is a different one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_core._checks import check_tensor
from spectral_core.capture import Call, Roles
from spectral_core.jacobian import AttentionJacobian
from spectral_core.layouts import ROLES
from spectral_core.projections import HEAD_COUNTS

SCALES = ("scale", "scaling")
MASKED = -1e4  # additive masks: at or below this, attention is off
LEAVE_OUT = "leave it out with layers="


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


def lay_out(name: str, module: nn.Module, roles: Roles, call: Call, wanted: list[int] | None) -> Plan:
    """The heads of one call; ValueError when it is not plain softmax attention, or a head does not exist."""
    if set(call.inputs) != set(ROLES):
        raise ValueError(
            f"{name}: expected its query, key and value layers to run, got {sorted(call.inputs)}; {LEAVE_OUT}"
        )
    tokens = {role: t.reshape(-1, *t.shape[-2:]) for role, t in call.inputs.items()}
    for role, t in tokens.items():
        check_tensor(t, f"{name}: input of its {role} layer")
    if not torch.equal(tokens["k"], tokens["v"]):
        raise ValueError(
            f"{name}: expected keys and values from the same tokens, got different inputs (positions added to the "
            f"keys alone?); {LEAVE_OUT}"
        )
    with torch.no_grad():
        weights = {role: p.weight.detach() for role, p in roles.items()}
        for role, w in weights.items():
            check_tensor(w, f"{name}: weight of its {role} layer")
        bias = {role: None if p.bias is None else p.bias.detach() for role, p in roles.items()}
        # under autocast tokens may come in another type than weights
        projected = {role: F.linear(tokens[role].to(w.dtype), w, bias[role]) for role, w in weights.items()}
    if call.query is None or call.key is None:
        count = _infer(name, module, projected, call)
    else:
        count = call.query.shape[-3] if call.query.ndim > 2 else 1
        factor = _factor(name, "queries", projected["q"], call.query) * _factor(name, "keys", projected["k"], call.key)
        if factor != 1:  # OPT and Whisper scale their queries before the call
            call.scale = factor * (call.query.shape[-1] ** -0.5 if call.scale is None else call.scale)
    picked = list(range(count)) if wanted is None else wanted
    for head in picked:
        if isinstance(head, bool) or not isinstance(head, int) or not 0 <= head < count:
            raise ValueError(f"heads: expected indices from 0 to {count - 1} ({name}), got {head!r}")
    width = len(weights["q"]) // count
    groups = len(weights["k"]) // width  # fewer than heads with grouped queries

    def split(rows: Tensor, parts: int) -> Tensor:
        # (out, in): consecutive rows are one head; groups of keys and values are repeated
        return rows.unflatten(0, (parts, -1)).repeat_interleave(count // parts, 0)[picked]

    b_q, x = bias["q"], tokens["q"]
    return Plan(
        name=name, heads=picked, x=x, x_kv=None if torch.equal(tokens["k"], x) else tokens["k"],
        weights={role: split(w, count if role == "q" else groups).mT for role, w in weights.items()},
        b_q=None if b_q is None else split(b_q, count), scale=call.scale, is_causal=call.is_causal,
        mask=_boolean_mask(name, call.mask, picked),
    )


def _infer(name: str, module: nn.Module, projected: dict[str, Tensor], call: Call) -> int:
    """Heads, scale and causality of attention that was written out, confirmed by the layer's own output."""
    counts = [value for key in HEAD_COUNTS if isinstance(value := getattr(module, key, None), int) and value > 0]
    tried = []
    w_o: Any = getattr(module, "out_proj", None)
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
            if isinstance(module, nn.MultiheadAttention):  # its output projection is no module call
                bias = None if w_o.bias is None else w_o.bias.detach().double()
                out = F.linear(out, w_o.weight.detach().double(), bias)
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


def _factor(name: str, what: str, projected: Tensor, seen: Tensor) -> float:
    """What queries or keys are in units of what their linear layer gave; ValueError if that is no single number."""
    if projected.shape[-1] % seen.shape[-1] or seen.numel() % (len(projected) * seen.shape[-1] * seen.shape[-2]):
        raise ValueError(
            f"{name}: expected {what} of shape (examples, heads, n, d) made from tokens (examples, n, D), got "
            f"{tuple(seen.shape)} from {tuple(projected.shape)}; {LEAVE_OUT}"
        )
    heads = projected.unflatten(-1, (-1, seen.shape[-1])).transpose(-3, -2)
    seen = seen.reshape(len(heads), -1, *seen.shape[-2:])
    if seen.shape[1] > heads.shape[1]:  # grouped heads were repeated before the call
        heads = heads.repeat_interleave(seen.shape[1] // heads.shape[1], 1)
    # two roundings of the same product differ by a few eps of its largest entry
    tolerance = 64 * torch.finfo(seen.dtype).eps * float(heads.abs().max())
    if heads.shape == seen.shape:
        heads, seen = heads.double(), seen.double()
        factor = float((heads * seen).sum() / heads.square().sum().clamp(min=1e-300))
        if float((heads - seen).abs().max()) <= tolerance:
            return 1.0
        if factor > 0 and float((factor * heads - seen).abs().max()) <= factor * tolerance:
            return factor
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
