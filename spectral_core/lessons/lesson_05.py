"""Lesson 5, the λI shortcut: its views and what they draw, as data."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spectral_core.data import load_digits
from spectral_core.jacobian import AttentionJacobian
from spectral_core.lessons.registry import Choice, Slider, View
from spectral_core.models import VisionTransformer
from spectral_core.plots.identity import before_after, identity_patterns, kappa_tail, shifted_plane, success_curves
from spectral_core.spectrum import condition_number, singular_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "ENTRIES", "RELATIVE", "certain_lambda", "digit_layer", "edelman", "gaussians", "layer_jacobian", "split",
    "stacked_identity", "success_rate", "wilson",
]  # fmt: skip

RELATIVE = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 1.0, 1.25, 1.5, 2.0)
Z = 1.96


def gaussians(count: int, m: int, n: int, *, std: float = 1.0, seed: int = 0) -> Tensor:
    """`count` random m × n matrices with entries of standard deviation `std`, in float64."""
    return std * torch.randn(count, m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def certain_lambda(w: Tensor) -> float:
    """σ_max(κ + 1)/(κ − 1), above which κ(W + λI) < κ(W) for certain; ∞ when κ(W) = 1 up to rounding."""
    s = singular_values(w)
    high, low = float(s[0]), float(s[-1])
    return high * (high + low) / (high - low) if high - low > 1e-12 * high else math.inf


def wilson(hits: int, trials: int) -> tuple[float, float, float]:
    """(share, low, high): the share of hits with Wilson's 95 % interval."""
    p, z2 = hits / trials, Z * Z
    middle = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    return p, middle - half, middle + half


def success_rate(draws: Tensor, lam: float) -> tuple[float, float, float]:
    """Share of the matrices `draws` (k, m, n) with κ(W + λσ_max(W)I) < κ(W), and its Wilson interval."""
    s = torch.linalg.svdvals(draws)
    eye = torch.eye(*draws.shape[-2:], dtype=draws.dtype)
    t = torch.linalg.svdvals(draws + lam * s[:, :1, None] * eye)
    return wilson(int((t[:, 0] / t[:, -1] < s[:, 0] / s[:, -1]).sum()), len(draws))


