"""Lesson 11, Jacobians at scale: the checks of its exercises, as data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spectral_core.jacobian import AttentionJacobian
from spectral_core.lessons.heads import random_head
from spectral_core.lessons.lesson_01 import with_spectrum
from spectral_core.lessons.lesson_11 import Product, Times
from spectral_core.lessons.registry import Case, Exercise

__all__ = ["ENTRIES", "inverse_iteration", "jacobian_bytes", "power_sigma_max", "query_product"]


def jacobian_bytes(n: int, dim: int, d_k: int, d_v: int) -> tuple[int, int]:
    """Bytes of J and of J Jᵀ in float64."""
    rows = n * d_v
    return 8 * rows * dim * (2 * d_k + d_v), 8 * rows * rows


def _bytes(rows: Callable[..., int], columns: Callable[..., int], size: int = 8) -> Callable[..., tuple[int, int]]:
    return lambda n, dim, k, v: (size * rows(n, v) * columns(dim, k, v), size * rows(n, v) ** 2)


def _rows(n: int, d_v: int) -> int:
    return n * d_v


def _columns(dim: int, d_k: int, d_v: int) -> int:
    return dim * (2 * d_k + d_v)


BYTES = Exercise(
    "11.bytes", "how large is J",
    (
        Case("a head of ViT-B/16: 197 tokens, D = 768, d = 64", "reference", lambda: (197, 768, 64, 64),
             lambda *a: (14_873_001_984, 1_271_693_312),
             "rows: one for each entry of A; columns: one for each entry of W_Q, W_K and W_V; 8 bytes an entry"),
        Case("all sizes different: n = 5, D = 7, d_k = 3, d_v = 2", "reference", lambda: (5, 7, 3, 2),
             lambda *a: (4480, 800), "A is n × d_v; W_Q and W_K are D × d_k, W_V is D × d_v"),
        Case("twice the tokens: twice J, four times J Jᵀ", "property", lambda: (30, 64, 16, 8), lambda *a: (2.0, 4.0),
             "tokens are rows only; J Jᵀ is rows × rows",
             observe=lambda fn, n, *a: tuple(x / y for x, y in zip(fn(2 * n, *a), fn(n, *a), strict=True))),
        Case("one token, D = d_k = d_v = 1: J is 1 × 3", "edge", lambda: (1, 1, 1, 1), lambda *a: (24, 8),
             "one row and three columns"),
    ),
    (
        ("an entry of float64 has 8 bytes, not 4", _bytes(_rows, _columns, 4)),
        ("you counted entries: each has 8 bytes", _bytes(_rows, _columns, 1)),
        ("the rows are n · d_v: one for each token and value channel", _bytes(lambda n, v: n, _columns)),
        ("W_Q and W_K both have D · d_k entries: count d_k twice", _bytes(_rows, lambda dim, k, v: dim * (k + v))),
        ("that is the other Gram matrix, JᵀJ, columns × columns: J Jᵀ is rows × rows",
         lambda n, dim, k, v: (jacobian_bytes(n, dim, k, v)[0], 8 * _columns(dim, k, v) ** 2)),
    ),
    jacobian_bytes,
)  # fmt: skip


def query_product(x: Tensor, k: Tensor, v: Tensor, p: Tensor, scale: float, dw: Tensor) -> Tensor:
    """J_Q times a change of W_Q, (n, d_v): the change of A to first order, without slopes and without J."""
    weighted = p * (scale * (x @ dw) @ k.mT)
    return weighted @ v - weighted.sum(-1, keepdim=True) * (p @ v)


def _parts(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, float, Tensor]:
    """x, k, v, p, scale, dw of a random head with n = 6, D = 5, d_k = 3, d_v = 2."""
    x, w_q, w_k, w_v = random_head(6, 5, 3, 2, seed=seed)
    scale = 3**-0.5
    p = (scale * x @ w_q @ w_k.mT @ x.mT).softmax(-1)
    return x, x @ w_k, x @ w_v, p, scale, random_head(5, 3, 1, 1, seed=50 + seed)[0]


def _by_autodiff(x: Tensor, k: Tensor, v: Tensor, p: Tensor, scale: float, dw: Tensor) -> Tensor:
    w_q = random_head(6, 5, 3, 2, seed=0)[1]
    return torch.func.jvp(lambda w: (scale * x @ w @ k.mT).softmax(-1) @ v, (w_q,), (dw,))[1]


def _adjoint_gap(fn: Callable[..., Any], *parts: Any) -> Tensor:
    """⟨J dw, u⟩ − ⟨dw, Jᵀu⟩ for a fixed u, with Jᵀ from the package."""
    u = random_head(6, 2, 1, 1, seed=77)[0]
    jac = AttentionJacobian(*random_head(6, 5, 3, 2, seed=1))
    return (torch.as_tensor(fn(*parts)).double() * u).sum() - (parts[-1] * jac.rmatvec(u, "q")[0]).sum()


def _uncentred(x: Tensor, k: Tensor, v: Tensor, p: Tensor, scale: float, dw: Tensor) -> Tensor:
    return (p * (scale * (x @ dw) @ k.mT)) @ v


PRODUCT = Exercise(
    "11.product", "a product with the Q block",
    (
        Case("it is what forward-mode autodiff gives", "reference", lambda: _parts(0), _by_autodiff,
             "the logits change by s (X dW) Kᵀ; the output by Σ_j p_ij (v_j − a_i) times that", rtol=1e-9, atol=1e-12),
        Case("the adjoint identity: ⟨J dW, u⟩ − ⟨dW, Jᵀu⟩ = 0", "property", lambda: _parts(1), lambda *a: 0.0,
             "J dW is linear in dW, with the logit scale and the centring v_j − a_i", observe=_adjoint_gap, atol=1e-9),
        Case("a change that moves no query has no effect: dW = 0", "edge", lambda: (*_parts(2)[:5], torch.zeros(5, 3)
             .double()), lambda *a: torch.zeros(6, 2), "the product is linear: no change in, no change out"),
        Case("saturated attention (P = I) does not react to W_Q", "edge",
             lambda: (*_parts(3)[:3], torch.eye(6).double(), *_parts(3)[4:]), lambda *a: torch.zeros(6, 2),
             "each token looks at itself alone: v_j − a_i = 0 where p_ij = 1"),
    ),
    (
        ("the logit scale s is missing: logits are s Q Kᵀ", lambda x, k, v, p, s, dw: query_product(x, k, v, p, 1, dw)),
        ("the centring is missing: subtract (row sums of P ∘ dL) times a_i, since the weights of a row still sum to 1",
         _uncentred),
        ("the change of the logits is transposed: row i belongs to query i, so it is (X dW) Kᵀ",
         lambda *parts: _turned(*parts)),
        ("you centred with the mean of V: a_i = (P V)_i is weighted by p_i",
         lambda x, k, v, p, s, dw: _uncentred(x, k, v - v.mean(0), p, s, dw)),
    ),
    query_product,
)  # fmt: skip


def _turned(x: Tensor, k: Tensor, v: Tensor, p: Tensor, scale: float, dw: Tensor) -> Tensor:
    weighted = p * (scale * k @ (x @ dw).mT)
    return weighted @ v - weighted.sum(-1, keepdim=True) * (p @ v)


def power_sigma_max(matvec: Product, rmatvec: Product, v: Tensor, steps: int) -> Tensor:
    """‖J v‖ for the unit vector v after `steps` steps v ← Jᵀ J v / ‖Jᵀ J v‖."""
    v = v / v.norm()
    for _ in range(steps):
        v = rmatvec(matvec(v))
        v = v / v.norm()
    return matvec(v).norm()


def _of(a: Tensor, v: Tensor, steps: int) -> tuple[Product, Product, Tensor, int]:
    return Times(a), Times(a.mT), v, steps


def _start(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _two() -> Tensor:
    return torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))


POWER = Exercise(
    "11.power", "power iteration",
    (
        Case("diag(2, 1), start (1, 1), one step: v = (4, 1)/√17 and ‖J v‖ = √(65/17)", "reference",
             lambda: _of(_two(), torch.ones(2).double(), 1), lambda *a: (65 / 17) ** 0.5,
             "a step is v ← Jᵀ(J v), made a unit vector; at the end ‖J v‖"),
        Case("a 4 × 9 matrix with singular values 10, 6, 3, 1, fifty steps: 10", "reference",
             lambda: _of(with_spectrum([10.0, 6.0, 3.0, 1.0], m=9).mT, _start(9), 50), lambda *a: 10.0,
             "v lives on the side of the columns: Jᵀ J v, not J Jᵀ v"),
        Case("the length of the start does not matter", "property", lambda: _of(_two(), 1e-3 * _start(2), 2),
             lambda f, b, v, k: power_sigma_max(f, b, 1e3 * v, k), "make v a unit vector before ‖J v‖"),
        Case("500 steps with σ_max = 1000: nothing overflows", "property",
             lambda: _of(1000 * torch.eye(3).double(), _start(3), 500), lambda *a: 1000.0,
             "make v a unit vector at every step: 1000²⁽⁵⁰⁰⁾ does not fit into float64"),
        Case("no step: ‖J v‖/‖v‖ of the start", "edge", lambda: _of(_two(), torch.tensor([3.0, 4.0]).double(), 0),
             lambda *a: 52**0.5 / 5, "with steps = 0 it is the stretch of the start vector"),
        Case("a start without any of the top direction never finds it: diag(5, 2), v = (0, 1)", "edge",
             lambda: _of(torch.diag(torch.tensor([5.0, 2.0]).double()), torch.tensor([0.0, 1.0]).double(), 20),
             lambda *a: 2.0, "use the start you are given"),
    ),
    (
        ("that is σ²: return ‖J v‖, not ‖Jᵀ J v‖", lambda f, b, v, k: power_sigma_max(f, b, v, k) ** 2),
        ("you took one step too many", lambda f, b, v, k: power_sigma_max(f, b, v, k + 1)),
        ("the start was not made a unit vector: with steps = 0 your answer grows with it",
         lambda f, b, v, k: power_sigma_max(f, b, v, k) if k else f(v).norm()),
        ("you never stepped: repeat v ← Jᵀ J v", lambda f, b, v, k: power_sigma_max(f, b, v, 0)),
    ),
    power_sigma_max,
)  # fmt: skip


def inverse_iteration(chol: Tensor, u: Tensor, steps: int) -> Tensor:
    """The unit vector u after `steps` steps u ← (L Lᵀ)⁻¹ u, normalised."""
    u = u / u.norm()
    for _ in range(steps):
        u = torch.cholesky_solve(u[:, None], chol)[:, 0]
        u = u / u.norm()
    return u


def _factor(values: list[float]) -> Tensor:
    a = with_spectrum(values)
    return torch.linalg.cholesky(a @ a.mT)


def _seen(fn: Callable[..., Any], chol: Tensor, u: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """(‖u‖, ‖Lᵀu‖) of the answer."""
    factor = chol.double().clone()
    answer = torch.as_tensor(fn(chol, u, steps)).double().reshape(-1)
    return answer.norm(), (factor.mT @ answer).norm()


def _solved(turn: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Iteration with some other matrix in place of (L Lᵀ)⁻¹."""

    def run(chol: Tensor, u: Tensor, steps: int) -> Tensor:
        u = u / u.norm()
        for _ in range(steps):
            u = turn(chol) @ u
            u = u / u.norm()
        return u

    return run


