"""The demo: shape the spectra of W_Q, W_K, W_V, watch κ and attention change, and race two models live.

    python app.py                open the demo (GRADIO_SERVER_NAME, GRADIO_SERVER_PORT choose the address)
    python app.py --first-run    recompute the run that the page shows at its first paint

All computing is in `spectral_core.demo`, all drawing in `spectral_core.svg`; here are the page and its events.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # no call home, and no wait for one without a network

import gradio as gr
import torch

from spectral_core.demo import (
    EVERY,
    INITS,
    KINDS,
    PRESERVES,
    RANGES,
    ROLES,
    SEED_MAX,
    SOURCES,
    STEPS,
    Frame,
    HeadView,
    Settings,
    head_view,
    parse_settings,
    race,
)
from spectral_core.svg import STYLE, Series, bars, format_number, heat_map, line_chart

log = logging.getLogger("spectral_core.app")

FIRST_RUN = Path(__file__).parent / "results" / "first_run.json"
FRAME_SECONDS = 0.15  # pause between two frames sent to a page
DEADLINE_SECONDS = 300  # of one run
MAX_RUNS = 4  # at once; further visitors wait in the queue
MAX_WAITING = 32
SLIDERS = {  # which sliders belong to which kind, with their names
    "targets": {"min": "σ_min of W_{}", "max": "σ_max of W_{}"},
    "kappa": {"kappa": "target κ of W_{}"},
    "identity": {"lam": "λ on W_{}"},
}
SERIES = {"loss": "training loss (log scale)", "accuracy": "held-out accuracy", "log_kappa": "log₁₀ κ(J), head 1",
          "saturation": "saturation: mean max attention"}


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


class Visit:
    """One visitor's page. It lives in `gr.State`, so no other visitor can reach it.

    Not a dataclass: Gradio would turn that into a dict.
    """

    def __init__(self) -> None:
        self.settings = Settings()
        self.curves = Curves()


# ---- what the page shows ---------------------------------------------------------------------------------


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
        '<span class="swatch full"></span> after (filled). Attention maps: a row is a token, darker is more weight.</p>'
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


# ---- events ----------------------------------------------------------------------------------------------


def control_names() -> list[str]:
    """Every control by name, in the order of the events' inputs."""
    return ["kind", "roles", "preserve", "init", "source", "seed", *(f"{n}_{r}" for n in RANGES for r in ROLES)]


def on_controls(visit: Visit, *values: object) -> str:
    """A control moved: new numbers at once; a run in progress reads `visit.settings` before its next step."""
    visit.settings, notices = parse_settings(dict(zip(control_names(), values, strict=True)))
    return show_view(visit.settings, notices)


def on_start(visit: Visit, *values: object) -> Iterator[tuple[str, str]]:
    """Race the two models; frames at most every FRAME_SECONDS, the last one always."""
    visit.settings, _ = parse_settings(dict(zip(control_names(), values, strict=True)))
    curves = visit.curves = Curves()
    began = sent = time.monotonic()
    ended = "closed"
    try:
        for frame in race(lambda: visit.settings):
            curves.append(frame)
            now = time.monotonic()
            if now - began > DEADLINE_SECONDS:
                ended = f"Ended after {DEADLINE_SECONDS} s, the longest run allowed."
                break
            if now - sent >= FRAME_SECONDS or len(curves.step) == 1:
                yield show_curves(curves), describe_run(curves, "Training.")
                sent = time.monotonic()
        else:
            ended = "Finished."
    except FloatingPointError as error:
        ended = f"Diverged: {error}."
    finally:
        log.info("run ended: %s, step %s", ended, curves.step[-1:] or 0)
    yield show_curves(curves), describe_run(curves, ended)


def on_stop(visit: Visit) -> str:
    return describe_run(visit.curves, "Stopped." if visit.curves.step else "Nothing is running.")


def on_reset(visit: Visit) -> list[object]:
    visit.settings, visit.curves = Settings(), Curves()
    first = read_first_run()
    return [*control_values(Settings()), *group_updates("targets"), show_view(Settings(), []), show_curves(first),
            describe_run(first, "A finished run, computed beforehand.")]


