"""Anything at all at every event of the demo: an answer in words, never a traceback, never a dead server."""

from __future__ import annotations

import json
import re
import secrets
import time
import urllib.request
from html import escape

import httpx
import pytest
from app_server import Server
from gradio_client import Client
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from spectral_core.demo import control_names, parse_settings, to_query
from spectral_core.demo.page.controls import control_values
from spectral_core.demo.presets import PRESETS

NUMBERS = st.one_of(st.floats(), st.integers(), st.sampled_from([1e308, -1e308, 10**400, -0.0, 5e-324]))
TEXTS = st.one_of(st.text(max_size=20), st.sampled_from(["nan", "inf", "1e999", "<script>alert(1)</script>", "9" * 5000,
                                                         "drawn", "../../etc/passwd", "Q", "٣", "\x00", '{"q":[1]}']))
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=12,
)
FEW = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    app = Server(folder / "app.log", GRADIO_TEMP_DIR=str(folder / "uploads"))
    app.wait()
    yield app
    assert app.process.poll() is None, app.log.read_text()[-3000:]
    app.stop()
    log = app.log.read_text()
    ends = re.findall(r"^Traceback .*?^(\w[^\n]*)", log, re.DOTALL | re.MULTILINE)
    # Gradio's own refusal of too few values, before any event of ours
    assert all("didn't receive enough input values" in end for end in ends), log[-5000:]
    assert len(ends) == log.count("Traceback")


@pytest.fixture(scope="module")
def events(server) -> dict[str, dict]:
    """Every event by name, as the server lists them."""
    config = json.loads(urllib.request.urlopen(f"{server.url}/config").read())
    return {d["api_name"]: d for d in config["dependencies"] if d["backend_fn"]}


def send(server: Server, event: dict, data: object, session: str = "fuzz") -> httpx.Response:
    """One event without a queue, as the page sends it; NaN and infinities as Python writes them."""
    body = json.dumps({"data": data, "fn_index": event["id"], "session_hash": session, "event_data": None})
    return httpx.post(f"{server.url}/gradio_api/run/predict", content=body, timeout=30,
                      headers={"Content-Type": "application/json"})


def test_every_event_is_here(events) -> None:
    """A new event has to be added to the tests below."""
    quick = {"dragged", "pause", "stop", "frame", "csv", "png", "python", "reset", "load"}
    quick |= {f"set_{name}" for name in control_names()}
    presets = {name for name in events if name.startswith("preset_")}
    assert set(events) - presets == quick | {"start", "go_on", "audit_file", "audit_minilm"}
    assert len(presets) == 6


@FEW
@given(changes=st.lists(st.tuples(st.sampled_from(control_names()), ANYTHING), min_size=1, max_size=4))
@example(changes=[(name, None) for name in control_names()])
@example(changes=[(name, float("nan")) for name in control_names()])
@example(changes=[(name, "9" * 5000) for name in control_names()])
@example(changes=[(name, 10**400) for name in control_names()])
def test_controls_answer_with_the_panel_of_the_settings_that_were_understood(server, events, changes) -> None:
    session = secrets.token_hex(8)
    raw = dict(zip(control_names(), control_values(PRESETS["saturation"].settings), strict=True))
    for name, value in changes:
        answer = send(server, events[f"set_{name}"], [None, value], session)
        if answer.status_code != 200:  # NaN and huge numbers are no JSON: refused before any event
            assert answer.status_code in (400, 422, 500)
            continue
        raw[name] = value
        shown = answer.json()["data"][0]
        if name.startswith("drawn"):
            raw["kind"] = "drawn"
            shown = json.loads(shown)[0]
        wanted, notices = parse_settings({n: v for n, v in raw.items() if v is not None})
        assert f'data-kind="{wanted.kind}"' in shown
        assert f'data-query="{escape(to_query(wanted), quote=True)}"' in shown
        assert shown.count('<p class="notice"') == len(notices)
        assert "<script" not in shown
        assert "Traceback" not in shown


@FEW
@given(drawing=st.one_of(ANYTHING, ANYTHING.map(lambda v: json.dumps({"q": v, "k": [v, 1]}))))
@example(drawing="[" * 3000)
@example(drawing='{"q": [NaN, 1], "k": "Infinity"}')
def test_drawings_answer_with_a_panel(server, events, drawing) -> None:
    answer = send(server, events["dragged"], [None, drawing])
    if answer.status_code == 200:
        assert 'data-kind="drawn"' in json.loads(answer.json()["data"][0])[0]
    else:
        assert answer.status_code in (400, 422, 500)


@FEW
@given(step=ANYTHING)
def test_looking_back_at_anything(server, events, step) -> None:
    answer = send(server, events["frame"], [None, step])
    if answer.status_code == 200:
        charts, said = answer.json()["data"]
        assert 'data-frames="121"' in charts
        assert "Looking back at step" in said


@pytest.mark.parametrize("name", ["pause", "stop", "csv", "png", "python", "reset", "load"])
@pytest.mark.parametrize("data", [[None], [], [1], ["x"] * 3, [None] * 50, [{"a": [1]}]])
def test_events_without_values_survive_wrong_ones(server, events, name, data) -> None:
    assert send(server, events[name], data, session=f"odd-{name}").status_code in (200, 400, 422, 500)
    assert send(server, events["set_lam_q"], [None, 1.0]).status_code == 200


@pytest.mark.parametrize("data", [[], [None], [None, 1, 2, 3], "text", None, {"q": 1}])
@pytest.mark.parametrize("name", ["set_lam_q", "set_kind", "set_drawn_q", "dragged"])
def test_missing_and_surplus_fields_leave_the_server_well(server, events, name, data) -> None:
    assert send(server, events[name], data, session="odd").status_code in (200, 400, 422, 500)
    assert send(server, events["set_lam_q"], [None, 1.0], session="odd").status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"data": [NaN', b"\x00" * 100, b'"' + b"x" * 100_000])
def test_bodies_that_are_no_request(server, body) -> None:
    assert server.post("/run/predict", body) >= 400
    assert server.post("/queue/join", body) >= 400


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(
    st.sampled_from(control_names()),
    st.one_of(st.booleans(), st.integers(-9, 9), st.text(max_size=9), st.lists(st.text(max_size=3))), max_size=5))
def test_a_run_starts_from_anything_and_stops(server, changes) -> None:
    """Through Gradio's own client, whose session holds the visit."""
    client = Client(server.url, verbose=False)
    for name, value in changes.items():
        client.predict(value, api_name=f"/set_{name}")
    job = client.submit(api_name="/start")
    deadline = time.monotonic() + 40
    while not job.outputs() and not job.done() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "Nothing is running" not in client.predict(api_name="/stop")
    _, said, _ = job.result(timeout=30)
    assert "Stopped." in said
    assert "Traceback" not in said


def test_going_on_with_nothing_says_so(server) -> None:
    shown = Client(server.url, verbose=False).predict(api_name="/go_on")
    assert "This run has ended: Start begins a new one." in shown[1]


@FEW
@given(payload=ANYTHING)
def test_an_upload_that_is_no_file(server, events, payload) -> None:
    from spectral_core.demo.page.audit import on_upload

    shown, cleared = on_upload(payload)
    assert 'class="notice" role="alert"' in shown
    assert cleared is None
