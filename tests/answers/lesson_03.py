"""Lesson 3: right answers written differently, and wrong ones as a learner would write them.

OTHERS: by exercise, a function that shares nothing with the course's own. MUTANTS: by exercise, bodies that replace
`raise NotImplementedError`, and words of the cause that has to be named. NAMES: what those bodies may use.
"""

import math

import numpy as np
import torch


def kp(m):
    s = np.linalg.svd(np.asarray(m), compute_uv=False)
    return float(s[0] / s[s > 1e-10 * s[0]][-1])


def numpy_right_side(x, p, w_q, w_k, w_v):
    n = len(p)
    lam = np.zeros((n * n, n * n))
    for i, row in enumerate(np.asarray(p)):
        lam[i * n : (i + 1) * n, i * n : (i + 1) * n] = np.diag(row) - np.outer(row, row)
    return kp(x) ** 3 * kp(lam) * kp(w_v) * (kp(w_q) + kp(w_k)) + kp(x) * kp(p)


def projector_and_turn(kappa):
    angle = math.acos(1 / kappa)
    turn = torch.tensor([
        [1.0, 0.0, 0.0], [0.0, math.cos(angle), -math.sin(angle)], [0.0, math.sin(angle), math.cos(angle)],
    ])  # fmt: skip
    q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q  # all of it in float32
    return 100 * q @ torch.diag(torch.tensor([1.0, 1.0, 0.0])) @ q.mT, 100 * q @ turn[:, :2]


def balance_by_qr(w_q, w_k):
    q1, r1 = torch.linalg.qr(w_q)
    q2, r2 = torch.linalg.qr(w_k)
    u, s, vt = torch.linalg.svd(r1 @ r2.mT)
    return [q1 @ u @ torch.diag(s**0.5), q2 @ vt.mT @ torch.diag(s**0.5)]


OTHERS = {"03.bound": numpy_right_side, "03.gap": projector_and_turn, "03.balance": balance_by_qr}

MUTANTS = {
    "03.bound": [
        ("return (reference(x, p, w_q, w_k, w_v) - kp(x) * kp(p)) / kp(x) ** 2 + kp(x) * kp(p)", "three times"),
        ("return reference(x, p, w_q, w_k, w_v) - kp(x) * kp(p)", "second term"),
        ("return (reference(x, p, w_q, w_k, w_v) - kp(x) * kp(p)) / (kp(w_q) + kp(w_k)) * kp(w_q) * kp(w_k) "
         "+ kp(x) * kp(p)", "are added"),
        ("lams = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]; "
         "worst = max(kp(lam) for lam in lams if lam.abs().max() > 0); "
         "return kp(x) ** 3 * worst * kp(w_v) * (kp(w_q) + kp(w_k)) + kp(x) * kp(p)", "different tokens"),
        ("return float('inf')", "strict κ"),
        ("return reference(x, p, w_q, w_k, w_v) / kp(w_v) * torch.linalg.cond(w_v)", "all the other matrices"),
        ("values = np.linalg.svd(np.stack([np.diag(r) - np.outer(r, r) for r in p.numpy()]), compute_uv=False); "
         "kept = values[values > 1e-10 * values.max(1, keepdims=True)]; "
         "return kp(x) ** 3 * (kept.max() / kept.min()) * kp(w_v) * (kp(w_q) + kp(w_k)) + kp(x) * kp(p)",
         "not one for each block"),
    ],
    "03.gap": [
        ("return torch.diag(torch.tensor([1.0, 1 / kappa])), torch.eye(2)", "perfect on their own"),
        ("return torch.eye(3)[:2], torch.tensor([[1.0, 0], [0, 1 / kappa], [0, 1.0]])", "not of length 1"),
        ("c, s = math.cos(1 / kappa), math.sin(1 / kappa); "
         "return torch.eye(3)[:2], torch.tensor([[1.0, 0], [0, c], [0, s]])", "not the angle itself"),
        ("s = 1 / kappa; c = (1 - s * s) ** 0.5; return torch.eye(3)[:2], torch.tensor([[1.0, 0], [0, c], [0, s]])",
         "not the angle itself and not its sine"),
        ("return torch.eye(3).double(), reference(kappa)[1]", "A is invertible"),
    ],
    "03.balance": [
        ("u, s, vt = torch.linalg.svd(w_q @ w_k.mT); d = w_q.shape[1]; return u[:, :d] * s[:d], vt[:d].mT", "one side"),
        ("u, s, vt = torch.linalg.svd(w_q @ w_k.mT); d = w_q.shape[1]; return u[:, :d] * s[:d], vt[:d].mT * s[:d]",
         "both got S"),
        ("u, s, vt = torch.linalg.svd(w_q @ w_k.mT); d = w_q.shape[1]; return u[:, :d], vt[:d].mT", "S is missing"),
        ("c = (w_k.norm() / w_q.norm()) ** 0.5; return c * w_q, w_k / c", "equal norms"),
    ],
}  # fmt: skip


def reference(*arguments):
    """The right answer of the exercise that takes so many arguments."""
    return numpy_right_side(*arguments) if len(arguments) == 5 else projector_and_turn(*arguments)


NAMES = {"reference": reference, "kp": kp, "math": math, "np": np}
