"""The exact Jacobian of one attention head with respect to its weights, from its closed form.

A = P X W_V with P = softmax(s X W_Q W_Kᵀ Xᵀ), s = `scale`, and N_i = s Vᵀ Λ_i X, Λ_i = diag(p_i) − p_i p_iᵀ.
The d_v rows of J that belong to token i are (Theorem 3.3 of arXiv 2603.07162, with the scale kept):

    ∂A/∂W_Q: x_i ⊗ (N_i W_K)      ∂A/∂W_K: N_i ⊗ q_i      ∂A/∂W_V: (P X)_i ⊗ I

so block (i, j) of J Jᵀ is

    (x_i·x_j) (N_i W_K)(N_j W_K)ᵀ + (q_i·q_j) N_i N_jᵀ + ((PX)_i·(PX)_j) I

and every singular value of J comes from three matrix products and three broadcast ones: nothing is
differentiated and J is not stored. Rows of X live in r ≤ min(n, D) dimensions, so all columns are compressed
from D to r by one QR first; singular values do not change.

A Gram matrix squares κ: its smallest eigenvalue carries a relative error near eps·κ². `method="gram"` repairs
this up to κ ≈ 2e6 by a Ritz step on J itself; past that, "auto" takes an SVD of the compressed J.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from spectral_core._checks import check_choice, check_number, check_tensor, to_float64
from spectral_core.spectrum import summarize

__all__ = ["AttentionJacobian", "JacobianCondition"]

EPS = torch.finfo(torch.float64).eps
GRAM_FLOOR = 1e3 * EPS  # λ_min/λ_max below which a Gram matrix says nothing of λ_min: κ > 2.1e6
GRAM_EXACT = 1e-7  # λ_min/λ_max above which its error in σ_min, at most 0.2 eps κ² as measured, is under 1e-9
METHODS = ("auto", "gram", "svd")


@dataclass(frozen=True)
class JacobianCondition:
    """κ of a Jacobian with what is needed to judge it; every tensor field has the leading dimensions.

    Attributes:
        value: κ = σ_max / σ_min over min(rows, cols) singular values; inf when rank deficient. Where `converged`
            is False it is a lower bound.
        effective_value: κ⁺ over the `rank` singular values above the tolerance.
        sigma_max, sigma_min: the extremes over all min(rows, cols) singular values.
        rank: numerical rank; at most 2 D d_k + D d_v − d_k² for W_Q, W_K, W_V together (gauge freedom).
        method: "gram" or "svd", the way that was taken.
        converged: whether float64 resolves `sigma_min` along that way.
    """

    value: Tensor
    effective_value: Tensor
    sigma_max: Tensor
    sigma_min: Tensor
    rank: Tensor
    method: str
    converged: Tensor

    def __float__(self) -> float:
        return float(self.value)


class AttentionJacobian:
    """J = ∂ vec(A) / ∂ (W_Q, W_K, W_V) of softmax attention, float64, batched over leading dimensions.

    Rows are (token, value channel), columns W_Q, W_K, W_V, each row-major. `wrt` in every method is any
    subset of "qkv"; the columns keep that order.

    Args:
        x: (…, n, D), tokens as rows.
        w_q, w_k: (…, D, d_k), acting on the right (`nn.Linear` stores the transpose).
        w_v: (…, D, d_v).
        scale: logit scale s; 1/√d_k when None (the paper's formulas have s = 1).
        is_causal: token i attends to tokens j ≤ i.
        mask: boolean (…, n, n), True where attention is allowed.

    Raises:
        ValueError: non-finite, empty or integer tensors, widths that do not match, leading dimensions that do
            not broadcast, a scale that is not a finite number, or a mask with a fully masked row.

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
    ) -> None:
        x, w_q, w_k, w_v = check_head(x, w_q, w_k, w_v)
        self.n, self.dim = x.shape[-2:]
        self.d_k, self.d_v = w_k.shape[-1], w_v.shape[-1]
        self.scale = resolve_scale(scale, self.d_k)
        self.x, self.w_k = x, w_k
        self.q, self.v = x @ w_q, x @ w_v
        allowed = allowed_pairs(self.n, is_causal, mask, x.device)
        if mask is not None:
            _check_leading({"x": x, "w_q": w_q, "w_k": w_k, "w_v": w_v, "mask": mask})
        self.p = attention_weights(self.q, x @ w_k, self.scale, allowed)
        self.px = self.p @ x
        self.batch_shape = torch.broadcast_shapes(self.p.shape[:-2], self.v.shape[:-2])

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of J with respect to all three weights."""
        return self.n * self.d_v, self.dim * (2 * self.d_k + self.d_v)

    def attention(self) -> Tensor:
        """The attention map P, (…, n, n)."""
        return self.p

    def dense(self, wrt: str = "qkv") -> Tensor:
        """J itself, (…, n·d_v, columns of `wrt`): for small sizes and for checks."""
        return self._dense(self.x, self._slopes(self.x), self.px, self.w_k, _roles(wrt))

    def gram(self, wrt: str = "qkv") -> Tensor:
        """J Jᵀ, (…, n·d_v, n·d_v), without forming J."""
        roles = _roles(wrt)
        n, d_v, n_flat = self.n, self.d_v, self.n * self.d_v
        x, slopes, px, w_k = self._compressed
        out = x.new_zeros(*self.batch_shape, n, d_v, n, d_v)
        if "q" in roles:
            out += _pairs(x) * _rows_gram(slopes @ w_k.unsqueeze(-3))
        if "k" in roles:
            out += _pairs(self.q) * _rows_gram(slopes)
        if "v" in roles:
            # the identity touches only equal value channels: add along the diagonal of (c, c')
            out.diagonal(dim1=-3, dim2=-1).add_((px @ px.mT).unsqueeze(-1))
        return out.reshape(*self.batch_shape, n_flat, n_flat)

    def singular_values(self, wrt: str = "qkv") -> Tensor:
        """All min(rows, cols) singular values, descending, by an SVD of the column-compressed J.

        Values that the compression drops are exact zeros: they stand at the end.
        """
        roles = _roles(wrt)
        if roles == "v":  # J_V = PX ⊗ I: each singular value of PX, d_v times
            values = torch.linalg.svdvals(self.px).repeat_interleave(self.d_v, -1)
            values = values.expand(*self.batch_shape, -1)
        else:
            small = self._compressed_dense(roles)
            # QR first: the SVD then runs on a square matrix
            tall = small.mT if small.shape[-1] > small.shape[-2] else small
            values = torch.linalg.svdvals(torch.linalg.qr(tall, mode="r").R)
        count = self._count(roles)
        return torch.nn.functional.pad(values, (0, max(0, count - values.shape[-1])))[..., :count]

    def condition_number(self, wrt: str = "qkv", *, method: str = "auto") -> JacobianCondition:
        """κ(J) with extremes, rank and the way it was found; see `JacobianCondition`.

        Args:
            wrt: any subset of "qkv".
            method: "gram" (eigenvalues of J Jᵀ, fast, resolves κ to 2e6), "svd" (of the compressed J,
                resolves κ to about 1e13), or "auto": gram, and svd where that did not resolve σ_min.

        Raises:
            ValueError: `wrt` or `method` unknown.
        """
        roles = _roles(wrt)
        check_choice(method, "method", METHODS)
        rows, cols = self.n * self.d_v, self._columns(roles)
        # with more rows than columns J Jᵀ is singular by shape, and says nothing of σ_min
        if method == "auto" and (rows > cols or roles == "v"):
            method = "svd"
        if method in ("auto", "gram"):
            result = self._gram_condition(roles)
            if method == "gram" or bool(result.converged.all()):
                return result
        values = self.singular_values(roles)
        s = summarize(values, max(rows, cols) * EPS)
        return JacobianCondition(
            value=s.condition_number, effective_value=s.effective_condition_number, sigma_max=values[..., 0],
            sigma_min=values[..., -1], rank=s.rank, method="svd", converged=torch.ones_like(s.rank, dtype=torch.bool),
        )

    def norms(self, wrt: str = "qkv") -> dict[str, Tensor]:
        """Frobenius norm of each block of J, {"q": (…), …}: near zero for Q and K when attention is saturated."""
        x, slopes, px, w_k = self._compressed
        squares = {
            "q": lambda: (x.square().sum(-1) * (slopes @ w_k.unsqueeze(-3)).square().sum((-1, -2))).sum(-1),
            "k": lambda: (self.q.square().sum(-1) * slopes.square().sum((-1, -2))).sum(-1),
            "v": lambda: self.d_v * px.square().sum((-1, -2)),
        }
        return {role: squares[role]().sqrt().expand(self.batch_shape) for role in _roles(wrt)}

    # ---- internals -------------------------------------------------------------------------------------

    @cached_property
    def _compressed(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """X, N, PX and W_K in an orthonormal basis of the row space of X: D columns become min(n, D)."""
        if self.n >= self.dim:
            return self.x, self._slopes(self.x), self.px, self.w_k
        basis, r = torch.linalg.qr(self.x.mT)
        x = r.mT
        return x, self._slopes(x), self.p @ x, basis.mT @ self.w_k

    def _slopes(self, x: Tensor) -> Tensor:
        """N_i = s Vᵀ Λ_i X for every token: (…, n, d_v, columns of x)."""
        a = self.p @ self.v
        weighted = self.p.unsqueeze(-2) * (self.v.mT.unsqueeze(-3) - a.unsqueeze(-1))  # s⁻¹ Vᵀ Λ_i, (…, n, d_v, n)
        return self.scale * (weighted @ x.unsqueeze(-3))

    def _dense(self, x: Tensor, slopes: Tensor, px: Tensor, w_k: Tensor, roles: str) -> Tensor:
        def flatten(block: Tensor) -> Tensor:  # (…, n, d_v, a, b) -> (…, n·d_v, a·b)
            block = block.expand(*self.batch_shape, *block.shape[-4:])
            return block.reshape(*self.batch_shape, self.n * self.d_v, -1)

        blocks = []
        if "q" in roles:
            blocks.append(flatten(torch.einsum("...ia,...icb->...icab", x, slopes @ w_k.unsqueeze(-3))))
        if "k" in roles:
            blocks.append(flatten(torch.einsum("...ica,...ib->...icab", slopes, self.q)))
        if "v" in roles:
            eye = torch.eye(self.d_v, dtype=x.dtype, device=x.device)
            blocks.append(flatten(torch.einsum("...ia,cb->...icab", px, eye)))
        return torch.cat(blocks, -1)

    def _compressed_dense(self, roles: str) -> Tensor:
        return self._dense(*self._compressed, roles)

    def _columns(self, roles: str) -> int:
        return sum(self.dim * (self.d_v if role == "v" else self.d_k) for role in roles)

    def _count(self, roles: str) -> int:
        return min(self.n * self.d_v, self._columns(roles))

    def _gram_condition(self, roles: str) -> JacobianCondition:
        gram, count = self.gram(roles), self._count(roles)
        eigenvalues = torch.linalg.eigvalsh(gram).flip(-1)[..., :count].clamp(min=0)
        top, bottom = eigenvalues[..., 0], eigenvalues[..., -1]
        converged = (bottom > GRAM_FLOOR * top) & (top > 0)
        values = eigenvalues.sqrt()
        needs_ritz = converged & (bottom < GRAM_EXACT * top)
        if bool(needs_ritz.any()):
            refined = torch.where(needs_ritz, self._ritz_smallest(roles, gram, eigenvalues), values[..., -1])
            values = torch.cat([values[..., :-1], refined.unsqueeze(-1)], -1)
        s = summarize(values, GRAM_FLOOR**0.5)
        # unresolved: λ_min was found below GRAM_FLOOR · λ_max, with an error of less than that: no more can be said
        lower = torch.where(top > 0, (2 * GRAM_FLOOR) ** -0.5, torch.inf).to(values)
        return JacobianCondition(
            value=torch.where(converged, values[..., 0] / values[..., -1], lower),
            effective_value=s.effective_condition_number, sigma_max=values[..., 0], sigma_min=values[..., -1],
            rank=s.rank, method="gram", converged=converged,
        )

    def _ritz_smallest(self, roles: str, gram: Tensor, eigenvalues: Tensor) -> Tensor:
        """σ_min from J restricted to the lowest eigenvectors of J Jᵀ (Rayleigh-Ritz), (…).

        With U those vectors, the singular values of JᵀU carry an error eps·κ instead of eps·κ². What leaks from
        the other vectors is of relative size (eps λ_max)² / (λ_next λ_min): take all with λ < 1e-8 λ_max.
        """
        total, count = gram.shape[-1], eigenvalues.shape[-1]
        k = int((eigenvalues < 1e-8 * eigenvalues[..., :1]).sum(-1).max().clamp(min=min(8, count)))
        if total > count or 4 * k > total:
            # with more rows than columns the first total − count eigenvectors span the left null space
            low = torch.linalg.eigh(gram).eigenvectors[..., total - count : total - count + k]
        else:
            low = _inverse_iteration(gram, eigenvalues[..., -1], k)
        return torch.linalg.svdvals(self._compressed_dense(roles).mT @ low)[..., k - 1]


def _inverse_iteration(gram: Tensor, eigenvalue: Tensor, k: int, *, steps: int = 3) -> Tensor:
    """Orthonormal basis (…, m, k) of the eigenvectors of `gram` nearest to `eigenvalue`: one LU instead of `eigh`.

    The shift is an eigenvalue to rounding, so the LU factor is nearly singular: that is what makes it converge
    in two steps, and the error of the solves lies in the wanted directions. A block keeps clusters whole.
    """
    m = gram.shape[-1]
    eye = torch.eye(m, dtype=gram.dtype, device=gram.device)
    lu, pivots = torch.linalg.lu_factor(gram - eigenvalue[..., None, None] * eye)
    # a singular pivot is exact luck: nudge it by rounding, as inverse iteration always does
    tiny = EPS * gram.abs().amax((-1, -2)).unsqueeze(-1)
    pivot = lu.diagonal(dim1=-1, dim2=-2)
    pivot.copy_(torch.where(pivot.abs() < tiny, tiny, pivot))
    start = torch.randn(m, k, dtype=gram.dtype, generator=torch.Generator().manual_seed(0)).to(gram.device)
    block = torch.linalg.qr(start.expand(*gram.shape[:-2], m, k)).Q
    for _ in range(steps):
        block = torch.linalg.qr(torch.linalg.lu_solve(lu, pivots, block)).Q
    return block


def _pairs(rows: Tensor) -> Tensor:
    """(…, n, d) -> the inner products of all rows, as (…, n, 1, n, 1)."""
    return (rows @ rows.mT).unsqueeze(-2).unsqueeze(-1)


def _rows_gram(blocks: Tensor) -> Tensor:
    """(…, n, c, d) -> (…, n, c, n, c), the inner products of all rows of all blocks."""
    flat = blocks.flatten(-3, -2)
    return (flat @ flat.mT).reshape(*blocks.shape[:-1], *blocks.shape[-3:-1])


def _roles(wrt: str) -> str:
    if not isinstance(wrt, str) or not wrt or set(wrt) - set("qkv") or len(set(wrt)) != len(wrt):
        raise ValueError(f'wrt: expected a non-empty subset of "qkv" without repeats, got {wrt!r}')
    return "".join(role for role in "qkv" if role in wrt)


def check_head(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor | None = None) -> list[Tensor]:
    """Check one head's input and weights and return them in float64, in the order given.

    Raises:
        ValueError: a bad tensor, widths that do not match, or leading dimensions that do not broadcast.
    """
    named = {"x": x, "w_q": w_q, "w_k": w_k} | ({} if w_v is None else {"w_v": w_v})
    for name, value in named.items():
        check_tensor(value, name)
    for name, value in list(named.items())[1:]:
        if value.shape[-2] != x.shape[-1]:
            raise ValueError(
                f"{name}: expected {x.shape[-1]} rows (the width D of x), got shape {tuple(value.shape)}; "
                "weights act on the right, so pass nn.Linear.weight.T"
            )
    if w_q.shape[-1] != w_k.shape[-1]:
        raise ValueError(f"expected w_q and w_k of the same width d_k, got {w_q.shape[-1]} and {w_k.shape[-1]}")
    _check_leading(named)
    return [to_float64(value.detach()) for value in named.values()]


def _check_leading(named: dict[str, Tensor]) -> None:
    try:
        torch.broadcast_shapes(*(value.shape[:-2] for value in named.values()))
    except RuntimeError as error:
        shapes = {name: tuple(value.shape) for name, value in named.items()}
        raise ValueError(f"expected leading dimensions that broadcast, got {shapes}") from error


def resolve_scale(scale: float | None, d_k: int) -> float:
    """1/√d_k for None, otherwise the finite number given."""
    return d_k**-0.5 if scale is None else check_number(scale, "scale")


def allowed_pairs(n: int, is_causal: bool, mask: Tensor | None, device: torch.device) -> Tensor | None:
    """The boolean (…, n, n) of allowed pairs, or None when all are; refuses a fully masked row."""
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape[-2:]) != (n, n):
            got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"mask: expected a boolean tensor (…, {n}, {n}), True where allowed, got {got}")
        mask = mask.to(device)
    if is_causal:
        causal = torch.ones(n, n, dtype=torch.bool, device=device).tril()
        mask = causal if mask is None else mask & causal
    if mask is not None and not bool(mask.any(-1).all()):
        row = (~mask.any(-1)).nonzero()[0].tolist()
        raise ValueError(f"mask: expected at least one allowed token per row, got a fully masked row at index {row}")
    return mask


def attention_weights(q: Tensor, k: Tensor, scale: float, allowed: Tensor | None = None) -> Tensor:
    """P = softmax(s Q Kᵀ) over allowed pairs, (…, n, n)."""
    logits = scale * (q @ k.mT)
    return (logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)).softmax(-1)
