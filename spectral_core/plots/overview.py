"""The picture that opens the course: one correction, from small to large, on four dials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spectral_core.plots.style import COLORS, INK, MARKERS, new_figure
from spectral_core.svg import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["dials", "story"]


def story(
    lams: Sequence[float],
    panels: Mapping[str, Sequence[Sequence[float]]],
    *,
    log: Sequence[str],
    guides: Mapping[str, Mapping[str, float]],
    title: str,
) -> Figure:
    """Four panels over the same values of λ, evenly spaced: one marker a seed, a line through the medians.

    Args:
        lams: ascending.
        panels: quantity -> values by λ, each a list by seed; what is infinite is marked ∞ at the top.
        log: the quantities with a logarithmic axis.
        guides: quantity -> labelled horizontal lines.
        title: words.
    """
    middles = {name: [sorted(values)[len(values) // 2] for values in rows] for name, rows in panels.items()}
    words = (
        f"{name}: " + ", ".join(f"{format_number(m)} at λ = {lam:g}" for lam, m in zip(lams, middle, strict=True))
        for name, middle in middles.items()
    )
    figure, axes = new_figure(len(panels), (9.6, 5.6), f"{title}. Medians of {'; '.join(words)}.", rows=2)
    places = range(len(lams))
    for ax, (name, rows), color, marker in zip(axes, panels.items(), COLORS, MARKERS, strict=False):
        if name in log:
            ax.set_yscale("log")
        for place, values in zip(places, rows, strict=True):
            finite = [v for v in values if math.isfinite(v)]
            ax.plot([place] * len(finite), finite, color=color, marker=marker, ms=6, alpha=0.7, ls="none")
            if len(finite) < len(values):
                ax.annotate("∞", (place, 1), xycoords=("data", "axes fraction"), ha="center", va="top", color=color,
                            fontsize=14)  # fmt: skip
        ax.plot(places, [m if math.isfinite(m) else math.nan for m in middles[name]], color=color, lw=1.4)
        for label, level in guides.get(name, {}).items():
            ax.axhline(level, color=INK, ls=":")
            ends = [abs(middles[name][end] - level) for end in (0, -1)]  # the label stands where the curve is far
            side = {"ha": "left", "va": "top"} if ends[0] > ends[1] else {"ha": "right", "va": "bottom"}
            at, shift = (0.03, -4) if ends[0] > ends[1] else (0.99, 3)
            ax.annotate(label, (at, level), (0, shift), xycoords=("axes fraction", "data"), fontsize=9.5,
                        textcoords="offset points", **side)  # fmt: skip
        ax.set_xticks(places, [f"{lam:g}" for lam in lams])
        ax.set(xlabel="λ added to W_Q, W_K, W_V", title=name + (" (log scale)" if name in log else ""))
    figure.suptitle(title, fontsize=11.5)
    return figure


def dials(lams: Sequence[float], panels: Mapping[str, Sequence[float]], at: int, *, log: Sequence[str]) -> Figure:
    """One panel a quantity against λ, with the present λ marked on each and its value in the panel's title.

    Args:
        lams: ascending.
        panels: quantity -> values by λ.
        at: index of the present λ.
        log: the quantities with a logarithmic axis.
    """
    now = ", ".join(f"{name} {format_number(values[at])}" for name, values in panels.items())
    figure, axes = new_figure(len(panels), (9.6, 3.2), f"At λ = {lams[at]:g} of {lams[0]:g} to {lams[-1]:g}: {now}.")
    for ax, (name, values), color in zip(axes, panels.items(), COLORS, strict=False):
        drawn = [v if math.isfinite(v) else math.nan for v in values]
        ax.plot(lams, drawn, color=color, lw=1.6)
        ax.axvline(lams[at], color=INK, ls=":")
        ax.plot(lams[at], drawn[at], color=color, marker="o", ms=9, mec=INK)
        if name in log:
            ax.set_yscale("log")
        ax.set(title=f"{name} = {format_number(values[at])}", xlabel="λ", ylabel="log scale" if name in log else name)
    return figure
