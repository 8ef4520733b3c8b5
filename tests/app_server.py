"""The app in a process of its own, as a visitor meets it: for the browser tests and the benchmark."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent


class Server:
    """`python app.py` on a free port, its log in a file; a context manager."""

    def __init__(self, log: Path | None = None, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = log or Path(tempfile.mkdtemp()) / "app.log"
        self.url = f"http://127.0.0.1:{self.port}"
        with self.log.open("w") as out:
            command = [sys.executable, str(ROOT / "app.py"), "--port", str(self.port)]
            env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
            self.process = subprocess.Popen(command, cwd=self.log.parent, env=env, stdout=out, stderr=out)

    def __enter__(self) -> Server:
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self) -> None:
        """Until it answers; a minute at most."""
        for _ in range(300):
            try:
                urllib.request.urlopen(self.url, timeout=2)
                return
            except (urllib.error.URLError, OSError):
                assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.2)
        raise AssertionError(f"the app did not answer within a minute:\n{self.log.read_text()}")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(15)

    def count(self, text: str) -> int:
        """How often the log says so."""
        return self.log.read_text().count(text)

    def post(self, path: str, body: object) -> int:
        """The status of a request to Gradio's own interface."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/gradio_api{path}", data, {"Content-Type": "application/json"})
        try:
            return urllib.request.urlopen(request, timeout=20).status
        except urllib.error.HTTPError as error:
            return error.code

    def processes(self) -> list[int]:
        """The server and everything below it."""
        found, parents = [self.process.pid], {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(stat.parent.name)] = int(fields[1])
        for pid, parent in sorted(parents.items()):
            if parent in found:
                found.append(pid)
        return found

    def memory(self) -> float:
        """Resident MB of all of them."""
        pages = 0
        for pid in self.processes():
            with suppress(OSError):  # it has just ended
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
