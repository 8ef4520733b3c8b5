"""Figure of `SpectralMonitor`: how condition numbers move while a model trains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spectral_core.plots.style import COLORS, DASHES, MARKERS, new_figure
from spectral_core.svg import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["spectral_history"]

PANELS = (
    ("q/kappa", "κ of W_Q, worst head", True), ("k/kappa", "κ of W_K, worst head", True),
    ("v/kappa", "κ of W_V, worst head", True), ("kappa_j", "κ(J), worst head", True),
    ("saturation", "saturation: mean of max p", False),
)  # fmt: skip
NAMED = 8  # layers with a line of their own in the legend; more are drawn thin


def spectral_history(history: Sequence[Mapping[str, float]]) -> Figure:
    """One panel for each quantity, one line for each layer, over the training steps.

    Args:
        history: of a `SpectralMonitor`, not empty. Infinite values leave a gap.
    """
    keys = [key for key in history[0] if key != "step"]
    layers = sorted({key.split("/")[1] for key in keys})
    panels = [panel for panel in PANELS if any(key.endswith("/" + panel[0]) for key in keys)]
    steps = [record["step"] for record in history]
    last = [
        f"{title}: " + ", ".join(format_number(history[-1].get(f"spectral/{name}/{key}", math.nan)) for name in layers)
        for key, title, _ in panels
    ]
    alt = f"Spectra of {len(layers)} layers over {len(steps)} looks; at step {steps[-1]}: {'; '.join(last)}."
    figure, axes = new_figure(len(panels), (3.3 * len(panels), 3.4), alt)
    for ax, (suffix, title, is_log) in zip(axes, panels, strict=True):
        for i, layer in enumerate(layers):
            key = f"spectral/{layer}/{suffix}"
            values = [record.get(key, math.nan) for record in history]
            style = {"color": COLORS[i % len(COLORS)], "ls": DASHES[i % len(DASHES)]}
            many = len(layers) > NAMED
            marker = "" if many or len(steps) > 40 else MARKERS[i % len(MARKERS)]
            finite = [v if math.isfinite(v) else math.nan for v in values]
            ax.plot(steps, finite, lw=0.9 if many else 1.6, marker=marker, ms=3.5, label=layer, **style)
        ax.set(xlabel="training step", title=title)
        if is_log:
            ax.set_yscale("log")
    if len(layers) <= NAMED:
        axes[0].legend(fontsize=8, title_fontsize=8)
    return figure
