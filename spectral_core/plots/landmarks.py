"""Figure of the matrix that Nyströmformer inverts: its entries, which directions get inverted, and the errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spectral_core.plots.style import COLORS, DASHES, INK, MARKERS, new_figure
from spectral_core.svg import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["landmark_inverse"]

FLOOR = 1e-12  # drawn in place of anything smaller on a logarithmic axis


def landmark_inverse(
    matrix: Sequence[Sequence[float]],
    values: Sequence[float],
    inverted: Sequence[float],
    errors: Mapping[str, Sequence[float]],
    *,
    steps: int,
    reach: float,
    title: str,
) -> Figure:
    """The landmark matrix, how much of each of its directions is inverted, and errors by step of the iteration.

    Args:
        matrix: A, rows sum to 1.
        values: σ_max/σ_i, ascending.
        inverted: the share σ_i z_i of each, 1 when the inverse is right there.
        errors: name -> error after 0, 1, … steps.
        steps: where the curves are read.
        reach: the κ that so many steps invert.
        title: words.
    """
    done = sum(share > 0.5 for share in inverted)
    now = "; ".join(f"{name} {format_number(line[steps])}" for name, line in errors.items())
    alt = f"{title}. {done} of {len(values)} directions are inverted by more than half. After {steps} steps: {now}."
    figure, (left, middle, right) = new_figure(3, (9.8, 3.3), alt)
    image = left.imshow(matrix, cmap="cividis", vmin=0, interpolation="nearest")
    left.grid(False)
    left.set(title="landmark matrix A", xlabel="landmark attended to", ylabel="landmark")
    figure.colorbar(image, ax=left, label="weight", fraction=0.046, pad=0.04)
    shown = [min(value, 1 / FLOOR) for value in values]
    middle.plot(shown, inverted, color=COLORS[1], marker="o", ms=5, lw=1.2)
    middle.axvline(reach, color=INK, ls=":")
    middle.annotate(f"{reach:.3g}", (reach, 1.02), (3, 0), textcoords="offset points", fontsize=9)
    middle.set(xscale="log", ylim=(-0.05, 1.15), xlim=(0.7, max(100.0, 2 * shown[-1])))
    middle.set(title="what gets inverted", xlabel="σ_max / σ_i (log scale)", ylabel=f"share after {steps} steps")
    for (name, line), color, dash, marker in zip(errors.items(), COLORS, DASHES, MARKERS, strict=False):
        drawn = [max(error, FLOOR) for error in line]
        right.semilogy(range(len(line)), drawn, color=color, ls=dash, marker=marker, ms=3.5, lw=1.6, label=name)
    right.axvline(steps, color=INK, ls=":")
    right.set(title="errors by step", xlabel="step of the iteration", ylabel="relative error (log scale)")
    right.legend(loc="center left", frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure
