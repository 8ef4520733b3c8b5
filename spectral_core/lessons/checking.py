"""`check("01.kappa", fn)`: run the named checks of an exercise on the learner's function and say what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor

from spectral_core.lessons.display import Shown, describe
from spectral_core.lessons.registry import Case, Exercise, find

__all__ = ["CaseResult", "CheckResult", "check", "own_or_solution"]


@dataclass(frozen=True)
class CaseResult:
    """One check: whether it passed, and if not what was expected, what came, and the likely cause."""

    name: str
    kind: str
    passed: bool
    given: str = ""
    expected: str = ""
    got: str = ""
    cause: str = ""


@dataclass(frozen=True, repr=False)
class CheckResult(Shown):
    """All checks of one exercise; `attempted` is False while the stub raises NotImplementedError."""

    exercise: str
    title: str
    cases: tuple[CaseResult, ...]
    attempted: bool = True

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return self.attempted and all(case.passed for case in self.cases)

    def __bool__(self) -> bool:
        return self.passed

    @property
    def headline(self) -> str:
        """The outcome in one line."""
        if not self.attempted:
            return (
                f"{self.exercise}, {self.title}: not attempted yet. Put your code in place of `raise "
                "NotImplementedError` and run the cell again. These checks wait for it:"
            )
        good = sum(case.passed for case in self.cases)
        praise = " Well done." if self.passed else ""
        return f"{self.exercise}, {self.title}: {good} of {len(self.cases)} checks passed.{praise}"

    def text(self) -> str:
        """The headline, then a line a check, ✓ passed, ✗ failed, ○ waiting; under a ✗ its details."""
        lines = [self.headline]
        for case in self.cases:
            lines.append(f"  {self._mark(case)} {case.kind}: {case.name}")
            lines += [f"      {label}: {value}" for label, value in _details(case)]
        return "\n".join(lines)

    def html(self) -> str:
        """As `text`, as a list."""
        items = []
        for case in self.cases:
            details = "".join(f"<br>&emsp;&emsp;<em>{label}:</em> {escape(value)}" for label, value in _details(case))
            items.append(f"<br>{self._mark(case)} {case.kind}: {escape(case.name)}{details}")
        return f"<p><strong>{escape(self.headline)}</strong>{''.join(items)}</p>"

    def _mark(self, case: CaseResult) -> str:
        return "○" if not self.attempted else "✓" if case.passed else "✗"


def check(exercise_id: str, fn: Callable[..., Any]) -> CheckResult:
    """Run the checks of an exercise on `fn`; whatever `fn` does wrong ends up in the result, not in an exception.

    Raises:
        ValueError: an unknown exercise, or `fn` is not a function.
    """
    exercise = find(Exercise, exercise_id)
    if not callable(fn):
        raise ValueError(f"check({exercise_id!r}, …): expected your function, got {describe(fn)}; pass it without ()")
    try:
        results = tuple(_run(exercise, case, fn) for case in exercise.cases)
    except NotImplementedError:
        names = tuple(CaseResult(case.name, case.kind, passed=False) for case in exercise.cases)
        return CheckResult(exercise.id, exercise.title, names, attempted=False)
    return CheckResult(exercise.id, exercise.title, results)


def own_or_solution(exercise_id: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` if it passes every check of the exercise, else the course's own solution: the lesson goes on either way.

    Raises:
        ValueError: as `check`, or the exercise has no solution.
    """
    solution = find(Exercise, exercise_id).solution
    if solution is None:
        raise ValueError(f"{exercise_id}: expected an exercise with a solution, got one without")
    return fn if check(exercise_id, fn) else solution


def same(expected: object, got: object, rtol: float, atol: float) -> bool:
    """Whether two numbers, tensors or tuples of them have the same shape and agree to the tolerances."""
    if isinstance(expected, tuple):
        if getattr(got, "ndim", None) == 1:  # the numbers as one tensor or array
            got = list(got)  # type: ignore[call-overload]
        return (
            isinstance(got, (tuple, list))
            and len(got) == len(expected)
            and all(same(e, g, rtol, atol) for e, g in zip(expected, got, strict=True))
        )
    try:
        right, left = _as_tensor(expected), _as_tensor(got)
    except (TypeError, ValueError, RuntimeError):
        return False
    return left.shape == right.shape and torch.allclose(left, right, rtol=rtol, atol=atol)


def _run(exercise: Exercise, case: Case, fn: Callable[..., Any]) -> CaseResult:
    expected = case.expected(*case.arguments())
    shapes = "called with " + ", ".join(_shape(argument) for argument in case.arguments())
    try:
        got = case.observe(fn, *case.arguments())
    except NotImplementedError:
        raise
    except Exception as error:
        came = f"{type(error).__name__}: {error}"
        return CaseResult(case.name, case.kind, False, shapes, describe(expected), came, _stopped(case, fn, came))
    if same(expected, got, case.rtol, case.atol):
        return CaseResult(case.name, case.kind, True)
    return CaseResult(
        case.name, case.kind, False, shapes, describe(expected), describe(got) + _difference(expected, got),
        _cause(exercise, case, got),
    )  # fmt: skip


def _cause(exercise: Exercise, case: Case, got: object) -> str:
    if got is None:
        return "your function returns None: is the `return` missing?"
    for told, mistake in exercise.mistakes:
        try:
            wrong = case.observe(mistake, *case.arguments())
        except Exception:  # a mistake need not survive every case
            continue
        if same(wrong, got, case.rtol, case.atol):
            return told
    return case.cause


def _stopped(case: Case, fn: Callable[..., Any], came: str) -> str:
    if came.startswith("NameError"):
        return f"{came.removeprefix('NameError: ')}: import it, or define it above"
    if "dtype" in came or "scalar type" in came:
        return "float32 and float64 were mixed: make new tensors like the argument, as in w.new_zeros(3)"
    try:
        returned = fn(*case.arguments())
    except Exception:
        return f"your function stopped on this input; {case.cause}"
    return "your function returns None: is the `return` missing?" if returned is None else case.cause


def _difference(expected: object, got: object) -> str:
    if isinstance(expected, (int, float)) and getattr(got, "ndim", None):
        return f", shape {tuple(got.shape)} where one number was expected"  # type: ignore[attr-defined]
    if not isinstance(expected, Tensor) or not isinstance(got, Tensor) or not expected.ndim:
        return ""
    if expected.shape != got.shape:
        return f", shape {tuple(got.shape)} where {tuple(expected.shape)} was expected"
    apart = (_as_tensor(got) - _as_tensor(expected)).abs()
    at = [int(i) for i in torch.unravel_index(apart.argmax(), apart.shape)]
    return f", largest difference {describe(apart.max())} at index {at}"


def _details(case: CaseResult) -> list[tuple[str, str]]:
    pairs = [("given", case.given), ("expected", case.expected), ("got", case.got), ("likely cause", case.cause)]
    return [pair for pair in pairs if pair[1]]


def _as_tensor(value: object) -> Tensor:
    return torch.as_tensor(value).detach().cpu().double()


def _shape(value: object) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) and value.ndim else describe(value)
