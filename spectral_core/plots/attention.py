"""Figures of an attention head: the blocks and the spectrum of its Jacobian, its map, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spectral_core.plots.style import COLORS, INK, new_figure
from spectral_core.svg import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["attention_head", "jacobian_blocks", "jacobian_spectrum"]

FLOOR = 1e-18  # drawn in place of anything smaller on a logarithmic axis


def jacobian_blocks(jac: Sequence[Sequence[float]], widths: Mapping[str, int], height: int) -> Figure:
    """The entries of J as colours, its column blocks named, the rows of each token between dotted lines.

    Args:
        jac: rows of J.
        widths: columns of each block by its name, in order.
        height: rows a token.
    """
    top = max(abs(value) for row in jac for value in row)
    size = f"{len(jac)} rows and {sum(widths.values())} columns"
    figure, (ax,) = new_figure(1, (8.4, 3.0), f"Entries of a Jacobian with {size}, in blocks {', '.join(widths)}.")
    image = ax.imshow(jac, cmap="PuOr", vmin=-top, vmax=top, aspect="auto", interpolation="nearest")
    at = 0
    for name, width in widths.items():
        ax.text(at + width / 2 - 0.5, -0.8, f"{name}: {width} columns", ha="center", va="bottom")
        at += width
        ax.axvline(at - 0.5, color=INK, lw=1.5)
    for row in range(height, len(jac), height):
        ax.axhline(row - 0.5, color=INK, lw=0.8, ls=":")
    tokens = range(len(jac) // height)
    ax.set_yticks([height * (i + 0.5) - 0.5 for i in tokens], [f"token {i + 1}" for i in tokens])
    ax.set(xlabel="column: entry of a weight matrix, row by row", ylabel="row: token, value channel")
    ax.grid(False)
    figure.colorbar(image, ax=ax, label="entry of J", fraction=0.05, pad=0.02)
    return figure


def jacobian_spectrum(values: Sequence[float], rank: int, columns: int) -> Figure:
    """Singular values of J by index, with the expected rank marked: what lies beyond it is rounding.

    Args:
        values: descending.
        rank: how many are expected to be more than rounding.
        columns: of J.
    """
    alt = (
        f"{len(values)} singular values of J: {rank} from {format_number(values[0])} down to "
        f"{format_number(values[rank - 1])}, then {len(values) - rank} that are rounding."
    )
    figure, (ax,) = new_figure(1, (7.0, 3.0), alt)
    drawn = [max(value, FLOOR) for value in values]
    ax.semilogy(range(1, len(values) + 1), drawn, color=COLORS[1], marker="o", ms=4.5, ls="none")
    ax.set(xlabel="index of the singular value", ylabel="singular value of J (log scale)")
    if rank < len(values):
        ax.axvline(rank + 0.5, color=COLORS[0], ls="--")
        ax.text(rank, 1e-8, f"{rank} of {columns} columns count", color=COLORS[0], ha="right")
        ax.text(rank + 1, 1e-8, "rounding", color=INK)
    else:
        ax.set_title(f"all {rank} rows count: there are {columns} columns")
    return figure


def attention_head(
    attention: Sequence[Sequence[float]],
    before: Sequence[float],
    after: Sequence[float],
    norms_before: Mapping[str, float],
    norms_after: Mapping[str, float],
    *,
    title: str,
) -> Figure:
    """A corrected head: its attention map, the spectrum of J and the block norms, beside those without correction.

    Args:
        attention: P after the correction.
        before, after: singular values of J, descending.
        norms_before, norms_after: Frobenius norms of the blocks of J, by role "q", "k", "v".
        title: words.
    """
    norms = (
        f"{role.upper()} {format_number(norms_before[role])} to {format_number(value)}"
        for role, value in norms_after.items()
    )
    alt = f"{title}. Block norms of J before and after: {', '.join(norms)}."
    figure, (left, middle, right) = new_figure(3, (9.8, 3.3), alt)
    image = left.imshow(attention, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    left.grid(False)
    left.set(title="attention map P", xlabel="token j attended to", ylabel="token i")
    figure.colorbar(image, ax=left, label="weight p_ij", fraction=0.046, pad=0.04)
    for values, name, color, dash in ((before, "before", COLORS[5], "--"), (after, "after", COLORS[0], "-")):
        drawn = [max(value, FLOOR) for value in values]
        middle.semilogy(range(1, len(values) + 1), drawn, color=color, ls=dash, lw=1.8, label=name)
    middle.set(title="spectrum of J", xlabel="index", ylabel="singular value (log scale)")
    middle.legend(frameon=False, fontsize=9)
    for place, role in enumerate(norms_after):
        right.plot(place, max(norms_before[role], FLOOR), color=COLORS[5], marker="o", mfc="none", ms=10, ls="none")
        right.plot(place, max(norms_after[role], FLOOR), color=COLORS[0], marker="s", ms=6, ls="none")
    right.set(yscale="log", xlim=(-0.5, len(norms_after) - 0.5), title="norms: ○ before, ■ after")
    right.set(ylabel="Frobenius norm (log scale)")
    right.set_xticks(range(len(norms_after)), [f"$J_{role.upper()}$" for role in norms_after])
    figure.suptitle(title, fontsize=11)
    return figure
