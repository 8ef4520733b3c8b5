"""The second tab: models that race while the sliders move; pause, stop, go back to any frame, take the run along."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from spectral_core.demo.export import to_code, to_csv, to_png
from spectral_core.demo.page.controls import HIDDEN, Controls, make_race_controls
from spectral_core.demo.page.visit import Visit
from spectral_core.demo.race_view import describe_race, show_race

__all__ = ["RaceTab", "follow", "make_race_tab", "wire_race"]

log = logging.getLogger("spectral_core.demo")

FRAME_SECONDS = 0.08  # between two frames that are sent to a page
BREATH_SECONDS = 0.3  # a stream that says nothing for longer does not notice that its page was closed
STEPS = 600
DOWNLOAD = """(text) => { if (!text) return; const {name, kind, body} = JSON.parse(text);
  const bytes = Uint8Array.from(atob(body), (c) => c.charCodeAt(0)), link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], {type: kind})); link.download = name; link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000); }"""

# a frame would close the tables that are open
KEEP_OPEN = """const open = new Set(), all = () => [...element.querySelectorAll("details")];
element.addEventListener("toggle", ({target}) => open[target.open ? "add" : "delete"](all().indexOf(target)), true);
watch("value", () => all().forEach((details, i) => (details.open = open.has(i))));"""


@dataclass
class RaceTab:
    """The components of the tab that events change."""

    buttons: dict[str, Any]
    status: Any
    frame: Any
    curves: Any
    parcel: Any  # what is downloaded, on its way to the browser

    @property
    def shown(self) -> list[Any]:
        return [self.curves, self.status, self.frame]


def make_race_tab(controls: Controls, visit: Visit, said: str) -> RaceTab:
    """Draw the tab with the race of `visit`."""
    make_race_controls(controls)
    names = {"start": "Start", "pause": "Pause", "on": "Go on", "stop": "Stop", "reset": "Reset"}
    with gr.Row(elem_classes="buttons"):
        buttons = {
            key: gr.Button(text, variant="primary" if key == "start" else "secondary", elem_id=key, min_width=80)
            for key, text in names.items()
        }
    status = gr.HTML(describe_race(visit.history, said), elem_id="status")
    frame = gr.Slider(
        0, STEPS, STEPS, step=5, elem_id="frame", label="Look back at step",
        info="Moving it pauses a run; “Go on” then goes on from that very step, with the sliders as they are.",
    )
    curves = gr.HTML(show_race(visit.history), elem_id="curves", js_on_load=KEEP_OPEN)
    with gr.Row(elem_classes="buttons"):
        for kind, text in {"csv": "CSV", "png": "PNG", "python": "Python code of this run"}.items():
            buttons[kind] = gr.Button(text, size="sm", elem_id=f"get-{kind}", min_width=80)
    parcel = gr.Textbox(visible="hidden", elem_id="parcel")
    return RaceTab(buttons, status, frame, curves, parcel)


def wire_race(tab: RaceTab, visit: gr.State) -> None:
    """Connect all of the tab's events but Reset, which is the page's."""
    live: dict[str, Any] = {"trigger_mode": "multiple", "concurrency_limit": None, "preprocess": False, **HIDDEN}
    tab.buttons["start"].click(on_start, visit, tab.shown, api_name="start", **live)
    tab.buttons["on"].click(on_go_on, visit, tab.shown, api_name="go_on", **live)
    quick: dict[str, Any] = {"queue": False, "preprocess": False, **HIDDEN}
    tab.buttons["pause"].click(on_pause, visit, tab.status, api_name="pause", **quick)
    tab.buttons["stop"].click(on_stop, visit, tab.status, api_name="stop", **quick)
    tab.frame.input(on_frame, [visit, tab.frame], [tab.curves, tab.status], api_name="frame",
                    trigger_mode="always_last", **quick)
    for kind, get in {"csv": on_csv, "png": on_png, "python": on_code}.items():
        packed = tab.buttons[kind].click(get, visit, tab.parcel, api_name=kind, **quick)
        packed.then(None, tab.parcel, None, js=DOWNLOAD, show_progress="hidden")


# ---- a run -----------------------------------------------------------------------------------------------


async def on_start(visit: Visit) -> AsyncIterator[tuple[Any, ...]]:
    """Start was pressed: wait for a place, then show the run until it ends."""
    visit.begin()
    async for shown in follow(visit):
        yield shown


async def on_go_on(visit: Visit) -> AsyncIterator[tuple[Any, ...]]:
    """Go on with a paused or finished run, from the frame that is looked at."""
    ticket, at = visit.ticket, visit.at
    if ticket is None or not ticket.can_go_on():
        yield gr.skip(), describe_race(visit.history, "This run has ended: Start begins a new one."), gr.skip()
        return
    if at is not None and at < visit.history.step[-1]:
        visit.back(at)
    else:
        ticket.resume()
    async for shown in follow(visit):
        yield shown


async def follow(visit: Visit) -> AsyncIterator[tuple[Any, ...]]:
    """What to show of the visit's run, at most every FRAME_SECONDS, until it ends or another stream takes over.

    Closing the page closes this generator, which gives the place back.
    """
    ticket, visit.at = visit.ticket, None
    assert ticket is not None
    visit.follower = mine = visit.follower + 1
    said, sent, over = "", time.monotonic(), False
    try:
        while visit.follower == mine:
            fresh, over = visit.take(), ticket.is_over()
            state = visit.said()
            if visit.follower != mine:
                break
            if fresh or state != said:
                at_rest = over or ticket.state == "paused"
                step = visit.history.step[-1] if visit.history.step else 0
                curves = show_race(visit.history) if visit.history.step else gr.skip()
                yield curves, describe_race(visit.history, state), gr.update(value=step) if at_rest else gr.skip()
                said, sent = state, time.monotonic()
            elif time.monotonic() - sent > BREATH_SECONDS:
                yield gr.skip(), gr.skip(), gr.skip()
                sent = time.monotonic()
            if over:
                break
            await asyncio.sleep(FRAME_SECONDS)
    finally:
        if visit.follower == mine and not over:
            ticket.leave()
            log.info("a visitor left; the run ended at step %s", visit.history.step[-1] if visit.history.step else 0)


def on_pause(visit: Visit) -> str:
    if visit.ticket is not None and visit.ticket.state == "running":
        visit.ticket.pause()
        return describe_race(visit.history, "Paused.")
    return describe_race(visit.history, "Nothing is running.")


def on_stop(visit: Visit) -> str:
    if visit.ticket is None or visit.ticket.state == "ended":
        return describe_race(visit.history, "Nothing is running.")
    visit.leave()
    visit.take()
    return describe_race(visit.history, visit.said())


def on_frame(visit: Visit, step: object) -> tuple[Any, Any]:
    """Look back; a run that is under way pauses."""
    if not visit.history.step:
        return gr.skip(), describe_race(visit.history, "There is no run to look at yet.")
    if visit.ticket is not None and visit.ticket.state == "running":
        visit.ticket.pause()
    visit.at = visit.history.nearest(step)
    return show_race(visit.history, at=visit.at), describe_race(visit.history, f"Looking back at step {visit.at}.",
                                                                at=visit.at)


# ---- to take along ---------------------------------------------------------------------------------------


def on_csv(visit: Visit) -> str:
    return pack("race.csv", "text/csv", to_csv(visit.history, visit.started).encode())


def on_png(visit: Visit) -> str:
    return pack("race.png", "image/png", to_png(visit.history))


def on_code(visit: Visit) -> str:
    return pack("race.py", "text/x-python", to_code(visit.started, visit.changes).encode())


def pack(name: str, kind: str, body: bytes) -> str:
    """A file as text, for the browser to unpack: nothing is left on the server's disk."""
    return json.dumps({"name": name, "kind": kind, "body": base64.b64encode(body).decode(), "at": time.time()})
