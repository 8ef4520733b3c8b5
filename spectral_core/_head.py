"""One attention layer in float64, ready for the closed form of its Jacobian: checks, P, and the tensors around it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from spectral_core._checks import check_number, check_tensor, to_float64


@dataclass(frozen=True)
class Head:
    """Everything that the closed form reads. Axes: batch …, heads H, then as stated; H is summed over in the output.

    `x` are the query tokens and `y` the key/value tokens less their mean: softmax and its derivative do not see
    what all keys share, and without it nearly equal tokens lose no digits. `compress` replaces x, y and `py` by
    coordinates in a basis of their row space, so that r ≤ min(n, D) columns stand for D.
    """

    x: Tensor  # (…, H | 1, n, D)
    y: Tensor  # (…, H | 1, m, E), mean over tokens taken out
    w_q: Tensor  # (…, H, D, d_k)
    w_k: Tensor  # (…, H, E, d_k)
    w_u: Tensor  # (…, H, E, c): W_V, times W_O where there is one
    w_o: Tensor | None  # (…, H, d_v, c)
    q: Tensor  # (…, H, n, d_k)
    k: Tensor  # (…, H, m, d_k): y W_K
    u: Tensor  # (…, H, m, c): y W_U
    p: Tensor  # (…, H, n, m)
    py: Tensor  # (…, H, n, E): P times the key/value tokens, mean included
    scale: float
    is_self: bool  # whether y is x
    d_v: int

    @property
    def a(self) -> Tensor:
        """The output of every head less what the mean token adds to it, (…, H, n, c)."""
        return self.p @ self.u

    @property
    def top(self) -> Tensor:
        """Where each row of P is largest, (…, H, n, 1)."""
        return self.p.argmax(-1, keepdim=True)

    @property
    def widths(self) -> dict[str, tuple[int, int, int]]:
        """(H, rows, columns) of each weight, in the columns' present coordinates; for "x" (1, n, D)."""
        heads, d_k = self.p.shape[-3], self.q.shape[-1]
        return {
            "q": (heads, self.x.shape[-1], d_k), "k": (heads, self.y.shape[-1], d_k),
            "v": (heads, self.py.shape[-1], self.d_v),
            "x": (1, self.x.shape[-2], self.w_q.shape[-2]),
        }

    @property
    def rows(self) -> tuple[int, int]:
        """(tokens, output channels): J has their product of rows."""
        return self.p.shape[-2], self.u.shape[-1]

    def select(self, index: Tensor) -> Head:
        """Members of the batch by flat index, with one leading dimension."""
        lead = self.p.shape[:-3]
        changes: dict[str, Any] = {
            item.name: value.expand(*lead, *value.shape[-3:]).reshape(-1, *value.shape[-3:])[index]
            for item in fields(self)
            if isinstance(value := getattr(self, item.name), Tensor)
        }
        return replace(self, **changes)

    def compress(self) -> Head:
        """The same layer in orthonormal coordinates: J keeps its singular values and loses columns that are zero."""
        head = replace(self, x=_coordinates(self.x), y=_coordinates(self.y), py=_coordinates(self.py))
        # ∂A/∂x_j lies in the span of the columns of W_Q, W_K and W_U
        parts = [self.w_q, self.w_k, self.w_u] if self.is_self else [self.w_q]
        if sum(part.shape[-1] for part in parts) < self.w_q.shape[-2] and self.p.shape[-3] == 1:
            lead = torch.broadcast_shapes(*(part.shape[:-2] for part in parts))
            r = torch.linalg.qr(torch.cat([part.expand(*lead, *part.shape[-2:]) for part in parts], -1), mode="r").R
            narrow = r.split([part.shape[-1] for part in parts], -1)
            head = replace(head, w_q=narrow[0])
            if self.is_self:
                head = replace(head, w_k=narrow[1], w_u=narrow[2])
        return head


def _coordinates(tokens: Tensor) -> Tensor:
    """Tokens (…, n, D) in a basis of their row space, (…, n, min(n, D))."""
    if tokens.shape[-2] >= tokens.shape[-1]:
        return tokens
    return torch.linalg.qr(tokens.mT, mode="r").R.mT


def build_head(
    x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, *, scale: float | None, is_causal: bool, mask: Tensor | None,
    w_o: Tensor | None, x_kv: Tensor | None, b_q: Tensor | None,
) -> Head:
    """Check the arguments of `AttentionJacobian` and lay them out; raises ValueError as documented there."""
    x, w_q, w_k, w_v, *rest = check_head(x, w_q, w_k, w_v, x_kv=x_kv, b_q=b_q)
    y = x if x_kv is None else rest.pop(0)
    n, m, d_k, d_v = x.shape[-2], y.shape[-2], w_q.shape[-1], w_v.shape[-1]
    scale = resolve_scale(scale, d_k)
    named = {"x": x, "w_q": w_q, "w_k": w_k, "w_v": w_v} | ({} if x_kv is None else {"x_kv": y})
    q = x @ w_q
    if b_q is not None:
        q = q + rest.pop(0).unsqueeze(-2)
    allowed = allowed_pairs(n, m, is_causal, mask, x.device)
    if mask is not None:
        check_leading({**named, "mask": mask})
    if w_o is not None:
        w_o = _per_head(w_o, named, d_v)

    def with_heads(t: Tensor) -> Tensor:  # one head where there is no output projection to sum them
        return t.unsqueeze(-3) if w_o is None or t.ndim == 2 else t

    x, w_q, w_k, w_v, q = (with_heads(t) for t in (x, w_q, w_k, w_v, q))
    y = x if x_kv is None else with_heads(y)
    centered = y - y.mean(-2, keepdim=True)
    k = centered @ w_k
    w_u = w_v if w_o is None else w_v @ w_o
    p = attention_weights(q, k, scale, None if allowed is None else with_heads(allowed))
    if not bool(torch.isfinite(p).all()):
        raise ValueError(
            "expected finite attention logits, got inf or nan: scale · x W_Q W_Kᵀ xᵀ overflows; rescale x or the "
            "weights"
        )
    u = centered @ w_u
    lead = torch.broadcast_shapes(p.shape[:-2], u.shape[:-2])
    p = p.expand(*lead, n, m)
    return Head(
        x=x, y=centered, w_q=w_q, w_k=w_k, w_u=w_u, w_o=w_o, q=q, k=k, u=u, p=p, py=p @ y, scale=scale,
        is_self=x_kv is None, d_v=d_v,
    )


