"""The whole page: presets, three tabs, the column of controls, and the events that reach across them."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import gradio as gr

from spectral_core.audit.store import AuditError
from spectral_core.demo.page.audit import make_audit_tab
from spectral_core.demo.page.controls import (
    HIDDEN,
    SHOW_GROUPS,
    Controls,
    control_values,
    group_updates,
    make_controls,
)
from spectral_core.demo.page.race import RaceTab, make_race_tab, wire_race
from spectral_core.demo.page.texts import INTRO, NOTES, STYLE, story
from spectral_core.demo.page.visit import Visit, fleet
from spectral_core.demo.presets import PRESETS, read_history
from spectral_core.demo.race_view import describe_race, show_race
from spectral_core.demo.settings import ROLES, Settings, control_names, parse_settings
from spectral_core.demo.shape_view import show_view

__all__ = ["build", "launch"]

FIRST = "saturation"  # the preset of the first paint
BEFOREHAND = "A finished run, computed beforehand."
SEND = "window.sendDrawing = (text) => { props.value = text; trigger('input'); };"
MAX_WAITING = 64  # events of the queue
LARGEST_UPLOAD = "300mb"
SPOKEN = {"common.complete": "Done"}  # Gradio 6.31 reads the key itself aloud


def build() -> gr.Blocks:
    """The page with its events; one `Visit` a browser tab."""
    first = visit_of(FIRST)
    controls = Controls()
    with gr.Blocks(title="Spectral conditioning of attention", analytics_enabled=False,
                   delete_cache=(3600, 3600)) as page:
        # a value, copied for each visitor: a function would run in an event of its own, maybe after `on_load`
        visit = gr.State(first, delete_callback=Visit.leave)
        gr.Markdown(INTRO)
        with gr.Row(elem_id="presets", elem_classes="buttons"):
            buttons = {name: gr.Button(p.title, size="sm", min_width=130, elem_id=f"preset-{name}")
                       for name, p in PRESETS.items()}
        told = gr.HTML(story(FIRST), elem_id="story")
        with gr.Row(elem_id="main"):
            with gr.Column(scale=5, min_width=320), gr.Tabs(elem_id="tabs"):
                with gr.Tab("Shape", id="shape"):
                    script = files("spectral_core.demo.page").joinpath("shape.js").read_text(encoding="utf-8")
                    view = gr.HTML(show_view(first.settings), elem_id="view", js_on_load=script)
                    drawing = gr.HTML("", elem_id="drawing", visible="hidden", html_template="", js_on_load=SEND)
                with gr.Tab("Race", id="race"):
                    tab = make_race_tab(controls, first, BEFOREHAND)
                with gr.Tab("Audit", id="audit-tab"):
                    make_audit_tab()
            with gr.Column(scale=2, min_width=300, elem_id="controls"):
                make_controls(controls)
        gr.Markdown(NOTES)
        for component, value in zip(controls.listed, control_values(first.settings), strict=True):
            component.value = value
        for group, update in zip(controls.groups, group_updates(first.settings.kind), strict=True):
            group.visible = update["visible"]
        carrier = gr.Textbox(visible="hidden", elem_id="carrier")
        connect(page, visit, controls, tab, view, drawing, told, buttons, carrier)
    return page.queue(max_size=MAX_WAITING, default_concurrency_limit=None)


def connect(page: gr.Blocks, visit: gr.State, controls: Controls, tab: RaceTab, view: Any, drawing: Any, told: Any,
            buttons: dict[str, Any], carrier: Any) -> None:
    """The events of the whole page.

    What changes many components comes as one text, `carrier`, and is spread in the browser: Gradio 6.31 looks through
    every component that an event of the server ever changed, and all that is in it, at every event that follows.
    """
    everything = [*controls.listed, *controls.groups, view, told, *tab.shown]
    quick: dict[str, Any] = {"queue": False, "preprocess": False, **HIDDEN}
    # always_last: the default, "once", would drop the last position of a slider that moves fast
    last: dict[str, Any] = {"trigger_mode": "always_last", **quick}
    drawn = [f"drawn_{role}" for role in ROLES]
    drawing_events = [drawing.input(on_dragged, [visit, drawing], carrier, api_name="dragged", **last)]
    for name, control in controls.by_name.items():
        # one control an event: Gradio looks through every component that any event ever took, too
        if name in drawn:
            typed = gr.on([control.submit, control.blur], typed_event(name), [visit, control], carrier,
                          api_name=f"set_{name}", **last)
            drawing_events.append(typed)
        else:
            control.input(control_event(name), [visit, control], view, api_name=f"set_{name}", **last)
    shown = [view, controls.by_name["kind"], *controls.groups, *(controls.by_name[name] for name in drawn)]
    for event in drawing_events:
        event.then(None, carrier, shown, js="JSON.parse", **HIDDEN)
    controls.by_name["kind"].input(None, controls.by_name["kind"], controls.groups, js=SHOW_GROUPS, **HIDDEN)
    wire_race(tab, visit)
    events = [tab.buttons["reset"].click(on_reset, visit, carrier, api_name="reset", **quick)]
    for name, button in buttons.items():
        events.append(button.click(preset_event(name), visit, carrier, api_name=f"preset_{name.replace('-', '_')}",
                                   **quick))
    events.append(page.load(on_load, visit, carrier, api_name="load", **quick))
    for event in events:
        event.then(None, carrier, everything, js="JSON.parse", **HIDDEN)


# ---- events ----------------------------------------------------------------------------------------------


def control_event(name: str):
    def on_control(visit: Visit, value: object) -> str:
        """A control moved: new numbers at once."""
        return view_of(visit, visit.change({name: value}))

    return on_control


def typed_event(name: str):
    def on_typed(visit: Visit, value: object) -> str:
        """Singular values were typed: they become the correction, and are shown as they were understood."""
        return show_drawing(visit, {name: value})

    return on_typed


def on_dragged(visit: Visit, drawing: object) -> str:
    """Bars were dragged: the drawing, {role: values} as JSON, becomes the correction."""
    try:
        drawn = json.loads(drawing) if isinstance(drawing, str) and len(drawing) < 4000 else {}
    except (ValueError, RecursionError):
        drawn = {}
    given = {f"drawn_{role}": drawn[role] for role in ROLES if role in drawn} if isinstance(drawn, dict) else {}
    return show_drawing(visit, given)


def on_reset(visit: Visit) -> str:
    return take_preset(visit, FIRST)


def preset_event(name: str):
    def on_preset(visit: Visit) -> str:
        return take_preset(visit, name)

    return on_preset


def on_load(visit: Visit, request: gr.Request) -> str:
    """Take settings from the address, e.g. ?kind=identity&lam_q=10 or ?preset=saturation; all is clamped here."""
    given = {name: value[:2000] for name, value in dict(request.query_params).items()}
    query = {name: value for name, value in given.items() if name in control_names()}
    preset = given.get("preset", "")
    if not query and preset not in PRESETS:
        return json.dumps([gr.skip()] * (len(control_names()) + len(group_updates("")) + 5))
    named = preset in PRESETS
    base = dict(pair.split("=", 1) for pair in PRESETS[preset].query.split("&")) if named else {}
    settings, notices = parse_settings(base | query)
    told = preset if named else ""
    return show_all(visit, settings, notices, told)


# ---- what they show --------------------------------------------------------------------------------------


def take_preset(visit: Visit, name: str) -> str:
    return show_all(visit, PRESETS[name].settings, [], name)


def show_drawing(visit: Visit, drawn: dict[str, object]) -> str:
    panel = view_of(visit, visit.change(drawn | {"kind": "drawn"}))
    texts = dict(zip(control_names(), control_values(visit.settings), strict=True))
    return json.dumps([panel, "drawn", *group_updates("drawn"), *(texts[f"drawn_{role}"] for role in ROLES)])


def show_all(visit: Visit, settings: Settings, notices: list[str], preset: str) -> str:
    """Settings, view and race of a preset ("" for none: then the race that is shown stays); a run that is on ends."""
    visit.put(settings, read_history(preset) if preset else None)
    shown: list[object] = [gr.skip()] * 3
    if preset:
        shown = [show_race(visit.history), describe_race(visit.history, BEFOREHAND), visit.history.step[-1]]
    return json.dumps([*control_values(settings), *group_updates(settings.kind), view_of(visit, notices),
                       story(preset), *shown])


def view_of(visit: Visit, notices: list[str]) -> str:
    """The panel, or a sentence where MiniLM is not installed."""
    turn, settings = visit.turn, visit.settings
    try:
        shown = show_view(settings, notices)
    except AuditError as error:
        shown = show_view(parse_settings({})[0], [*notices, f"{error}; small random weights are shown"])
    return shown.replace("<div ", f'<div data-turn="{turn}" ', 1)  # the script drops one that a newer one overtook


def visit_of(preset: str) -> Visit:
    visit = Visit()
    visit.put(PRESETS[preset].settings, read_history(preset))
    return visit


def launch(page: gr.Blocks, **options):
    """Start the training processes and the server; the look is set here, as Gradio 6 wants it."""
    fleet().start()
    font = ("ui-sans-serif", "system-ui", "sans-serif")  # Gradio's default asks a font server
    theme = gr.themes.Default(font=font, font_mono=("ui-monospace", "monospace"))
    theme.set(  # Gradio's own greys and its orange are too faint: WCAG asks for a contrast of 4.5
        body_text_color_subdued="*neutral_600", button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800", button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
    )
    # run_history copies every frame into the browser's storage: slider latency grew from 25 to over 100 ms in a run
    return page.launch(theme=theme, css=STYLE, ssr_mode=False, run_history=False, max_file_size=LARGEST_UPLOAD,
                       footer_links=["gradio", "settings"], i18n=gr.I18n(en=SPOKEN), **options)