def stacked_identity(dim: int, heads: int) -> Tensor:
    """[I, I, …, I] (dim, dim) with I of shape dim × dim/heads: what "λI for each head" adds to the fused matrix."""
    return torch.eye(dim, dim // heads, dtype=torch.float64).repeat(1, heads)


def edelman(x: float) -> float:
    """P[κ/n > x] of a real Gaussian n × n matrix in the limit of large n (Edelman 1988)."""
    return 1 - math.exp(-2 / x - 2 / x**2)


def split(w: Tensor, heads: int) -> Tensor:
    """The heads of a fused matrix (D, D) that acts on the right: (heads, D, D/heads)."""
    return w.unflatten(1, (heads, -1)).permute(1, 0, 2)


@lru_cache(maxsize=64)
def digit_layer(init: str = "trunc-normal", seed: int = 0, heads: int = 4) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Tokens (16, 64) of digit `seed` and the fused W_Q, W_K, W_V (64, 64) of a fresh layer, acting on the right."""
    model = VisionTransformer(dim=64, num_heads=heads, init=init, seed=seed)
    attention = model.block(0).attention
    with torch.no_grad():
        x = model.attention_input(load_digits().test_x[seed : seed + 1])[0]
        layers = (attention.query, attention.key, attention.value)
        return x.double(), tuple(layer.weight.mT.double() for layer in layers)


def layer_jacobian(x: Tensor, weights: tuple[Tensor, ...] | list[Tensor], heads: int = 4) -> AttentionJacobian:
    """The Jacobian of head 1 of a layer with these fused weights."""
    return AttentionJacobian(x, *(split(w, heads)[0].contiguous() for w in weights))


def draw_open(lam: float, n: int) -> Figure:
    """κ before and after λI for twelve n × n Gaussian matrices with entries of standard deviation 2/√n."""
    n = int(n)
    draws = gaussians(12, n, n, std=2 / n**0.5)
    before, after = condition_number(draws), condition_number(draws + lam * torch.eye(n, dtype=draws.dtype))
    title = f"κ(W) → κ(W + {lam:g} I), twelve random {n} × {n} matrices"
    return before_after(list(zip(before.tolist(), after.tolist(), strict=True)), title=title)


SHAPES = {"64 × 64": (64, 64), "64 × 16, a head": (64, 16), "8 × 8": (8, 8)}


def draw_plane(lam: float, shape: str, std: float, seed: int) -> Figure:
    """Eigenvalues of a Gaussian W (of its first rows) with −λ, and κ(W + λI) for λ up to 3 σ_max."""
    m, n = SHAPES[shape]
    w = gaussians(1, m, n, std=std, seed=int(seed))[0]
    sigma = float(singular_values(w)[0])
    lams = torch.linspace(0, 3 * sigma, 181, dtype=torch.float64)
    kappas = condition_number(w + lams[:, None, None] * torch.eye(m, n, dtype=w.dtype)).tolist()
    title = f"W of shape {shape}, entries of standard deviation {std:g}, seed {seed:g}"
    eigenvalues = torch.linalg.eigvals(w[:n]).tolist()
    certain = certain_lambda(w)
    return shifted_plane(eigenvalues, lams.tolist(), kappas, lam=lam * sigma, sigma=sigma, certain=certain, title=title)


@lru_cache(maxsize=32)
def _rates(m: int, n: int, draws: int) -> tuple[tuple[float, float, float], ...]:
    sample = gaussians(draws, m, n, seed=m * n)
    return tuple(success_rate(sample, lam) for lam in RELATIVE)


def draw_success(n: int, draws: int) -> Figure:
    """How often κ falls, against λ/σ_max, for n × n and 4n × n Gaussian matrices."""
    n, draws = int(n), int(draws)
    curves = {f"{n} × {n}": _rates(n, n, draws), f"{4 * n} × {n}": _rates(4 * n, n, draws)}
    return success_curves(RELATIVE, curves, title=f"How often λI lowers κ, {draws} draws each, 95 % intervals")


def draw_tail(n: int, seed: int) -> Figure:
    """The distribution of κ/n over 600 Gaussian n × n matrices, and its limit law."""
    n = int(n)
    ratios = condition_number(gaussians(600, n, n, seed=1000 + int(seed))) / n
    law = {10 ** (e / 20): edelman(10 ** (e / 20)) for e in range(-5, 81)}
    return kappa_tail(ratios.tolist(), law, median=float(ratios.median()), title=f"κ of a random {n} × {n} matrix")


def draw_patterns(heads: int, width: int) -> Figure:
    """The identity of one head, of the fused matrix, stacked head by head, and of a packed QKV weight."""
    heads, width = int(heads), int(width)
    dim = heads * width
    patterns = {
        "one head": torch.eye(dim, width),
        "fused": torch.eye(dim),
        "each head its own": stacked_identity(dim, heads),
        "packed  Q | K | V": torch.eye(dim, 3 * dim),
    }
    return identity_patterns({name: rows.tolist() for name, rows in patterns.items()}, width)


SEED = Slider("seed", "seed", 0, 9, 1, 0, "which random matrix")

ENTRIES = (
    View("05.open", draw_open, (
        Slider("lam", "λ", 0.5, 10, 0.5, 2, "the theorem asks for 2 at least, the paper takes 10"),
        Slider("n", "size n", 4, 64, 4, 32, "entries have standard deviation 2/√n, so σ_max is about 4"),
    )),
    View("05.plane", draw_plane, (
        Slider("lam", "λ / σ_max", 0, 3, 0.02, 0.5, "how large λ is next to W"),
        Choice("shape", "shape", tuple(SHAPES), "64 × 64", "of a tall W the first rows have the eigenvalues"),
        Slider("std", "standard deviation", 0.01, 0.5, 0.01, 0.25, "of the entries of W"),
        SEED,
    )),
    View("05.success", draw_success, (
        Slider("n", "size n", 4, 32, 4, 32, "columns; the tall matrix has four times as many rows"),
        Slider("draws", "draws", 50, 400, 50, 200, "matrices at each point"),
    )),
    View("05.tail", draw_tail, (
        Slider("n", "size n", 4, 40, 4, 32, "W is n × n"),
        Slider("seed", "seed", 0, 9, 1, 0, "which 600 matrices"),
    )),
    View("05.patterns", draw_patterns, (
        Slider("heads", "heads", 1, 4, 1, 3, "how many heads share the fused matrix"),
        Slider("width", "head width d", 1, 4, 1, 2, "columns of one head; D = heads · d"),
    )),
)  # fmt: skip
