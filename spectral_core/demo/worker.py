"""One training process: commands as lines of JSON on standard input, frames as lines of JSON on standard output.

    {"run": "arms=plain,identity&seed=0", "id": 7}   begin a race of these settings; the one before ends
    {"settings": "…"}  {"pause": true}  {"rewind": 40, "epoch": 1}  {"stop": true}

Answers: {"id": 7, "epoch": 0, "frame": {…}}, {…, "ended": "finished" | "stopped" | "failed: why"}, {"error": "…"}.
A finished race can be turned back until it is stopped. The process ends with its standard input.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from typing import Any, TextIO
from urllib.parse import parse_qsl

import torch

from spectral_core.demo.race import Race
from spectral_core.demo.settings import Settings, parse_settings

__all__ = ["Worker", "main"]

COMMANDS = ("run", "settings", "pause", "rewind", "stop")


class Worker:
    """Obeys commands from a queue, and trains while there are none.

    Args:
        commands: of parsed lines.
        out: where answers are written.
    """

    def __init__(self, commands: queue.Queue[dict[str, Any]], out: TextIO) -> None:
        self._commands, self._out = commands, out
        self._race: Race | None = None
        self._id: object = None
        self._is_paused = False
        self._epoch = 0  # counts the rewinds: frames from before the last one are told apart

    def serve(self) -> None:
        """Work for ever."""
        while True:
            try:
                busy = self._race is not None and not self._is_paused and not self._race.is_over
                command = self._commands.get(block=not busy)
            except queue.Empty:
                self._advance()
            else:
                self.obey(command)

    def obey(self, command: dict[str, Any]) -> None:
        """Carry out one command; one that cannot be is answered with an error."""
        if not set(command) & set(COMMANDS):
            self._say({"error": f"expected one of {', '.join(COMMANDS)}, got {sorted(command)[:9]}"})
        elif "run" in command:
            self._stop()
            self._id, self._is_paused, self._epoch = command.get("id"), False, 0
            self._try(lambda: self._begin(str(command["run"])))
        elif "stop" in command:
            self._stop()
        elif self._race is None:
            pass  # the race ended before the command came
        elif "settings" in command:
            self._race.update(_settings(str(command["settings"])))
        elif "pause" in command:
            self._is_paused = bool(command["pause"])
            if self._race.is_over and not self._is_paused:
                self._tell({"ended": "finished"})  # there is nothing to go on with
        else:
            self._epoch = command.get("epoch", self._epoch)
            try:
                self._race.rewind(command["rewind"])
            except (TypeError, ValueError) as error:
                self._say({"error": str(error)[:200]})

    def _begin(self, query: str) -> None:
        self._race = Race(_settings(query))
        self._tell({"frame": self._race.frame()})

    def _advance(self) -> None:
        race = self._race
        assert race is not None
        self._try(lambda: self._show(race))
        if self._race is race and race.is_over:
            self._tell({"ended": "finished"})

    def _show(self, race: Race) -> None:
        """One frame, arm by arm; a stop need not wait for all of them."""
        for frame in race.go():
            self._tell({"frame": frame})
            if any("stop" in command or "run" in command for command in list(self._commands.queue)):
                return

    def _stop(self) -> None:
        if self._race is not None:
            self._race = None
            self._tell({"ended": "stopped"})

    def _try(self, act) -> None:
        try:
            act()
        except Exception as error:  # one visitor's run must not end the process that serves the others
            self._race = None
            self._tell({"ended": f"failed: {type(error).__name__}: {str(error)[:200]}"})

    def _tell(self, answer: dict[str, Any]) -> None:
        self._say({"id": self._id, "epoch": self._epoch, **answer})

    def _say(self, answer: dict[str, Any]) -> None:
        self._out.write(json.dumps(answer) + "\n")
        self._out.flush()


def _settings(query: str) -> Settings:
    return parse_settings(dict(parse_qsl(query)))[0]


def _read(commands: queue.Queue[dict[str, Any]], out: TextIO) -> None:
    """Lines to commands; the process ends with its input."""
    for line in sys.stdin.buffer:
        try:
            command = json.loads(line)
        except (ValueError, RecursionError):
            command = {"unreadable": str(line[:40])}
        commands.put(command if isinstance(command, dict) else {"unreadable": str(command)[:40]})
    os._exit(0)


def main() -> None:
    """Serve the process that started this one."""
    out, sys.stdout = sys.stdout, sys.stderr  # nothing but answers may come between the answers
    os.nice(10)  # sliders come first
    torch.set_num_threads(1)
    commands: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read, args=(commands, out), daemon=True).start()
    Worker(commands, out).serve()


if __name__ == "__main__":
    main()
