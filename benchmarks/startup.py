"""Seconds from a fresh clone to the first page of `make demo`, and of a second start.

    python benchmarks/startup.py

Clones the committed state into an empty folder, so that the time includes the virtual environment and every
package (from pip's cache where it has them). Target: under 120 s, then under 15 s. Writes results/startup.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT = 900


def first_page(folder: Path) -> float:
    """Start `make demo` in `folder`, wait for its page, stop it; seconds until the page answered."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    env = os.environ | {"GRADIO_SERVER_PORT": str(port)}
    make = subprocess.Popen(["make", "demo"], cwd=folder, env=env, start_new_session=True)
    try:
        while time.monotonic() - began < LIMIT:
            try:
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
                assert b"gradio" in page
                return time.monotonic() - began
            except (urllib.error.URLError, OSError):
                assert make.poll() is None, "make demo ended early"
                time.sleep(0.1)
        raise TimeoutError(f"no page within {LIMIT} s")
    finally:
        os.killpg(make.pid, signal.SIGTERM)
        make.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        first, second = first_page(clone), first_page(clone)
    text = (
        "# Fresh clone to the first page of `make demo`\n\n"
        f"`python benchmarks/startup.py`: {os.cpu_count()} cores, packages in pip's cache.\n\n"
        "| start | seconds | target |\n| --- | ---: | ---: |\n"
        f"| first, with the virtual environment and every package | {first:.0f} | 120 |\n"
        f"| second | {second:.1f} | 15 |\n"
    )
    (ROOT / "results" / "startup.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
