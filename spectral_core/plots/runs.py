"""Figures of training runs: curves with bands, differences seed by seed with their intervals, quantities by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spectral_core.plots.style import COLORS, DASHES, INK, MARKERS, new_figure
from spectral_core.svg import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["by_step", "differences", "paired"]

Curve = Sequence[float]
Interval = tuple[float, float]


def by_step(
    panels: Mapping[str, Mapping[str, Curve]],
    steps: Sequence[float],
    *,
    title: str,
    y_label: str = "",
    log: Sequence[str] = (),
) -> Figure:
    """One panel a quantity or a seed, in each one line an arm over optimiser steps; one legend below.

    Args:
        panels: title of the panel -> arm -> values; infinite values leave a gap and are counted in the words.
        steps: of the values.
        title: words.
        y_label: of the first panel; the panels then share their y axis.
        log: the panels with a logarithmic axis.
    """
    words = []
    for name, lines in panels.items():
        ends = (f"{arm} {format_number(y[0])} to {format_number(y[-1])}" for arm, y in lines.items())
        words.append(f"{name}, step {steps[0]:g} to {steps[-1]:g}: {', '.join(ends)}.")
    figure, axes = new_figure(len(panels), (9.6, 3.5), f"{title}. {' '.join(words)}")
    for ax, (name, lines) in zip(axes, panels.items(), strict=True):
        for (arm, y), color, dash, marker in zip(lines.items(), COLORS, DASHES, MARKERS, strict=False):
            shown = [v if math.isfinite(v) else math.nan for v in y]
            style: dict[str, Any] = {"color": color, "ls": dash, "marker": marker, "ms": 5}
            ax.plot(steps, shown, lw=1.8, label=arm, markevery=max(1, len(steps) // 8), **style)
        if name in log:
            ax.set_yscale("log")
        ax.set(title=name + (" (log scale)" if name in log else ""), xlabel="optimiser steps")
        if y_label and ax is not axes[0]:
            ax.sharey(axes[0])
    axes[0].set_ylabel(y_label)
    _legend(figure, axes[0])
    figure.suptitle(title, fontsize=11)
    return figure


def paired(
    bands: Mapping[str, Sequence[Interval]],
    steps: Sequence[float],
    gaps: Sequence[float],
    summary: Interval,
    *,
    outcome: str,
    title: str,
) -> Figure:
    """Left: mean and 95 % band of two arms over the steps. Right: their difference, one marker a seed, and its mean.

    Args:
        bands: arm -> (mean, half width) at each step.
        steps: of the bands.
        gaps: first arm less second, seed by seed, of the outcome.
        summary: mean and half width of the interval of the gaps.
        outcome, title: words.
    """
    first, second = bands
    mean, half = summary
    alt = (
        f"{title}. Left: mean training loss over {steps[0]:g} to {steps[-1]:g} steps with 95 percent bands, {first} "
        f"{format_number(bands[first][0][0])} to {format_number(bands[first][-1][0])}, {second} "
        f"{format_number(bands[second][0][0])} to {format_number(bands[second][-1][0])}. Right: {outcome}, {first} "
        f"less {second}, by seed: {', '.join(f'{gap:+.3f}' for gap in gaps)}; mean {mean:+.3f}, 95 percent interval "
        f"{mean - half:+.3f} to {mean + half:+.3f}."
    )
    figure, (left, right) = new_figure(2, (9.6, 3.5), alt)
    for (arm, band), color, dash in zip(bands.items(), COLORS, DASHES, strict=False):
        left.plot(steps, [m for m, _ in band], color=color, ls=dash, lw=1.8, label=arm)
        left.fill_between(steps, [m - h for m, h in band], [m + h for m, h in band], color=color, alpha=0.18, lw=0)
    left.set(xlabel="optimiser steps", ylabel="training loss", title="mean over seeds, 95 % band")
    left.legend(frameon=False, fontsize=10)
    right.axhline(0, color=INK, lw=1)
    right.axhspan(mean - half, mean + half, color=COLORS[2], alpha=0.18, lw=0)
    right.axhline(mean, color=COLORS[2], ls="--", lw=1.6, label=f"mean {mean:+.3f} ± {half:.3f}")
    right.plot(range(len(gaps)), gaps, ls="none", marker=MARKERS[2], color=COLORS[2], ms=7)
    reach = 1.25 * max(*map(abs, gaps), abs(mean) + half)
    right.set(xlabel="seed", ylabel=outcome, ylim=(-reach, reach), title=f"{first} less {second}, seed by seed")
    right.set_xticks(range(len(gaps)))
    right.legend(frameon=False, fontsize=10, loc="best")
    figure.suptitle(title, fontsize=11)
    return figure


def differences(columns: Mapping[str, Mapping[str, tuple[Sequence[float], Interval]]], *, title: str) -> Figure:
    """One panel a comparison, one row an arm: a marker a seed, a bar for the 95 % interval of the mean, a line at 0.

    Args:
        columns: what is compared -> arm -> (differences by seed, (mean, half width)); the same arms in all columns.
        title: words.
    """
    arms = list(next(iter(columns.values())))
    words = []
    for name, rows in columns.items():
        listed = (f"{arm} {mean:+.3f} ± {half:.3f}" for arm, (_, (mean, half)) in rows.items())
        words.append(f"{name}, mean and half width of the 95 percent interval: {'; '.join(listed)}.")
    figure, axes = new_figure(len(columns), (9.6, 0.36 * len(arms) + 1.4), f"{title}. {' '.join(words)}")
    for ax, (name, rows) in zip(axes, columns.items(), strict=True):
        ax.axvline(0, color=INK, lw=1)
        for row, (values, (mean, half)) in enumerate(rows.values()):
            color = COLORS[row % len(COLORS)]
            ax.plot(values, [row] * len(values), ls="none", color=color, marker=MARKERS[row % 7], ms=5, alpha=0.5)
            ax.errorbar(mean, row, xerr=half, color=color, marker="|", ms=14, mew=2, capsize=4, lw=2)
        ax.set(xlabel=name, ylim=(len(arms) - 0.5, -0.5))
        ax.set_yticks(range(len(arms)), arms if ax is axes[0] else [""] * len(arms))
    figure.suptitle(title, fontsize=11)
    return figure


def _legend(figure: Figure, ax: Any) -> None:
    handles, names = ax.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=10)
