"""Extreme singular values of an operator that is known by its products, batched, with residuals.

Two iterations, both with full reorthogonalisation written as matrix products (Golub & Van Loan, 4th ed., 10.4):

* `largest`: block Golub-Kahan Lanczos. The small singular values of an operator converge far too slowly this way.
* `smallest`: block Davidson, preconditioned by a Cholesky factor of A Aᵀ. The Rayleigh-Ritz step is taken on A
  itself, so an error eps·κ² in that factor costs steps, not digits: the result is good to eps·κ.

Convergence is looked at once a round of `ROUND` steps, so that a GPU is not made to wait at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]  # a block of b vectors, (…, size in, b) -> (…, size out, b)
ROUND = 4
KRYLOV = 8  # blocks before the first Rayleigh-Ritz step
EPS = torch.finfo(torch.float64).eps
TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Ritz:
    """k extreme singular values with their residuals.

    Attributes:
        values: (…, k), the most extreme first.
        residual: (…, k), ‖A v − σ u‖ / σ for Ritz vectors u, v: a singular value lies within residual · σ of σ.
        steps: how many blocks were multiplied by A and by Aᵀ.
    """

    values: Tensor
    residual: Tensor
    steps: int


def largest(
    forward: Product, backward: Product, start: Tensor, k: int, *, tolerance: float = 1e-9, max_steps: int = 400
) -> Ritz:
    """The k largest singular values of A (m × n, m ≤ n) by block Golub-Kahan Lanczos.

    Args:
        forward: V (…, n, b) -> A V; backward: U (…, m, b) -> Aᵀ U.
        start: (…, m, b) with b ≥ k, a random block.
        tolerance: stop when every residual is at or below it.
    """
    left = newest = torch.linalg.qr(start).Q  # (…, m, all blocks so far)
    right = left[..., :0, :0]
    band = coupling = left[..., :0, :0]  # rightᵀ Aᵀ left, upper block bidiagonal
    for step in range(1, max_steps + 1):
        size, width = band.shape[-1], newest.shape[-1]
        image = backward(newest)
        fresh = orthonormalize(image, right, width)
        band = torch.nn.functional.pad(band, (0, width, 0, width))
        band[..., size:, size:] = fresh.mT @ image
        if step > 1:
            band[..., size - coupling.shape[-1] : size, size:] = coupling.mT
        right = fresh if step == 1 else torch.cat([right, fresh], -1)
        room = start.shape[-2] - left.shape[-1]
        last = room == 0 or step == max_steps
        image = forward(fresh)
        # with no room left, left spans everything and nothing can leak out of it
        newest = orthonormalize(image, left, min(room, width)) if room else newest[..., :0]
        coupling = newest.mT @ image
        if step % ROUND == 0 or last:
            outer, values, _ = torch.linalg.svd(band)
            leak = (coupling @ outer[..., size:, :k]).norm(dim=-2)
            residual = leak / values[..., :k].clamp(min=TINY)
            if last or bool((residual <= tolerance).all()):
                break
        left = torch.cat([left, newest], -1)
    return Ritz(values[..., :k], residual, step)


def smallest(
    forward: Product, backward: Product, factor: Tensor, start: Tensor, k: int, *, top: Tensor,
    tolerance: float = 3e-9, max_steps: int = 48,
) -> Ritz:
    """The k smallest singular values of A (m × n, m ≤ n), from a Cholesky factor of A Aᵀ.

    Args:
        forward, backward: as in `largest`.
        factor: (…, m, m), lower triangular, L Lᵀ ≈ A Aᵀ, in any precision: it sets the number of steps alone.
        start: (…, m, b) with b ≥ k, a random block.
        top: (…), σ_max; residuals have a rounding floor near eps σ_max / σ, below which nothing is gained.
        tolerance: stop when every residual is at or below it, or at that floor.
    """
    m, b = start.shape[-2:]

    def solve(block: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(factor, block.to(factor.dtype), upper=False)
        return torch.linalg.solve_triangular(factor.mT, half, upper=True).to(block.dtype)

    basis = fresh = torch.linalg.qr(solve(torch.linalg.qr(start).Q)).Q
    for _ in range(min(KRYLOV, m // (3 * b))):  # Lanczos on (L Lᵀ)⁻¹: most of the way, without looking at A
        fresh = orthonormalize(solve(fresh), basis, b)
        basis = torch.cat([basis, fresh], -1)
    images = backward(basis)
    products = images.mT @ images
    theta = torch.linalg.eigvalsh(products)
    # the Gram matrix of the images picks b directions for the Rayleigh-Ritz step, which is taken on the images
    # themselves; where σ spreads too far inside the basis for that choice to be exact, all directions are kept
    exact = bool((EPS * theta[..., -1] > 1e-10 * theta[..., 0]).any())
    for step in range(max_steps + 1):
        low = torch.linalg.eigh(products).eigenvectors[..., : None if exact else b]
        columns, triangle = torch.linalg.qr(images @ low)
        outer, sigma, turn = torch.linalg.svd(triangle)
        outer, sigma, turn = (t[..., -b:].flip(-1) for t in (outer, sigma, turn.mT))
        u = basis @ (low @ turn)
        error = forward(columns @ outer) - sigma.unsqueeze(-2) * u
        last = basis.shape[-1] == m or step == max_steps
        if step % ROUND == 0 or last:
            residual = (error.norm(dim=-2) / sigma.clamp(min=TINY))[..., :k]
            floor = 30 * EPS * top.unsqueeze(-1) / sigma[..., :k].clamp(min=TINY)
            if last or bool(((residual <= tolerance) | (residual <= floor)).all()):
                break
        fresh = orthonormalize(solve(error), basis, min(b, m - basis.shape[-1]))
        image = backward(fresh)
        across = images.mT @ image
        products = torch.cat([
            torch.cat([products, across], -1), torch.cat([across.mT, image.mT @ image], -1)
        ], -2)
        basis, images = torch.cat([basis, fresh], -1), torch.cat([images, image], -1)
    return Ritz(sigma[..., :k], residual, step + 1)


def orthonormalize(block: Tensor, basis: Tensor, width: int) -> Tensor:
    """(…, m, width): orthonormal columns, orthogonal to `basis`, that span `block` (…, m, b) as far as they can.

    Columns that are dependent come out as random directions: rounding-sized noise decides them, so that an
    exhausted block is replaced by a fresh one.
    """
    size = block.norm(dim=(-2, -1), keepdim=True) * EPS / block.shape[-2] ** 0.5
    block = block + (size + TINY / EPS) * _noise(*block.shape[-2:]).to(block.device)
    for _ in range(3):  # the second pass is for what rounding left, the third for columns that were noise
        if basis.shape[-1]:
            block = block - basis @ (basis.mT @ block)
        block = torch.linalg.qr(block).Q
    return block[..., :width]


@lru_cache(maxsize=8)
def _noise(m: int, b: int) -> Tensor:
    return torch.randn(m, b, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def random_block(lead: tuple[int, ...], m: int, b: int, device: torch.device, seed: int = 0) -> Tensor:
    """(*lead, m, min(b, m)) of standard normal entries, the same on every device."""
    block = torch.randn(m, min(b, m), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return block.to(device).expand(*lead, m, min(b, m))
