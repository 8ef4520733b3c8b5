"""The demo under a real Chromium and under load: sliders, live curves, stop, leaving, many visitors, memory.

    python benchmarks/app.py [--moves 60] [--runs 200] [--seconds 20]

Starts the app on a free port and prints one table, with the target beside each figure. All times of a page are read
from that page's own clock. Writes results/app.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import statistics
import sys
import threading
import time
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from urllib.parse import parse_qsl

import gradio
import httpx
from gradio_client import Client
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from app_server import Server
from find_browser import CHROMIUM_FLAGS, find_browser

from spectral_core.demo import RANGES, ROLES, parse_settings, to_query
from spectral_core.demo.page.build import FIRST
from spectral_core.demo.presets import PRESETS

VISITORS, ASKING = 20, 6
#: moves λ on W_Q, resolves with the milliseconds until the panel shows another κ(J)
MOVE = """() => new Promise((resolve, reject) => {
  const input = document.querySelector('#lam-q input[type=range]');
  const before = document.querySelector('#after-kappa-j').textContent, began = performance.now();
  const seen = new MutationObserver(() => {
    if (document.querySelector('#after-kappa-j').textContent !== before) {
      seen.disconnect(); resolve(performance.now() - began); } });
  seen.observe(document.querySelector('#view'), {childList: true, subtree: true, characterData: true});
  setTimeout(() => { seen.disconnect(); reject(new Error('no new numbers in 5 s')); }, 5000);
  input.value = Number(input.value) > 1.2 ? 1 : 1.5;  // two values whose κ(J) differ
  input.dispatchEvent(new Event('input', {bubbles: true}));
})"""
#: counts, for so many milliseconds, the redraws of the curves and the tasks that block the page
WATCH = """(span) => new Promise((resolve) => {
  const long = []; let frames = 0;
  const tasks = new PerformanceObserver((list) => list.getEntries().forEach((e) => long.push(e.duration)));
  tasks.observe({type: 'longtask'});
  const line = document.querySelector('#curves path.line');
  const seen = new MutationObserver(() => { frames += 1; });
  seen.observe(document.querySelector('#curves'), {subtree: true, attributes: true, attributeFilter: ['aria-label']});
  setTimeout(() => { seen.disconnect(); tasks.disconnect();
    resolve({frames, longest: Math.max(0, ...long), same: line.isConnected}); }, span);
})"""
STOP = """() => new Promise((resolve) => {
  const began = performance.now();
  const seen = new MutationObserver(() => {
    if (document.querySelector('#status').textContent.includes('Stopped.')) {
      seen.disconnect(); resolve(performance.now() - began); } });
  seen.observe(document.querySelector('#status'), {childList: true, subtree: true, characterData: true});
  document.querySelector('#stop').click();
})"""


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    what: str
    figure: str
    target: str
    is_met: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=60, help="slider moves in each condition (60)")
    parser.add_argument("--runs", type=int, default=200, help="runs for the memory line (200), 0 to leave it out")
    parser.add_argument("--seconds", type=float, default=20, help="of the load by many visitors (20)")
    options = parser.parse_args()
    lines: list[Line] = []
    with Server() as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=CHROMIUM_FLAGS)
        version = browser.version
        lines += in_browser(browser, server, options.moves)
        browser.close()
        lines += under_load(server, options.seconds)
        if options.runs:
            lines += memory(server, options.runs)
        assert "Traceback" not in server.log.read_text(), server.log.read_text()[-2000:]
    write(lines, options, version)


# ---- one visitor -----------------------------------------------------------------------------------------


def in_browser(browser: Browser, server: Server, moves: int) -> list[Line]:
    """Latency, curves, stop and leaving, in real pages."""
    page = opened(browser, server)
    lines = [latency("slider to new numbers, idle", slide(page, moves, "idle"))]
    other = opened(browser, server)
    for one in (page, other):
        start(one)
    times: list[float] = []
    while len(times) < moves:  # runs end: begin them anew as often as needed
        times += slide(page, min(15, moves - len(times)), "two runs train")
        for one in (page, other):
            if one.locator("#status").inner_text().startswith("Finished"):
                start(one)
    lines.append(latency("slider to new numbers, two runs train", times))
    for arms in ("plain,xavier", "plain,shaped,xavier", "plain,identity,calibrated,xavier"):
        other.goto(f"{server.url}/?arms={arms}")
        other.wait_for_selector("#after-kappa-j")
        start(other)
        seen = other.evaluate(WATCH, 6000)
        rate = seen["frames"] / 6
        count = arms.count(",") + 1
        figure = f"{rate:.1f} a second, longest task {seen['longest']:.0f} ms"
        lines.append(Line(f"live curves, {count} models, beside another run", figure, "≥ 8 a second, < 100 ms",
                          rate >= 8 and seen["longest"] < 100 and seen["same"]))
        assert count <= 4
    stops = []
    for _ in range(5):
        stops.append(other.evaluate(STOP))
        start(other)
    lines.append(Line("stop to “Stopped.”", f"{max(stops):.0f} ms, the slowest of 5", "< 500 ms", max(stops) < 500))
    for one in (page, other):
        one.evaluate("document.querySelector('#stop').click()")
    lefts = []
    for _ in range(5):
        context = browser.new_context()
        late = opened(browser, server, context.new_page())
        start(late)
        before, began = server.count("a visitor left"), time.monotonic()
        context.close()
        while server.count("a visitor left") == before:
            time.sleep(0.01)
        lefts.append(time.monotonic() - began)
    slowest = max(lefts) * 1000
    figure = f"{slowest:.0f} ms, the slowest of 5"
    lines.append(Line("page closed to the end of its work", figure, "< 1000 ms", slowest < 1000))
    return lines


def opened(browser: Browser, server: Server, page: Page | None = None) -> Page:
    page = page or browser.new_page()
    page.goto(f"{server.url}/?kind=identity&arms=plain,identity,xavier")
    page.wait_for_selector("#after-kappa-j")
    page.wait_for_timeout(1500)
    return page


def start(page: Page) -> None:
    """Begin a run, and wait for its first frames."""
    page.get_by_role("tab", name="Race").click()
    page.click("#start")
    page.wait_for_function("document.querySelector('#status').textContent.includes('Training.')", timeout=60_000)


def slide(page: Page, moves: int, title: str) -> list[float]:
    page.get_by_role("tab", name="Shape").click()
    times = []
    for _ in track(range(moves), description=title):
        times.append(page.evaluate(MOVE))
        page.wait_for_timeout(200)
    return times


def latency(what: str, times: list[float]) -> Line:
    median, high = statistics.median(times), quantile(times, 0.95)
    figure = f"median {median:.0f} ms, 95th percentile {high:.0f} ms ({len(times)} moves)"
    return Line(what, figure, "< 80 ms, < 200 ms", median < 80 and high < 200)


# ---- many visitors ---------------------------------------------------------------------------------------


class Visitor:
    """A client that moves sliders as a hand does, twice a second, and looks whether the answer is its own."""

    def __init__(self, server: Server, seed: int) -> None:
        self.client = Client(server.url, verbose=False)  # for runs; sliders go the page's own, shorter way
        self.http, self.url = httpx.Client(timeout=30), f"{server.url}/gradio_api/run/predict"
        listed = httpx.get(f"{server.url}/config").json()["dependencies"]
        self.events = {d["api_name"]: d["id"] for d in listed}
        self.random, self.seed = random.Random(seed), seed
        self.raw: dict[str, object] = {}
        self.times: list[float] = []
        self.errors: list[str] = []
        self.said: list[str] = []
        self.set("kind", "identity")
        self.set("seed", seed)
        self.times.clear()

    def set(self, name: str, value: object) -> None:
        """Move one control, as the page does, and look whether the answer is of this visitor's own settings."""
        self.raw[name] = value
        body = {"data": [None, value], "fn_index": self.events[f"set_{name}"], "session_hash": self.client.session_hash}
        began = time.monotonic()
        shown = self.http.post(self.url, json=body).json()["data"][0]
        self.times.append(time.monotonic() - began)
        found = re.search('data-query="([^"]*)"', shown)
        start = dict(parse_qsl(PRESETS[FIRST].query))
        wanted = to_query(parse_settings(start | self.raw)[0])
        if found is None or unescape(found[1]) != wanted:
            self.errors.append(f"asked for {wanted}, got {found and found[1]}")

    def move(self) -> None:
        low, high, _, step = RANGES["lam"]
        value = round(self.random.randint(0, int((high - low) / step)) * step, 2)
        self.set(f"lam_{self.random.choice(ROLES)}", value)

    def drag(self, until: float) -> None:
        while time.monotonic() < until:
            began = time.monotonic()
            try:
                self.move()
            except Exception as error:
                self.errors.append(repr(error)[:200])
            time.sleep(max(0.0, 0.5 - (time.monotonic() - began)))

    def race(self, until: float) -> None:
        try:
            job = self.client.submit(api_name="/start")
            while time.monotonic() < until and not job.done():
                outputs = job.outputs()
                self.said += [text for out in outputs[len(self.said) :] if isinstance(text := out[1], str)]
                time.sleep(0.2)
            job.cancel()
        except Exception as error:
            self.errors.append(repr(error)[:200])


