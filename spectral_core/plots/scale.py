"""Figure of lesson 11: what Krylov iterations see of a spectrum, step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spectral_core.plots.style import COLORS, DASHES, INK, MARKERS, new_figure
from spectral_core.svg import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ritz_history"]


def ritz_history(
    truth: Sequence[float], ritz: Sequence[Sequence[float]], errors: Mapping[str, Sequence[float]], *, title: str
) -> Figure:
    """Ritz values by step beside the true singular values, and relative errors by step.

    Args:
        truth: all singular values, descending.
        ritz: the Ritz values after 1, 2, … steps.
        errors: name -> relative error after 1, 2, … steps; zeros are drawn at 1e-16.
        title: words.
    """
    steps = range(1, len(ritz) + 1)
    words = "; ".join(f"{name} {format_number(y[0])} to {format_number(y[-1])}" for name, y in errors.items())
    alt = (
        f"{title}. True singular values from {format_number(truth[0])} down to {format_number(truth[-1])}; the Ritz "
        f"values after {len(ritz)} steps go from {format_number(ritz[-1][0])} to {format_number(ritz[-1][-1])}. "
        f"Relative errors by step: {words}."
    )
    figure, (left, right) = new_figure(2, (9.6, 3.5), alt)
    where = [step for step, values in zip(steps, ritz, strict=True) for _ in values]
    left.plot(where, [v for values in ritz for v in values], color=COLORS[1], marker=".", ms=3.5, ls="none")
    edge = 1.04 * len(ritz) + 0.5
    left.plot([edge] * len(truth), truth, color=INK, marker="_", ms=7, mew=0.6, ls="none")
    left.annotate("true σ", (edge, truth[0]), (0, 6), textcoords="offset points", ha="center", fontsize=9)
    left.set(yscale="log", xlabel="Lanczos step", ylabel="Ritz values (log scale)", title="what Lanczos sees")
    left.set_ylim(truth[-1] / 1.5, truth[0] * 2)
    for i, (name, y) in enumerate(errors.items()):
        shown = [max(v, 1e-16) if math.isfinite(v) else math.nan for v in y]
        every = max(1, len(shown) // 8)
        right.plot(steps, shown, color=COLORS[i], ls=DASHES[i], marker=MARKERS[i], ms=4, markevery=every, label=name)
    right.set(yscale="log", xlabel="step", ylabel="relative error (log scale)", title="how far off", ylim=(3e-17, 3e4))
    right.legend(frameon=True, framealpha=0.85, edgecolor="none", fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure
