"""The pieces a lesson is made of, as plain data, and the way from an id such as "01.kappa" to its piece."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Case", "Choice", "Exercise", "Option", "Question", "Slider", "View", "entries", "find"]

KINDS = ("property", "edge", "reference")


@dataclass(frozen=True)
class Case:
    """One named check of an exercise.

    Attributes:
        name: the property in words, as the learner reads it.
        kind: "property", "edge" or "reference".
        arguments: makes the arguments of the learner's function; seeded, fresh at every call.
        expected: the right value, from those arguments.
        cause: what a wrong value most likely comes from, when no known mistake gives the same value.
        observe: what is compared, from the function and the arguments; by default the value it returns.
        rtol, atol: tolerances of the comparison.
    """

    name: str
    kind: str
    arguments: Callable[[], tuple]
    expected: Callable[..., Any]
    cause: str
    observe: Callable[..., Any] = lambda fn, *args: fn(*args)
    rtol: float = 1e-5
    atol: float = 1e-6


@dataclass(frozen=True)
class Exercise:
    """An exercise.

    Attributes:
        id, title: as the lesson shows them.
        cases: the named checks.
        mistakes: pairs of what to tell the learner and a function that errs so.
        solution: the course's own answer, with which a lesson goes on for those who skip the exercise.
    """

    id: str
    title: str
    cases: tuple[Case, ...]
    mistakes: tuple[tuple[str, Callable[..., Any]], ...] = ()
    solution: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Option:
    """One answer to a question, with what is said to a learner who chose it."""

    text: str
    feedback: str


@dataclass(frozen=True)
class Question:
    """A question with options by letter; `answer` is the letter of the right one."""

    id: str
    text: str
    options: Mapping[str, Option]
    answer: str


@dataclass(frozen=True)
class Slider:
    """A number that `draw` takes by the name `name`; whole numbers when `step` is one."""

    name: str
    label: str
    low: float
    high: float
    step: float
    default: float
    note: str

    @property
    def ends(self) -> tuple[float, float]:
        """The values that a test of the corners uses."""
        return self.low, self.high


@dataclass(frozen=True)
class Choice:
    """One of a few values that `draw` takes by the name `name`."""

    name: str
    label: str
    values: tuple[str, ...]
    default: str
    note: str

    @property
    def ends(self) -> tuple[str, ...]:
        """The values that a test of the corners uses: all of them."""
        return self.values


@dataclass(frozen=True)
class View:
    """A figure drawn from plain numbers, and the controls of its sliders; both share ranges and defaults."""

    id: str
    draw: Callable[..., Figure]
    controls: tuple[Slider | Choice, ...]

    @property
    def defaults(self) -> dict[str, Any]:
        """The value of every control at the start, by name."""
        return {control.name: control.default for control in self.controls}


Entry = Exercise | Question | View
T = TypeVar("T", Exercise, Question, View)


def find(kind: type[T], entry_id: str) -> T:
    """The piece of a lesson by its kind and id; only that lesson is imported.

    Raises:
        ValueError: no such piece; the message lists those of the lesson, or of all when it names no lesson.
    """
    number = str(entry_id)[:2]
    near = entries(number) if any(name.startswith(f"lesson_{number}") for name in _modules()) else entries()
    known = {entry.id: entry for entry in near if isinstance(entry, kind)}
    if entry_id not in known:
        raise ValueError(f"expected the id of one of {', '.join(known)} ({kind.__name__.lower()}s), got {entry_id!r}")
    return known[entry_id]


@cache
def entries(number: str = "") -> tuple[Entry, ...]:
    """Every piece of the lesson with this number ("02"), or of every lesson, in order."""
    package = "spectral_core.lessons"
    modules = [import_module(f"{package}.{name}") for name in _modules() if name.startswith(f"lesson_{number}")]
    return tuple(entry for module in modules for entry in module.ENTRIES)


@cache
def _modules() -> tuple[str, ...]:
    found = iter_modules(import_module("spectral_core.lessons").__path__)
    return tuple(sorted(module.name for module in found if module.name.startswith("lesson_")))
