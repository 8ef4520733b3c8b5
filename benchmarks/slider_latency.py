"""Time from a slider key press to new numbers on the page, idle and while a run trains, in a real Chromium.

    python benchmarks/slider_latency.py [--moves 60]

The slider of λ on W_Q is moved between 1 and 1.5; a MutationObserver notes when the κ(J) cell shows another text.
Both times are read from the page's own clock. Target: median under 100 ms, 95th percentile under 250 ms.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import gradio
from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from find_browser import CHROMIUM_FLAGS, find_browser

PORT = 7899
#: moves the slider, resolves with the milliseconds until the panel shows another number
MEASURE = """() => new Promise((resolve, reject) => {
  const view = document.querySelector('#view');
  const input = document.querySelector('#lam-q input[type=range]');
  const before = document.querySelector('#after-kappa-j').textContent;
  const began = performance.now();
  const seen = new MutationObserver(() => {
    const cell = document.querySelector('#after-kappa-j');
    if (cell && cell.textContent !== before) { seen.disconnect(); resolve(performance.now() - began); }
  });
  seen.observe(view, {childList: true, subtree: true, characterData: true});
  setTimeout(() => { seen.disconnect(); reject(new Error('no new numbers in 5 s')); }, 5000);
  input.value = Number(input.value) > 1.2 ? 1 : 1.5;  // two values whose κ(J) differ
  input.dispatchEvent(new Event('input', {bubbles: true}));
})"""


def measure(page: Page, moves: int, title: str) -> list[float]:
    """Milliseconds of `moves` slider moves, a quarter of a second apart."""
    times = []
    for _ in track(range(moves), description=title):
        times.append(page.evaluate(MEASURE))
        page.wait_for_timeout(250)
    return times


def wait_for(url: str, seconds: float = 60) -> None:
    for _ in range(int(seconds * 5)):
        try:
            urllib.request.urlopen(url, timeout=1)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise TimeoutError(f"{url} did not answer within {seconds} s")


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=60, help="slider moves in each condition (default 60)")
    options = parser.parse_args()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    server = subprocess.Popen([sys.executable, str(ROOT / "app.py"), "--port", str(PORT)], cwd=ROOT, **quiet)
    rows = {}
    try:
        url = f"http://127.0.0.1:{PORT}"
        wait_for(url)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=find_browser(), args=CHROMIUM_FLAGS)
            page = browser.new_page()
            page.goto(f"{url}/?kind=identity")
            page.wait_for_selector("#after-kappa-j")
            page.wait_for_timeout(1500)
            rows["idle"] = measure(page, options.moves, "idle")
            training: list[float] = []
            while len(training) < options.moves:  # a run lasts some seconds: start as many as are needed
                page.goto(f"{url}/?kind=identity")
                page.wait_for_timeout(1500)
                page.click("#start")
                page.wait_for_function("Number(document.querySelector('#curves [data-frames]').dataset.frames) < 60")
                training += measure(page, min(15, options.moves - len(training)), "while training")
                page.click("#stop")
            rows["while a run trains"] = training
            version = browser.version
            browser.close()
    finally:
        server.terminate()
        server.wait(10)
    table = Table(title="Slider to new numbers on the page, ms")
    for name in ("condition", "moves", "median", "95th percentile", "largest"):
        table.add_column(name, justify="right" if name != "condition" else "left")
    lines = [
        "# Slider latency", "",
        f"`python benchmarks/slider_latency.py --moves {options.moves}`: {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, gradio {gradio.__version__}, Chromium {version}, headless.", "",
        "Milliseconds from the slider's input event to the redrawn number, both read in the page. Target: median "
        "under 100, 95th percentile under 250.", "",
        "| condition | moves | median | 95th percentile | largest |", "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, values in rows.items():
        figures = (percentile(values, 0.5), percentile(values, 0.95), max(values))
        cells = [str(len(values)), *(f"{v:.0f}" for v in figures)]
        table.add_row(name, *cells)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    Console().print(table)
    target = ROOT / "results" / "slider_latency.md"
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"written: {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
