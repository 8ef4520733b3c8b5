"""Figures of lesson 5: what λI does to single matrices, how often it helps, and which entries it touches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spectral_core.plots.style import COLORS, DASHES, INK, MARKERS, new_figure
from spectral_core.svg import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["before_after", "identity_patterns", "kappa_tail", "shifted_plane", "success_curves"]


def before_after(pairs: Sequence[tuple[float, float]], *, title: str) -> Figure:
    """κ of each matrix before (○) and after, as arrows along a row: ▲ where it rose, ■ where it did not."""
    rose = [after > before for before, after in pairs]
    listed = ", ".join(f"{format_number(a)} to {format_number(b)}" for a, b in pairs)
    figure, (ax,) = new_figure(1, (8.0, 3.4), f"{title}. κ rose for {sum(rose)} of {len(pairs)} matrices: {listed}.")
    for row, ((before, after), up) in enumerate(zip(pairs, rose, strict=True)):
        style: dict[str, Any] = {"color": COLORS[0 if up else 1]}
        ax.plot([before, after], [row, row], lw=1.6, ls=DASHES[0 if up else 1], **style)
        ax.plot(before, row, marker="o", mfc="white", ms=6, ls="none", **style)
        ax.plot(after, row, marker="^" if up else "s", ms=7, ls="none", **style)
    ax.plot([], [], marker="^", ms=7, color=COLORS[0], label="after, κ rose")
    ax.plot([], [], marker="s", ms=7, color=COLORS[1], ls="--", label="after, κ fell")
    ax.plot([], [], marker="o", mfc="white", ms=6, color=INK, ls="none", label="before")
    ax.set(title=title, xscale="log", xlabel="condition number (log scale)", ylabel="matrix")
    ax.set(ylim=(len(pairs) - 0.5, -0.5), yticks=range(len(pairs)))
    ax.tick_params(axis="y", labelsize=9)
    ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def shifted_plane(
    eigenvalues: Sequence[complex],
    lams: Sequence[float],
    kappas: Sequence[float],
    *,
    lam: float,
    sigma: float,
    certain: float,
    title: str,
) -> Figure:
    """The eigenvalues of W (of its square part) with the point −λ, and κ(W + λI) against λ.

    Args:
        eigenvalues: of W, or of its first rows.
        lams, kappas: ascending from 0, and κ(W + λI) at each.
        lam: the λ to mark.
        sigma: σ_max(W).
        certain: the λ above which κ must fall.
        title: words.
    """
    at = min(range(len(lams)), key=lambda i: abs(lams[i] - lam))
    alt = (
        f"{title}. κ is {format_number(kappas[0])} at λ = 0 and {format_number(kappas[at])} at λ = {lam:.3g}; σ_max is "
        f"{sigma:.3g}, and κ must fall from λ = {format_number(certain)} on."
    )
    figure, (left, right) = new_figure(2, (9.8, 3.5), alt)
    turn = [2 * math.pi * i / 120 for i in range(121)]
    left.plot([sigma * math.cos(t) for t in turn], [sigma * math.sin(t) for t in turn], color=INK, ls=":", lw=1)
    left.plot([z.real for z in eigenvalues], [z.imag for z in eigenvalues], "o", color=COLORS[1], ms=3.5)
    left.plot(-lam, 0, marker="X", color=COLORS[0], ms=10, ls="none")
    reach = 1.15 * sigma
    left.set(xlim=(-max(reach, 1.1 * lam), reach), ylim=(-reach, reach), aspect="equal", xlabel="real part",
             ylabel="imaginary part", title="• eigenvalues,  ✖ −λ,  ⋯ |z| = σ_max")  # fmt: skip
    top = 1e9  # an infinite κ is drawn there
    right.semilogy(lams, [min(k, top) for k in kappas], color=COLORS[1], lw=1.6, label="κ(W + λI)")
    right.plot(lams[at], min(kappas[at], top), marker="X", color=COLORS[0], ms=10, ls="none", label=f"at λ = {lam:.3g}")
    right.axhline(kappas[0], color=INK, ls=":", label=f"κ(W) = {format_number(kappas[0])}")
    right.axvline(sigma, color=COLORS[2], ls="--", label=f"σ_max = {sigma:.3g}")
    if certain <= lams[-1]:
        right.axvline(certain, color=COLORS[3], ls="-.", label=f"certain from {certain:.3g}")
    if lams[-1] >= 2:
        right.axvline(2, color=COLORS[4], ls=(0, (1, 1)), label="λ = 2")
    right.set(xlabel="λ", ylabel="condition number (log scale)", xlim=(0, lams[-1]))
    right.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title, fontsize=11)
    return figure


def success_curves(
    x: Sequence[float], curves: Mapping[str, Sequence[tuple[float, float, float]]], *, title: str
) -> Figure:
    """Share of matrices whose κ fell, (share, low, high) at each λ/σ_max, with its interval as a band."""
    ends = "; ".join(
        f"{name}: " + ", ".join(f"{share:.2f} at {at:g}" for at, (share, _, _) in zip(x, points, strict=True))
        for name, points in curves.items()
    )
    figure, (ax,) = new_figure(1, (7.8, 3.4), f"{title}, against λ/σ_max. {ends}.")
    for (name, points), color, marker, dash in zip(curves.items(), COLORS, MARKERS, DASHES, strict=False):
        shares, lows, highs = zip(*points, strict=True)
        ax.fill_between(x, lows, highs, color=color, alpha=0.18, lw=0)
        ax.plot(x, shares, color=color, marker=marker, ls=dash, ms=5, label=name)
    ax.axvline(1, color=INK, ls=":", lw=1)
    ax.annotate("σ_max", (1, 0.03), (4, 0), textcoords="offset points")
    ax.axvline(0.5, color=INK, ls=":", lw=1)
    ax.annotate("σ_max/2", (0.5, 0.03), (4, 0), textcoords="offset points")
    ax.set(title=title, xlabel="λ / σ_max(W)", ylabel="P[κ(W + λI) < κ(W)]", ylim=(0, 1.04), xlim=(0, x[-1]))
    ax.legend(frameon=False, loc="lower right")
    return figure


def kappa_tail(ratios: Sequence[float], law: Mapping[float, float], *, median: float, title: str) -> Figure:
    """The share of matrices with κ/n above x, and the limit law for large n.

    Args:
        ratios: κ/n of each matrix.
        law: x -> probability of κ/n > x.
        median: of the ratios.
        title: words.
    """
    ordered, count = sorted(ratios), len(ratios)
    alt = f"{title}. Half of {count} matrices have κ/n above {median:.2f}, one has {format_number(ordered[-1])}."
    figure, (ax,) = new_figure(1, (7.4, 3.3), alt)
    shares = [1 - (i + 0.5) / count for i in range(count)]
    ax.loglog(ordered, shares, color=COLORS[1], marker="o", ms=3, ls="none", label=f"{count} Gaussian matrices")
    ax.loglog(list(law), list(law.values()), color=COLORS[0], lw=1.8, label="limit law of Edelman")
    ax.axhline(0.5, color=INK, ls=":", lw=1)
    ax.annotate(f"median {median:.2f}", (median, 0.5), (8, 5), textcoords="offset points")
    ax.set(title=title, xlabel="κ / n (log scale)", ylabel="share above (log scale)", ylim=(0.4 / count, 1.5))
    ax.legend(frameon=False, loc="lower left")
    return figure


def identity_patterns(patterns: Mapping[str, Sequence[Sequence[float]]], width: int) -> Figure:
    """Where each correction has its ones; columns of one head lie between the lines.

    Args:
        patterns: name -> rows.
        width: columns of a head.
    """
    ones = {name: sum(map(sum, rows)) for name, rows in patterns.items()}
    words = "; ".join(
        f"{name}: {int(ones[name])} ones in {len(rows)} × {len(rows[0])}" for name, rows in patterns.items()
    )
    figure, axes = new_figure(len(patterns), (9.8, 2.4), f"Which entries each identity touches. {words}.")
    axes[0].get_gridspec().set_width_ratios([len(rows[0]) + 2 for rows in patterns.values()])
    for ax, (name, rows), color in zip(axes, patterns.items(), COLORS, strict=False):
        columns = len(rows[0])
        ax.imshow(rows, cmap="Greys", vmin=0, vmax=1.3, interpolation="nearest")
        for at in range(width, columns, width):
            thick = at % len(rows) == 0
            ax.axvline(at - 0.5, color=color, lw=2.2 if thick else 1, ls="-" if thick else "--")
        ax.grid(False)
        ax.spines[["top", "right"]].set_visible(True)
        ax.set(title=name, xticks=[], yticks=[], xlabel=f"{columns} columns", ylabel=f"{len(rows)} inputs")
    return figure
