"""Lesson 3, what governs κ(J): the checks of its exercises, as data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spectral_core._head import attention_weights
from spectral_core.bounds import jacobian_bound
from spectral_core.lessons.heads import random_head
from spectral_core.lessons.registry import Case, Exercise
from spectral_core.spectrum import singular_values, spectrum

__all__ = ["ENTRIES"]


def kappa_plus(m: Tensor, rtol: float = 1e-10) -> Tensor:
    """κ⁺ of a matrix."""
    return spectrum(m, rtol=rtol).effective_condition_number


# ---- the right side --------------------------------------------------------------------------------------

Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _lambda_values(p: Tensor) -> Tensor:
    return torch.linalg.svdvals(torch.diag_embed(p) - p[:, :, None] * p[:, None, :])


def _over_rank(values: Tensor) -> Tensor:
    return values.max() / values[values > 1e-10 * values.max()].min()


def _with_lambda(k_lambda: Tensor, x: Tensor, p: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor) -> Tensor:
    k = kappa_plus
    return k(x) ** 3 * k_lambda * k(w_v) * (k(w_q) + k(w_k)) + k(x) * k(p)


def right_side(x: Tensor, p: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor) -> Tensor:
    """κ⁺(X)³ κ⁺(Λ) κ⁺(W_V) (κ⁺(W_Q) + κ⁺(W_K)) + κ⁺(X) κ⁺(P)."""
    return _with_lambda(_over_rank(_lambda_values(p)), x, p, w_q, w_k, w_v)


def _head(seed: int, v_scale: float = 1.0, twins: bool = False) -> Five:
    x, w_q, w_k, w_v = (m / 2 for m in random_head(5, 6, 3, 2, seed=seed))  # halves: no weight of P near 0
    if twins:
        x[1], w_q[:, 1], w_k[:, 1], w_v[:, 1] = x[0], w_q[:, 0], w_k[:, 0], w_v[:, 0]
    return x, attention_weights(x @ w_q, x @ w_k, 3**-0.5), w_q, w_k, v_scale * w_v


def _uniform() -> Five:
    eye = torch.eye(4, dtype=torch.float64)
    return eye, torch.full((4, 4), 0.25, dtype=torch.float64), eye[:, :2], eye[:, 1:3], eye[:, 2:]


def _one_hot(rest: float = 0.0) -> Five:
    x, p, w_q, w_k, w_v = _head(seed=3)
    p[0] = rest + (1 - 5 * rest) * torch.eye(5, dtype=torch.float64)[2]
    return x, p, w_q, w_k, w_v


def _worst_row(x: Tensor, p: Tensor, *w: Tensor) -> Tensor:
    return _with_lambda(max(_over_rank(row) for row in _lambda_values(p) if row.max() > 0), x, p, *w)


def _row_by_row(x: Tensor, p: Tensor, *w: Tensor) -> Tensor:
    rows = [row for row in _lambda_values(p) if row.max() > 0]
    least = min(row[row > 1e-10 * row.max()].min() for row in rows)
    return _with_lambda(max(row.max() for row in rows) / least, x, p, *w)


BOUND = Exercise(
    "03.bound", "the right side of Theorem 3.4",
    (
        Case("a random head, as the package computes it", "reference", lambda: _head(seed=0),
             lambda x, p, *w: jacobian_bound(x, *w).right, "κ⁺(X)³ κ⁺(Λ) κ⁺(W_V)(κ⁺(W_Q) + κ⁺(W_K)) + κ⁺(X) κ⁺(P)",
             rtol=1e-3),
        Case("ten times W_V changes nothing", "property", lambda: _head(seed=1, v_scale=10.0),
             lambda x, p, *w: right_side(*_head(seed=1)), "every part is a ratio: the tolerance of a rank is relative",
             rtol=1e-3),
        Case("uniform attention, orthonormal X and weights: 1 · 1 · 1 · (1 + 1) + 1 = 3", "edge", _uniform,
             lambda *parts: 3.0, "P of rank 1 has κ⁺ = 1, and so has Λ: zeros do not count", rtol=1e-3),
        Case("a token with one-hot attention has Λ_i = 0, which does not count", "edge", _one_hot, right_side,
             "put the singular values of all Λ_i together, then drop those that count as zero", rtol=1e-3),
        Case("nearly one-hot, other weights 1e-13: below 1e-10 of the largest of Λ, so it does not count", "edge",
             lambda: _one_hot(1e-13), right_side, "Λ is one matrix: its tolerance is 1e-10 times the largest singular "
             "value of all Λ_i, not of each by itself", rtol=1e-3),
        Case("two equal tokens, and weights with two equal columns: no matrix here has full rank", "edge",
             lambda: _head(seed=4, twins=True), right_side, "drop the zeros in all the other matrices, too", rtol=1e-3),
    ),
    (
        ("κ(X) enters the first term three times", lambda x, p, q, k, v: (
            (right_side(x, p, q, k, v) - kappa_plus(x) * kappa_plus(p)) / kappa_plus(x) ** 2
            + kappa_plus(x) * kappa_plus(p))),
        ("κ(W_Q) and κ(W_K) are added: one for the K block, one for the Q block", lambda x, p, q, k, v: (
            kappa_plus(x) ** 3 * _over_rank(_lambda_values(p)) * kappa_plus(v) * kappa_plus(q) * kappa_plus(k)
            + kappa_plus(x) * kappa_plus(p))),
        ("the second term, of the V block, is missing", lambda x, p, q, k, v: (
            right_side(x, p, q, k, v) - kappa_plus(x) * kappa_plus(p))),
        ("Λ is one matrix with the blocks Λ_i: its largest and smallest singular value may be of different tokens",
         _worst_row),
        ("Λ has one tolerance, from the largest singular value of all Λ_i: not one for each block", _row_by_row),
        ("Λ is singular always: by the strict κ the right side is infinite for every head, use κ⁺",
         lambda *five: float("inf")),
    ),
    right_side,
)  # fmt: skip


# ---- two perfect factors, one bad product ----------------------------------------------------------------

Pair = Callable[[float], tuple[Tensor, Tensor]]
RTOL = 1e-5  # of a rank: answers may be in float32


def tilted(kappa: float) -> tuple[Tensor, Tensor]:
    """A coin tilted by arccos(1/κ), B (3 × 2), and the shadow it casts, A (2 × 3)."""
    cos = 1 / kappa
    a = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, 0.0], [0.0, cos], [0.0, (1 - cos**2) ** 0.5]], dtype=torch.float64)
    return a, b


def _pair(fn: Pair, kappa: float) -> tuple[Tensor, Tensor]:
    a, b = fn(kappa)
    return torch.as_tensor(a).double(), torch.as_tensor(b).double()


def _three(fn: Pair, kappa: float) -> tuple[Tensor, ...]:
    a, b = _pair(fn, kappa)
    return kappa_plus(a, RTOL), kappa_plus(b, RTOL), kappa_plus(a @ b, RTOL)


def _lacks(fn: Pair, kappa: float) -> tuple[bool, bool]:
    a, b = _pair(fn, kappa)
    return bool(spectrum(a, rtol=RTOL).rank < a.shape[1]), bool(spectrum(b, rtol=RTOL).rank < b.shape[0])


def _reversed(fn: Pair, kappa: float) -> tuple[Tensor, bool]:
    a, b = (m / torch.linalg.matrix_norm(m, 2) for m in _pair(fn, kappa))
    ab, a_inverse, b_inverse = (torch.linalg.pinv(m, rtol=RTOL) for m in (a @ b, a, b))
    return kappa_plus(a @ b, RTOL), bool((ab - b_inverse @ a_inverse).norm() > 1)


def _raw(cos: float, sin: float) -> tuple[Tensor, Tensor]:
    a = torch.eye(3, dtype=torch.float64)[:2]
    return a, torch.tensor([[1.0, 0.0], [0.0, cos], [0.0, sin]], dtype=torch.float64)


GAP = Exercise(
    "03.gap", "two perfect factors with a bad product",
    (
        Case("κ⁺(A) = κ⁺(B) = 1 and κ⁺(AB) = 10", "reference", lambda: (10.0,), lambda k: (1.0, 1.0, k),
             "A drops a direction, and B's columns lean towards it until only the share 1/κ is left", observe=_three,
             rtol=1e-4),
        Case("the same for 1 000", "reference", lambda: (1000.0,), lambda k: (1.0, 1.0, k),
             "the tilt depends on κ: cos θ = 1/κ", observe=_three, rtol=1e-3),
        Case("no tilt for κ = 1", "edge", lambda: (1.0,), lambda k: (1.0, 1.0, 1.0), "cos θ = 1, sin θ = 0",
             observe=_three, rtol=1e-4),
        Case("A lacks full column rank and B full row rank, as they must", "property", lambda: (5.0,),
             lambda k: (True, True), "with either of the two κ⁺(AB) ≤ κ⁺(A) κ⁺(B): A has to drop a direction",
             observe=_lacks),
        Case("and (AB)⁺ is not B⁺A⁺", "property", lambda: (10.0,), lambda k: (k, True),
             "the pseudo-inverse of AB has norm κ, that of A and of B has norm 1", observe=_reversed, rtol=1e-4),
    ),
    (
        ("κ⁺ of one factor is κ itself: both have to be perfect on their own", lambda k: (
            torch.diag(torch.tensor([1.0, 1 / k]).double()), torch.eye(2).double())),
        ("1/κ is the cosine of the tilt, not the angle itself and not its sine",
         lambda k: _raw(float(torch.cos(torch.tensor(1 / k))), float(torch.sin(torch.tensor(1 / k))))),
        ("a column of B is not of length 1: its entries are cos θ and sin θ = √(1 − cos²θ)",
         lambda k: _raw(1 / k, 1.0)),
        ("A is invertible: it drops no direction, and then the rule holds",
         lambda k: (torch.eye(3).double(), tilted(k)[1])),
    ),
    tilted,
)  # fmt: skip


# ---- the balanced gauge ----------------------------------------------------------------------------------


def _svd(w_q: Tensor, w_k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    d = w_q.shape[1]
    u, s, vt = torch.linalg.svd(w_q @ w_k.mT)
    return u[:, :d], s[:d], vt[:d].mT


def balance(w_q: Tensor, w_k: Tensor) -> tuple[Tensor, Tensor]:
    """(U √S, V √S) from the SVD of W_Q W_Kᵀ, cut to its d_k columns."""
    u, s, v = _svd(w_q, w_k)
    return u * s.sqrt(), v * s.sqrt()


def _weights(seed: int, dim: int = 7, d_k: int = 3) -> tuple[Tensor, Tensor]:
    _, w_q, w_k, _ = random_head(2, dim, d_k, 1, seed=seed)
    return 3 * w_q, w_k


def _roots(w_q: Tensor, w_k: Tensor) -> tuple[Tensor, Tensor]:
    roots = singular_values(w_q @ w_k.mT)[: w_q.shape[1]].sqrt()
    return roots, roots


Balance = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _spectra(fn: Balance, *weights: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.linalg.svdvals(torch.as_tensor(w).double()) for w in fn(*weights))


def _kappa_sum(fn: Balance, *weights: Tensor) -> Any:
    return sum(s[0] / s[-1] for s in _spectra(fn, *weights))


def _product(fn: Balance, *weights: Tensor) -> Tensor:
    q, k = (torch.as_tensor(w).double() for w in fn(*weights))
    return q @ k.mT


BALANCE = Exercise(
    "03.balance", "the balanced gauge",
    (
        Case("W_Q W_Kᵀ is what it was: the head computes the same function", "property", lambda: _weights(seed=0),
             lambda q, k: q @ k.mT, "U √S (V √S)ᵀ = U S Vᵀ", observe=_product, rtol=1e-4),
        Case("both have the singular values √σ_i(W_Q W_Kᵀ)", "reference", lambda: _weights(seed=1), _roots,
             "give each of the two the square root of S", observe=_spectra, rtol=1e-4),
        Case("d_k = 1: two columns of one length", "edge", lambda: _weights(seed=2, d_k=1), _roots,
             "give each of the two the square root of S", observe=_spectra, rtol=1e-4),
        Case("κ(W_Q) + κ(W_K) is 2√κ⁺(W_Q W_Kᵀ), the least there is", "property", lambda: _weights(seed=3),
             lambda q, k: 2 * kappa_plus(q @ k.mT).sqrt(), "equal singular values in both", observe=_kappa_sum,
             rtol=1e-4),
    ),
    (
        ("all of S went to one side: each gets √S", lambda q, k: (_svd(q, k)[0] * _svd(q, k)[1], _svd(q, k)[2])),
        ("both got S, so the product has S²: each gets √S",
         lambda q, k: (_svd(q, k)[0] * _svd(q, k)[1], _svd(q, k)[2] * _svd(q, k)[1])),
        ("S is missing: U Vᵀ is another matrix", lambda q, k: (_svd(q, k)[0], _svd(q, k)[2])),
        ("equal norms are not equal singular values: a number c cannot do it",
         lambda q, k: (q * (k.norm() / q.norm()).sqrt(), k * (q.norm() / k.norm()).sqrt())),
        ("nothing was balanced: the weights came back as they were", lambda q, k: (q, k)),
    ),
    balance,
)  # fmt: skip

ENTRIES = (BOUND, GAP, BALANCE)
