"""What the demo shows, as HTML: the panel beside the sliders, the live charts, and a sentence for each.

Functions of the numbers alone, so that they can be tested without a browser; `STYLE` is what their classes look like.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from html import escape

from spectral_core.demo import EVERY, ROLES, STEPS, Frame, HeadView, Settings, head_view
from spectral_core.svg import STYLE as CHART_STYLE
from spectral_core.svg import Series, bars, format_number, heat_map, line_chart

__all__ = ["STYLE", "Curves", "describe_run", "describe_view", "show_curves", "show_view"]

SERIES = {"loss": "training loss (log scale)", "accuracy": "held-out accuracy", "log_kappa": "log₁₀ κ(J), head 1",
          "saturation": "saturation: mean max attention"}
STYLE = CHART_STYLE + """
.charts { display: grid; gap: .75rem; }
.charts.three { grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); }
.charts.four { grid-template-columns: repeat(auto-fit, minmax(270px, 1fr)); }
.split { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; margin: .5rem 0; }
.maps { display: flex; gap: .75rem; } .maps .chart svg { width: 150px; height: 150px; }
.numbers { border-collapse: collapse; font-variant-numeric: tabular-nums; flex: 1 1 300px; color: var(--ink); }
.numbers caption { font-size: .8rem; text-align: left; caption-side: bottom; padding-top: .3rem; }
.numbers th, .numbers td { padding: .15rem .6rem; border-bottom: 1px solid var(--faint); text-align: right; }
.numbers th[scope=row] { text-align: left; font-weight: 500; }
.numbers td:last-child { font-weight: 700; }
.sentence { font-size: 1.02rem; color: var(--ink); margin: .3rem 0; min-height: 2.6em; }
.notice { border-left: 4px solid var(--cond); padding: .2rem .6rem; margin: .2rem 0; color: var(--ink); }
.key { font-size: .85rem; color: var(--ink); }
.swatch { display: inline-block; width: 12px; height: 12px; vertical-align: -1px; }
.swatch.full { background: var(--cond); opacity: .55; } .swatch.hollow { border: 1.5px dashed var(--base); }
"""


@dataclass
class Curves:
    """What a run has shown so far, as plain lists; `marks` are the steps at which a slider took effect."""

    step: list[int] = field(default_factory=list)
    baseline: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in SERIES})
    conditioned: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in SERIES})
    marks: list[int] = field(default_factory=list)

    def append(self, frame: Frame) -> None:
        self.step.append(frame.baseline.step)
        if frame.changed:
            self.marks.append(frame.baseline.step - EVERY)
        for curve, record in ((self.baseline, frame.baseline), (self.conditioned, frame.conditioned)):
            log_kappa = math.log10(record.kappa_j) if math.isfinite(record.kappa_j) else math.nan
            values = {"loss": record.loss, "accuracy": record.accuracy, "log_kappa": log_kappa,
                      "saturation": record.saturation}
            for name, value in values.items():
                curve[name].append(float(f"{value:.5g}"))


def show_view(settings: Settings, notices: list[str]) -> str:
    """The panel beside the sliders, as HTML."""
    view = head_view(settings)
    warnings = "".join(f'<p class="notice" role="alert">{escape(n)}</p>' for n in notices)
    spectra = "".join(
        bars(f"singular values of W_{r.upper()}", view.before.spectra[r], view.after.spectra[r]) for r in ROLES
    )
    maps = heat_map("attention before", view.before.attention) + heat_map("attention after", view.after.attention)
    return (
        f'{warnings}<p class="sentence" aria-live="polite">{describe_view(view)}</p>'
        f'<div class="split">{_table(view)}<div class="maps">{maps}</div></div>'
        f'<div class="charts three">{spectra}</div>'
        '<p class="key"><span class="swatch hollow"></span> before (dashed line) '
        '<span class="swatch full"></span> after (filled). '
        "Attention maps: a row is a token, more colour is more weight.</p>"
    )


def _table(view: HeadView) -> str:
    def row(name: str, key: str, before: float, after: float) -> str:
        cells = f'<td>{format_number(before)}</td><td id="after-{key}">{format_number(after)}</td>'
        return f'<tr><th scope="row">{name}</th>{cells}</tr>'

    old, new = view.before, view.after
    rows = [row(f"κ(W_{r.upper()})", f"kappa-{r}", old.kappa_w[r], new.kappa_w[r]) for r in ROLES]
    rows.append(row("κ(J), head 1, exact", "kappa-j", old.kappa_j, new.kappa_j))
    rows.append(row("saturation: mean max attention", "saturation", old.saturation, new.saturation))
    rows += [row(f"‖J_{r.upper()}‖", f"norm-{r}", old.block_norms[r], new.block_norms[r]) for r in ROLES]
    return (
        '<table class="numbers"><caption>κ(W): whole 32 × 32 matrices of layer 1. κ(J): its head 1 (n = 16 tokens, '
        "d = 16) on one real digit, at initialisation.</caption>"
        f"<thead><tr><th></th><th>before</th><th>after</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def describe_view(view: HeadView) -> str:
    """One sentence on what the correction did to the head, and the caution it needs."""
    before, after = view.before, view.after
    numbers = f"{format_number(before.kappa_j)} → {format_number(after.kappa_j)}"
    change = f"κ(J) {_went(before.kappa_j, after.kappa_j)} {numbers}."
    qk = max(after.block_norms["q"], after.block_norms["k"])
    if after.saturation > 0.9:
        return (
            f"{change} <strong>But attention has switched off</strong>: on average a token gives "
            f"{after.saturation:.0%} of its weight to one token, and the Q and K blocks of J are at "
            f"{format_number(qk)}. "
            "A small κ(J) bought that way is no gain."
        )
    if after.saturation > 0.5:
        return f"{change} Attention is getting saturated ({after.saturation:.0%} of a token's weight on one token)."
    if after.kappa_j > before.kappa_j:
        return f"{change} This correction makes the head worse: a smaller κ(W) does not promise a smaller κ(J)."
    return f"{change} Attention stays spread out (mean max {after.saturation:.2f}, uniform would be {1 / 16:.2f})."


def _went(before: float, after: float) -> str:
    return "fell" if after < before * 0.99 else "rose" if after > before * 1.01 else "stayed"


def show_curves(curves: Curves, *, steps: int = STEPS) -> str:
    """The live charts, as HTML."""
    charts = []
    for name, title in SERIES.items():
        pair = [Series("baseline", curves.step, curves.baseline[name], "baseline"),
                Series("conditioned", curves.step, curves.conditioned[name], "conditioned")]
        limits = (0.0, 1.0) if name in ("accuracy", "saturation") else None
        charts.append(line_chart(title, pair, x_max=steps, y_range=limits, log_y=name == "loss", marks=curves.marks))
    return f'<div class="charts four" data-frames="{len(curves.step)}">{"".join(charts)}</div>'


def describe_run(curves: Curves, state: str) -> str:
    """The line above the charts: how far the run is, and who is ahead."""
    if not curves.step:
        return f'<p class="sentence" aria-live="polite">{escape(state)}</p>'
    base, cond = curves.baseline["loss"][-1], curves.conditioned["loss"][-1]
    reached = [next((s for s, v in zip(curves.step, c["loss"], strict=True) if v < 0.5), None)
               for c in (curves.baseline, curves.conditioned)]
    said = [f"at step {s}" if s is not None else "not yet" for s in reached]
    saturated = curves.conditioned["saturation"][-1] > 0.9
    return (
        f'<p class="sentence" data-step="{curves.step[-1]}"><span aria-live="polite">{escape(state)}</span> Step '
        f"{curves.step[-1]} of {STEPS}. Loss: baseline {base:.3f}, conditioned {cond:.3f}. Loss 0.5 reached: baseline "
        f"{said[0]}, conditioned {said[1]}."
        + (" <strong>The conditioned head attends to one token only.</strong>" if saturated else "")
        + "</p>"
    )
