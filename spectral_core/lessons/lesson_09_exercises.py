"""Lesson 9, real architectures: the checks of its exercises, as data."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_core.layouts import Layout
from spectral_core.lessons.registry import Case, Exercise

__all__ = ["ENTRIES"]

ROLES = "qkv"  # 0, 1 and 2 in the exercises


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def take_role(weight: Tensor, i: int, columns: bool) -> Tensor:
    """The (out, in) matrix of role `i` of a fused q|k|v weight, in rows (3D, D) or in columns (D, 3D)."""
    return Layout("qkv", transposed=columns).take(weight, ROLES[i])


def _third(size: int, at: int) -> slice:
    return slice(at * size // 3, (at + 1) * size // 3)


TAKE = Exercise(
    "09.take", "one role of a fused weight",
    (
        Case("the keys of a (3D, D) weight as in timm: its middle third of rows", "reference",
             lambda: (_draw(18, 6, seed=0), 1, False), lambda w, *_: w[6:12],
             "the thirds lie in the order q, k, v"),
        Case("the values of a (D, 3D) weight as in GPT-2, as an (out, in) matrix", "reference",
             lambda: (_draw(6, 18, seed=1), 2, True), lambda w, *_: w[:, 12:].mT,
             "a Conv1D computes x @ weight: outputs are columns, so slice columns and transpose"),
        Case("x times your matrix, transposed, is what the layer gives for that role (difference 0)", "property",
             lambda: (_draw(6, 18, seed=2), 0, True), lambda *_: torch.zeros(4, 6).double(),
             "y = x Wᵀ for an (out, in) matrix W",
             observe=lambda fn, w, *a: _draw(4, 6, seed=3) @ fn(w, *a).mT - (_draw(4, 6, seed=3) @ w)[:, :6]),
        Case("q, k and v one below the other are the weight again", "property",
             lambda: (_draw(15, 5, seed=4), 0, False), lambda w, *_: w,
             "every row belongs to one role, and stays in its place",
             observe=lambda fn, w, _, columns: torch.cat([torch.as_tensor(fn(w, i, columns)) for i in range(3)])),
        Case("D = 1: the value weight is the last number", "edge",
             lambda: (torch.tensor([[1.0], [2.0], [3.0]]).double(), 2, False),
             lambda *_: torch.tensor([[3.0]]).double(), "a matrix goes out, of shape (1, 1)"),
    ),
    (
        ("outputs are columns there, and you return them as they lie: transpose to (out, in)",
         lambda w, i, columns: w[:, _third(w.shape[1], i)] if columns else w[_third(len(w), i)]),
        ("you slice rows whatever the layout is: in columns the outputs are the second dimension",
         lambda w, i, columns: w[_third(len(w), i)]),
        ("keys and values are exchanged: the order is q, k, v",
         lambda w, i, columns: take_role(w, (0, 2, 1)[i], columns)),
        ("you take every third row; the roles lie in blocks",
         lambda w, i, columns: (w.mT if columns else w)[i::3]),
    ),
    take_role,
)  # fmt: skip


def interleaved_rows(dim: int, heads: int, i: int) -> list[int]:
    """The rows of role `i` in a weight that holds q, k, v of head 0, then of head 1, …"""
    d = dim // heads
    return [h * 3 * d + i * d + j for h in range(heads) for j in range(d)]


def _by_layout(dim: int, heads: int, i: int) -> Tensor:
    rows = torch.arange(3.0 * dim)[:, None]
    return Layout("qkv", groups=heads).take(rows, ROLES[i]).flatten()


INTERLEAVED = Exercise(
    "09.interleaved", "rows that are interleaved per head",
    (
        Case("D = 12, 3 heads: the keys are rows 4–7, 16–19 and 28–31", "reference", lambda: (12, 3, 1),
             _by_layout, "a head owns 3d rows, its queries first, then its keys, then its values"),
        Case("one head: no different from q|k|v", "edge", lambda: (5, 1, 2),
             lambda *_: torch.arange(10.0, 15.0), "with one head, d = D: the values are the last D rows"),
        Case("as many heads as channels, d = 1: every third row", "edge", lambda: (4, 4, 0),
             lambda *_: torch.tensor([0.0, 3.0, 6.0, 9.0]), "d = 1: each head owns three rows, q, k, v"),
        Case("the three roles together are all 3D rows, each once", "property", lambda: (24, 4, 0),
             lambda dim, *_: torch.arange(3.0 * dim), "each row belongs to exactly one role",
             observe=lambda fn, dim, heads, _: torch.cat(
                 [torch.as_tensor(fn(dim, heads, i)).flatten() for i in range(3)]).sort().values),
        Case("the values of head 2 begin d · (3 · 2 + 2) rows down, with d = 6", "property", lambda: (24, 4, 2),
             lambda *_: torch.tensor(48.0), "heads before it own 3d rows each, and its own q and k come first",
             observe=lambda fn, *a: torch.as_tensor(fn(*a)).flatten()[12]),
    ),
    (
        ("that is the layout q|k|v, of timm: here the roles come again for every head",
         lambda dim, heads, i: list(range(i * dim, (i + 1) * dim))),
        ("a head owns 3d rows, not d: its block begins at 3 · d · h",
         lambda dim, heads, i: [(h + i) * (dim // heads) + j
                                for h in range(heads) for j in range(dim // heads)]),
        ("you have the rows of the first head alone",
         lambda dim, heads, i: interleaved_rows(dim, heads, i)[: dim // heads]),
        ("you take every third row: within a head the d rows of one role lie together",
         lambda dim, heads, i: list(range(i, 3 * dim, 3))),
        ("keys and values are exchanged: the order within a head is q, k, v",
         lambda dim, heads, i: interleaved_rows(dim, heads, (0, 2, 1)[i])),
    ),
    interleaved_rows,
)  # fmt: skip


def fold_by_hand(weight: Tensor, i: int, lam: float) -> Tensor:
    """A copy of a (3D, D) weight q|k|v with λI added to the rows of role `i`."""
    folded = weight.detach().clone()
    folded[_third(len(weight), i)] += lam * torch.eye(weight.shape[1], dtype=weight.dtype)
    return folded


def _in_place(weight: Tensor, i: int, lam: float) -> Tensor:
    weight[_third(len(weight), i)] += lam * torch.eye(weight.shape[1], dtype=weight.dtype)
    return weight


def _packed(weight: Tensor, i: int, lam: float) -> Tensor:
    return weight + lam * torch.eye(*weight.shape, dtype=weight.dtype)


def _outputs(fn, weight: Tensor, i: int, lam: float) -> Tensor:
    x = _draw(4, weight.shape[1], seed=7)
    return x @ torch.as_tensor(fn(weight, i, lam)).to(x).mT - x @ weight.mT


FOLD = Exercise(
    "09.fold", "folding by hand",
    (
        Case("W_V + 2I in the last third of the rows, the rest as it was", "reference",
             lambda: (_draw(12, 4, seed=0), 2, 2.0), fold_by_hand, "add λI to the D × D block of that role"),
        Case("the outputs of that role move by λ x, all others by 0", "property",
             lambda: (_draw(15, 5, seed=1), 1, 3.0),
             lambda *_: torch.cat([torch.zeros(4, 5), torch.ones(4, 5), torch.zeros(4, 5)], 1).double()
             * 3 * _draw(4, 5, seed=7).repeat(1, 3),
             "I has its ones on the diagonal of the role's own block", observe=_outputs),
        Case("λ = 0 changes nothing", "edge", lambda: (_draw(9, 3, seed=2), 0, 0.0), lambda w, *_: w,
             "C = λI: with λ = 0 the weight comes out as it went in"),
        Case("the weight that is given stays as it is: `unfold` needs it", "property",
             lambda: (_draw(9, 3, seed=3), 2, 1.0), lambda w, *_: w,
             "you changed the argument: work on weight.clone()", observe=lambda fn, w, i, lam: (fn(w, i, lam), w)[1]),
    ),
    (
        ("you changed the argument: work on weight.clone()", _in_place),
        ("that is λI on the packed (3D, D) matrix: its diagonal lies in the rows of Q, whatever the role is", _packed),
        ("you added λ to every entry of the block: C = λI has it on the diagonal alone",
         lambda w, i, lam: w + lam * (fold_by_hand(w, i, 1.0) - w).sum(1, keepdim=True)),
        ("all three roles got λI: only one was asked for",
         lambda w, i, lam: w + lam * torch.eye(w.shape[1], dtype=w.dtype).repeat(3, 1)),
        ("λ is missing: you added I", lambda w, i, lam: fold_by_hand(w, i, 1.0)),
    ),
    fold_by_hand,
)  # fmt: skip

ENTRIES = (TAKE, INTERLEAVED, FOLD)
