"""Figures for any lesson: curves by step, quantities along a sweep, and arms seed by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spectral_core.plots.style import COLORS, DASHES, MARKERS, new_figure
from spectral_core.svg import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["curves", "seed_dots", "sweep"]


def curves(lines: Mapping[str, Sequence[float]], *, title: str, y_label: str) -> Figure:
    """One line a name over steps 0, 1, …, on a logarithmic y axis, each labelled at its end."""
    ends = "; ".join(f"{name}: {format_number(y[0])} to {format_number(y[-1])}" for name, y in lines.items())
    figure, (ax,) = new_figure(1, (6.8, 3.1), f"{title}. {y_label} by step. {ends}.")
    for (name, y), color, dash in zip(lines.items(), COLORS, DASHES, strict=False):
        ax.semilogy(range(len(y)), y, color=color, ls=dash, lw=2)
        ax.annotate(name, (len(y) - 1, y[-1]), (6, 0), textcoords="offset points", va="center", color=color)
    longest = max(len(y) for y in lines.values())
    ax.set(title=title, xlabel="gradient step", ylabel=f"{y_label} (log scale)", xlim=(0, 1.18 * longest))
    return figure


def sweep(
    x: Sequence[float],
    panels: Mapping[str, Sequence[float]],
    *,
    x_label: str,
    title: str,
    log: Sequence[str] = (),
    guides: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """One panel a quantity over a common x; infinite values leave a gap.

    Args:
        x: ascending, the same for all panels.
        panels: quantity -> values.
        x_label, title: words.
        log: the quantities with a logarithmic axis.
        guides: quantity -> labelled horizontal lines.
    """
    alt = f"{title}, against {x_label} from {x[0]:g} to {x[-1]:g}. " + " ".join(
        f"{name}: {format_number(y[0])} to {format_number(y[-1])}." for name, y in panels.items()
    )
    figure, axes = new_figure(len(panels), (min(9.8, max(6.2, 3.4 * len(panels))), 3.1), alt)
    for ax, (name, y), color, marker in zip(axes, panels.items(), COLORS, MARKERS, strict=False):
        if name in log:
            ax.set_yscale("log")
        ax.plot(x, [v if math.isfinite(v) else math.nan for v in y], color=color, marker=marker, ms=3.5, lw=1.4)
        for label, level in (guides or {}).get(name, {}).items():
            ax.axhline(level, color="#000000", ls=":")
            ax.annotate(label, (1, level), (-2, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                        ha="right", fontsize=9)  # fmt: skip
        ax.set(xlabel=x_label, ylabel=name + (" (log scale)" if name in log else ""))
    figure.suptitle(title, fontsize=11)
    return figure


def seed_dots(columns: Mapping[str, Mapping[str, Sequence[float]]], *, title: str, log: Sequence[str] = ()) -> Figure:
    """One panel a quantity, one row an arm, one marker a seed; infinite values are counted at the right edge.

    Args:
        columns: quantity -> arm -> values by seed; the same arms in every quantity.
        title: words.
        log: the quantities with a logarithmic axis.
    """
    arms = list(next(iter(columns.values())))
    words = []
    for quantity, by_arm in columns.items():
        listed = (f"{arm} {', '.join(map(format_number, values))}" for arm, values in by_arm.items())
        words.append(f"{quantity}: {'; '.join(listed)}.")
    size = (9.6, 0.38 * len(arms) + 1.3)
    figure, panels = new_figure(len(columns), size, f"{title}. {' '.join(words)}")
    for ax, (quantity, by_arm) in zip(panels, columns.items(), strict=True):
        if quantity in log:
            ax.set_xscale("log")
        for row, arm in enumerate(arms):
            style: dict[str, Any] = {"color": COLORS[row % 6], "marker": MARKERS[row % 7], "ms": 7, "alpha": 0.75}
            finite = [v for v in by_arm[arm] if math.isfinite(v)]
            ax.plot(finite, [row] * len(finite), ls="none", **style)
        _infinite_strip(ax, list(by_arm.values()))
        ax.set_yticks(range(len(arms)), arms if ax is panels[0] else [""] * len(arms))
        ax.set(ylim=(len(arms) - 0.5, -0.5), xlabel=quantity + (" (log scale)" if quantity in log else ""))
    figure.suptitle(title, fontsize=11)
    return figure


def _infinite_strip(ax: Any, rows: Sequence[Sequence[float]]) -> None:
    """Where a value is infinite: a grey strip at the right edge that counts them, row by row."""
    counts = [sum(not math.isfinite(v) for v in values) for values in rows]
    if not any(counts):
        return
    left, right = ax.get_xlim()
    end = right * (right / left) ** 0.25 if ax.get_xscale() == "log" else right + 0.25 * (right - left)
    ax.set_xlim(left, end)
    ax.axvspan(right, end, color="#000000", alpha=0.07, lw=0)
    for row, count in enumerate(counts):
        if count:
            place = {"transform": ax.get_yaxis_transform(), "ha": "center", "va": "center"}
            ax.text(0.9, row, f"{count} × ∞", color=COLORS[row % 6], **place)