def under_load(server: Server, seconds: float) -> list[Line]:
    """Twenty who move sliders, six of whom ask for runs as well."""
    visitors = [Visitor(server, seed) for seed in track(range(1, VISITORS + 1), description="visitors arrive")]
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=v.drag, args=(until,)) for v in visitors]
    threads += [threading.Thread(target=v.race, args=(until,)) for v in visitors[:ASKING]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = [t * 1000 for v in visitors for t in v.times]
    errors = [e for v in visitors for e in v.errors]
    waited = sum(any("ahead of you" in s or "you are next" in s for s in v.said) for v in visitors[:ASKING])
    ran = sum(any("Step" in s for s in v.said) for v in visitors[:ASKING])
    median = statistics.median(times)
    figure = f"median {median:.0f} ms, 95th percentile {quantile(times, 0.95):.0f} ms ({len(times)} moves)"
    for error in errors[:5]:
        print(error)
    return [
        Line(f"{VISITORS} visitors move sliders, {ASKING} ask for runs", figure, "median < 400 ms", median < 400),
        Line("… errors, or another visitor's numbers", str(len(errors)), "0", not errors),
        Line("… runs that began; that were told their place", f"{ran}; {waited}", "2 at once; 4", ran >= 2 <= waited),
    ]


def memory(server: Server, runs: int) -> list[Line]:
    """Resident memory of the server and its training processes after 20 runs and after all."""
    client, early = Client(server.url, verbose=False), 0.0
    for i in track(range(runs), description="runs"):
        client.predict(i, api_name="/set_seed")
        job = client.submit(api_name="/start")
        while len(job.outputs()) < 5 and not job.done():
            time.sleep(0.02)
        client.predict(api_name="/stop")
        job.result(timeout=30)
        if i + 1 == 20:
            early = server.memory()
    late = server.memory()
    figure = f"{early:.0f} MB, then {late:.0f} MB ({late / early - 1:+.1%})"
    return [Line(f"memory after 20 runs, and after {runs}", figure, "within 10 %", late < 1.1 * early)]


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def write(lines: list[Line], options: argparse.Namespace, browser: str) -> None:
    table = Table(title="The demo, measured")
    for name in ("what", "measured", "target", ""):
        table.add_column(name)
    out = [
        "# The demo under a browser and under load", "",
        f"`python benchmarks/app.py --moves {options.moves} --runs {options.runs} --seconds {options.seconds:g}`: "
        f"{os.cpu_count()} cores, which the browser and the clients share with the server, Python "
        f"{platform.python_version()}, gradio {gradio.__version__}, Chromium {browser}, headless.", "",
        "A slider's time is from its input event to the redrawn κ(J), read in the page; under load it is a client's "
        "request, each visitor moving twice a second. A page's curves are redrawn when a model has made 5 steps.", "",
        "| | measured | target | |", "| --- | --- | --- | --- |",
    ]
    for line in lines:
        met = "met" if line.is_met else "missed"
        table.add_row(line.what, line.figure, line.target, met)
        out.append(f"| {line.what} | {line.figure} | {line.target} | {met} |")
    Console().print(table)
    target = ROOT / "results" / "app.md"
    target.write_text("\n".join(out) + "\n", encoding="utf-8")
    print(f"written: {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
