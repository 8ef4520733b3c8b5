"""Lesson 9: right answers written differently, and wrong ones as a learner would write them."""

import numpy as np


def chunked_role(weight, i, columns):
    return weight.chunk(3, 1)[i].mT if columns else weight.chunk(3)[i]


def reshaped_rows(dim, heads, i):
    table = np.arange(3 * dim).reshape(heads, 3, dim // heads)
    return table[:, i].ravel()


def fold_by_loop(weight, which, lam):
    out, dim = weight.clone(), weight.shape[1]
    first = which * dim
    for i in range(dim):
        out[first + i, i] = out[first + i, i] + lam
    return out


OTHERS = {"09.take": chunked_role, "09.interleaved": reshaped_rows, "09.fold": fold_by_loop}

MUTANTS = {
    "09.take": [
        ("return weight.chunk(3, 1 if columns else 0)[i]", "transpose to (out, in)"),
        ("return weight.chunk(3)[i]", "slice rows whatever the layout"),
        ("return (weight.mT if columns else weight).chunk(3)[(0, 2, 1)[i]]", "exchanged"),
        ("return (weight.mT if columns else weight)[i::3]", "every third row"),
    ],
    "09.interleaved": [
        ("return range(i * dim, (i + 1) * dim)", "layout q|k|v, of timm"),
        ("d = dim // heads; return [h * d + i * d + j for h in range(heads) for j in range(d)]",
         "a head owns 3d rows"),
        ("d = dim // heads; return list(range(i * d, (i + 1) * d))", "first head alone"),
        ("return list(range(i, 3 * dim, 3))", "every third row"),
    ],
    "09.fold": [
        ("dim = weight.shape[1]; "
         "weight[i * dim:(i + 1) * dim] += lam * torch.eye(dim).to(weight); return weight", "changed the argument"),
        ("return weight + lam * torch.eye(*weight.shape).to(weight)", "rows of Q, whatever"),
        ("out, dim = weight.clone(), weight.shape[1]; out[i * dim:(i + 1) * dim] += lam; "
         "return out", "every entry of the block"),
        ("return weight + lam * torch.eye(weight.shape[1]).to(weight).repeat(3, 1)", "all three roles"),
    ],
}  # fmt: skip

NAMES = {}
