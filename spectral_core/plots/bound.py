"""Figures of lesson 3: both sides of a bound and its factors, the shadow of a tilted coin, left side against right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spectral_core.plots.style import COLORS, DASHES, MARKERS, new_figure
from spectral_core.svg import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LinePanel", "coin_shadow", "left_against_right", "line_panels"]


@dataclass(frozen=True)
class LinePanel:
    """Lines over one x, on a logarithmic y axis; infinite values leave a gap.

    Attributes:
        title, x_label: words.
        x: ascending.
        lines: name -> values.
        log_x: whether x is logarithmic too.
    """

    title: str
    x_label: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]
    log_x: bool = False


def line_panels(panels: Sequence[LinePanel], *, title: str) -> Figure:
    """One panel a `LinePanel`, side by side; every line has a colour, a dash, a marker and a place in the legend."""
    words = []
    for panel in panels:
        listed = (f"{name} {format_number(y[0])} to {format_number(y[-1])}" for name, y in panel.lines.items())
        words.append(f"{panel.title}, {panel.x_label} from {panel.x[0]:g} to {panel.x[-1]:g}: {'; '.join(listed)}.")
    figure, axes = new_figure(len(panels), (max(6.8, 4.8 * len(panels)), 3.4), f"{title}. {' '.join(words)}")
    for ax, panel in zip(axes, panels, strict=True):
        ax.set_yscale("log")
        for i, (name, y) in enumerate(panel.lines.items()):
            shown = [v if math.isfinite(v) else math.nan for v in y]
            ax.plot(panel.x, shown, color=COLORS[i], ls=DASHES[i], marker=MARKERS[i], ms=4, lw=1.6, label=name)
        if panel.log_x:
            ax.set_xscale("log")
        ax.set(title=panel.title, xlabel=panel.x_label, ylabel="value (log scale)")
        ax.legend(frameon=True, framealpha=0.85, edgecolor="none", fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def coin_shadow(theta: float) -> Figure:
    """The unit circle tilted by `theta` degrees, its shadow on the floor, and the κ⁺ of "tilt, then project".

    Args:
        theta: 0 ≤ theta < 90.
    """
    short = math.cos(math.radians(theta))
    title = f"Tilt by {theta:g}°, then project: κ⁺(AB) = 1/cos θ = {format_number(1 / short)}"
    alt = (
        f"{title}. The coin has half-axes 1 and 1, its shadow 1 and {short:.2f}. Beside it κ⁺(AB) against θ, which "
        "grows without limit as θ comes near 90°, while κ⁺(A) κ⁺(B) stays at 1."
    )
    figure, (left, right) = new_figure(2, (9.6, 3.3), alt)
    turn = [2 * math.pi * i / 100 for i in range(101)]
    left.plot([math.cos(t) for t in turn], [math.sin(t) for t in turn], color=COLORS[1], ls="--", label="the coin")
    x, y = [math.cos(t) for t in turn], [short * math.sin(t) for t in turn]
    left.fill(x, y, color=COLORS[0], alpha=0.2)
    left.plot(x, y, color=COLORS[0], lw=2, label="its shadow")
    left.set(aspect="equal", xlim=(-2.2, 2.2), ylim=(-1.15, 1.15), xlabel="along the hinge", ylabel="across")
    left.legend(frameon=False, fontsize=9, loc="upper right")
    angles = [0.5 * i for i in range(179)]
    right.semilogy(angles, [1 / math.cos(math.radians(a)) for a in angles], color=COLORS[0], label="κ⁺(AB)")
    right.axhline(1, color=COLORS[1], ls="--", label="κ⁺(A) κ⁺(B)")
    right.plot([theta], [1 / short], color=COLORS[0], marker="o", ms=8, ls="none")
    right.set(xlabel="tilt θ (degrees)", ylabel="κ⁺ (log scale)", xlim=(0, 90))
    right.legend(frameon=False, fontsize=9, loc="upper left")
    figure.suptitle(title, fontsize=11)
    return figure


def left_against_right(arms: Mapping[str, Sequence[tuple[float, float]]], *, title: str) -> Figure:
    """One panel an arm: the right side against κ(J), both logarithmic, with the line on which they are equal.

    Args:
        arms: name -> pairs (κ(J), right side); infinite ones are left out.
        title: words.
    """
    finite = {arm: [p for p in pairs if all(map(math.isfinite, p))] for arm, pairs in arms.items()}
    words = []
    for arm, pairs in finite.items():
        lows, highs = ([format_number(f(p[k] for p in pairs)) for k in (0, 1)] for f in (min, max))
        words.append(f"{arm}: κ(J) {lows[0]} to {highs[0]}, right side {lows[1]} to {highs[1]}.")
    figure, axes = new_figure(len(arms), (9.8, 3.3), f"{title}. {' '.join(words)}")
    x = [p[0] for pairs in finite.values() for p in pairs]
    y = [p[1] for pairs in finite.values() for p in pairs]
    for i, (ax, (arm, pairs)) in enumerate(zip(axes, finite.items(), strict=True)):
        ends = (min(x) / 2, max(x) * 2)
        ax.plot(ends, ends, color=COLORS[5], ls=":", lw=1.2)
        ax.plot([p[0] for p in pairs], [p[1] for p in pairs], ls="none", marker=MARKERS[i], color=COLORS[i], ms=5,
                alpha=0.75)  # fmt: skip
        ax.set(xscale="log", yscale="log", xlim=ends, ylim=(min(*x, *y) / 2, max(y) * 3), title=arm)
        ax.set(xlabel="κ(J)", ylabel="right side" if not i else "")
    figure.suptitle(f"{title} (log scales; dotted: equal)", fontsize=11)
    return figure