def on_load(visit: Visit, request: gr.Request) -> list[object]:
    """Take settings from the address, e.g. ?kind=identity&lam_q=10; everything is clamped here."""
    query = {name: value for name, value in dict(request.query_params).items() if name in control_names()}
    if not query:
        return [gr.skip() for _ in range(len(control_names()) + len(SLIDERS) + 1)]
    visit.settings, notices = parse_settings(query)
    return [*control_values(visit.settings), *group_updates(visit.settings.kind), show_view(visit.settings, notices)]


def control_values(settings: Settings) -> list[object]:
    """The value of every control, in the order of `control_names`."""
    plain = [settings.kind, [r.upper() for r in settings.roles], settings.preserve, settings.init, settings.source,
             settings.seed]
    return [*plain, *(getattr(settings, name)[r] for name in RANGES for r in ROLES)]


def group_updates(kind: object) -> list[object]:
    return [gr.update(visible=kind == name) for name in SLIDERS]


# ---- the page --------------------------------------------------------------------------------------------


def build() -> gr.Blocks:
    """The page with its events; one `Visit` a browser tab."""
    start, first = Settings(), read_first_run()
    with gr.Blocks(title="Spectral conditioning of attention", analytics_enabled=False) as page:
        visit = gr.State(Visit)
        gr.Markdown(INTRO)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                kinds = [(label, k) for k, label in KINDS.items()]
                kind = gr.Radio(kinds, value=start.kind, label="Correction W → W + C", elem_id="kind")
                roles = gr.CheckboxGroup(["Q", "K", "V"], value=["Q", "K", "V"], label="Applied to", elem_id="roles")
                sliders: dict[str, gr.Slider] = {}
                groups = []
                for group, names in SLIDERS.items():
                    with gr.Group(visible=group == start.kind, elem_id=f"group-{group}") as box:
                        for role in ROLES:
                            for name, label in names.items():
                                low, high, value, step = RANGES[name]
                                text, at = label.format(role.upper()), f"{name}-{role}"
                                slider = gr.Slider(low, high, value, step=step, label=text, elem_id=at)
                                sliders[f"{name}_{role}"] = slider
                    groups.append(box)
                with gr.Accordion("Norm, initial weights, data, seed", open=False):
                    preserve = gr.Radio(list(PRESERVES), value=start.preserve, label="Rescale W + C to W's own norm")
                    init = gr.Radio(list(INITS), value=start.init, label="Q, K, V start as (models: at the next start)")
                    names = {"digits": "8×8 digits (UCI)", "mnist": "28×28 digits (MNIST)"}
                    source = gr.Radio([(names[s], s) for s in SOURCES], value=start.source, label="Images (at the next start)")
                    seed = gr.Number(start.seed, precision=0, minimum=0, maximum=SEED_MAX, label="Seed (at the next start)")
            with gr.Column(scale=5, min_width=340):
                view = gr.HTML(show_view(start, []), elem_id="view")
        with gr.Row():
            go = gr.Button("Start training both", variant="primary", elem_id="start")
            stop = gr.Button("Stop", elem_id="stop")
            reset = gr.Button("Reset", elem_id="reset")
        status = gr.HTML(describe_run(first, "A finished run, computed beforehand."), elem_id="status")
        charts = gr.HTML(show_curves(first), elem_id="curves")
        gr.Markdown(NOTES)

        by_name: dict[str, Any] = {"kind": kind, "roles": roles, "preserve": preserve, "init": init, "source": source,
                                   "seed": seed, **sliders}
        controls = [by_name[name] for name in control_names()]
        inputs = [visit, *controls]
        # preprocess=False: the server's own parser sees the raw value and answers with a sentence, not an error.
        # always_last: the default, "once", would drop the last position of a slider that moves fast.
        gr.on([c.input for c in controls], on_controls, inputs, view, trigger_mode="always_last", preprocess=False,
              show_progress="hidden", queue=False, api_name="controls")
        kind.change(group_updates, kind, groups, show_progress="hidden", queue=False, preprocess=False,
                    api_visibility="private")
        go.click(lambda: describe_run(Curves(), "Waiting for a free place …"), None, status, queue=False,
                 show_progress="hidden", api_visibility="private")
        run = go.click(on_start, inputs, [charts, status], preprocess=False, show_progress="hidden",
                       concurrency_limit=MAX_RUNS, api_name="start")
        stop.click(on_stop, visit, status, cancels=[run], queue=False, show_progress="hidden", api_visibility="private")
        reset.click(on_reset, visit, [*controls, *groups, view, charts, status], cancels=[run], queue=False,
                    show_progress="hidden", api_visibility="private")
        page.load(on_load, visit, [*controls, *groups, view], queue=False, show_progress="hidden",
                  api_visibility="private")
    return page.queue(max_size=MAX_WAITING)


