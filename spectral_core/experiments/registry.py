"""All tasks by name. A new task is one entry in the `tasks()` of a module here."""

from __future__ import annotations

from spectral_core._checks import check_choice
from spectral_core.experiments import detection, language, long_range, streams, vision
from spectral_core.experiments.task import Task

__all__ = ["TASKS", "find_task"]

TASKS: dict[str, Task] = {
    task.name: task for module in (vision, detection, long_range, streams, language) for task in module.tasks()
}


def find_task(name: str) -> Task:
    """Raises ValueError, with the known ones, for an unknown name."""
    check_choice(name, "task", tuple(TASKS))
    return TASKS[name]
