"""Families of curves over x axes of their own: saturation by size of the head, as measured and rescaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spectral_core.plots.style import COLORS, DASHES, new_figure
from spectral_core.svg import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["families"]

Line = tuple[Sequence[float], Sequence[float]]


def families(
    panels: Mapping[str, Mapping[str, Line]], *, y_label: str, title: str, marks: Mapping[str, float] | None = None
) -> Figure:
    """The same named curves in every panel, each panel with its own x; one legend to the right.

    Args:
        panels: label of the x axis -> name of a curve -> (x, y). At most six curves.
        y_label, title: words.
        marks: label of the x axis -> a dotted vertical line at that x.
    """
    words = []
    for x_label, lines in panels.items():
        half = (f"{name} at {format_number(_crossing(*line))}" for name, line in lines.items())
        words.append(f"Against {x_label}, {y_label} passes one half for {', '.join(half)}.")
    figure, axes = new_figure(len(panels), (9.8, 3.4), f"{title}. {' '.join(words)}")
    for ax, (x_label, lines) in zip(axes, panels.items(), strict=True):
        for (name, (x, y)), color, dash in zip(lines.items(), COLORS, DASHES, strict=False):
            ax.plot(x, y, color=color, ls=dash, lw=1.8, label=name)
        if marks and x_label in marks:
            ax.axvline(marks[x_label], color="#000000", ls=":", lw=1)
        ax.set(xlabel=x_label, ylabel=y_label, ylim=(0, 1.03))
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=10)
    figure.suptitle(title, fontsize=11)
    return figure


def _crossing(x: Sequence[float], y: Sequence[float]) -> float:
    """The first x with y ≥ 1/2, ∞ if there is none."""
    return next((a for a, b in zip(x, y, strict=True) if b >= 0.5), float("inf"))
