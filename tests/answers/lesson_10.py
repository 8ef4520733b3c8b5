"""Lesson 10: right answers written differently, and wrong ones as a learner would write them.

OTHERS: by exercise, a function that shares nothing with the course's own. MUTANTS: by exercise, bodies that replace
`raise NotImplementedError`, and words of the cause that has to be named. NAMES: what those bodies may use.
"""

import re
import statistics

import torch


def looped_mask(ids, draw, how, other):
    inputs, labels = ids.clone(), torch.full_like(ids, -100)
    for place in torch.nonzero(draw < 0.15):
        at = tuple(place.tolist())
        labels[at] = ids[at]
        if how[at] < 0.8:
            inputs[at] = 0
        elif how[at] < 0.9:
            inputs[at] = other[at]
    return [inputs, labels]


WORDS = ["", "", *"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]"]


def rewritten(ids):
    """Replace innermost lists by their values until one digit is left."""
    apply = {"MIN": min, "MAX": max, "MED": lambda v: int(statistics.median(v)), "SM": lambda v: sum(v) % 10}
    text = " ".join(WORDS[i] for i in ids if i > 1)
    while "[" in text:
        text = re.sub(
            r"\[(\w+) ([\d ]+) \]", lambda found: str(apply[found[1]]([int(d) for d in found[2].split()])), text
        )
    return float(text)


def expanded(a, steps):
    z = a.mT / (torch.linalg.matrix_norm(a, 1) * torch.linalg.matrix_norm(a, float("inf")))
    for _ in range(steps):
        z = 3.25 * z - 3.75 * z @ a @ z + 1.75 * z @ a @ z @ a @ z - 0.25 * z @ a @ z @ a @ z @ a @ z
    return z


OTHERS = {"10.mask": looped_mask, "10.listops": rewritten, "10.pinv": expanded}

MUTANTS = {
    "10.mask": [
        ("c = draw < 0.15; return torch.where(c, 0, ids), torch.where(c, ids, -100)", "you mask all chosen places"),
        ("return right(ids, draw, how, other)[0], ids", "missing −100"),
        ("i, l = right(ids, draw, how, other); return i, torch.where(i == 0, ids, -100)", "only where [MASK] is shown"),
        ("i, l = right(ids, draw, how, other); return i, torch.where(draw < 0.15, i, -100)", "true character"),
        ("right(ids, draw, how, other)", "is the `return` missing"),
    ],
    "10.listops": [
        ("d = ids[(ids > 1) & (ids < 12)]; return value([ids[1], *d, 16])", "brackets are ignored"),
        ("return wrong(ids, SM=sum)", "sum modulo 10"),
        ("return wrong(ids, MED=lambda v: sorted(v)[len(v) // 2])", "rounded down"),
        ("return wrong(ids, MED=lambda v: (v[(len(v) - 1) // 2] + v[len(v) // 2]) // 2)", "sort them"),
        ("return wrong(ids, MIN=max, MAX=min)", "MIN is 12"),
        ("return value(ids) + 2", "the digit + 2"),
    ],
    "10.pinv": [
        ("return loop(a, steps, lambda z, y, i: z @ (13 * i - y @ (15 * i - y @ (7 * i - y))))", "1/4 is missing"),
        ("return loop(a, steps, lambda z, y, i: z @ (2 * i - y))", "Newton"),
        ("return loop(a, steps, step, start=lambda a: a / (a.sum(0).max() * a.sum(1).max()))", "not transposed"),
        ("return loop(a, steps, step, start=lambda a: a.mT)", "not scaled"),
        ("return torch.linalg.pinv(a)", "exact inverse"),
    ],
}  # fmt: skip


def wrong(ids, **changes):
    apply = {"MIN": min, "MAX": max, "MED": lambda v: int(statistics.median(v)), "SM": lambda v: sum(v) % 10} | changes
    stack = [[]]
    for token in [WORDS[i] for i in ids if i > 1]:
        if token[0] == "[":
            stack.append([token[1:]])
        elif token == "]":
            name, *values = stack.pop()
            stack[-1].append(apply[name](values))
        else:
            stack[-1].append(int(token))
    return stack[0][0]


def step(z, y, i):
    return z @ (13 * i - y @ (15 * i - y @ (7 * i - y))) / 4


def loop(a, steps, step, start=lambda a: a.mT / (a.sum(0).max() * a.sum(1).max())):
    z, i = start(a), torch.eye(len(a), dtype=a.dtype)
    for _ in range(steps):
        z = step(z, a @ z, i)
    return z


NAMES = {"right": looped_mask, "value": rewritten, "wrong": wrong, "loop": loop, "step": step}
