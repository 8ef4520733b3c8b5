"""What the server knows of one open page; it lives in `gr.State`, so that no other visitor can reach it."""

from __future__ import annotations

import os
import threading
import time
from functools import cache

from spectral_core.demo.fleet import Fleet, Ticket
from spectral_core.demo.history import History
from spectral_core.demo.page.controls import control_values
from spectral_core.demo.settings import Settings, control_names, parse_settings

__all__ = ["PLACES", "Visit", "fleet"]

#: runs at once: one a core, and not more than four, since a container may count the cores of its host
PLACES = int(os.environ.get("SPECTRAL_RUNS", 0)) or min(4, os.cpu_count() or 1)
SETTING = threading.Lock()  # one for all, since a `Visit` is copied: it is held for microseconds


@cache
def fleet() -> Fleet:
    """The training processes of this server, and the queue before them."""
    return Fleet(PLACES)


class Visit:
    """One visitor's settings, run and its history.

    Not a dataclass: Gradio would turn that into a dict.
    """

    def __init__(self) -> None:
        self.raw: dict[str, object] = {}  # the controls as they stand, by name; what is not here has its default
        self.settings = Settings()
        self.turn = 0  # when they were set, in microseconds: answers may overtake each other
        self.history = History()
        self.started = Settings()  # of the run, as it began
        self.changes: list[tuple[int, str]] = []  # (step, address) of sliders that moved while it ran
        self.ticket: Ticket | None = None
        self.at: int | None = None  # the step that is looked back at
        self.follower = 0  # counts the streams that show the run: only the newest goes on

    def begin(self) -> Ticket:
        """Leave the run that there is, if any, and ask for a place for a new one."""
        self.leave()
        self.started, self.history, self.changes = self.settings, History(), []
        self.ticket = fleet().enter(self.settings)
        return self.ticket

    def change(self, changes: dict[str, object]) -> list[str]:
        """Take raw values of controls, whatever they are, and say what was clamped or refused.

        A run that is on hears of them before its next step.
        """
        with SETTING:
            self.raw |= changes
            self.settings, notices = parse_settings({n: value for n, value in self.raw.items() if value is not None})
            self.turn = time.time_ns() // 1000
        if self.ticket is not None and self.ticket.can_go_on():
            self.ticket.update(self.settings)
        return notices

    def put(self, settings: Settings, history: History | None = None) -> None:
        """End the run that there is, and show other settings, with a finished race if there is one."""
        self.leave()
        with SETTING:
            self.settings, self.raw = settings, dict(zip(control_names(), control_values(settings), strict=True))
            self.turn = time.time_ns() // 1000
        if history is not None:
            self.started, self.history, self.changes, self.at, self.ticket = settings, history, [], None, None

    def take(self) -> bool:
        """Add the frames that have come to the history; whether there were any."""
        frames = self.ticket.take() if self.ticket else []
        for frame in frames:
            self.history.append(frame)
            if frame["changed"]:
                mark = self.history.marks[-1]
                self.changes = [*(c for c in self.changes if c[0] != mark), (mark, frame["query"])]
        if self.ticket is not None and self.ticket.state == "ended":
            self.history.drop_part()
        return bool(frames)

    def back(self, step: int) -> None:
        """Forget what came after `step`, and let the run go on from there."""
        assert self.ticket is not None
        self.ticket.rewind(step)
        self.history.cut(step)
        self.changes = [change for change in self.changes if change[0] < step]
        self.ticket.resume()

    def said(self) -> str:
        """Where the run stands, in words."""
        ticket = self.ticket
        if ticket is None:
            return "Nothing is running."
        if ticket.state == "waiting":
            ahead = f"{ticket.ahead} ahead of you" if ticket.ahead else "you are next"
            return f"Waiting for a free place: {ahead}."
        if ticket.is_over():
            known = {"finished": "Finished.", "stopped": "Stopped.", "time": "Ended: it ran for as long as one may."}
            return known.get(ticket.why, f"Ended: {ticket.why}.")
        if ticket.state == "paused":
            return "Paused."
        return "Training." if self.history.step else "Preparing the models …"

    def leave(self) -> None:
        """Give the place back."""
        if self.ticket is not None:
            self.ticket.leave()
