"""The demo in a real Chromium: first paint, sliders, training, two visitors, hostile input, narrow and dark pages."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from app import MAX_RUNS
from spectral_core.demo import head_view, parse_settings
from spectral_core.svg import format_number

ROOT = Path(__file__).parent.parent
TRAIN = 15_000  # ms that a busy machine may take for something that takes a second


class Server:
    """The app in a process of its own, as a visitor meets it."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.log, self.url = log, f"http://127.0.0.1:{port}"
        with log.open("w") as out:
            command = [sys.executable, str(ROOT / "app.py"), "--port", str(port)]
            env = os.environ | {"OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(command, cwd=log.parent, env=env, stdout=out, stderr=out)

    def wait(self) -> None:
        for _ in range(300):
            try:
                urllib.request.urlopen(self.url, timeout=2)
                return
            except (urllib.error.URLError, OSError):
                assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.2)
        raise AssertionError(f"the app did not answer within a minute:\n{self.log.read_text()}")

    def lines(self, text: str) -> int:
        return self.log.read_text().count(text)

    def post(self, path: str, body: object) -> int:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/gradio_api{path}", data, {"Content-Type": "application/json"})
        try:
            return urllib.request.urlopen(request, timeout=20).status
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    app = Server(tmp_path_factory.mktemp("app") / "app.log")
    app.wait()
    yield app
    alive = app.process.poll() is None
    app.process.terminate()
    app.process.wait(15)
    assert alive, f"the server died:\n{app.log.read_text()}"


