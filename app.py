"""The demo: shape the spectra of W_Q, W_K, W_V, watch κ and attention change, and race two models live.

    python app.py                open the demo (GRADIO_SERVER_NAME, GRADIO_SERVER_PORT choose the address)
    python app.py --first-run    recompute the run that the page shows at its first paint

All computing is in `spectral_core.demo`, all that is shown in `spectral_core.views`; here are the page and its events.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Iterator
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
    Settings,
    parse_settings,
    race,
)
from spectral_core.views import STYLE, Curves, describe_run, show_curves, show_view

log = logging.getLogger("spectral_core.app")

FIRST_RUN = Path(__file__).parent / "results" / "first_run.json"
FRAME_SECONDS = 0.15  # pause between two frames sent to a page
DEADLINE_SECONDS = 300  # of one run
MAX_RUNS = max(2, os.cpu_count() or 2)  # at once, one a core; further visitors wait in the queue
MAX_WAITING = 32
NOTHING = (gr.skip(), gr.skip())  # an event that ends without a yield would blank its outputs
SLIDERS = {  # which sliders belong to which kind, with their names
    "targets": {"min": "σ_min of W_{}", "max": "σ_max of W_{}"},
    "kappa": {"kappa": "target κ of W_{}"},
    "identity": {"lam": "λ on W_{}"},
}


class Visit:
    """One visitor's page. It lives in `gr.State`, so no other visitor can reach it.

    Not a dataclass: Gradio would turn that into a dict.
    """

    def __init__(self) -> None:
        self.settings = Settings()
        self.curves = Curves()
        self.run = 0  # counts the starts: a run that is no longer the newest ends
        self.claimed = -1  # the start that a run has taken up
        self.asked = ""  # "run", "stop" or "reset"; "" when nothing is running


# ---- events ----------------------------------------------------------------------------------------------


def control_names() -> list[str]:
    """Every control by name, in the order of the events' inputs."""
    return ["kind", "roles", "preserve", "init", "source", "seed", *(f"{n}_{r}" for n in RANGES for r in ROLES)]


def on_controls(visit: Visit, *values: object) -> str:
    """A control moved: new numbers at once; a run in progress reads `visit.settings` before its next step."""
    visit.settings, notices = parse_settings(dict(zip(control_names(), values, strict=True)))
    return show_view(visit.settings, notices)


def on_prepare(visit: Visit) -> str:
    """Start was pressed: the run may have to wait for its turn."""
    visit.run, visit.asked = visit.run + 1, "run"
    return describe_run(Curves(), "Waiting for a free place …")


def on_start(visit: Visit, *values: object) -> Iterator[tuple[Any, Any]]:
    """Race the two models; frames at most every FRAME_SECONDS, the last one always.

    Stop and Reset are obeyed here, between two frames, rather than by cancelling the event: then the last frame is
    this run's own, and no frame that was on its way can overwrite it.
    """
    visit.settings, _ = parse_settings(dict(zip(control_names(), values, strict=True)))
    if visit.claimed == visit.run:  # Start was pressed again while this one waited: one run for both
        yield NOTHING
        return
    run = visit.claimed = visit.run
    curves = visit.curves = Curves()
    began = sent = time.monotonic()
    ended = "closed"
    try:
        for frame in race(lambda: visit.settings):
            if visit.run != run or visit.asked in ("stop", "reset"):
                ended = "Stopped."
                break
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
        log.info("run ended: %s, step %s", ended, curves.step[-1] if curves.step else 0)
    if visit.run != run:  # a newer start shows its own frames
        yield NOTHING
    else:
        asked, visit.asked = visit.asked, ""
        if asked == "reset":
            yield show_first_run()
        elif curves.step:
            yield show_curves(curves), describe_run(curves, ended)
        else:
            yield show_first_run()[0], describe_run(curves, "Stopped before it began.")


def on_stop(visit: Visit) -> str:
    if visit.asked != "run":
        return describe_run(visit.curves, "Nothing is running.")
    visit.asked = "stop"
    return describe_run(visit.curves, "Stopped.")


def on_reset(visit: Visit) -> list[object]:
    visit.settings, visit.curves = Settings(), Curves()
    visit.asked = visit.asked and "reset"
    return [*control_values(Settings()), *group_updates("targets"), show_view(Settings(), []), *show_first_run()]


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
    start = Settings()
    first_charts, first_sentence = show_first_run()
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
                    at_start = "The models take it up at the next start."
                    init = gr.Radio(list(INITS), value=start.init, label="Q, K, V start as", info=at_start)
                    names = {"digits": "8×8 digits (UCI)", "mnist": "28×28 digits (MNIST)"}
                    sources = [(names[s], s) for s in SOURCES]
                    source = gr.Radio(sources, value=start.source, label="Images", info=at_start)
                    seed = gr.Number(start.seed, precision=0, minimum=0, maximum=SEED_MAX, label="Seed", info=at_start)
            with gr.Column(scale=5, min_width=340):
                view = gr.HTML(show_view(start, []), elem_id="view")
        with gr.Row():
            go = gr.Button("Start training both", variant="primary", elem_id="start")
            stop = gr.Button("Stop", elem_id="stop")
            reset = gr.Button("Reset", elem_id="reset")
        status = gr.HTML(first_sentence, elem_id="status")
        charts = gr.HTML(first_charts, elem_id="curves")
        gr.Markdown(NOTES)

        by_name: dict[str, Any] = {"kind": kind, "roles": roles, "preserve": preserve, "init": init, "source": source,
                                   "seed": seed, **sliders}
        controls = [by_name[name] for name in control_names()]
        inputs = [visit, *controls]
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        # preprocess=False: the server's own parser sees the raw value and answers with a sentence, not an error.
        # always_last: the default, "once", would drop the last position of a slider that moves fast.
        gr.on([c.input for c in controls], on_controls, inputs, view, trigger_mode="always_last", preprocess=False,
              show_progress="hidden", queue=False, api_name="controls")
        kind.change(group_updates, kind, groups, queue=False, preprocess=False, **hidden)
        go.click(on_prepare, visit, status, queue=False, **hidden).then(
            on_start, inputs, [charts, status], preprocess=False, trigger_mode="multiple", concurrency_limit=MAX_RUNS,
            **hidden)
        stop.click(on_stop, visit, status, queue=False, **hidden)
        reset.click(on_reset, visit, [*controls, *groups, view, charts, status], queue=False, **hidden)
        page.load(on_load, visit, [*controls, *groups, view], queue=False, **hidden)
    return page.queue(max_size=MAX_WAITING)


def launch(page: gr.Blocks, **options):
    """Start serving; the look is set here, as Gradio 6 wants it."""
    # run_history copies every frame into the browser's storage: slider latency grew from 25 to over 100 ms in a run
    font = ("ui-sans-serif", "system-ui", "sans-serif")  # Gradio's default asks a font server
    theme = gr.themes.Default(font=font, font_mono=("ui-monospace", "monospace"))
    return page.launch(theme=theme, css=STYLE, ssr_mode=False, run_history=False,
                       footer_links=["gradio", "settings"], **options)


def show_first_run() -> tuple[str, str]:
    """Charts and sentence of the precomputed run."""
    first = read_first_run()
    return show_curves(first), describe_run(first, "A finished run, computed beforehand.")


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
