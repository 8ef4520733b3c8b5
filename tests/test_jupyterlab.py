"""Two lessons in a real JupyterLab in Chromium: run all cells, move a slider by keyboard, see its figure change."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import Page, TimeoutError, expect

FOLDER = Path(__file__).parent.parent / "notebooks"
SHOTS = os.environ.get("SCREENSHOTS")  # a folder for pictures of what was seen
START, RUN = 60_000, 120_000  # ms that a busy machine may take


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab over a copy of the notebooks: what it saves never reaches the repository."""
    root = tmp_path_factory.mktemp("lab")
    folder = root / "notebooks"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    home = {name: str(root / name) for name in names} | {"OMP_NUM_THREADS": "1"}
    settings = root / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    # every cell in the page, also those out of sight
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}', encoding="utf-8")
    home["JUPYTERLAB_SETTINGS_DIR"] = str(root / "settings")
    log = root / "lab.log"
    command = [
        sys.executable, "-m", "jupyterlab", str(folder), "--no-browser", "--allow-root", f"--port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=", "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    with log.open("w") as out:
        server = subprocess.Popen(command, cwd=root, env=os.environ | home, stdout=out, stderr=out)
    url = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            urllib.request.urlopen(f"{url}/api", timeout=2)
            break
        except (urllib.error.URLError, OSError):
            assert server.poll() is None, log.read_text()
            time.sleep(0.2)
    yield url
    server.terminate()
    server.wait(20)


def run_all_cells(page: Page) -> None:
    """As a hand does it. Before the kernel is there, JupyterLab runs nothing, or asks which one to take."""
    for _ in range(20):
        if page.locator("dialog.jp-Dialog").count():
            page.locator("dialog.jp-Dialog .jp-mod-accept").click()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        try:
            page.locator(".jp-InputPrompt", has_text="[*]").first.wait_for(timeout=3_000)
            return
        except TimeoutError:
            continue
    raise AssertionError("no cell began to run")


@pytest.mark.timeout(420)
@pytest.mark.parametrize(("lesson", "slider"), [("01_condition_numbers", "κ"), ("06_saturation", "λ")])
def test_a_lesson_runs_in_jupyterlab_and_its_slider_moves_its_figure(lab: str, page: Page, lesson: str, slider: str):
    page.set_viewport_size({"width": 1300, "height": 900})
    page.goto(f"{lab}/doc/tree/{lesson}.ipynb?reset")
    notebook = page.locator(".jp-Notebook")
    notebook.locator(".jp-Cell").first.wait_for(timeout=START)
    run_all_cells(page)
    panel = notebook.locator(".widget-vbox").first
    panel.wait_for(timeout=RUN)
    # every code cell has been run: the last quiz shows its question, and no prompt waits any more
    expect(notebook.locator(".jp-InputPrompt", has_text="[*]")).to_have_count(0, timeout=RUN)
    assert notebook.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0

    panel.scroll_into_view_if_needed()
    image = panel.locator("img").first
    handle = panel.locator(".widget-slider", has_text=slider).locator(".noUi-handle").first
    before, readout = image.get_attribute("src"), panel.locator(".widget-readout").first.inner_text()
    if SHOTS:
        panel.screenshot(path=f"{SHOTS}/{lesson}-before.png")
    handle.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(panel.locator(".widget-readout").first).not_to_have_text(readout, timeout=START)
    expect(image).not_to_have_attribute("src", before, timeout=START)
    if SHOTS:
        panel.screenshot(path=f"{SHOTS}/{lesson}-after.png")
        page.screenshot(path=f"{SHOTS}/{lesson}-page.png")
