"""Lesson 11, Jacobians at scale: heads of real size, counted operations, Lanczos, and its views, as data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import linear_regression
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spectral_core.jacobian import AttentionJacobian
from spectral_core.lessons.heads import random_head
from spectral_core.lessons.lesson_01 import with_spectrum
from spectral_core.lessons.registry import Slider, View
from spectral_core.plots.bound import LinePanel, line_panels
from spectral_core.plots.scale import ritz_history
from spectral_core.svg import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "ENTRIES", "Times", "autodiff_jacobian", "by_gram", "cpu_seconds", "exponent", "lanczos", "near_copy", "operations",
    "products", "scaled_head", "steps_needed", "vit_head",
]  # fmt: skip

Head = tuple[Tensor, Tensor, Tensor, Tensor]
Product = Callable[[Tensor], Tensor]


def scaled_head(n: int, dim: int, d: int, *, seed: int = 0) -> Head:
    """Gaussian x (n, dim) and weights (dim, d) with entries of standard deviation 1/√dim, in float64."""
    x, *weights = random_head(n, dim, d, d, seed=seed)
    w_q, w_k, w_v = (w / dim**0.5 for w in weights)
    return x, w_q, w_k, w_v


def vit_head(seed: int = 0) -> Head:
    """A head of the size of ViT-B/16's: 197 tokens, D = 768, d = 64; seed 0 is the one in results/jacobian.md."""
    return scaled_head(197, 768, 64, seed=seed)


def near_copy(head: Head, distance: float) -> Head:
    """The same weights; the last token is moved towards the first, to `distance` times where it was."""
    x = head[0].clone()
    x[-1] = x[0] + distance * (x[-1] - x[0])
    return (x, *head[1:])


