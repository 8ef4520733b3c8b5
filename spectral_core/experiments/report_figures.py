"""The figures of the report: gains with intervals by group, loss curves, and what predicts the end of training."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spectral_core.experiments.report_data import OUTCOMES, ArmLike, TaskEvidence, number
from spectral_core.experiments.report_predictors import Prediction
from spectral_core.plots.style import COLORS, DASHES, INK, MARKERS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["curves", "forest", "predictors", "slug"]

KINDS = ("plain", "control", "paper", "correction", "rival")
LOOK = dict(zip(KINDS, zip((INK, *COLORS[1:3], COLORS[0], COLORS[3]), MARKERS, strict=False), strict=False))


def slug(words: str) -> str:
    """Words as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_") or "other"


def forest(group: str, found: Sequence[TaskEvidence], arms: Mapping[str, ArmLike]) -> Figure:
    """A row of two panels a task: gains over plain in both outcomes, a marker an arm, its 95 % t interval as a bar."""
    heights = [0.26 * len(e.runs) + 1.0 for e in found]
    size = (10.4, sum(heights) + 0.9)
    alt = f"{group}: gains over plain in final training loss and test metric, by arm, with 95 percent intervals"
    figure, axes = new_figure(2 * len(found), size, alt, rows=len(found))
    axes[0].get_gridspec().set_height_ratios(heights)
    for row, evidence in enumerate(found):
        shown = [arm for arm in evidence.runs if arm in evidence.comparisons["loss"] or evidence.kinds[arm] != "plain"]
        for ax, outcome in zip(axes[2 * row : 2 * row + 2], OUTCOMES, strict=True):
            ax.axvline(0, color=INK, lw=1)
            for place, arm in enumerate(shown):
                compared = evidence.comparisons[outcome].get(arm)
                if compared and compared.to_plain and compared.to_plain.count:
                    gain, (color, marker) = compared.to_plain, LOOK[evidence.kinds[arm]]
                    ax.plot(gain.mean, place, marker=marker, color=color, ms=6)
                    if gain.t:
                        ax.plot(gain.t, (place, place), color=color, lw=2)
            titles = [arms[arm].title for arm in shown] if outcome == "loss" else [""] * len(shown)
            ax.set_yticks(range(len(shown)), titles, fontsize=9)
            ax.set_ylim(len(shown) - 0.4, -0.6)
            name = "final training loss" if outcome == "loss" else f"test {evidence.task.metric}"
            ax.set(title=evidence.title if outcome == "loss" else "", xlabel=f"gain in {name}, better to the right")
            ax.locator_params(axis="x", nbins=6)
    _legend(figure, {evidence.kinds[arm] for evidence in found for arm in evidence.runs} - {"plain"})
    figure.suptitle(f"{group}: gains over plain, paired seeds, 95 % t intervals", fontsize=11)
    return figure


def curves(found: Sequence[TaskEvidence], arms: Mapping[str, ArmLike]) -> Figure:
    """Mean training loss over the seeds: plain, and the best arm of each other kind by its final training loss."""
    columns = min(3, len(found))
    rows = math.ceil(len(found) / columns)
    alt = "Training loss by step, mean over the seeds, of plain and the best arm of each kind, one panel a task"
    figure, axes = new_figure(rows * columns, (10.4, 2.9 * rows + 0.6), alt, rows=rows)
    for ax, evidence in zip(axes, found, strict=False):
        for kind, dash in zip(KINDS, DASHES, strict=False):
            arm = evidence.best("loss", (kind,))
            if arm is None:
                continue
            steps, means = mean_curve(evidence, arm)
            ax.plot(steps, means, color=LOOK[kind][0], ls=dash, lw=1.7, label=arms[arm].title.partition(" (")[0])
        ax.set(title=evidence.title, xlabel="steps")
        positive = [v for line in ax.get_lines() for v in line.get_ydata() if v > 0]
        if positive and max(positive) > 20 * min(positive):
            ax.set_yscale("log")
        if ax.get_lines():
            ax.legend(framealpha=0.8, edgecolor="none", fontsize=7)
    for ax in axes[len(found) :]:
        ax.set_axis_off()
    for ax in axes[::columns]:
        ax.set_ylabel("training loss")
    figure.suptitle("Training loss, mean over seeds; a line ends where a seed diverged", fontsize=11)
    return figure


def mean_curve(evidence: TaskEvidence, arm: str) -> tuple[list[float], list[float]]:
    """Steps that all seeds of the arm have, and the mean loss there; NaN, so a gap, where a seed has no number."""
    lines = [{step: number(v) for step, v in run.line.get("curve") or ()} for run in evidence.runs[arm].values()]
    steps = sorted(set(lines[0]).intersection(*lines[1:]))
    means = [sum(line[step] for line in lines) / len(lines) for step in steps]
    return steps, [m if math.isfinite(m) else math.nan for m in means]


def predictors(found: Mapping[str, Mapping[str, Prediction]], kinds: Mapping[str, str]) -> Figure:
    """One row an outcome, one column a predictor: a marker a run, κ at the start against its rank within the task."""
    columns = len(next(iter(found.values())))
    alt = "Rank of the outcome within its task, 1 worst, against the condition number at the start, a marker a run"
    figure, axes = new_figure(2 * columns, (10.4, 6.6), alt, rows=2)
    panels = [(outcome, name, p) for outcome, row in found.items() for name, p in row.items()]
    for ax, (outcome, name, prediction) in zip(axes, panels, strict=True):
        for kind, (color, marker) in LOOK.items():
            mine = [p for p in prediction.points if kinds[p.arm] == kind and math.isfinite(p.kappa) and p.kappa > 0]
            xs, ys = [p.kappa for p in mine], [p.badness for p in mine]
            ax.plot(xs, ys, ls="none", marker=marker, color=color, ms=4.5, alpha=0.6)
        if any(math.isfinite(p.kappa) and p.kappa > 0 for p in prediction.points):
            ax.set_xscale("log")
            ax.tick_params(axis="x", which="minor", labelbottom=False)
        what = "final training loss" if outcome == "loss" else "test metric"
        ax.set(title=f"ρ = {prediction.pooled_words}", xlabel=f"at the start: {name}", ylim=(-0.05, 1.05))
        ax.title.set_fontsize(9)
        if name == next(iter(found[outcome])):
            ax.set_ylabel(f"rank by {what}, 1 worst")
    present = {kinds[p.arm] for _, _, prediction in panels for p in prediction.points}
    _legend(figure, present)
    figure.suptitle("Which predicts? ρ over ranks within tasks, 95 % bootstrap intervals over arms", fontsize=11)
    return figure


def _legend(figure: Figure, present: set[str]) -> None:
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"ls": "none", "ms": 6}
    handles = [Line2D([], [], color=c, marker=m, label=k, **style) for k, (c, m) in LOOK.items() if k in present]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
