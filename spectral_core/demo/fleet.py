"""The training processes of a server and the queue before them: first come, first served, one run a process.

Training never shares a process with the page, so that no slider waits for it. All methods return at once.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from spectral_core.demo.process import Process
from spectral_core.demo.settings import Settings, to_query

__all__ = ["Fleet", "Ticket"]

log = logging.getLogger("spectral_core.demo")

Clock = Callable[[], float]


class Ticket:
    """One visitor's run, from the queue to its end.

    Attributes:
        state: "waiting", "running", "paused", "finished" (it can still be turned back) or "ended".
        why: it ended: "stopped", "time", "others were waiting", "failed: …"; "finished" once it is.
    """

    def __init__(self, fleet: Fleet, settings: Settings) -> None:
        self.state, self.why = "waiting", ""
        self._fleet, self._query = fleet, to_query(settings)
        self._frames: list[dict[str, Any]] = []
        self._epoch = 0  # counts the rewinds: what was on its way before the last one is dropped
        self._process: Process | None = None
        self._ran, self._since = 0.0, 0.0  # seconds at work, and when this state began

    @property
    def ahead(self) -> int:
        """How many wait before this one."""
        with self._fleet.lock:
            waiting = self._fleet.waiting
            return waiting.index(self) if self in waiting else 0

    def is_over(self) -> bool:
        """Whether no frame will come unless the run is turned back."""
        return self.state in ("finished", "ended")

    def can_go_on(self) -> bool:
        """Whether it is paused or finished, and still has its place."""
        return self.state in ("paused", "finished", "running")

    def take(self) -> list[dict[str, Any]]:
        """The frames that have come since the last call."""
        with self._fleet.lock:
            frames, self._frames = self._frames, []
        return frames

    def update(self, settings: Settings) -> None:
        """Hand over new settings, for the next step."""
        with self._fleet.lock:
            self._query = to_query(settings)
            self._tell({"settings": self._query})

    def pause(self) -> None:
        with self._fleet.lock:
            if self.state == "running":
                self._tell({"pause": True})
                self._enter("paused")

    def resume(self) -> None:
        with self._fleet.lock:
            if self.state in ("paused", "finished"):
                self._tell({"pause": False})
                self._enter("running")

    def rewind(self, step: int) -> None:
        """Back to the frame at `step`; frames that came after it and were not taken are dropped."""
        with self._fleet.lock:
            if self.state not in ("running", "paused", "finished"):
                return
            self._frames.clear()
            self._tell({"pause": True})
            self._epoch += 1
            self._tell({"rewind": step, "epoch": self._epoch})
            if self.state == "running":
                self._enter("paused")

    def leave(self) -> None:
        """End the run, or leave the queue."""
        self._fleet.end(self, "stopped")

    def _tell(self, command: dict[str, Any]) -> None:
        with self._fleet.lock:
            if self._process is not None:
                self._process.tell(command)

    def _enter(self, state: str) -> None:
        with self._fleet.lock:
            now = self._fleet.clock()
            if self.state == "running":
                self._ran += now - self._since
            self.state, self._since = state, now


class Fleet:
    """`size` training processes, started by `start` or by the first run, and the queue before them.

    Args:
        size: runs at once.
        seconds: that one run may be at work.
        idle: seconds that a paused run keeps its place while others wait; a finished one gives it up at once.
        obey: seconds after which a process that does not stop is replaced.
    """

    def __init__(self, size: int, *, seconds: float = 300.0, idle: float = 30.0, obey: float = 5.0) -> None:
        self.size, self.seconds, self.idle, self.obey = size, seconds, idle, obey
        self.lock = threading.RLock()
        self.clock: Clock = time.monotonic
        self.waiting: list[Ticket] = []
        self._processes: list[Process] = []
        self._is_closed = False

    def start(self) -> None:
        """Start the processes; they load what they need in the background."""
        with self.lock:
            if self._processes or self._is_closed:
                return
            self._processes = [Process(self.hear, self.lose) for _ in range(self.size)]
        threading.Thread(target=self._watch, daemon=True, name="fleet").start()
        atexit.register(self.close)

    def enter(self, settings: Settings) -> Ticket:
        """Ask for a place."""
        self.start()
        ticket = Ticket(self, settings)
        with self.lock:
            if self._is_closed:
                ticket.state, ticket.why = "ended", "stopped"
            else:
                self.waiting.append(ticket)
                self._assign()
        return ticket

    def end(self, ticket: Ticket, why: str) -> None:
        """End a run, whatever its state; the first reason stays."""
        with self.lock:
            if ticket.state == "ended":
                return
            if ticket in self.waiting:
                self.waiting.remove(ticket)
            ticket.state, ticket.why = "ended", why
            if (process := ticket._process) is not None:
                ticket._process = None  # it serves others from here on
                process.release(self.clock())
                log.info("run ended: %s", why)
            self._assign()

    def close(self) -> None:
        """End all processes."""
        with self.lock:
            self._is_closed = True
            for process in self._processes:
                process.kill()

    # ---- for the processes, under the lock ------------------------------------------------------------------

    def hear(self, process: Process, answer: dict[str, Any]) -> None:
        """Take one answer of a process."""
        with self.lock:
            ticket = process.ticket if answer.get("id") == process.number else None
            is_late = ticket is None or answer.get("epoch", 0) != ticket._epoch
            if "frame" in answer:
                if ticket is not None and not is_late:
                    ticket._frames.append(answer["frame"])
                return
            if answer.get("ended") == "finished":
                if ticket is not None and not is_late:
                    ticket._enter("finished")
                    ticket.why = "finished"
            elif "ended" in answer:
                if ticket is not None:
                    self.end(ticket, answer["ended"])
                process.free(answer["id"])
            self._assign()

    def lose(self, process: Process) -> None:
        """A process ended by itself: its run has failed, another takes its place."""
        if time.monotonic() - process.born < 5:
            time.sleep(1)  # one that cannot even start must not be started over and over
        with self.lock:
            if self._is_closed or process not in self._processes:
                return
            ticket = process.ticket
            self._processes[self._processes.index(process)] = Process(self.hear, self.lose)
            if ticket is not None and ticket.state != "ended":
                ticket._process = None
                self.end(ticket, "failed: the training process ended unexpectedly")
            self._assign()

    def _assign(self) -> None:
        for process in self._processes:
            if process.ticket is None and not process.is_stopping and self.waiting:
                self._begin(process, self.waiting.pop(0))
        if self.waiting:  # a finished run must not keep others from beginning
            held = [p.ticket for p in self._processes if p.ticket is not None and p.ticket.state == "finished"]
            for ticket in held[: len(self.waiting)]:
                self.end(ticket, "others were waiting")

    def _begin(self, process: Process, ticket: Ticket) -> None:
        process.ticket, ticket._process = ticket, process
        ticket._enter("running")
        process.run(ticket._query)

    def _watch(self) -> None:
        """Ends runs that are over their time, and processes that do not obey."""
        while not self._is_closed:
            time.sleep(min(0.2, self.obey / 4))
            with self.lock:
                now = self.clock()
                for process in list(self._processes):
                    if process.is_late(now, self.obey):
                        log.warning("a training process did not stop within %s s and is replaced", self.obey)
                        process.kill()  # its reader then calls `lose`
                    ticket = process.ticket
                    if ticket is None:
                        continue
                    if ticket.state == "running" and ticket._ran + now - ticket._since > self.seconds:
                        self.end(ticket, "time")
                    elif ticket.state == "paused" and self.waiting and now - ticket._since > self.idle:
                        self.end(ticket, "others were waiting")