def launch(page: gr.Blocks, **options):
    """Start serving; the look is set here, as Gradio 6 wants it."""
    # run_history copies every frame into the browser's storage: slider latency grew from 25 to over 100 ms in a run
    font = ("ui-sans-serif", "system-ui", "sans-serif")  # Gradio's default asks a font server
    theme = gr.themes.Default(font=font, font_mono=("ui-monospace", "monospace"))
    return page.launch(theme=theme, css=STYLE + CSS, ssr_mode=False, run_history=False,
                       footer_links=["gradio", "settings"], **options)


def read_first_run() -> Curves:
    """The precomputed run, or an empty one when the file is missing."""
    if not FIRST_RUN.exists():
        return Curves()
    return Curves(**json.loads(FIRST_RUN.read_text(encoding="utf-8"))["curves"])


def write_first_run() -> None:
    """Run the race at the default settings to its end and store it."""
    from rich.progress import track

    curves = Curves()
    for frame in track(race(Settings), total=STEPS // EVERY + 1, description="Racing"):
        curves.append(frame)
    FIRST_RUN.parent.mkdir(exist_ok=True)
    about = {"made_by": "python app.py --first-run", "torch": torch.__version__, "seed": Settings().seed}
    FIRST_RUN.write_text(json.dumps({"about": about, "curves": vars(curves)}) + "\n", encoding="utf-8")


INTRO = """# Spectral conditioning of attention, live
Transformers train through the Jacobian of attention, and its condition number κ(J) depends on W_Q, W_K and W_V.
Add a correction C to each, watch **exact** spectra, κ(J) and the attention map answer, then train both models and
keep moving the sliders while they run. After Saratchandran & Lucey, NeurIPS 2025
([arXiv 2603.07162](https://arxiv.org/abs/2603.07162))."""

NOTES = """**What to try.** *λ·I* with λ = 10 on Q, K and V, the paper's default: κ(J) becomes tiny because attention
switches off. λ = 1, then 10, on V only. *Xavier* under "Initial weights", with nothing ticked under
"Applied to": the control to beat. Over 10 paired seeds the polar correction reached loss 0.5 in 33 ± 3 fewer steps than
the small default weights (137), plain Xavier in 28 ± 7 fewer without any correction, and no correction beat plain
Xavier by more than its interval.

**What this does not show.** One small ViT, one head, one seed a run; records every 5 steps. Differences of a few
percent between two runs are noise: change the seed. Both models see the same batches, AdamW, learning rate 10⁻³,
weight decay 0.05. Dotted verticals mark where a slider took effect."""

CSS = """
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first-run", action="store_true", help="recompute results/first_run.json and leave")
    parser.add_argument("--port", type=int, help="port (default: GRADIO_SERVER_PORT, or the first free from 7860)")
    parser.add_argument("--open", action="store_true", help="open a browser window")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    torch.set_num_threads(1)  # several small runs at once: threads inside one operation would only fight
    if options.first_run:
        write_first_run()
        return
    launch(build(), server_port=options.port, inbrowser=options.open)


if __name__ == "__main__":
    main()
