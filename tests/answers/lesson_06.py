"""Lesson 6: right answers written differently, and wrong ones as a learner would write them.

OTHERS: by exercise, a function that shares nothing with the course's own. MUTANTS: by exercise, bodies that replace
`raise NotImplementedError`, and words of the cause that has to be named. NAMES: what those bodies may use.
"""

import math

import numpy as np
import torch


def searched_lambda(n, d_k, scale):
    low, high = 0.0, 100.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if math.exp(min(scale * middle**2 * d_k, 600.0)) < n else (low, middle)
    return torch.tensor(low)


def counted_entropy(p):
    out = np.zeros(p.shape[:-1])
    for at in np.ndindex(*out.shape):
        out[at] = sum(-float(q) * math.log(float(q)) for q in p[at] if q > 0)
    return torch.as_tensor(out, dtype=torch.float32)


def looped_off(p, level):
    maps = p.reshape(-1, *p.shape[-2:])
    shares = [sum(float(row.max()) > level for row in one) / len(one) for one in maps]
    return torch.tensor(shares).reshape(p.shape[:-2])


OTHERS = {
    "06.lambda-sat": searched_lambda, "06.entropy": counted_entropy, "06.switched-off": looped_off,
}  # fmt: skip

MUTANTS = {
    "06.lambda-sat": [
        ("return math.log(n) / (scale * d_k)", "square root is missing"),
        ("return (math.log(n) / scale) ** 0.5", "width d_k is missing"),
        ("return (math.log(n) / d_k**0.5) ** 0.5", "you took 1/√d_k"),
        ("return (math.log(n) / d_k) ** 0.5", "scale is missing"),
        ("return (math.log10(n) / (scale * d_k)) ** 0.5", "not that to base 10"),
        ("return (n / (scale * d_k)) ** 0.5", "not n"),
    ],
    "06.entropy": [
        ("return -(p * p.log()).sum(-1)", "0 · log 0"),
        ("return torch.special.xlogy(p, p).sum(-1)", "the sign"),
        ("return -(p * (p + 1e-30).log2()).sum(-1)", "not log2"),
        ("return -torch.special.xlogy(p, p).sum()", "whole tensor"),
        ("return -torch.special.xlogy(p, p).sum(-2)", "wrong dimension"),
        ("-torch.special.xlogy(p, p).sum(-1)", "is the `return` missing"),
    ],
    "06.switched-off": [
        ("return (p.diagonal(dim1=-2, dim2=-1) > level).double().mean(-1)", "diagonal"),
        ("return (p.amax(-2) > level).double().mean(-1)", "each column"),
        ("return (p > level).double().mean((-1, -2))", "count weights"),
        ("return (p > level).sum((-1, -2)) / p.shape[-1]", "both be above a low level"),
        ("return (p.amax(-1) >= level).double().mean(-1)", "not >="),
        ("return (p.amax(-1) <= level).double().mean(-1)", "rows that are on"),
        ("return (p.amax(-1) > level).sum(-1)", "the share is asked for"),
    ],
}  # fmt: skip

NAMES = {"math": math}