def _per_head(w_o: Tensor, named: dict[str, Tensor], d_v: int) -> Tensor:
    """W_O as (…, H, d_v, c), from that shape or from the fused (…, H·d_v, c)."""
    check_tensor(w_o, "w_o")
    lead = torch.broadcast_shapes(*(named[name].shape[:-2] for name in ("w_q", "w_k", "w_v")))
    heads = lead[-1] if lead else 1
    for name in ("x", "x_kv"):
        if name in named and named[name].ndim > 2 and named[name].shape[-3] != 1:
            raise ValueError(
                f"{name}: with w_o, all heads read the same tokens: expected shape (n, D) or (…, 1, n, D), got "
                f"{tuple(named[name].shape)}; pass {name}.unsqueeze(-3)"
            )
    w_o = to_float64(w_o.detach())
    if w_o.ndim > 2 and tuple(w_o.shape[-3:-1]) == (heads, d_v):
        return w_o
    if w_o.shape[-2] == heads * d_v:
        return w_o.unflatten(-2, (heads, d_v))
    raise ValueError(
        f"w_o: expected shape (heads · d_v, width) = ({heads * d_v}, width) or (heads, d_v, width), got "
        f"{tuple(w_o.shape)}; weights act on the right, so pass nn.Linear.weight.T"
    )


def check_head(
    x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor | None = None, *, x_kv: Tensor | None = None,
    b_q: Tensor | None = None,
) -> list[Tensor]:
    """Check one head's input and weights and return those given in float64, in the order of the arguments.

    Raises:
        ValueError: a bad tensor, widths that do not match, or leading dimensions that do not broadcast.
    """
    named = {"x": x, "w_q": w_q, "w_k": w_k} | ({} if w_v is None else {"w_v": w_v})
    named |= {} if x_kv is None else {"x_kv": x_kv}
    for name, value in named.items():
        check_tensor(value, name)
    source = "x" if x_kv is None else "x_kv"
    for name, tokens in (("w_q", "x"), ("w_k", source), ("w_v", source)):
        if name in named and named[name].shape[-2] != named[tokens].shape[-1]:
            raise ValueError(
                f"{name}: expected {named[tokens].shape[-1]} rows (the width D of {tokens}), got shape "
                f"{tuple(named[name].shape)}; weights act on the right, so pass nn.Linear.weight.T"
            )
    if w_q.shape[-1] != w_k.shape[-1]:
        raise ValueError(f"expected w_q and w_k of the same width d_k, got {w_q.shape[-1]} and {w_k.shape[-1]}")
    check_leading(named)
    if b_q is not None:
        check_tensor(b_q, "b_q", ndim=1)
        if b_q.shape[-1] != w_q.shape[-1]:
            raise ValueError(f"b_q: expected {w_q.shape[-1]} entries (d_k), got shape {tuple(b_q.shape)}")
        check_leading({**named, "b_q": b_q.unsqueeze(-2)})
        named["b_q"] = b_q
    return [to_float64(value.detach()) for value in named.values()]


def check_leading(named: dict[str, Tensor]) -> None:
    """Raise ValueError when the leading dimensions, all but the last two, do not broadcast."""
    try:
        torch.broadcast_shapes(*(value.shape[:-2] for value in named.values()))
    except RuntimeError as error:
        shapes = {name: tuple(value.shape) for name, value in named.items()}
        raise ValueError(f"expected leading dimensions that broadcast, got {shapes}") from error


def resolve_scale(scale: float | None, d_k: int) -> float:
    """1/√d_k for None, otherwise the finite number given."""
    return d_k**-0.5 if scale is None else check_number(scale, "scale")


def allowed_pairs(n: int, m: int, is_causal: bool, mask: Tensor | None, device: torch.device) -> Tensor | None:
    """The boolean (…, n, m) of allowed pairs, or None when all are; refuses a fully masked row."""
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape[-2:]) != (n, m):
            got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"mask: expected a boolean tensor (…, {n}, {m}), True where allowed, got {got}")
        mask = mask.to(device)
    if is_causal:
        causal = torch.ones(n, m, dtype=torch.bool, device=device).tril()
        mask = causal if mask is None else mask & causal
    if mask is not None and not bool(mask.any(-1).all()):
        row = (~mask.any(-1)).nonzero()[0].tolist()
        raise ValueError(f"mask: expected at least one allowed token per row, got a fully masked row at index {row}")
    return mask


def attention_weights(q: Tensor, k: Tensor, scale: float, allowed: Tensor | None = None) -> Tensor:
    """P = softmax(s Q Kᵀ) over allowed pairs, (…, n, m)."""
    logits = scale * (q @ k.mT)
    return (logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)).softmax(-1)
