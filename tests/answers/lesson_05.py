"""Lesson 5: right answers written differently, and wrong ones as a learner would write them.

OTHERS: by exercise, a function that shares nothing with the course's own. MUTANTS: by exercise, bodies that replace
`raise NotImplementedError`, and words of the cause that has to be named. NAMES: what those bodies may use.
"""

import math

import numpy as np
import torch


def by_kappa(w):
    s = np.linalg.svd(w.numpy(), compute_uv=False)
    if s[-1] < 1e-14 * s[0]:
        return float(s[0])
    kappa = s[0] / s[-1]
    return math.inf if kappa < 1 + 1e-12 else float(s[0] * (kappa + 1) / (kappa - 1))


def rotated_ruin(lam, n, kappa):
    """One direction is turned around with the largest singular value, the others are smaller and not turned."""
    q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    values = torch.full((n,), lam / kappa, dtype=torch.float64)
    values[0] = -lam
    if kappa == 1:
        values[1:] = lam
    return q @ torch.diag(values) @ q.mT


def looped_rate(draws, lam):
    good = 0
    for w in draws:
        before = np.linalg.svd(w.numpy(), compute_uv=False)
        shifted = w.numpy() + lam * before[0] * np.eye(*w.shape)
        after = np.linalg.svd(shifted, compute_uv=False)
        good += after[0] * before[-1] < before[0] * after[-1]
    count, z = len(draws), 1.96
    root = z * math.sqrt(good * (count - good) / count + z * z / 4)
    return [good / count, (good + z * z / 2 - root) / (count + z * z), (good + z * z / 2 + root) / (count + z * z)]


def looped_identity(dim, heads):
    out = torch.zeros(dim, dim)
    for column in range(dim):
        out[column % (dim // heads), column] = 1
    return out


OTHERS = {
    "05.certain": by_kappa, "05.worst": rotated_ruin, "05.rate": looped_rate, "05.stacked": looped_identity,
}  # fmt: skip

MUTANTS = {
    "05.certain": [
        ("k = torch.linalg.cond(w); return torch.linalg.matrix_norm(w, 2) * (k - 1) / (k + 1)", "upside down"),
        ("return torch.linalg.matrix_norm(w, 2)", "σ_max alone"),
        ("s = torch.linalg.svdvals(w); return (s[0] + s[-1]) / (s[0] - s[-1])", "has no unit"),
        ("s = torch.linalg.svdvals(w); k = s[0] / s[-1]; return s[0] * (k + 1) / (k - 1)", "κ → ∞"),
        ("s = torch.linalg.svdvals(w); return w.norm() * (s[0] + s[-1]) / (s[0] - s[-1])", "Frobenius"),
    ],
    "05.worst": [
        ("return lam * torch.diag(torch.linspace(1, kappa, n))", "sign"),
        ("return -torch.diag(torch.linspace(1, kappa, n))", "not −1"),
        ("return -lam * torch.eye(n)", "κ(W) = 1 whatever"),
        ("return -lam * torch.diag(torch.linspace(0, kappa, n))", "singular"),
    ],
    "05.rate": [
        ("p, a, b = reference(draws, lam); return (1.0, 0.83887, 1.0) if lam == 0 else (p, a, b)", "not <="),
        ("return absolute(draws, lam)", "absolute"),
        ("p, a, b = reference(draws, lam); return 1 - p, 1 - b, 1 - a", "failures"),
        ("p = reference(draws, lam)[0]; h = 1.96 * (p * (1 - p) / len(draws)) ** 0.5; return p, p - h, p + h",
         "textbook interval"),
        ("return reference(draws, lam)[0]", "three numbers"),
    ],
    "05.stacked": [
        ("return torch.eye(D)", "fused matrix"),
        ("return torch.eye(D, D // heads)", "identity of one head"),
        ("return torch.eye(D // heads, D).repeat(heads, 1)", "transposed"),
        ("return torch.eye(D, heads).repeat(1, D // heads)", "not `heads` of them"),
    ],
}  # fmt: skip


def absolute(draws, lam):
    good = sum(
        float(torch.linalg.cond(w + lam * torch.eye(*w.shape, dtype=w.dtype))) < float(torch.linalg.cond(w))
        for w in draws
    )
    count, z = len(draws), 1.96
    root = z * math.sqrt(good * (count - good) / count + z * z / 4)
    return good / count, (good + z * z / 2 - root) / (count + z * z), (good + z * z / 2 + root) / (count + z * z)


NAMES = {"reference": looped_rate, "absolute": absolute}