def autodiff_jacobian(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor) -> Tensor:
    """J by `jacrev`, (n·d_v, D(2d_k + d_v)), with s = 1/√d_k."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q.shape[-1] ** -0.5 * (x @ q) @ (x @ k).mT).softmax(-1) @ (x @ v)

    blocks = torch.func.jacrev(attention, argnums=(0, 1, 2))(w_q, w_k, w_v)
    return torch.cat([block.flatten(2).flatten(0, 1) for block in blocks], -1)


def products(jac: AttentionJacobian) -> tuple[Product, Product]:
    """v -> J v and u -> Jᵀ u on flat vectors."""
    return lambda v: jac.matmat(v[:, None])[:, 0], lambda u: jac.rmatmat(u[:, None])[:, 0]


def lanczos(forward: Product, backward: Product, start: Tensor, steps: int) -> list[tuple[Tensor, Tensor]]:
    """After each step: the Ritz values, descending, and the residual of the largest. `start` is in the row space."""
    left, right, found = (start / start.norm())[None], start.new_zeros(0, 0), []
    band = start.new_zeros(steps + 1, steps)
    for j in range(steps):
        v, band[j, j] = _fresh(backward(left[-1]), right)
        right = torch.cat([right, v[None]]) if j else v[None]
        u, band[j + 1, j] = _fresh(forward(v), left)
        left = torch.cat([left, u[None]])
        _, sigma, turn = torch.linalg.svd(band[: j + 1, : j + 1])
        found.append((sigma, band[j + 1, j] * turn[0, -1].abs()))
    return found


def _fresh(w: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """`w` made orthogonal to the rows of `basis`, as a unit vector, and the length it had."""
    for _ in range(2 if len(basis) else 0):
        w = w - basis.mT @ (basis @ w)
    return w / w.norm(), w.norm()


def steps_needed(gap: float, seed: int, tolerance: float = 1e-10) -> tuple[int, int]:
    """Steps of power iteration and of Lanczos until σ_max of a matrix with σ₂ = (1 − gap) σ_max is right."""
    truth = torch.cat([torch.ones(1), (1 - gap) * torch.linspace(1, 0.01, 399)]).double()
    start = torch.randn(400, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    v, power = start / start.norm(), 0
    while 1 - float((truth * v).norm()) > tolerance:
        v, power = truth**2 * v, power + 1
        v = v / v.norm()
    found = lanczos(lambda v: truth * v, lambda u: truth * u, start, 90)
    return power, 1 + next(i for i, (sigma, _) in enumerate(found) if 1 - float(sigma[0]) <= tolerance)


def _svd(m: int, columns: int) -> float:
    small, large = sorted((m, columns))
    return 2.0 * small**2 * large + 2.0 * small**3


def operations(n: int, dim: int, d: int) -> dict[str, float]:
    """Multiplications and additions of each way for one head with d_k = d_v = d."""
    m, columns, r = n * d, 3 * dim * d, min(n, dim)
    product = 2.0 * n * (dim + n) * 3 * d
    gram = 2.0 * m**2 * (r + d)
    return {
        "J by autodiff": m * product,
        "SVD of J": _svd(m, columns),
        "SVD of compressed J": _svd(m, 3 * r * d),
        "form J Jᵀ": gram,
        "eigvalsh": 4 / 3 * m**3,
        "Cholesky": m**3 / 3,
        "two triangular solves": 2.0 * m**2,
        "stored J times v": 2.0 * m * columns,
        "J times v by products": product,
    }


class Times(Sequence):
    """The function v ↦ a v, which knows its rows so that two of them can be compared."""

    def __init__(self, a: Tensor) -> None:
        self.a = a

    def __call__(self, v: Tensor) -> Tensor:
        return self.a.to(v.dtype) @ v

    def __len__(self) -> int:
        return len(self.a)

    def __getitem__(self, i: Any) -> Any:
        return self.a[i]

    def __repr__(self) -> str:
        return f"a matrix {tuple(self.a.shape)}"


def cpu_seconds(fn: Callable[[], object], repeats: int = 3) -> float:
    """Least CPU seconds of some calls: other programs on the machine do not count, waiting threads of this one do."""
    spent = []
    for _ in range(repeats):
        began = time.process_time()
        fn()
        spent.append(time.process_time() - began)
    return min(spent)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log(values) against log(sizes), by least squares."""
    return linear_regression([math.log(s) for s in sizes], [math.log(v) for v in values]).slope


def draw_laws(n: int, dim: int, d: int) -> Figure:
    """Bytes and counted operations against the number of tokens, from n/8 to n."""
    tokens = sorted({max(2, round(int(n) * 2 ** (i / 3 - 3))) for i in range(10)})
    counts = [operations(t, int(dim), int(d)) for t in tokens]
    rows = [t * d for t in tokens]
    memory = {
        "J": [8.0 * m * 3 * dim * d for m in rows],
        "J Jᵀ": [8.0 * m * m for m in rows],
        "40 pairs of vectors": [8.0 * 40 * (m + 3 * dim * d) for m in rows],
    }
    work = {
        "J, then its SVD": [c["J by autodiff"] + c["SVD of J"] for c in counts],
        "J Jᵀ, eigvalsh": [c["form J Jᵀ"] + c["eigvalsh"] for c in counts],
        "J Jᵀ, Cholesky": [c["form J Jᵀ"] + c["Cholesky"] for c in counts],
        "80 products": [80 * c["J times v by products"] for c in counts],
    }
    gigabytes = format_number(memory["J"][-1] / 1e9)
    title = f"D = {dim:g}, d = {d:g}: at n = {n:g} J has {rows[-1]:g} rows and takes {gigabytes} GB"
    panels = [LinePanel(name, "tokens n", tokens, lines, log_x=True)
              for name, lines in (("bytes", memory), ("operations", work))]  # fmt: skip
    figure = line_panels(panels, title=title)
    for ax in figure.axes:
        ax.set_xticks(tokens[::3], [str(t) for t in tokens[::3]])
        ax.set_xticks([], minor=True)
        ax.set_ylim(top=200 * ax.get_ylim()[1])  # room for the legend
        ax.legend(loc="upper left", frameon=False, fontsize=9)
    return figure


