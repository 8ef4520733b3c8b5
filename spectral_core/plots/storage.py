"""Figures of stored weights: where queries, keys and values lie, what a wrong reading takes, and κ of every head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from spectral_core.plots.style import COLORS, INK, new_figure
from spectral_core.svg import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["head_grid", "reading", "storage"]

FILL = dict(zip("qkv", COLORS[1:4], strict=True))
HATCH = {"q": "", "k": "//", "v": ".."}


def storage(weights: Mapping[str, tuple[str, bool, int]]) -> Figure:
    """Stored weights as rectangles with the rows (or columns) of each role; every one has the same scale.

    Args:
        weights: name -> (role of each output, in order of storage, one letter each; whether outputs are columns;
            number of inputs).
    """
    words = []
    for name, (roles, columns, _) in weights.items():
        blocks = "|".join(f"{role.upper()} {count}" for role, _, count in _runs(roles))
        words.append(f"{name}: {'columns' if columns else 'rows'} in order {blocks}.")
    alt = f"Where queries, keys and values lie in {len(weights)} stored weights. {' '.join(words)}"
    figure, axes = new_figure(len(weights), (9.8, 2.6), alt)
    most = max(len(roles) for roles, _, _ in weights.values())
    for ax, (name, (roles, columns, inputs)) in zip(axes, weights.items(), strict=True):
        for role, start, count in _runs(roles):
            corner, size = ((start, 0), (count, inputs)) if columns else ((0, start), (inputs, count))
            _box(ax, role, corner, size, label=count * 13 > most)
        across, down = ("outputs", "inputs") if columns else ("inputs", "outputs")
        ax.set(title=name, xlim=(0, 1.02 * most), ylim=(1.02 * most, 0), aspect="equal", xlabel=across, ylabel=down)
        ax.grid(False)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[["left", "bottom"]].set_visible(False)
    return figure


def reading(stored: str, read: str, role: str, *, title: str) -> Figure:
    """Three strips of outputs: what is stored, how it is read, and what the reading takes for `role`.

    Args:
        stored, read: the role of each output, one letter each, in truth and in the reading.
        role: "q", "k" or "v".
        title: words.
    """
    taken = [true for true, said in zip(stored, read, strict=True) if said == role]
    shares = {r: taken.count(r) / len(taken) for r in "qkv"}
    found = ", ".join(f"{100 * share:.0f} % {r.upper()}" for r, share in shares.items())
    alt = f"{title}. {len(stored)} outputs. Of those that the reading takes for {role.upper()}: {found}."
    figure, (ax,) = new_figure(1, (9.8, 2.6), alt)
    caught = "".join(true if said == role else " " for true, said in zip(stored, read, strict=True))
    for line, roles in enumerate((stored, read, caught)):
        for r, start, count in _runs(roles):
            _box(ax, r, (start, line + 0.1), (count, 0.8), label=count * 30 > len(stored))
    ax.set_yticks([0.5, 1.5, 2.5], ["stored", "read as", f"taken for {role.upper()}"])
    ax.set(title=f"{title}: {found}", xlim=(0, len(stored)), ylim=(3, 0), xlabel="output of the stored weight")
    ax.grid(False)
    return figure


def head_grid(values: Sequence[Sequence[float]], *, title: str, chance: float, top: float) -> Figure:
    """A number for every head of every layer, darker where it is larger.

    Args:
        values: by layer, by head.
        title: words.
        chance: the number that a random matrix has; drawn on the colour bar.
        top: the value of the darkest colour.
    """
    layers = "; ".join(f"layer {i}: {min(row):.1f} to {max(row):.1f}" for i, row in enumerate(values))
    alt = f"{title}, by layer and head. {layers}. A random matrix of this shape: {format_number(chance)}."
    figure, (ax,) = new_figure(1, (9.4, 3.3), alt)
    image = ax.imshow(values, cmap="Oranges", vmin=1, vmax=top, aspect="auto", interpolation="nearest")
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            color = "#FFFFFF" if value > 1 + 0.65 * (top - 1) else INK
            ax.text(j, i, f"{value:.1f}", ha="center", va="center", color=color, fontsize=9.5)
    ax.set_xticks(range(len(values[0])))
    ax.set_yticks(range(len(values)))
    ax.set(title=title, xlabel="head", ylabel="layer")
    ax.grid(False)
    bar = figure.colorbar(image, ax=ax, label=f"κ (chance: {format_number(chance)})", fraction=0.05, pad=0.02)
    bar.ax.axhline(chance, color=INK, lw=2)
    return figure


def _runs(roles: str) -> list[tuple[str, int, int]]:
    """(role, start, length) of each run of equal letters; spaces are left out."""
    runs, at = [], 0
    for role, group in groupby(roles):
        count = len(list(group))
        if role != " ":
            runs.append((role, at, count))
        at += count
    return runs


def _box(ax: Any, role: str, corner: tuple[float, float], size: tuple[float, float], *, label: bool) -> None:
    from matplotlib.patches import Rectangle

    # the letter, or the hatch where there is no room for it, says the same as the colour
    style: dict[str, Any] = {
        "facecolor": FILL[role],
        "alpha": 0.55,
        "edgecolor": INK,
        "lw": 0.8,
        "hatch": "" if label else HATCH[role],
    }
    ax.add_patch(Rectangle(corner, *size, **style))
    if label:
        middle = corner[0] + size[0] / 2, corner[1] + size[1] / 2
        ax.text(*middle, role.upper(), ha="center", va="center", fontsize=10.5, color=INK)