INVERSE = Exercise(
    "11.inverse", "inverse iteration",
    (
        Case("L = diag(2, 1, ½), one step from (1, 1, 1): ‖u‖ and ‖Lᵀu‖", "reference",
             lambda: (torch.diag(torch.tensor([2.0, 1.0, 0.5]).double()), torch.ones(3).double(), 1),
             lambda *a: (1.0, (5.25 / 17.0625) ** 0.5), "solve (L Lᵀ) u_new = u, then make it a unit vector",
             observe=_seen),
        Case("singular values 3, 1, 0.4, 0.01: 30 steps find 0.01", "reference",
             lambda: (_factor([3.0, 1.0, 0.4, 0.01]), _start(4), 30), lambda *a: (1.0, 0.01),
             "two triangular solves a step: first with L, then with Lᵀ", observe=_seen),
        Case("400 steps with σ_min = 1e-3: nothing overflows", "property",
             lambda: (_factor([1.0, 0.5, 1e-3]), _start(3), 400), lambda *a: (1.0, 1e-3),
             "make u a unit vector at every step: it grows by 1/σ_min² each time", observe=_seen),
        Case("no step: the start as a unit vector", "edge", lambda: (_two(), torch.tensor([3.0, 4.0]).double(), 0),
             lambda *a: torch.tensor([0.6, 0.8]), "with steps = 0 only the length of u changes",
             observe=lambda fn, *a: torch.as_tensor(fn(*a)).reshape(-1)),
    ),
    (
        ("you multiply by L Lᵀ, which finds the largest: solve with it", _solved(lambda chol: chol @ chol.mT)),
        ("that is half a step: after the solve with L comes one with Lᵀ", _solved(torch.linalg.inv)),
        ("the order is wrong: (L Lᵀ)⁻¹ u = L⁻ᵀ(L⁻¹u), first L, then Lᵀ",
         _solved(lambda chol: torch.linalg.inv(chol.mT @ chol))),
        ("u is not a unit vector: divide by its length", lambda chol, u, k: 2 * inverse_iteration(chol, u, k)),
        ("the start was not made a unit vector", lambda chol, u, k: inverse_iteration(chol, u, k) if k else u),
    ),
    inverse_iteration,
)  # fmt: skip

ENTRIES = (BYTES, PRODUCT, POWER, INVERSE)
