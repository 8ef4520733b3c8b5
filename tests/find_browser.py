"""Find a Chromium for the browser tests; with --install, install Debian's where that is possible.

Order: $CHROMIUM, a Chromium on the PATH, Playwright's own. Exits 1 with a message when there is none, so that
browser tests are never skipped silently.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
#: for every headless start: no sandbox (root), and no calls home that a closed network would refuse
CHROMIUM_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
                  "--disable-background-networking", "--disable-component-update"]
MISSING = (
    "No Chromium found: set CHROMIUM=/path/to/chromium, install the package `chromium`, "
    "or run `.venv/bin/playwright install chromium`."
)


def find_browser() -> str | None:
    """Path of a Chromium executable, or None."""
    named = os.environ.get("CHROMIUM")
    if named:
        return named if Path(named).exists() else None
    for name in NAMES:
        if path := shutil.which(name):
            return path
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def install() -> None:
    """Install Debian's chromium; only root can, and only where there is apt."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    print("Installing Debian's chromium for the browser tests ...", flush=True)
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=False, env=env)
    subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"], check=False, env=env,
                   stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", action="store_true", help="install Debian's chromium when none is found")
    if parser.parse_args().install and not find_browser():
        install()
    found = find_browser()
    if not found:
        sys.exit(MISSING)
    print(f"Browser: {found}")
