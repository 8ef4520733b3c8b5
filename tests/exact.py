"""J of one head and its singular values in 60-digit arithmetic: what float64 is measured against where it is weak."""

import mpmath
import numpy as np


def exact_jacobian(x, w_q, w_k, w_v, wrt="qkv", *, scale=None, allowed=None):
    """mpmath matrix of J: rows (token, channel), columns W_Q, W_K, W_V row-major; call inside `mpmath.workdps`."""
    x, w_q, w_k, w_v = (mpmath.matrix(t.double().tolist()) for t in (x, w_q, w_k, w_v))
    n, dim, d_k, d_v = x.rows, x.cols, w_q.cols, w_v.cols
    s = 1 / mpmath.sqrt(d_k) if scale is None else mpmath.mpf(scale)
    q, k, v = x * w_q, x * w_k, x * w_v
    logits = s * q * k.T
    rows = []
    for i in range(n):
        kept = [j for j in range(n) if allowed is None or bool(allowed[i, j])]
        top = max(logits[i, j] for j in kept)
        e = {j: mpmath.exp(logits[i, j] - top) for j in kept}
        p = {j: e[j] / sum(e.values()) for j in kept}
        for c in range(d_v):
            a = sum(p[j] * v[j, c] for j in kept)
            weight = {j: s * p[j] * (v[j, c] - a) for j in kept}
            m = [sum(weight[j] * k[j, b] for j in kept) for b in range(d_k)]
            slope = [sum(weight[j] * x[j, b] for j in kept) for b in range(dim)]
            px = [sum(p[j] * x[j, b] for j in kept) for b in range(dim)]
            blocks = {
                "q": [x[i, a_] * m[b] for a_ in range(dim) for b in range(d_k)],
                "k": [slope[a_] * q[i, b] for a_ in range(dim) for b in range(d_k)],
                "v": [px[a_] if b == c else mpmath.mpf(0) for a_ in range(dim) for b in range(d_v)],
            }
            rows.append([entry for role in "qkv" if role in wrt for entry in blocks[role]])
    return mpmath.matrix(rows)


def exact_values(*head, **settings):
    """Its singular values, descending, as NumPy floats."""
    with mpmath.workdps(60):
        j = exact_jacobian(*head, **settings)
        if j.rows > j.cols:
            j = j.T
        values = mpmath.eigsy(j * j.T, eigvals_only=True)
        return np.sort([float(mpmath.sqrt(abs(value))) for value in values])[::-1]
