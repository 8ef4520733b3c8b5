"""Lesson 1: right answers written differently, and wrong ones as a learner would write them.

OTHERS: by exercise, a function that shares nothing with the course's own. MUTANTS: by exercise, bodies that replace
`raise NotImplementedError`, and words of the cause that has to be named. NAMES: what those bodies may use.
"""

import math

import numpy as np
import torch


def numpy_kappa(w):
    s = np.linalg.svd(np.asarray(w), compute_uv=False)
    return float("inf") if s.min() < 1e-10 * s.max() else s.max() / s.min()


def eig_effective(w, rtol):
    s = torch.linalg.eigvalsh(w.double().mT @ w.double()).clamp(min=0).sqrt()
    kept = s[s > max(rtol, 1e-7) * s.max()]  # a Gram matrix resolves no more
    return [kept.max() / kept.min(), len(kept)]


def counting_steps(a, eps):
    s = torch.linalg.svdvals(a)
    factor = float((s[0] ** 2 - s[-1] ** 2) / (s[0] ** 2 + s[-1] ** 2))
    steps, left = 1, factor
    while left > eps:
        steps, left = steps + 1, left * factor
    return torch.tensor(float(steps))


def newton_polar(w):
    gram = w.double().mT @ w.double()
    values, vectors = torch.linalg.eigh(gram)
    inverse_root = vectors @ torch.diag(values.clamp(min=1e-18).rsqrt()) @ vectors.mT
    return w + values[-1].sqrt() * w @ inverse_root


def svd(w):
    return torch.linalg.svd(w, full_matrices=False)


OTHERS = {
    "01.kappa": numpy_kappa, "01.effective": eig_effective, "01.steps": counting_steps, "01.polar": newton_polar,
}  # fmt: skip

MUTANTS = {
    "01.kappa": [
        ("s = torch.linalg.svdvals(w); return s[-1] / s[0]", "upside down"),
        ("e = torch.linalg.eigvalsh(w.mT @ w); return e[-1] / e[0]", "squared singular values"),
        ("s = torch.linalg.svdvals(w); return s[0] / s[-1] if s[-1] != 0 else math.inf", "use a tolerance"),
        ("return torch.linalg.matrix_norm(w, 2)", "measures size"),
        ("return torch.linalg.svdvals(w).max()", "measures size"),
        ("torch.linalg.svdvals(w)", "is the `return` missing"),
    ],
    "01.effective": [
        ("s = torch.linalg.svdvals(w); r = int((s > rtol).sum()); return s[0] / s[r - 1], r", "absolute"),
        ("s = torch.linalg.svdvals(w); return s[0] / s[-1], len(s)", "leave out"),
        ("s = torch.linalg.svdvals(w); r = int((s > rtol * s[0]).sum()); return s[r - 1] / s[0], r", "upside down"),
        ("s = torch.linalg.svdvals(w); r = int((s > rtol * s[0]).sum()); return s[0] / s[r - 1]", "both numbers"),
        ("s = torch.linalg.svdvals(w); r = int((s > rtol * s[0]).sum()); return r, s[0] / s[r - 1]", "other way round"),
    ],
    "01.steps": [
        ("k = torch.linalg.cond(a); return math.ceil(math.log(eps) / math.log((k - 1) / (k + 1)))", "κ(A)², and you"),
        ("k = torch.linalg.cond(a) ** 2; return int(math.log(eps) / math.log((k - 1) / (k + 1)))", "rounded down"),
        ("k = torch.linalg.cond(a) ** 2; return math.ceil(math.log(eps) / math.log(1 - 1 / k))", "step 1/σ_max²"),
        ("k = torch.linalg.cond(a) ** 2; return math.ceil(k / 2 * math.log(1 / eps))", "approximation"),
        ("k = torch.linalg.cond(a) ** 4; return math.ceil(math.log(eps) / math.log((k - 1) / (k + 1)))", "once too"),
    ],
    "01.polar": [
        ("return w + torch.linalg.svdvals(w)[0] * torch.eye(*w.shape)", "W's own directions"),
        ("u, s, vt = svd(w); return w + u @ vt", "factor σ_max"),
        ("u, s, vt = svd(w); return s[0] * u @ vt", "added to W"),
        ("u, s, vt = svd(w); return w + s[0] * u @ vt.mT", "do not transpose"),
    ],
}  # fmt: skip

NAMES = {"math": math, "svd": svd}
