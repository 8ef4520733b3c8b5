"""Figures of lesson 4: what a polynomial does to singular values, and several methods against one quantity."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spectral_core.plots.style import COLORS, DASHES, INK, MARKERS, new_figure
from spectral_core.svg import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["lines_against", "polar_iterate"]


def lines_against(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    y_label: str,
    title: str,
    log: str = "",
    guides: Mapping[str, float] | None = None,
    top: float | None = None,
    places: str = "best",
) -> Figure:
    """One line a name, each with its own x; what is not finite or above `top` is left out.

    Args:
        lines: name -> (x, y).
        x_label, y_label, title: words.
        log: the axes that are logarithmic, "", "x", "y" or "xy".
        guides: labelled horizontal lines.
        top: upper end of the y axis.
        places: where the legend stands, in matplotlib's words.
    """
    kept = {name: [(x, y) for x, y in zip(*line, strict=True) if math.isfinite(y) and not (top and y > top)]
            for name, line in lines.items()}  # fmt: skip
    words = (f"{name}: {format_number(p[0][1])} at {format_number(p[0][0])}, {format_number(p[-1][1])} at "
             f"{format_number(p[-1][0])}" for name, p in kept.items() if p)  # fmt: skip
    figure, (ax,) = new_figure(1, (7.6, 3.5), f"{title}. {y_label} against {x_label}. {'; '.join(words)}.")
    style: dict[str, Any]
    for (name, points), color, dash, marker in zip(kept.items(), COLORS, DASHES, MARKERS, strict=False):
        style = {"color": color, "ls": dash, "marker": marker, "markevery": max(1, len(points) // 25), "ms": 4.5}
        ax.plot(*zip(*points, strict=True), lw=1.6, label=name, **style)
    for label, level in (guides or {}).items():
        ax.axhline(level, color=INK, ls=":", lw=1.2)
        ax.annotate(label, (1, level), (-2, -3), xycoords=("axes fraction", "data"), textcoords="offset points",
                    ha="right", va="top", fontsize=9)  # fmt: skip
    if "x" in log:
        ax.set_xscale("log")
    if "y" in log:
        ax.set_yscale("log")
    noted = {axis: " (log scale)" if axis in log else "" for axis in "xy"}
    ax.set(title=title, xlabel=x_label + noted["x"], ylabel=y_label + noted["y"])
    if top is not None:
        ax.set_ylim(top=top)
    ax.legend(frameon=False, fontsize=9.5, loc=places)
    return figure


def polar_iterate(apply: Callable[[float], float], sigma_min: float, *, title: str) -> Figure:
    """What `apply` does to σ = 1 and `sigma_min`: the ellipse it leaves of the unit circle, and its graph.

    Args:
        apply: singular value -> singular value, on [10⁻⁶, 1].
        sigma_min: the short half-axis before.
        title: words.
    """
    long, short = apply(1.0), apply(sigma_min)
    alt = (
        f"{title}. Left: the unit circle after the matrix, an ellipse with half-axes {format_number(long)} and "
        f"{format_number(short)}, before 1 and {format_number(sigma_min)}. Right: the graph of the iterated polynomial."
    )
    figure, (left, right) = new_figure(2, (9.0, 3.5), alt)
    turns = [2 * math.pi * i / 120 for i in range(121)]
    tilt = math.radians(30)
    shapes = (("unit circle", 1.0, 1.0, INK, ":"), ("before", 1.0, sigma_min, COLORS[1], "--"),
              ("after", long, short, COLORS[0], "-"))  # fmt: skip
    for name, a, b, color, dash in shapes:
        x = [a * math.cos(t) * math.cos(tilt) - b * math.sin(t) * math.sin(tilt) for t in turns]
        y = [a * math.cos(t) * math.sin(tilt) + b * math.sin(t) * math.cos(tilt) for t in turns]
        left.plot(x, y, color=color, ls=dash, lw=1.8, label=name)
    left.set(xlim=(-1.9, 1.9), ylim=(-1.75, 1.3), aspect="equal", title="images of the unit circle")
    left.set(xlabel="first coordinate", ylabel="second coordinate")
    left.legend(frameon=False, fontsize=9, loc="lower center", ncols=3, columnspacing=1.0, handlelength=1.6)
    sigmas = [10 ** (-6 + 6 * i / 240) for i in range(241)]
    right.semilogx(sigmas, [apply(s) for s in sigmas], color=COLORS[0], lw=1.6, label="after k steps")
    right.semilogx(sigmas, sigmas, color=COLORS[1], ls="--", lw=1.2, label="before")
    right.axhline(1, color=INK, ls=":", lw=1.2)
    right.plot([sigma_min, 1], [short, long], color=COLORS[0], marker="s", ms=7, ls="none")
    right.set(title="what became of each singular value", xlabel="σ before (log scale)", ylabel="σ after")
    right.set_ylim(-0.05, max(1.3, 1.05 * max(long, short, apply(0.5), apply(0.1))))
    right.legend(frameon=False, fontsize=9, loc="upper left")
    figure.suptitle(title, fontsize=11)
    return figure
