"""The exact Jacobian of softmax attention with respect to its weights or its input, from its closed form.

`AttentionJacobian` gives J as a matrix, as a Gram matrix, as products, and its condition number with a statement of
how far to trust it. Nothing is differentiated, and J is not stored unless `dense` is asked for. The formulas are in
`closed_form`, the three ways to κ in `jacobian_condition`.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spectral_core import closed_form as cf
from spectral_core import jacobian_condition as jc
from spectral_core._checks import check_choice, check_tensor, to_float64
from spectral_core._head import Head, build_head
from spectral_core.jacobian_condition import JacobianCondition, JacobianExtremes
from spectral_core.jacobian_operator import Operator, bytes_needed, operator

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

__all__ = ["AttentionJacobian", "JacobianCondition", "JacobianExtremes"]

NAMES = {"q": "dw_q", "k": "dw_k", "v": "dw_v", "x": "dx"}


class AttentionJacobian:
    """J = ∂ vec(A) / ∂ (W_Q, W_K, W_V, X) of softmax attention, float64, batched over leading dimensions.

    Rows are (token, value channel), columns W_Q, W_K, W_V, each row-major, then X. `wrt` in every method is any
    subset of "qkvx" ("x" is the input); the columns keep that order. Tensors on mps are computed on the CPU, since
    mps has no float64; everything else stays on its device.

    Args:
        x: (…, n, D), tokens as rows.
        w_q, w_k: (…, D, d_k), acting on the right (`nn.Linear` stores the transpose).
        w_v: (…, D, d_v).
        scale: logit scale s; 1/√d_k when None (the paper's formulas have s = 1).
        is_causal: token i attends to tokens j ≤ i. The first token then attends to itself alone, so its rows of
            the Q and K blocks are zero.
        mask: boolean (…, n, n), True where attention is allowed.
        w_o: output projection, (heads · d_v, D_out) or (…, heads, d_v, D_out). J is then of the whole layer: the
            last leading dimension of the weights counts its heads and is summed over, x has 1 or nothing there, and
            columns are ordered role by role, then head by head.
        x_kv: (…, m, E), the tokens of keys and values in cross-attention; w_k and w_v then have E rows, `mask` is
            (…, n, m), and "x" stands for the query tokens alone.
        b_q: (…, d_k), bias of the queries. Biases of keys and values leave J unchanged: they shift all logits of a
            row alike, or A by a constant.

    Raises:
        ValueError: non-finite, empty or integer tensors, widths that do not match, leading dimensions that do
            not broadcast, a scale that is not a finite number, a mask with a fully masked row (which is named), or
            logits that overflow.

    >>> jac = AttentionJacobian(torch.randn(4, 6), *torch.randn(3, 6, 2))
    >>> jac.shape
    (8, 36)
    """

    def __init__(
        self,
        x: Tensor,
        w_q: Tensor,
        w_k: Tensor,
        w_v: Tensor,
        *,
        scale: float | None = None,
        is_causal: bool = False,
        mask: Tensor | None = None,
        w_o: Tensor | None = None,
        x_kv: Tensor | None = None,
        b_q: Tensor | None = None,
    ) -> None:
        self._head = build_head(
            x, w_q, w_k, w_v, scale=scale, is_causal=is_causal, mask=mask, w_o=w_o, x_kv=x_kv, b_q=b_q
        )
        self.n, self.dim = self._head.x.shape[-2:]
        self.d_k, self.d_v, self.scale = self._head.q.shape[-1], self._head.d_v, self._head.scale
        self.batch_shape = self._head.p.shape[:-3]
        self._operators: dict[str, Operator] = {}

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of J with respect to the weights, "qkv"."""
        return self._rows, self._columns("qkv")

    def attention(self) -> Tensor:
        """The attention map P, (…, n, m); with `w_o` of every head, (…, heads, n, m)."""
        return self._head.p.squeeze(-3) if self._head.w_o is None else self._head.p

    def dense(self, wrt: str = "qkv") -> Tensor:
        """J itself, (…, rows, columns of `wrt`): for small sizes and for checks."""
        return cf.dense(self._head, check_roles(wrt))

    def gram(self, wrt: str = "qkv") -> Tensor:
        """J Jᵀ, (…, rows, rows), without forming J."""
        return cf.gram(self._compressed, check_roles(wrt))

    def norms(self, wrt: str = "qkv") -> dict[str, Tensor]:
        """Frobenius norm of each block of J, {"q": (…), …}: near zero for Q and K when attention is saturated."""
        return cf.norms(self._compressed, check_roles(wrt))

    def singular_values(self, wrt: str = "qkv") -> Tensor:
        """All min(rows, columns) singular values, descending, by an SVD of the column-compressed J.

        Values that the compression drops are exact zeros: they stand at the end.
        """
        roles = check_roles(wrt)
        return jc.singular_values(self._operator(roles), self._count(roles))

    def condition_number(
        self, wrt: str = "qkv", *, method: str = "auto", max_bytes: int | None = None
    ) -> JacobianCondition:
        """κ(J) with extremes, rank, error and the way it was found; see `JacobianCondition`.

        Args:
            wrt: any subset of "qkvx".
            method: "gram" (all eigenvalues of J Jᵀ; κ to 2e6), "cholesky" (the extremes alone, several times
                cheaper for many rows; κ to 2e6), "svd" (of the compressed J; κ to about 1e12), or "auto": gram up
                to 512 rows and cholesky above, svd where J has more rows than columns and where the first did not
                resolve σ_min, if that SVD costs at most about a minute on two cores.
            max_bytes: memory that the way may need, as `bytes_needed` estimates it; None for no limit.

        Raises:
            ValueError: `wrt` or `method` unknown, or `max_bytes` too small for `method`.
        """
        roles = check_roles(wrt)
        check_choice(method, "method", jc.METHODS)
        if max_bytes is not None and (needed := self.bytes_needed(wrt, method=method)) > max_bytes:
            raise ValueError(
                f"max_bytes: expected at least {needed} for method={method!r} at {self._rows} rows, got "
                f"{max_bytes}; raise it, or take fewer tokens, heads or examples at a time"
            )
        op = self._operator(roles)
        return jc.condition(op, method, self._count(roles), self._gauge_limit(roles), max_bytes)

    def extremes(self, k: int = 1, wrt: str = "qkv") -> JacobianExtremes:
        """The k largest singular values by block Golub-Kahan Lanczos and the k smallest by inverse iteration.

        Raises:
            ValueError: `wrt` unknown, or k not an integer between 1 and min(rows, columns).
        """
        roles = check_roles(wrt)
        op = self._operator(roles)
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= op.size:
            raise ValueError(f"k: expected an integer between 1 and {op.size}, got {k!r}")
        return jc.extremes(op, self._count(roles), k)

    def bytes_needed(self, wrt: str = "qkv", *, method: str = "auto") -> int:
        """Peak memory in bytes that `condition_number` needs, counted from the largest matrices it holds.

        For "auto" it is what the first way needs; the SVD is tried only where it fits.
        """
        roles = check_roles(wrt)
        check_choice(method, "method", jc.METHODS)
        op = self._operator(roles)
        return bytes_needed(op, jc.first_way(op, self._gauge_limit(roles)) if method == "auto" else method)

    def matvec(
        self, dw_q: Tensor | None = None, dw_k: Tensor | None = None, dw_v: Tensor | None = None,
        dx: Tensor | None = None,
    ) -> Tensor:
        """J times a change of the weights and the input: the directional derivative of A, (…, n, d_v).

        Args:
            dw_q, dw_k, dw_v, dx: shaped as w_q, w_k, w_v and x (leading dimensions broadcast); None is no change.

        Raises:
            ValueError: nothing given, a bad tensor, or a shape that does not match.
        """
        given = {role: t for role, t in zip("qkvx", (dw_q, dw_k, dw_v, dx), strict=True) if t is not None}
        if not given:
            raise ValueError("matvec: expected at least one of dw_q, dw_k, dw_v, dx, got none")
        changes = {}
        for role, change in given.items():
            heads, rows, columns = self._head.widths[role]
            with_heads = self._head.w_o is not None and role != "x"
            expected = (heads, rows, columns) if with_heads else (rows, columns)
            change = self._check(change, NAMES[role], expected)
            changes[role] = change.unsqueeze(-4) if with_heads else change.unsqueeze(-3).unsqueeze(-4)
        return cf.apply(self._head, changes).squeeze(-3)

    def rmatvec(self, u: Tensor, wrt: str = "qkv") -> tuple[Tensor, ...]:
        """Jᵀ times u (…, n, d_v): the gradient of Σ u·A for each role of `wrt`, as a tuple in the order of "qkvx".

        Raises:
            ValueError: `wrt` unknown, a bad tensor, or a shape that does not match.
        """
        roles = check_roles(wrt)
        g = self._check(u, "u", self._head.rows).unsqueeze(-3)
        parts = cf.apply_transpose(self._head, g, roles)
        return tuple(
            part.squeeze(-4) if self._head.w_o is not None and role != "x" else part.squeeze(-4).squeeze(-3)
            for role, part in parts.items()
        )

    def matmat(self, block: Tensor, wrt: str = "qkv") -> Tensor:
        """J times the columns of a block, (…, columns of `wrt`, k) -> (…, rows, k); the order is that of `dense`."""
        roles = check_roles(wrt)
        block = self._check(block, "block", (self._columns(roles), None))
        return cf.apply(self._head, cf.unpack(self._head, block, roles)).flatten(-2).mT

    def rmatmat(self, block: Tensor, wrt: str = "qkv") -> Tensor:
        """Jᵀ times the columns of a block, (…, rows, k) -> (…, columns of `wrt`, k)."""
        roles = check_roles(wrt)
        block = self._check(block, "block", (self._rows, None))
        return cf.pack(cf.apply_transpose(self._head, block.mT.unflatten(-1, self._head.rows), roles))

    def as_linear_operator(self, wrt: str = "qkv") -> LinearOperator:
        """J as a SciPy `LinearOperator` over float64 NumPy arrays, for `svds`, `lsmr` and their kin.

        Raises:
            ValueError: `wrt` unknown, or J has leading dimensions.
            ImportError: SciPy is not installed.
        """
        roles = check_roles(wrt)
        if self.batch_shape:
            raise ValueError(
                f"as_linear_operator: expected one Jacobian, got leading dimensions {tuple(self.batch_shape)}; "
                "build one AttentionJacobian per head"
            )
        try:
            from scipy.sparse.linalg import LinearOperator
        except ImportError as error:
            raise ImportError("as_linear_operator needs SciPy: pip install scipy") from error
        device = self._head.p.device

        def wrap(product):  # a vector is a block of one column
            def call(array):
                block = torch.as_tensor(array, dtype=torch.float64, device=device)
                out = product(block.reshape(len(block), -1), roles).cpu().numpy()
                return out.reshape(len(out), *array.shape[1:])

            return call

        forward, backward = wrap(self.matmat), wrap(self.rmatmat)
        return LinearOperator(
            shape=(self._rows, self._columns(roles)), dtype="float64",
            matvec=forward, rmatvec=backward, matmat=forward, rmatmat=backward,
        )

    # ---- internals -------------------------------------------------------------------------------------

    @cached_property
    def _compressed(self) -> Head:
        return self._head.compress()

    def _operator(self, roles: str) -> Operator:
        if roles not in self._operators:
            self._operators[roles] = operator(self._compressed, roles)
        return self._operators[roles]

    @property
    def _rows(self) -> int:
        tokens, channels = self._head.rows
        return tokens * channels

    def _columns(self, roles: str) -> int:
        return sum(h * a * b for h, a, b in (self._head.widths[role] for role in roles))

    def _count(self, roles: str) -> int:
        return min(self._rows, self._columns(roles))

    def _gauge_limit(self, roles: str) -> int | None:
        """The rank that the gauge freedom of W_Q and W_K leaves, where that is below min(rows, columns)."""
        if not {"q", "k"} <= set(roles):
            return None
        limit = self._columns(roles) - self._head.widths["q"][0] * self.d_k**2
        return limit if limit < self._count(roles) else None

    def _check(self, value: Tensor, name: str, expected: tuple[int | None, ...]) -> Tensor:
        check_tensor(value, name)
        tail = tuple(value.shape[-len(expected) :])
        if len(tail) != len(expected) or any(e not in (None, t) for e, t in zip(expected, tail, strict=True)):
            wanted = ", ".join("k" if e is None else str(e) for e in expected)
            raise ValueError(f"{name}: expected shape (…, {wanted}), got {tuple(value.shape)}")
        return to_float64(value.detach()).to(self._head.p.device)


def check_roles(wrt: str) -> str:
    """`wrt` in the order "qkvx"; ValueError when it is not a non-empty subset of that."""
    if not isinstance(wrt, str) or not wrt or set(wrt) - set("qkvx") or len(set(wrt)) != len(wrt):
        raise ValueError(f'wrt: expected a non-empty subset of "qkvx" without repeats, got {wrt!r}')
    return "".join(role for role in "qkvx" if role in wrt)
