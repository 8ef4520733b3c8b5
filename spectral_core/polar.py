"""The polar factor and clamped singular values of (batches of) matrices, from matrix products.

W = U Σ Vᵀ has the polar factor Q = U Vᵀ: the singular vectors of W, every singular value 1. An odd polynomial p acts
on the singular values alone, X (a I + b XᵀX + c (XᵀX)²) = U p(Σ) Vᵀ, and iterating good ones drives them all to 1
(Newton-Schulz; `minimax` derives the coefficients). Nothing is decomposed but a tridiagonal matrix of at most 64
rows, in the estimate of the extremes, so that the work is what GPUs do best; nothing here is differentiated. On CUDA
float32 products are as exact as `torch.set_float32_matmul_precision` allows: with TF32, three digits.

>>> import torch
>>> polar_factor(torch.tensor([[3.0, 0.0], [0.0, -0.001]]))
tensor([[ 1.,  0.],
        [ 0., -1.]])
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from spectral_core._checks import check_choice, check_number, check_tensor
from spectral_core.minimax import best_quintic

__all__ = ["largest_singular_value", "polar_factor", "polar_with_norm", "spectral_clip"]

LOW = 1e-3  # σ_min / σ_max as long as nothing better is known; corrected on the way where it was too high
SMALL = 64  # rows up to which a dense eigenvalue solver is cheaper than Lanczos
LANCZOS_STEPS = 64
MAX_STEPS = 200
COMPUTE = (None, torch.float64, torch.float32, torch.bfloat16)


def polar_factor(w: Tensor, *, steps: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Q = U Vᵀ of W = U Σ Vᵀ: the nearest matrix with orthonormal columns (or rows, if W is wide).

    A zero singular value has no direction of its own: it gets a fixed, arbitrary one, so that Q always has full rank.
    Singular values below eps · σ_max of the computing dtype count as zero.

    Args:
        w: (…, m, n), floating point, any scale; not modified.
        steps: exactly so many polynomials, without looking at the error (no synchronisation with a GPU, and zero
            singular values stay zero). None: until ‖QᵀQ − I‖_F ≤ 4 eps √n.
        dtype: in which to compute: float64, float32, or bfloat16 (orthogonal to about 1e-2 only); None for float32,
            and float64 for float64 input.

    Returns:
        (…, m, n) in W's dtype, without a gradient: that of Q grows like 1/(σ_i + σ_j), without limit.

    Raises:
        ValueError: not a finite, non-empty floating matrix; `steps` not a positive integer; another `dtype`.
        ArithmeticError: no convergence.
    """
    check_tensor(w, "w")
    check_choice(dtype, "dtype", COMPUTE)
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ValueError(f"steps: expected a positive integer or None, got {steps!r}")
    return polar_with_norm(w, steps=steps, dtype=dtype)[0].to(w.dtype)


