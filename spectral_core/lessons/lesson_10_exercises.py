"""Lesson 10, language and long sequences: the checks of its exercises, as data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spectral_core.lessons.lesson_10_models import inverse
from spectral_core.lessons.registry import Case, Exercise
from spectral_core.listops import TOKENS, encode, evaluate, generate
from spectral_core.text import IGNORED, MASK, VOCABULARY

__all__ = ["ENTRIES"]


def _draws(seed: int, count: int = 400) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ids, draw, how, other for `count` windows of 8."""
    generator = torch.Generator().manual_seed(seed)
    ids, other = (torch.randint(1, VOCABULARY, (count, 8), generator=generator) for _ in range(2))
    draw, how = torch.rand(2, count, 8, generator=generator)
    return ids, draw, how, other


def bert_mask(ids: Tensor, draw: Tensor, how: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and labels in BERT's way."""
    chosen = draw < 0.15
    shown = torch.where(how < 0.8, MASK, torch.where(how < 0.9, other, ids))
    return torch.where(chosen, shown, ids), torch.where(chosen, ids, IGNORED)


def _shares(fn: Callable[..., tuple[Tensor, Tensor]], *draws: Tensor) -> Tensor:
    """Of the places that carry a label: the shares that show [MASK], and that differ from the label otherwise."""
    inputs, labels = fn(*draws)
    asked = labels != IGNORED
    masked = (inputs == MASK) & asked
    changed = (inputs != labels) & asked & ~masked
    return torch.stack([asked.double().mean(), masked.sum() / asked.sum(), changed.sum() / asked.sum()])


MASKING = Exercise(
    "10.mask", "BERT's masking",
    (
        Case("inputs and labels of 400 windows", "reference", lambda: _draws(seed=0), bert_mask,
             "chosen where draw < 0.15; there [MASK] where how < 0.8, other where how < 0.9, else as it was"),
        Case("about 15 % are chosen; 80 % of those show [MASK] and 10 % another character", "property",
             lambda: _draws(seed=1), lambda *draws: torch.tensor([0.15, 0.8, 0.097]).double(),
             "80, 10 and 10 % are shares of the chosen places, not of all", observe=_shares, atol=0.04, rtol=0.0),
        Case("labels are −100 wherever nothing was chosen, and the inputs are untouched there", "property",
             lambda: _draws(seed=2), lambda ids, draw, how, other: torch.zeros(2),
             "a place that was not chosen keeps its character and gets the label −100",
             observe=lambda fn, ids, draw, how, other: torch.stack([
                 ((torch.as_tensor(fn(ids, draw, how, other)[1]) != IGNORED) & (draw >= 0.15)).sum(),
                 ((torch.as_tensor(fn(ids, draw, how, other)[0]) != ids) & (draw >= 0.15)).sum()])),
        Case("if no draw is below 0.15, nothing is hidden and nothing is asked", "edge",
             lambda: (_draws(3)[0], torch.full((400, 8), 0.5), *_draws(3)[2:]),
             lambda ids, draw, how, other: (ids, torch.full_like(ids, IGNORED)),
             "`how` must count at chosen places alone"),
    ),
    (
        ("you mask all chosen places: 10 % of them show another character, and 10 % their own",
         lambda ids, draw, how, other: (torch.where(draw < 0.15, MASK, ids), torch.where(draw < 0.15, ids, IGNORED))),
        ("the labels are missing −100: the loss would be taken at every place",
         lambda ids, draw, how, other: (bert_mask(ids, draw, how, other)[0], ids)),
        ("labels only where [MASK] is shown: all chosen places are asked for, whatever they show",
         lambda ids, draw, how, other: (bert_mask(ids, draw, how, other)[0],
                                        torch.where((draw < 0.15) & (how < 0.8), ids, IGNORED))),
        ("the labels hold what is shown; they must hold the true character",
         lambda ids, draw, how, other: (bert_mask(ids, draw, how, other)[0],
                                        torch.where(draw < 0.15, bert_mask(ids, draw, how, other)[0], IGNORED))),
        ("`how` is used at every place: only where draw < 0.15 may the input change",
         lambda ids, draw, how, other: (torch.where(how < 0.8, MASK, torch.where(how < 0.9, other, ids)),
                                        torch.where(draw < 0.15, ids, IGNORED))),
    ),
    bert_mask,
)  # fmt: skip


APPLY: dict[int, Callable[[list[int]], int]] = {
    12: min, 13: max, 14: lambda v: (sorted(v)[(len(v) - 1) // 2] + sorted(v)[len(v) // 2]) // 2,
    15: lambda v: sum(v) % 10,
}  # fmt: skip


def evaluate_ids(ids: Tensor, apply: dict[int, Callable[[list[int]], int]] = APPLY) -> int:
    """The value of an expression as the model reads it, (n,); `apply` by the id of an operator."""
    stack: list[list[int]] = [[]]
    for i in ids.tolist():
        if i >= 16:
            operator, *values = stack.pop()
            stack[-1].append(apply[operator](values))
        elif i >= 12:
            stack.append([i])
        elif i >= 2:
            stack[-1].append(i - 2)
    return stack[0][0]


def _but(operator: int, wrong: Callable[[list[int]], int]) -> Callable[[Tensor], int]:
    """The right evaluator, but for one operator."""
    return lambda ids: evaluate_ids(ids, APPLY | {operator: wrong})


def _flat(ids: Tensor) -> int:
    """All digits under the first operator, brackets ignored."""
    return APPLY[int(ids[ids >= 12][0])]([i - 2 for i in ids.tolist() if 2 <= i < 12])


def _expressions(*texts: str, length: int = 12) -> Tensor:
    return encode([text.split() for text in texts], length)


def _many() -> Tensor:
    return encode(generate(30, min_length=20, max_length=60, max_depth=6, max_args=5), 60)


LISTOPS = Exercise(
    "10.listops", "evaluating ListOps",
    (
        Case("[MAX 2 9 [MIN 4 7 ] 0 ] is 9", "reference", lambda: (_expressions("[MAX 2 9 [MIN 4 7 ] 0 ]")[0],),
             lambda ids: 9, "at ] apply the operator that opened last to what was read since"),
        Case("one operator each: [MIN 8 3 5 ] [MAX 8 3 5 ] [MED 8 3 5 ] [SM 8 3 5 ]", "reference",
             lambda: (_expressions("[MIN 8 3 5 ]", "[MAX 8 3 5 ]", "[MED 8 3 5 ]", "[SM 8 3 5 ]"),),
             lambda ids: torch.tensor([3, 8, 5, 6]), "SM is the sum modulo 10, MED the median",
             observe=lambda fn, ids: torch.tensor([int(fn(row)) for row in ids])),
        Case("MED of an even number is rounded down: [MED 9 2 3 4 ] is 3", "edge",
             lambda: (_expressions("[MED 9 2 3 4 ]")[0],), lambda ids: 3,
             "the mean of the two middle values, rounded down"),
        Case("thirty expressions of up to 59 tokens, nested up to five deep", "property", lambda: (_many(),),
             lambda ids: torch.tensor([evaluate([TOKENS[i] for i in row.tolist() if i > 1]) for row in ids]),
             "every ] closes the operator that opened last: keep the open ones on a stack",
             observe=lambda fn, ids: torch.tensor([int(fn(row)) for row in ids])),
    ),
    (
        ("brackets are ignored: an inner list is one argument of the outer operator, its value", _flat),
        ("SM is the sum modulo 10", _but(15, sum)),
        ("MED of an even number of values is the mean of the two middle ones, rounded down",
         _but(14, lambda v: sorted(v)[len(v) // 2])),
        ("MED needs the values in order: sort them", _but(14, lambda v: (v[(len(v) - 1) // 2] + v[len(v) // 2]) // 2)),
        ("MIN is 12 and MAX is 13", lambda ids: evaluate_ids(ids, APPLY | {12: max, 13: min})),
        ("the id of a digit is the digit + 2", lambda ids: evaluate_ids(ids) + 2),
    ),
    evaluate_ids,
)  # fmt: skip


def _stochastic(m: int, seed: int, spread: float = 2.0) -> Tensor:
    """A random softmax map, m × m."""
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(m, m, dtype=torch.float64, generator=generator)).softmax(-1)


def _with(start: Callable[[Tensor], Tensor], update: Callable[[Tensor, Tensor, Tensor], Tensor]):
    def run(a: Tensor, steps: int) -> Tensor:
        z, eye = start(a), torch.eye(len(a), dtype=a.dtype)
        for _ in range(steps):
            z = update(z, a @ z, eye)
        return z

    return run


def _start(a: Tensor) -> Tensor:
    return a.mT / (a.abs().sum(0).max() * a.abs().sum(1).max())


def _update(z: Tensor, az: Tensor, eye: Tensor) -> Tensor:
    return z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az))) / 4


PINV = Exercise(
    "10.pinv", "the iterative inverse",
    (
        Case("after 30 steps it is the inverse of a random 6 × 6 softmax map", "reference",
             lambda: (_stochastic(6, seed=0), 30), lambda a, steps: torch.linalg.inv(a),
             "Z ← ¼ Z (13I − AZ(15I − AZ(7I − AZ)))", rtol=1e-4),
        Case("after 2 steps, as far as it has come", "reference", lambda: (_stochastic(5, seed=1), 2), inverse,
             "begin with Aᵀ/(‖A‖₁‖A‖_∞) and do exactly `steps` updates"),
        Case("no step: Z₀ = Aᵀ/(‖A‖₁‖A‖_∞)", "edge", lambda: (3 * _stochastic(4, seed=2), 0), inverse,
             "‖A‖₁ is the largest sum of a column, ‖A‖_∞ of a row, of absolute values"),
        Case("κ = 1 000: six steps do not invert the small direction, its share is below 0.1", "property",
             lambda: (torch.diag(torch.tensor([1.0, 1e-3])).double(), 6),
             lambda a, steps: torch.tensor([1.0, 0.0]).double(),
             "do exactly `steps` updates, no more: the share of a small direction grows 13/4-fold a step",
             observe=lambda fn, a, steps: (a @ torch.as_tensor(fn(a, steps)).double()).diagonal(), atol=0.1),
    ),
    (
        ("the factor 1/4 is missing", _with(_start, lambda z, az, eye: 4 * _update(z, az, eye))),
        ("the start is not transposed: Z₀ is a multiple of Aᵀ", _with(lambda a: _start(a).mT, _update)),
        ("the start is not scaled: divide Aᵀ by ‖A‖₁‖A‖_∞", _with(lambda a: a.mT, _update)),
        ("that is Newton's iteration Z(2I − AZ), with half as many products a step",
         _with(_start, lambda z, az, eye: z @ (2 * eye - az))),
        ("that is the exact inverse: do exactly `steps` updates", lambda a, steps: torch.linalg.inv(a)),
        ("one step too few", lambda a, steps: inverse(a, max(0, steps - 1))),
    ),
    inverse,
)  # fmt: skip

ENTRIES = (MASKING, LISTOPS, PINV)
