"""Lesson 11: right answers written differently, and wrong ones as a learner would write them.

OTHERS: by exercise, a function that shares nothing with the course's own. MUTANTS: by exercise, bodies that replace
`raise NotImplementedError`, and words of the cause that has to be named. NAMES: what those bodies may use.
"""

import numpy as np
import torch


def counted_bytes(n, D, d_k, d_v):
    output = torch.empty(n, d_v, dtype=torch.float64).numel()
    weights = [D * d_k, D * d_k, D * d_v]
    return [8 * output * sum(weights), 8 * output**2]


def by_slopes(x, k, v, p, scale, dw):
    """Token by token: Vᵀ Λ_i times the change of its logits."""
    rows = []
    for i in range(len(x)):
        lam = torch.diag(p[i]) - torch.outer(p[i], p[i])
        rows.append(scale * v.mT @ (lam @ (k @ (dw.mT @ x[i]))))
    return torch.stack(rows)


def by_numpy(matvec, rmatvec, v, steps):
    v = v.clone()
    for _ in range(steps):
        v = rmatvec(matvec(v / np.linalg.norm(v.numpy())))
    return float(matvec(v / v.norm()).norm())


def by_eigenvectors(chol, u, steps):
    values, vectors = np.linalg.eigh((chol @ chol.mT).numpy())
    weights = vectors.T @ u.numpy() * (values[0] / values) ** steps
    u = vectors @ weights
    return -u / np.linalg.norm(u) if steps else u / np.linalg.norm(u)


OTHERS = {
    "11.bytes": counted_bytes, "11.product": by_slopes, "11.power": by_numpy, "11.inverse": by_eigenvectors,
}  # fmt: skip

MUTANTS = {
    "11.bytes": [
        ("m = n * d_v; return 4 * m * D * (2 * d_k + d_v), 4 * m * m", "not 4"),
        ("return 8 * n * D * (2 * d_k + d_v), 8 * n * n", "rows are n · d_v"),
        ("m = n * d_v; return 8 * m * D * (d_k + d_v), 8 * m * m", "count d_k twice"),
        ("c = D * (2 * d_k + d_v); return 8 * n * d_v * c, 8 * c * c", "JᵀJ"),
        ("m = n * d_v; return m * D * (2 * d_k + d_v), m * m", "counted entries"),
    ],
    "11.product": [
        ("w = p * ((x @ dw) @ k.mT); return w @ v - w.sum(-1, keepdim=True) * (p @ v)", "scale s is missing"),
        ("return (p * (scale * (x @ dw) @ k.mT)) @ v", "centring is missing"),
        ("w = p * (scale * k @ (x @ dw).mT); return w @ v - w.sum(-1, keepdim=True) * (p @ v)", "transposed"),
        ("w = p * (scale * (x @ dw) @ k.mT); return w @ (v - v.mean(0))", "weighted by p_i"),
    ],
    "11.power": [
        ("v = v / v.norm()\n    for _ in range(steps):\n        v = rmatvec(matvec(v)); v = v / v.norm()\n"
         "    return rmatvec(matvec(v)).norm()", "not ‖Jᵀ J v‖"),
        ("for _ in range(steps):\n        v = rmatvec(matvec(v))\n    return matvec(v).norm() / v.norm()",
         "at every step"),
        ("for _ in range(steps):\n        v = rmatvec(matvec(v)); v = v / v.norm()\n    return matvec(v).norm()",
         "grows with it"),
        ("return matvec(v / v.norm()).norm()", "never stepped"),
        ("v = v / v.norm()\n    for _ in range(steps + 1):\n        v = rmatvec(matvec(v)); v = v / v.norm()\n"
         "    return matvec(v).norm()", "one step too many"),
    ],
    "11.inverse": [
        ("u = u / u.norm()\n    for _ in range(steps):\n        u = chol @ (chol.mT @ u); u = u / u.norm()\n"
         "    return u", "finds the largest"),
        ("u = u / u.norm()\n    for _ in range(steps):\n"
         "        u = torch.linalg.solve_triangular(chol, u[:, None], upper=False)[:, 0]; u = u / u.norm()\n"
         "    return u", "half a step"),
        ("u = u / u.norm()\n    for _ in range(steps):\n        u = torch.linalg.solve(chol.mT @ chol, u)\n"
         "        u = u / u.norm()\n    return u", "order is wrong"),
        ("for _ in range(steps):\n        u = torch.cholesky_solve(u[:, None], chol)[:, 0]\n    return u",
         "start was not made a unit vector"),
    ],
}  # fmt: skip

NAMES = {}