@torch.no_grad()
def polar_with_norm(
    w: Tensor, *, steps: int | None = None, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Q (…, m, n) in the computing dtype and σ_max (…) in float32 or better, of a finite W (…, m, n)."""
    flat = w.detach().reshape(-1, *w.shape[-2:])
    flat = flat.to(dtype if dtype == torch.float64 else torch.promote_types(w.dtype, torch.float32))
    with torch.autocast(device_type=w.device.type, enabled=False):
        x, unit = _unit_scale(flat)
        wide = x.shape[-2] < x.shape[-1]
        x = x.mT if wide else x
        gram = x.mT @ x
        top, low = _extremes(gram)
        norm = top.sqrt()
        # 1 % of room: an estimate of σ_max that is a little low would be amplified at every step
        x = x / (1.01 * norm).where(norm > 0, 1)[:, None, None]
        x = _orthogonalize(x if dtype is None else x.to(dtype), low / 1.01, steps=steps)
        x = x.mT if wide else x
    return x.reshape(w.shape), (unit * norm).reshape(w.shape[:-2])


def largest_singular_value(w: Tensor) -> Tensor:
    """σ_max (…) of W (…, m, n), by Lanczos on the smaller Gram matrix.

    Computed in float32 (float64 for float64 input) and returned in it, without a gradient. The relative error is below
    5·10⁻⁴ in the worst case and near 10⁻⁶ as a rule (float64: 5·10⁻⁹ and 10⁻¹⁵).

    Raises:
        ValueError: not a non-empty floating matrix; on the CPU also when it has inf or nan entries.
    """
    if torch.compiler.is_compiling():  # Lanczos looks at numbers on its way, which would break the graph
        return torch.ops.spectral_core.largest_singular_value(w.detach())
    check_tensor(w, "w", finite=w.device.type == "cpu")
    with torch.no_grad(), torch.autocast(device_type=w.device.type, enabled=False):
        flat = w.detach().reshape(-1, *w.shape[-2:])
        x, unit = _unit_scale(flat.to(torch.promote_types(w.dtype, torch.float32)))
        gram = x @ x.mT if x.shape[-2] < x.shape[-1] else x.mT @ x
        return (unit * _extremes(gram)[0].sqrt()).reshape(w.shape[:-2])


@torch.library.custom_op("spectral_core::largest_singular_value", mutates_args=(), schema="(Tensor w) -> Tensor")
def _largest_singular_value(w):
    return largest_singular_value(w)


@_largest_singular_value.register_fake
def _(w):
    return w.new_empty(w.shape[:-2], dtype=torch.promote_types(w.dtype, torch.float32))


@torch.no_grad()
def spectral_clip(w: Tensor, sigma_min: float, sigma_max: float, *, steps: int | None = None) -> Tensor:
    """Clamp the singular values of W to [σ_min, σ_max] and leave its singular vectors.

    With W = Q H, H symmetric, clamping is a function of H: clamp(h) = (α + β + |h − α| − |h − β|) / 2, and
    |H − αI| = (H − αI) sign(H − αI), where the sign of a symmetric matrix is its polar factor. Three iterations in
    all. Where h is next to a limit the sign is uncertain, but the product with h − α is small. The error of a singular
    value is near 10⁻⁵ (float32) or 10⁻¹³ (float64) of the larger of σ_max(W) and σ_min.

    Args:
        w: (…, m, n), floating point; not modified.
        sigma_min, sigma_max: 0 ≤ σ_min ≤ σ_max, σ_max > 0; σ_max may be inf.
        steps: as in `polar_factor`, for each of the three.

    Returns:
        (…, m, n) in W's dtype, computed in float32 or float64, without a gradient (`SpectrumTarget` has one).

    Raises:
        ValueError: as `polar_factor`, and for limits that are not such numbers.
    """
    check_tensor(w, "w")
    low = check_number(sigma_min, "sigma_min", minimum=0.0)
    high = sigma_max if sigma_max == torch.inf else check_number(sigma_max, "sigma_max", minimum=0.0, exclusive=True)
    if low > high:
        raise ValueError(f"expected sigma_min <= sigma_max, got {low:g} > {high:g}")
    q, norm = polar_with_norm(w, steps=steps)
    if not bool(torch.isfinite(norm).all()):
        raise ValueError(f"w: expected a norm within the range of {q.dtype}, got σ_max that is not finite")
    wide = w.shape[-2] < w.shape[-1]
    with torch.autocast(device_type=w.device.type, enabled=False):
        work = w.to(q.dtype)
        h = work @ q.mT if wide else q.mT @ work
        h = (h + h.mT) / 2
        clamped = h
        if low > 0:  # max(h, α) = (h + α + |h − α|) / 2
            clamped = _maximum(h, low, norm, steps)
        if high < torch.inf:  # min(h, β) = −max(−h, −β); max(·, α) left ‖·‖ at max(σ_max, α)
            clamped = -_maximum(-clamped, -high, norm.clamp(min=low), steps)
        return (clamped @ q if wide else q @ clamped).to(w.dtype)


def _maximum(h: Tensor, limit: float, norm: Tensor, steps: int | None) -> Tensor:
    """max(h, limit) as a function of a symmetric matrix h (…, n, n) with ‖h‖₂ ≤ `norm` (…)."""
    shifted = h.clone()
    shifted.diagonal(dim1=-2, dim2=-1).sub_(limit)
    scale = 1.01 * (norm + abs(limit))[..., None, None]
    x = (shifted / scale).flatten(0, -3) if h.ndim > 2 else (shifted / scale).unsqueeze(0)
    sign = _orthogonalize(x, 4 * torch.finfo(h.dtype).eps, steps=steps, symmetric=True).reshape(h.shape)
    out = (shifted + shifted @ sign) / 2
    out = (out + out.mT) / 2
    out.diagonal(dim1=-2, dim2=-1).add_(limit)
    return out


def _unit_scale(w: Tensor) -> tuple[Tensor, Tensor]:
    """W (b, m, n) divided by its largest entry, and that (b): squares neither overflow nor vanish."""
    unit = w.abs().amax((-2, -1))
    return w / unit.where(unit > 0, 1)[:, None, None], unit


def _orthogonalize(x: Tensor, low: float, *, steps: int | None = None, symmetric: bool = False) -> Tensor:
    """Drive the singular values of X (b, m, n), m ≥ n, from [low, 1] to 1.

    Singular values below `low` show in ‖XᵀX − I‖ when all others have arrived, and the interval is then set anew.
    Those that are zero to rounding get directions orthogonal to the rest. Where X is `symmetric` its sign is sought:
    zeros stay, and the end is where the interval has become a point.
    """
    n, eps = x.shape[-1], torch.finfo(x.dtype).eps
    tolerance = (1 if x.dtype == torch.bfloat16 else 4) * eps * n**0.5
    high, gain, previous = 1.0, 1.0, torch.inf
    for _ in range(MAX_STEPS if steps is None else steps):
        near = high - low < 0.02
        gram = x.mT @ x
        if steps is None and low > 0.3:  # before, the error is large, and looking at it costs more than a small product
            rest = -gram
            rest.diagonal(dim1=-2, dim2=-1).add_(1)
            distance = _largest_norm(rest)
            if distance <= tolerance:
                return x
            if distance < 0.5:
                x, square = _taylor_step(x, rest)
                # the new I − XᵀX is 5/8 R³ + 15/64 R⁴ + 9/64 R⁵, exactly: there, or at the floor of rounding
                if _largest_norm(square) ** 1.5 <= tolerance or distance > previous / 2:
                    return x
                previous = distance
                continue
            if near and not symmetric:  # some singular values were below `low`
                bottom = _smallest(gram)
                if bottom == 0 and gain * eps >= 1:  # they are zero to rounding
                    polished, square = _taylor_step(x, rest)
                    if _largest_norm(rest - square) > tolerance:  # not yet a projector onto the null space
                        x = polished
                    else:
                        x, low, gain = x + _complement(x, rest), LOW, 1.0
                    continue
                low = 0.8 * bottom**0.5 if bottom else LOW
            elif near and 1 - low <= 4 * eps:
                return x
        quintic = best_quintic(low, high)
        mixed = torch.baddbmm(gram, gram, gram, beta=quintic.b, alpha=quintic.c)
        x = torch.baddbmm(x, x, mixed, beta=quintic.a)
        if symmetric:  # rounding that is not would grow
            x = (x + x.mT) / 2
        # room for rounding at the upper end, where early polynomials are steep
        low, high = 1 - quintic.error, 1 + quintic.error + (0 if near else max(1e-3, 2 * eps))
        gain *= quintic.a
    if steps is None:
        raise ArithmeticError(f"no convergence in {MAX_STEPS} steps, at ‖XᵀX − I‖ = {distance:.3g}")
    return x


def _taylor_step(x: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """`TAYLOR` of X in terms of R = I − XᵀX, which loses no digits where R is small; and R²."""
    square = rest @ rest
    return torch.baddbmm(x, x, torch.add(rest / 2, square, alpha=3 / 8)), square


def _complement(x: Tensor, rest: Tensor) -> Tensor:
    """Directions for the null space of X (b, m, n) whose other singular values are 1: (I − XXᵀ) Z (I − XᵀX)."""
    z = _fixed_noise(*x.shape[-2:]).to(x) / (x.shape[-2] ** 0.5 + x.shape[-1] ** 0.5)
    z = z @ rest
    return z - x @ (x.mT @ z)


def _largest_norm(matrices: Tensor) -> float:
    """The largest Frobenius norm of a batch."""
    exact = torch.promote_types(matrices.dtype, torch.float32)
    return float(torch.linalg.vector_norm(matrices, dim=(-2, -1), dtype=exact).amax())


def _extremes(gram: Tensor) -> tuple[Tensor, float]:
    """λ_max (b) of positive semidefinite (b, n, n), and the least σ_min/σ_max of them all, or `LOW` if not known."""
    values, error = _ritz(gram)
    top, bottom = values[:, -1].clamp(min=0), values[:, 0]
    known = (error < 0.1 * bottom) & (bottom > 1e2 * torch.finfo(gram.dtype).eps * top)
    return top, float(torch.where(known, 0.8 * (bottom / top).clamp(min=0, max=1).sqrt(), LOW).amin())


def _smallest(gram: Tensor) -> float:
    """The smallest eigenvalue of matrices (b, n, n) with norm 1, 0 where rounding hides it."""
    values, error = _ritz(gram if gram.dtype == torch.float64 else gram.float())
    bottom = float((values[:, 0] - error).amin())
    return bottom if bottom > 1e2 * torch.finfo(gram.dtype).eps else 0.0


def _ritz(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Ritz values (b, k) of symmetric matrices, ascending, the last converged, and the residual (b) of the first.

    Lanczos with full reorthogonalisation; the residual of the last is at most 1e-3 (float32) or 1e-8 (float64) of
    it, and its error by far smaller, unless two eigenvalues are as close as that.
    """
    b, n, _ = gram.shape
    if n <= SMALL:
        return torch.linalg.eigvalsh(gram), gram.new_zeros(b)
    basis = gram.new_zeros(b, n, LANCZOS_STEPS + 1)
    start = _fixed_noise(n, 1).to(gram)
    basis[..., :1] = start / start.norm()
    band = gram.new_zeros(b, LANCZOS_STEPS + 1, LANCZOS_STEPS + 1)
    tolerance = 1e-8 if gram.dtype == torch.float64 else 1e-3
    tiny = torch.finfo(gram.dtype).tiny
    for k in range(1, LANCZOS_STEPS + 1):
        so_far = basis[..., :k]
        u = gram @ so_far[..., -1:]
        along = so_far.mT @ u
        u = u - so_far @ along
        u = u - so_far @ (so_far.mT @ u)
        length = torch.linalg.vector_norm(u, dim=1)
        basis[..., k : k + 1] = u / length.clamp(min=tiny)[:, None]
        band[:, k - 1, k - 1], band[:, k, k - 1] = along[:, -1, 0], length[:, 0]
        if k % 8 == 0:
            values, vectors = torch.linalg.eigh(band[:, :k, :k])  # reads the lower triangle
            error = length * vectors[:, -1].abs()
            if bool((error[:, -1] <= tolerance * values[:, -1]).all()):
                break
    return values, error[:, 0]


@lru_cache(maxsize=32)
def _fixed_noise(m: int, n: int) -> Tensor:
    return torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
