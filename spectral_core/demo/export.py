"""A race to take along: its numbers, its picture, and the code that runs it again."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import torch

from spectral_core import __version__
from spectral_core.demo.history import METRICS, History
from spectral_core.demo.race_view import COLOURS, TITLES
from spectral_core.demo.settings import ARMS, Settings, to_query

__all__ = ["to_code", "to_csv", "to_png"]


def to_csv(history: History, settings: Settings) -> str:
    """One line a step and arm, under comment lines that say what it is of."""
    out = io.StringIO()
    out.write(f"# spectral_core {__version__}, torch {torch.__version__}; one seed: {settings.seed}\n")
    out.write(f"# ?{to_query(settings)}\n")
    out.write(f"# sliders moved at steps: {' '.join(map(str, history.marks)) or 'none'}\n")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["step", "arm", "loss", "accuracy", "log10_kappa_j", "saturation"])
    for i, step in enumerate(history.step):
        for name, curves in history.arms.items():
            values = [curves[metric][i] for metric in METRICS]
            writer.writerow([step, name, *("" if v is None else v for v in values)])
    return out.getvalue()


def to_png(history: History) -> bytes:
    """The four charts, on white."""
    from matplotlib.figure import Figure  # not pyplot: that keeps every figure, and is not for threads

    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(2, 2).flat, TITLES.items(), strict=True):
        for name, curves in history.arms.items():
            colour, _, dash = COLOURS[name]
            style = (0, tuple(float(part) for part in dash.split())) if dash else "-"
            values = [float("nan") if v is None else v for v in curves[metric]]
            axes.plot(history.step, values, color=colour, linestyle=style, label=ARMS[name])
            known = [(s, v) for s, v in zip(history.step, curves[metric], strict=True) if v is not None]
            if known and name in history.diverged:
                axes.plot(*known[-1], "x", color=colour, markersize=8)
        for mark in history.marks:
            axes.axvline(mark, color="0.4", linestyle=":", linewidth=1)
        axes.set(title=title, xlabel="step")
        if metric == "loss":
            axes.set_yscale("log")
        elif metric != "log_kappa":
            axes.set_ylim(0, 1)
    if history.arms:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, handlelength=4)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


CODE = '''"""A race of the spectral conditioning demo, run again: python race.py [steps]"""

import sys
from urllib.parse import parse_qsl

import torch

from spectral_core.demo import parse_settings
from spectral_core.demo.race import Race


def settings(query):
    return parse_settings(dict(parse_qsl(query)))[0]


start = {start!r}
changes = {changes}  # (step, address): where sliders were moved

torch.set_num_threads(1)  # as in the demo: other counts round differently
race = Race(settings(start))
while race.step < min(race.steps, int(sys.argv[1] if len(sys.argv) > 1 else race.steps)):
    for step, query in changes:
        if step == race.step:
            race.update(settings(query))
    race.advance()
print(race.frame())
'''


def to_code(settings: Settings, changes: Sequence[tuple[int, str]] = ()) -> str:
    """A script that runs the race again.

    Args:
        settings: of its start.
        changes: (step, address) of later settings.
    """
    listed = "[" + ", ".join(f"({step:d}, {query!r})" for step, query in changes) + "]"
    return CODE.format(start=to_query(settings), changes=listed)
