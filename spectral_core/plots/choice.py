"""Figures of lesson 7: candidates in the plane of saturation and κ(J), and spectra before and after a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spectral_core.plots.style import COLORS, INK, new_figure
from spectral_core.svg import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["candidate_map", "spectra_pair"]


def candidate_map(
    points: Sequence[tuple[str, float, float, bool]], *, limit: float, named: Sequence[str], title: str
) -> Figure:
    """κ(J) against saturation, one marker a candidate: dots are within the limits, crosses are refused.

    Args:
        points: (name, saturation, κ(J), whether it was refused).
        limit: of saturation, a dotted line.
        named: the candidates whose names are written beside them.
        title: words.
    """
    listed = "; ".join(f"{n}: {s:.2f}, {format_number(k)}{', refused' * no}" for n, s, k, no in points if n in named)
    kappas = [k for _, _, k, _ in points]
    alt = (
        f"{title}. {len(points)} candidates, condition number of J from {format_number(min(kappas))} to "
        f"{format_number(max(kappas))}, {sum(p[3] for p in points)} of them refused. Saturation and condition number "
        f"of some: {listed}. The limit of saturation is {limit:g}."
    )
    figure, (ax,) = new_figure(1, (8.2, 3.6), alt)
    for refused, marker, color, label in ((False, "o", COLORS[1], "within the limits"), (True, "X", INK, "refused")):
        chosen = [(s, k) for _, s, k, no in points if no is refused]
        if chosen:
            x, y = zip(*chosen, strict=True)
            ax.plot(x, y, ls="none", marker=marker, ms=8, color=color, label=label, alpha=0.8)
    for name, s, k, _ in points:
        if name in named:
            right = s > 0.7
            ax.annotate(name, (s, k), (-9 if right else 9, 0), textcoords="offset points", va="center",
                        ha="right" if right else "left", fontsize=9.5)  # fmt: skip
    ax.set_yscale("log")
    ax.axvline(limit, color=INK, ls=":", lw=1.2)
    ax.annotate(f"limit {limit:g}", (limit, 0.97), (4, 0), xycoords=("data", "axes fraction"),
                textcoords="offset points", va="top", fontsize=9)  # fmt: skip
    ax.set(xlabel="saturation: mean of max p", ylabel="κ(J) (log scale)", title=title, xlim=(0, 1.05))
    ax.legend(loc="upper right", fontsize=9)
    return figure


def spectra_pair(
    panels: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, title: str, limits: Sequence[float] = ()
) -> Figure:
    """Singular values before (black, hollow) and after (orange), one panel a matrix.

    Args:
        panels: name of the matrix -> (before, after), descending.
        title: words.
        limits: horizontal lines in the first panel.
    """
    words = " ".join(
        f"{name}: {format_number(old[0])} to {format_number(old[-1])} before, {format_number(new[0])} to "
        f"{format_number(new[-1])} after."
        for name, (old, new) in panels.items()
    )
    figure, axes = new_figure(len(panels), (9.6, 3.4), f"{title}. Singular values from largest to smallest. {words}")
    for ax, (name, (old, new)) in zip(axes, panels.items(), strict=True):
        index = range(1, len(old) + 1)
        dots = len(old) < 60
        ax.plot(index, old, color=INK, ls="--", marker="o" if dots else "", mfc="none", ms=5, lw=1.2, label="before")
        ax.plot(index, new, color=COLORS[0], ls="-", marker="s" if dots else "", ms=4.5, lw=1.6, label="after")
        ax.set_yscale("log")
        ax.minorticks_off()  # they take most of the time of drawing
        ax.set(xlabel="index", ylabel="σ (log scale)", title=name)
        ax.legend(loc="lower left", fontsize=9)
    for level in limits:
        axes[0].axhline(level, color=COLORS[2], ls=":", lw=1.4)
    figure.suptitle(title, fontsize=11)
    return figure
