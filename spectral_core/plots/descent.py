"""Figures of lesson 1: gradient descent on a quadratic, what λI does to κ, and steps against κ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spectral_core.plots.style import COLORS, INK, MARKERS, new_figure
from spectral_core.svg import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["descent", "shifted_kappa", "steps_against_kappa"]

TINY = 1e-16  # drawn in place of an exact zero on a logarithmic axis


def descent(path: Sequence[tuple[float, float]], kappa: float, rate: float) -> Figure:
    """Gradient descent on ½(x² + y²/κ): its path over the contours, and its distance to the optimum by step.

    Args:
        path: the points visited, the start first; the optimum is the origin.
        kappa: condition number of the Hessian diag(1, 1/κ).
        rate: the guaranteed factor a step, drawn as a line where it is below 1.
    """
    distances = [math.hypot(*point) for point in path]
    alt = (
        f"Left: path of gradient descent over the contours of a quadratic with condition number {kappa:g}. Right: "
        f"distance to the optimum, from {format_number(distances[0])} to {format_number(distances[-1])} "
        f"after {len(path) - 1} steps."
    )
    figure, (left, right) = new_figure(2, (8.4, 3.4), alt)
    grid = [-1.15 + 2.3 * i / 60 for i in range(61)]
    height = [[0.5 * (x * x + y * y / kappa) for x in grid] for y in grid]
    # spaced by the square root, so that the valley floor has contours too
    levels = [height[-1][-1] * (i / 12) ** 2 for i in range(1, 12)]
    left.contour(grid, grid, height, levels=levels, colors="#999999", linewidths=0.7)
    left.plot(*zip(*path, strict=True), color=COLORS[0], marker="o", ms=3.5, lw=1.2)
    left.plot(0, 0, color=INK, marker="*", ms=11, ls="none")
    left.set(
        xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal", title=f"Hessian κ = {kappa:g}, ★ optimum",
        xlabel="steep coordinate", ylabel="flat coordinate",
    )  # fmt: skip
    steps = range(len(path))
    right.semilogy(steps, [max(d, TINY) for d in distances], color=COLORS[0], marker="o", ms=3, label="measured")
    if rate < 1:
        line = [max(rate**t, TINY) for t in steps]
        right.semilogy(steps, line, color=COLORS[1], ls="--", label=f"guarantee: × {rate:.3f} a step")
    right.set(xlabel="gradient step", ylabel="distance to optimum (log scale)")
    right.legend(frameon=False, fontsize=9, loc="best")
    return figure


def shifted_kappa(lams: Sequence[float], kappas: Sequence[float], *, kappa: float, polar: float) -> Figure:
    """κ(W + λI) against λ/σ_max(W), with the guarantee beyond λ = σ_max and the polar correction's κ.

    Args:
        lams: λ in units of σ_max(W), ascending from 0.
        kappas: κ(W + λI) at each.
        kappa, polar: κ of W itself and of W with the polar correction.
    """
    worst = max(range(len(kappas)), key=lambda i: kappas[i])
    alt = (
        f"Condition number of W plus lambda times identity: {format_number(kappa)} at 0, up to "
        f"{format_number(kappas[worst])} at lambda {lams[worst]:.2f} sigma_max, {format_number(kappas[-1])} at "
        f"{lams[-1]:g} sigma_max. Polar correction: {format_number(polar)}."
    )
    figure, (ax,) = new_figure(1, (7.6, 3.6), alt)
    ax.axvspan(0, 1, color="#000000", alpha=0.06, lw=0)
    ax.semilogy(lams, kappas, color=COLORS[0], lw=1.4, marker="o", ms=2.5, label="κ(W + λI), measured")
    sure = [lam for lam in lams if lam > 1.02]
    bound = [(lam + 1) / (lam - 1) for lam in sure]
    ax.semilogy(sure, bound, color=COLORS[1], ls="--", label="guarantee (λ + σ) / (λ − σ)")
    ax.axhline(kappa, color=INK, ls=":", label=f"κ(W) = {format_number(kappa)}")
    ax.axhline(polar, color=COLORS[2], ls="-.", label=f"polar correction: κ = {polar:.2f}")
    ax.text(0.5, 0.02, "no guarantee\nbelow σ_max", transform=ax.get_xaxis_transform(), ha="center", color=INK)
    ax.set(xlabel="λ / σ_max(W)", ylabel="condition number (log scale)", xlim=(0, lams[-1]), ylim=(0.3, None))
    ax.legend(facecolor="white", edgecolor="none", framealpha=0.95, fontsize=9, loc="upper right")
    return figure


def steps_against_kappa(arms: Mapping[str, Sequence[tuple[float, int]]], *, eps: float) -> Figure:
    """Steps needed against κ, one marker a seed and one shape an arm, under the worst-case line.

    Args:
        arms: name -> (κ, steps) by seed.
        eps: the share of the residual at which a run stopped.
    """
    alt = f"Gradient steps to shrink the residual to {eps:g} of its start, against condition number. " + "; ".join(
        f"{name}: κ {format_number(min(k for k, _ in arm))} to {format_number(max(k for k, _ in arm))}, "
        f"{min(t for _, t in arm)} to {max(t for _, t in arm)} steps"
        for name, arm in arms.items()
    )
    figure, (ax,) = new_figure(1, (7.6, 4.0), alt)
    top = 1.5 * max(k for arm in arms.values() for k, _ in arm)
    line = [1.2 * (top / 1.2) ** (i / 80) for i in range(81)]
    steps = [math.log(eps) / math.log((k * k - 1) / (k * k + 1)) for k in line]
    ax.loglog(line, steps, color=INK, ls="--", lw=1.2, label="worst case")
    for place, ((name, arm), color, marker) in enumerate(zip(arms.items(), COLORS, MARKERS, strict=False)):
        # every other arm is an open, larger marker: arms that coincide stay visible
        style = {"mfc": "none", "ms": 12} if place % 2 else {"mfc": color, "ms": 7}
        ax.plot(*zip(*arm, strict=True), ls="none", marker=marker, mec=color, mew=1.4, label=name, **style)
    ax.set(xlabel="κ of the matrix (log scale)", ylabel=f"steps to {eps:g} of the residual (log scale)")
    ax.legend(frameon=False, fontsize=9, loc="upper left")
    return figure