def by_gram(a: Tensor) -> float:
    """κ(a) from the eigenvalues of a aᵀ; ∞ where the smallest comes out at or below 0."""
    values = torch.linalg.eigvalsh(a @ a.mT)
    return float((values[-1] / values[0]).sqrt()) if float(values[0]) > 0 else math.inf


def draw_precision(m: int, seed: int) -> Figure:
    """Relative error of κ by three ways, for m × 3m matrices with prescribed κ from 10 to 10¹²."""
    powers = [1 + 0.5 * i for i in range(23)]
    errors: dict[str, list[float]] = {"SVD of J": [], "J Jᵀ, float64": [], "J Jᵀ, float32": []}
    for power in powers:
        values = torch.logspace(0, -power, int(m), dtype=torch.float64).tolist()
        a = with_spectrum(values, seed=int(seed), m=3 * int(m)).mT
        s = torch.linalg.svdvals(a)
        for found, kappa in zip(errors.values(), (float(s[0] / s[-1]), by_gram(a), by_gram(a.float())), strict=True):
            found.append(max(abs(kappa / 10**power - 1), 1e-16))
    x = [10**power for power in powers]
    panel = LinePanel("relative error of κ; a gap: an eigenvalue below 0", "true κ", x, errors, log_x=True)
    return line_panels([panel], title=f"Matrices of {m:g} rows, seed {seed:g}")


@lru_cache(maxsize=64)
def _spectrum(gap: float, decay: float) -> Tensor:
    rest = (1 - gap) * torch.logspace(0, -decay, 199, dtype=torch.float64)
    return torch.cat([torch.ones(1, dtype=torch.float64), rest])


def draw_lanczos(steps: int, gap: float, decay: float, seed: int) -> Figure:
    """Lanczos and power iteration on 200 singular values: 1, then 1 − gap down to (1 − gap) · 10^−decay."""
    truth = _spectrum(gap, decay)
    start = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(int(seed)))
    found = lanczos(lambda v: truth * v, lambda u: truth * u, start, int(steps))
    power = []
    v = start
    for _ in found:
        v = truth**2 * v / (truth**2 * v).norm()
        power.append(1 - float((truth * v).norm()))
    errors = {
        "σ_max, power iteration": power,
        "σ_max, Lanczos": [abs(1 - float(sigma[0])) for sigma, _ in found],
        "σ_min, Lanczos": [abs(float(sigma[-1] / truth[-1]) - 1) for sigma, _ in found],
    }
    title = f"σ₂ = {1 - gap:g} σ_max, κ = {format_number(float(1 / truth[-1]))}, seed {seed:g}"
    return ritz_history(truth.tolist(), [sigma.tolist() for sigma, _ in found], errors, title=title)


ENTRIES = (
    View("11.laws", draw_laws, (
        Slider("n", "tokens n", 16, 1024, 1, 197, "197 in ViT-B/16, 1024 in a long text; the right end of the lines"),
        Slider("dim", "width D", 64, 1024, 64, 768, "of a token"),
        Slider("d", "head width d", 8, 128, 8, 64, "d_k = d_v = d"),
    )),
    View("11.precision", draw_precision, (
        Slider("m", "rows", 10, 60, 10, 40, "the matrix has three times as many columns"),
        Slider("seed", "seed", 0, 9, 1, 0, "which singular vectors"),
    )),
    View("11.lanczos", draw_lanczos, (
        Slider("steps", "steps", 10, 60, 5, 40, "Lanczos steps; two products each"),
        Slider("gap", "gap", 0.01, 0.5, 0.01, 0.05, "1 − σ₂/σ_max"),
        Slider("decay", "decay", 0.5, 4, 0.5, 2, "powers of ten from σ₂ down to σ_min"),
        Slider("seed", "seed", 0, 9, 1, 0, "which start vector"),
    )),
)  # fmt: skip
