"""One training process, seen from the server: lines of JSON to it and from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["Process"]

ROOT = Path(__file__).parents[2]  # where `python -m` finds this package, installed or not


class Process:
    """One `worker`, and the ticket that it serves (None: none).

    Args:
        hear: is called with this and each answer; lose: with this, when the process has ended. In a thread of its own.
    """

    def __init__(self, hear: Callable[[Process, dict[str, Any]], None], lose: Callable[[Process], None]) -> None:
        self._hear, self._lose = hear, lose
        self.ticket: Any = None
        self.number, self.is_stopping, self._asked, self.born = 0, False, 0.0, time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "spectral_core.demo.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT,
        )  # fmt: skip
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)  # one that does not read must not stop the server
        threading.Thread(target=self._listen, daemon=True, name="worker").start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, query: str) -> None:
        """Begin a race of these settings."""
        self.number += 1
        self.tell({"run": query, "id": self.number})

    def release(self, now: float) -> None:
        """Ask for the end of the run; the place is free when the process says so."""
        self.ticket, self.is_stopping, self._asked = None, True, now
        self.tell({"stop": True})

    def free(self, number: int) -> None:
        """The run of this number has ended."""
        if number == self.number:
            self.is_stopping = False

    def is_late(self, now: float, patience: float) -> bool:
        """Whether it was asked to stop longer ago than that."""
        return self.is_stopping and now - self._asked > patience

    def tell(self, command: dict[str, Any]) -> None:
        """Hand over a command; a process that has stopped reading is ended, and `lose` follows."""
        line = json.dumps(command).encode() + b"\n"
        assert self._process.stdin is not None
        try:
            if os.write(self._process.stdin.fileno(), line) < len(line):
                self.kill()
        except BlockingIOError:
            self.kill()
        except (OSError, ValueError):
            pass  # it has ended: `lose` follows

    def kill(self) -> None:
        self._process.kill()

    def _listen(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError):
                self._hear(self, json.loads(line))
        self._process.wait()
        self._lose(self)
        with suppress(OSError):  # of what it could not be told any more
            self._process.stdin.close()
        self._process.stdout.close()
