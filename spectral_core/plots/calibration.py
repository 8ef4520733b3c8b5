"""Figure of `calibrate`: what λ does to κ(J) and to saturation, and where the choice lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spectral_core.plots.style import COLORS, INK, new_figure
from spectral_core.svg import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["calibration_sweep"]


def calibration_sweep(
    points: Sequence[tuple[float, float, float, bool, bool]], best: tuple[str, float, float], *, limit: float
) -> Figure:
    """κ(J) and saturation against λ, the choice as a line across both.

    Args:
        points: (λ, κ(J), saturation, whether κ(J) is a lower bound, whether it was refused), ascending in λ, the plain
            model at λ = 0 first.
        best: name, κ(J) and saturation of the choice.
        limit: of saturation.
    """
    name, *levels = best
    listed = "; ".join(
        f"lambda {lam:g}: {'at least ' * low}{format_number(k)}, {s:.2f}{', refused' * no}"
        for lam, k, s, low, no in points
    )
    alt = (
        f"Condition number of J and saturation against lambda on all roles. {listed}. "
        f"Chosen: {name}, {format_number(levels[0])}, {levels[1]:.2f}; limit of saturation {limit:g}."
    )
    figure, axes = new_figure(2, (9.4, 3.6), alt)
    names = ("κ(J), geometric mean (log scale)", "saturation: mean of max p")
    for i, (ax, title, level) in enumerate(zip(axes, names, levels, strict=True)):
        over = [p for p in points if p[4]]
        ax.plot([p[0] for p in points], [p[i + 1] for p in points], color=COLORS[0], lw=1.4, marker="o", ms=5)
        ax.plot([p[0] for p in over], [p[i + 1] for p in over], color=INK, ls="none", marker="x", ms=11, mew=2)
        bounds = [p for p in points if p[3]] if i == 0 else []
        ax.plot([p[0] for p in bounds], [p[1] for p in bounds], color=COLORS[0], ls="none", marker="^", ms=9)
        if math.isfinite(level):
            ax.axhline(level, color=COLORS[1], ls="--", lw=1.8)
        ax.set(xlabel="λ on all roles", ylabel=title, xlim=(0, 1.3 * points[-1][0] or 1))
        # plain at 0 and λ over decades in one axis
        ax.set_xscale("symlog", linthresh=0.1)
        ticks = [p[0] for p in points]
        ax.set_xticks(ticks, [f"{t:g}" if t else "plain" for t in ticks])
    axes[0].set_yscale("log")
    axes[1].axhline(limit, color=INK, ls=":", lw=1.2)
    axes[1].annotate(f"limit {limit:g}", (0.02, limit), (0, 3), xycoords=("axes fraction", "data"),
                     textcoords="offset points", fontsize=9)  # fmt: skip
    axes[1].set_ylim(0, 1.05)
    figure.suptitle(f"- - chosen: {name}    ● λ I    ▲ at least so much    × refused", fontsize=10.5)
    return figure
