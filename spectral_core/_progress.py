"""A progress bar for whatever takes over a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress


@contextmanager
def progress_bar(title: str, total: int, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A function that counts what is finished; the bar, on standard error, appears after a second."""
    started, bar, done = time.monotonic(), Progress(console=Console(stderr=True), transient=True), 0
    task = bar.add_task(title, total=total)
    running = False

    def advance(count: int) -> None:
        nonlocal running, done
        done += count
        if shown and not running and time.monotonic() - started > 1 and done < total:
            bar.start()
            running = True
        bar.update(task, completed=done)

    try:
        yield advance
    finally:
        if running:
            bar.stop()