@pytest.fixture
def visit(page: Page, server: Server):
    """Open the page with a query string, and fail at the end on any script error."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))

    def open_page(query: str = "") -> Page:
        page.goto(server.url + query)
        expect(page.locator("#after-kappa-j")).to_be_visible(timeout=TRAIN)
        page.wait_for_timeout(500)  # the load event may still set the controls
        return page

    yield open_page
    assert not errors


def frames(page: Page) -> int:
    return int(page.locator("#curves [data-frames]").get_attribute("data-frames"))


def wait_frames(page: Page, at_least: int) -> None:
    """Wait until the live run (121 is the finished one) has shown so many records."""
    page.wait_for_function(
        "n => { const f = Number(document.querySelector('#curves [data-frames]').dataset.frames);"
        " return f >= n && f < 121 }",
        arg=at_least, timeout=TRAIN)


def lines_of(page: Page, chart: int) -> list[str]:
    """The drawn paths of baseline and conditioned in one of the four charts."""
    return page.locator("#curves svg").nth(chart).locator("path.line[data-points]").evaluate_all(
        "paths => paths.map(p => p.getAttribute('d'))")


def slider(page: Page, name: str):
    return page.locator(f"#{name} input[type=range]")


def kappa_text(**raw) -> str:
    return format_number(head_view(parse_settings(raw)[0]).after.kappa_j)


def test_first_paint_shows_a_finished_run(visit) -> None:
    page = visit()
    expect(page.locator("#status")).to_contain_text("A finished run, computed beforehand.")
    expect(page.locator("#status")).to_contain_text("Step 600 of 600.")
    assert frames(page) == 121
    for chart in range(4):
        assert all(len(path) > 500 for path in lines_of(page, chart))
    expect(page.locator("#after-kappa-j")).to_have_text(kappa_text())
    assert page.locator("#view svg[role=img][aria-label]").count() == 5


def test_the_precomputed_run_is_the_default_race() -> None:
    """The stored curves are what the code computes: their first records, to the digits kept."""
    from app import read_first_run
    from spectral_core.demo import Settings, race
    from spectral_core.views import Curves

    stored, fresh = read_first_run(), Curves()
    for frame, _ in zip(race(Settings), range(3), strict=False):
        fresh.append(frame)
    for ours, theirs in ((stored.baseline, fresh.baseline), (stored.conditioned, fresh.conditioned)):
        for name in ("loss", "accuracy", "saturation"):
            assert ours[name][:3] == pytest.approx(theirs[name], rel=2e-3)
    assert stored.step == list(range(0, 601, 5))


def test_arrow_key_changes_the_numbers(visit) -> None:
    page = visit("/?kind=identity")
    slider(page, "lam-q").focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    expect(slider(page, "lam-q")).to_have_value("1.2")
    expect(page.locator("#after-kappa-j")).to_have_text(kappa_text(kind="identity", lam_q=1.2))


def test_fast_drag_ends_on_the_last_value(visit) -> None:
    page = visit("/?kind=identity&lam_v=0.5")
    box = slider(page, "lam-k").bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 1 / 12, y)
    page.mouse.down()
    for share in (0.2, 0.35, 0.1, 0.3, 0.22):
        page.mouse.move(box["x"] + box["width"] * share, y)
    page.mouse.up()
    value = float(slider(page, "lam-k").input_value())
    assert value > 1.5
    expect(page.locator("#after-kappa-j")).to_have_text(kappa_text(kind="identity", lam_k=value, lam_v=0.5))


def test_targets_and_kinds_show_their_sliders(visit) -> None:
    page = visit()
    expect(slider(page, "min-q")).to_be_visible()
    expect(slider(page, "lam-q")).to_be_hidden()
    page.get_by_label("Polar, κ ≤ 2").click()
    expect(slider(page, "min-q")).to_be_hidden()
    expect(page.locator("#after-kappa-j")).to_have_text(kappa_text(kind="polar"))
    page.get_by_label("Target κ").click()
    expect(slider(page, "kappa-v")).to_be_visible()
    expect(page.locator("#after-kappa-q")).to_have_text("4")
    page.locator("#roles").get_by_label("Q").uncheck()
    expect(page.locator("#after-kappa-q")).to_have_text(page.locator("tr:has(#after-kappa-q) td").first.inner_text())


def test_start_grows_and_stop_is_quick(visit) -> None:
    page = visit()
    page.click("#start")
    seen = []
    for _ in range(6):
        wait_frames(page, seen[-1] + 1 if seen else 1)
        seen.append(frames(page))
    assert seen == sorted(set(seen))
    expect(page.locator("#status")).to_contain_text("Training.")
    began = time.monotonic()
    page.click("#stop")
    expect(page.locator("#status")).to_contain_text("Stopped.", timeout=5000)
    assert time.monotonic() - began < 1.0
    at_stop = frames(page)
    page.wait_for_timeout(1500)
    assert frames(page) - at_stop <= 3  # at most the one frame that was on its way
    expect(page.locator("#status")).to_contain_text("Stopped.")


def test_slider_moved_while_training_changes_the_conditioned_model(visit) -> None:
    page = visit("/?kind=identity&lam_q=0&lam_k=0&lam_v=0")
    page.click("#start")
    wait_frames(page, 6)
    loss = lines_of(page, 0)
    assert loss[0] == loss[1]  # λ = 0: two equal models
    assert page.locator("#curves path.mark").count() == 0
    for name in ("lam-q", "lam-k"):
        slider(page, name).focus()
        page.keyboard.press("End")
    page.wait_for_function("document.querySelectorAll('#curves path.mark').length >= 4", timeout=TRAIN)  # one a chart
    now = frames(page)
    wait_frames(page, now + 3)
    loss, saturation = lines_of(page, 0), lines_of(page, 3)
    assert loss[0] != loss[1]
    heights = [float(path.split()[-1]) for path in saturation]  # last y, in pixels from the top
    assert heights[1] < 60 < heights[0]  # conditioned near 1, baseline not
    page.click("#stop")


def test_reset_returns_to_the_first_paint(visit) -> None:
    page = visit("/?kind=identity&lam_q=10&lam_k=10&lam_v=10")
    expect(page.locator("#view .sentence")).to_contain_text("attention has switched off")
    page.click("#start")
    wait_frames(page, 2)
    page.click("#reset")
    expect(page.locator("#status")).to_contain_text("computed beforehand", timeout=TRAIN)
    expect(page.locator("#after-kappa-j")).to_have_text(kappa_text())
    page.wait_for_timeout(1000)
    assert frames(page) == 121


def test_two_visitors_do_not_meet(visit, browser: Browser, server: Server) -> None:
    one = visit("/?kind=identity&lam_q=0&lam_k=0&lam_v=0&seed=1")
    context = browser.new_context()
    two = context.new_page()
    two.goto(f"{server.url}/?kind=identity&lam_q=10&lam_k=10&lam_v=10&seed=2")
    expect(two.locator("#view .sentence")).to_contain_text("switched off", timeout=TRAIN)
    for page in (one, two):
        page.click("#start")
    for page in (one, two):
        wait_frames(page, 4)
    ours, theirs = lines_of(one, 0), lines_of(two, 0)
    assert ours[0] == ours[1]
    assert theirs[0] != theirs[1]
    slider(two, "lam-q").focus()
    two.keyboard.press("Home")
    two.wait_for_function("document.querySelectorAll('#curves path.mark').length >= 4", timeout=TRAIN)
    now = frames(one)
    wait_frames(one, now + 3)
    ours = lines_of(one, 0)
    assert ours[0] == ours[1]
    assert one.locator("#curves path.mark").count() == 0
    expect(one.locator("#after-kappa-j")).to_have_text(kappa_text(kind="identity", lam_q=0, lam_k=0, lam_v=0, seed=1))
    context.close()
    one.click("#stop")


def test_closing_the_page_ends_the_work(browser: Browser, server: Server) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url)
    page.wait_for_selector("#after-kappa-j")
    before = server.lines("run ended: closed")
    page.click("#start")
    wait_frames(page, 2)
    context.close()
    deadline = time.monotonic() + 5
    while server.lines("run ended: closed") == before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.lines("run ended: closed") == before + 1


def test_hostile_addresses_are_clamped_with_a_message(visit) -> None:
    page = visit("/?kind=identity&lam_q=1e999&lam_k=nan&lam_v=-5&seed=%3Cscript%3Ealert(1)%3C/script%3E&roles=xyz")
    said = page.locator("#view .notice")
    expect(said).to_have_count(5)
    text = page.locator("#view").inner_text()
    for part in ("lam_q: inf is outside [0, 12]", "lam_k: 'nan' is not a number", "lam_v: -5 is outside [0, 12]",
                 "seed: '<script>alert(1)</script>' is not a number", "roles: 'xyz' is not a subset"):
        assert part in text
    expect(slider(page, "lam-q")).to_have_value("12")
    expect(page.locator("#after-kappa-j")).to_have_text(kappa_text(kind="identity", lam_q=12, lam_k=1, lam_v=0))


def test_sigma_min_above_sigma_max_is_refused_with_a_message(visit) -> None:
    page = visit("/?min_q=3&max_q=1")
    expect(page.locator("#view .notice")).to_have_text("σ_min 3 is above σ_max 1 for Q; 1 is used for both")
    expect(page.locator("#after-kappa-q")).to_have_text("1")


def test_hostile_requests_leave_the_server_and_other_runs_alone(visit, server: Server) -> None:
    page = visit()
    page.click("#start")
    wait_frames(page, 2)
    config = json.loads(urllib.request.urlopen(f"{server.url}/config").read())
    numbers = {d["api_name"]: d["id"] for d in config["dependencies"]}
    bad = [None, "x", [], {}, 1e308, -1, True, "9" * 5000, {"a": [1]}]
    for value in bad:
        body = {"data": [None] + [value] * 18, "fn_index": numbers["controls"], "session_hash": "hostile"}
        assert server.post("/run/predict", body) == 200  # answered with notices
    for data in ([], [1], [None] * 50, "text", None):
        body = {"data": data, "fn_index": numbers["controls"], "session_hash": "hostile"}
        assert server.post("/run/predict", body) >= 400 or data == [None] * 50
    assert server.post("/run/predict", b'{"data": [NaN') >= 400
    now = frames(page)
    wait_frames(page, now + 3)
    page.click("#stop")
    expect(page.locator("#status")).to_contain_text("Stopped.")


def test_start_again_and_start_after_reset_leave_one_run(visit, server: Server) -> None:
    page = visit()
    page.click("#start")
    page.click("#start")
    wait_frames(page, 4)
    page.click("#reset")
    page.click("#start")
    # the first run's frames stay on the page until the reset arrives: wait for that, then for the new run's own
    page.wait_for_function(
        "() => { const f = Number(document.querySelector('#curves [data-frames]').dataset.frames);"
        " return f < 4 || f === 121 }", timeout=TRAIN)
    wait_frames(page, 4)
    before = server.lines("run ended: Stopped.")
    page.click("#stop")
    expect(page.locator("#status")).to_contain_text("Stopped. Step")
    page.wait_for_timeout(1000)
    assert server.lines("run ended: Stopped.") == before + 1
    page.click("#stop")
    expect(page.locator("#status")).to_contain_text("Nothing is running.")


def test_more_visitors_than_places_wait_and_may_leave(browser: Browser, server: Server) -> None:
    """Every place taken; one who waits sees so, can stop, and the others' runs go on."""
    contexts = [browser.new_context() for _ in range(MAX_RUNS + 1)]
    pages = [context.new_page() for context in contexts]
    for page in pages:
        page.goto(server.url)
        page.wait_for_selector("#after-kappa-j")
        page.wait_for_timeout(500)
    for page in pages[:-1]:
        page.click("#start")
        wait_frames(page, 1)
    late = pages[-1]
    late.click("#start")
    expect(late.locator("#status")).to_contain_text("Waiting for a free place")
    late.click("#stop")
    expect(late.locator("#status")).to_contain_text("Stopped.")
    now = frames(pages[0])
    wait_frames(pages[0], now + 1)
    for page in pages[:-1]:
        page.click("#stop")
    expect(late.locator("#status")).to_contain_text("Stopped before it began.", timeout=TRAIN)
    assert frames(late) == 121
    for context in contexts:
        context.close()


def test_keyboard_alone_starts_and_stops(visit) -> None:
    page = visit()
    page.locator("#start").focus()
    page.keyboard.press("Enter")
    wait_frames(page, 2)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "stop"
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Stopped.")


@pytest.mark.parametrize("width", [390, 1280])
def test_no_sideways_scroll_and_dark_has_no_white_block(visit, page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page = visit("/?__theme=dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    charts = page.locator("#view svg, #curves svg")
    colours = charts.evaluate_all("all => all.map(e => getComputedStyle(e).backgroundColor)")
    assert set(colours) == {"rgba(0, 0, 0, 0)"}
    ink = page.locator("#curves text").first.evaluate("e => getComputedStyle(e).fill")
    assert min(int(part) for part in re.findall(r"\d+", ink)) > 150
