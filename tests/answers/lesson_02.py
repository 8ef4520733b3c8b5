"""Lesson 2: right answers written differently, and wrong ones as a learner would write them.

OTHERS: by exercise, a function that shares nothing with the course's own. MUTANTS: by exercise, bodies that replace
`raise NotImplementedError`, and words of the cause that has to be named. NAMES: what those bodies may use.
"""

import itertools

import torch


def looped_softmax(p):
    flat = p.reshape(-1, p.shape[-1])
    out = torch.stack([torch.diag(row) - torch.outer(row, row) for row in flat])
    return out.reshape(*p.shape, p.shape[-1])


def covariance_slopes(x, p, v, scale):
    centred = v[None] - (p @ v)[:, None]
    return scale * torch.einsum("ij,ijc,ja->ica", p, centred, x)


def looped_gram(x, q, px, slopes, w_k):
    n, d_v = slopes.shape[:2]
    rows = []
    for i, c in itertools.product(range(n), range(d_v)):
        by_q = torch.outer(x[i], slopes[i, c] @ w_k).flatten()
        by_k = torch.outer(slopes[i, c], q[i]).flatten()
        by_v = torch.outer(px[i], torch.eye(d_v, dtype=x.dtype)[c]).flatten()
        rows.append(torch.cat([by_q, by_k, by_v]))
    return torch.stack(rows) @ torch.stack(rows).mT


def counted_rank(n, dim, d_k, d_v):
    visible = dim * d_k + dim * d_k + dim * d_v - d_k * d_k
    return visible if visible < n * d_v else n * d_v


OTHERS = {
    "02.softmax": looped_softmax, "02.slopes": covariance_slopes, "02.gram": looped_gram, "02.rank": counted_rank,
}  # fmt: skip

MUTANTS = {
    "02.softmax": [
        ("return torch.diag_embed(p)", "centring"),
        ("return torch.diag_embed(p * (1 - p))", "sigmoid"),
        ("return torch.diag_embed(p) - p[..., None]", "outer product"),
        ("return torch.diag_embed(p) - p.mT @ p", "mixed the rows"),
        ("return p[..., :, None] * p[..., None, :] - torch.diag_embed(p)", "sign"),
    ],
    "02.slopes": [
        ("return v.mT @ (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) @ x", "1/√d_k is missing"),
        ("return scale * v.mT @ torch.diag_embed(p) @ x", "centring"),
        ("return scale * v.mT @ (torch.diag_embed(p.mT) - p.mT[:, :, None] * p.mT[:, None, :]) @ x", "wrong axis"),
        ("return scale * x.mT @ (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) @ v", "transposed"),
    ],
    "02.gram": [
        ("return reference(x, x, px, slopes, w_k)", "not with x_i·x_j"),
        ("return reference(x, q, x, slopes, w_k)", "rows of PX"),
        ("return reference(x, q, px, slopes, torch.eye(x.shape[1], dtype=x.dtype))", "N_i W_K"),
        ("return reference(x, q, 0 * px, slopes, w_k)", "V term is missing"),
        ("g = reference(x, q, px, slopes, w_k); n, d = slopes.shape[:2]; "
         "return g.reshape(n, d, n, d).permute(1, 0, 3, 2).reshape(n * d, n * d)", "(channel, token)"),
    ],
    "02.rank": [
        ("return min(n * d_v, dim * (2 * d_k + d_v))", "subtract d_k²"),
        ("return min(n * d_v, dim * (2 * d_k + d_v) - d_k)", "not d_k"),
        ("return dim * (2 * d_k + d_v) - d_k**2", "number of rows"),
        ("return min(n * d_v, dim * (2 * d_k + d_v) - d_v**2)", "not d_v²"),
    ],
}  # fmt: skip

NAMES = {"reference": looped_gram}
