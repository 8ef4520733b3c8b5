"""What a race has shown so far, as plain lists: drawn, exported, stored, and cut when time turns back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from spectral_core.demo.settings import ARMS

__all__ = ["METRICS", "History"]

METRICS = ("loss", "accuracy", "log_kappa", "saturation")

Curve = list[float | None]


@dataclass
class History:
    """Frames of a race by arm and metric.

    Attributes:
        step: steps of the frames, ascending.
        arms: {name: {metric: values}}, as many as steps; None where there is no finite value.
        marks: steps at which a slider took effect.
        diverged: {name: step}.
    """

    step: list[int] = field(default_factory=list)
    arms: dict[str, dict[str, Curve]] = field(default_factory=dict)
    marks: list[int] = field(default_factory=list)
    diverged: dict[str, int] = field(default_factory=dict)

    def append(self, frame: dict[str, Any]) -> None:
        """Add a frame; one at the last step takes the place of the frame there."""
        if self.step and frame["step"] <= self.step[-1]:
            self.cut(frame["step"] - 1)
        if frame["changed"]:
            self.marks.append(self.step[-1] if self.step else 0)
        self.step.append(frame["step"])
        for name, values in frame["arms"].items():
            curves = self.arms.setdefault(name, {metric: [] for metric in METRICS})
            for metric in METRICS:
                curves[metric].append(values[metric])
        self.diverged = dict(frame["diverged"])

    def cut(self, step: int) -> None:
        """Forget what came after `step`."""
        kept = sum(s <= step for s in self.step)
        del self.step[kept:]
        for curves in self.arms.values():
            for values in curves.values():
                del values[kept:]
        last = self.step[-1] if self.step else -1
        self.marks = [mark for mark in self.marks if mark < last]
        self.diverged = self.gone(last)

    def drop_part(self) -> None:
        """Forget a last frame in which an arm has no values, although it has not diverged: the run ended within it."""
        if self.step and any(
            curves["loss"][-1] is None and name not in self.diverged for name, curves in self.arms.items()
        ):
            self.cut(self.step[-1] - 1)

    def gone(self, step: int) -> dict[str, int]:
        """Who had diverged at a frame, and when; at the very step of divergence an arm may still have its values."""
        here = self.at(step) if step in self.step else {}
        return {n: when for n, when in self.diverged.items() if n in here and here[n]["loss"] is None and when <= step}

    def at(self, step: int) -> dict[str, dict[str, float | None]]:
        """The values of every arm at one step.

        Raises:
            ValueError: there is no frame at that step.
        """
        if step not in self.step:
            raise ValueError(f"history: expected a step with a frame, {_show(self.step)}, got {step!r}")
        i = self.step.index(step)
        return {name: {metric: curves[metric][i] for metric in METRICS} for name, curves in self.arms.items()}

    def nearest(self, step: object) -> int:
        """The step of the frame nearest to an untrusted number; the last one for what is no number."""
        try:
            wanted = float(step)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            wanted = math.inf
        if math.isnan(wanted):
            wanted = math.inf
        return min(self.step, key=lambda s: (abs(s - min(max(wanted, 0), 1e9)), -s))

    def last(self, name: str, metric: str, at: int | None = None) -> float | None:
        """The newest value of an arm, up to step `at`; None where there is none."""
        pairs = zip(self.step, self.arms[name][metric], strict=True)
        return next((v for s, v in reversed(list(pairs)) if v is not None and (at is None or s <= at)), None)

    def to_json(self) -> dict[str, Any]:
        return {"step": self.step, "arms": self.arms, "marks": self.marks, "diverged": self.diverged}

    @classmethod
    def from_json(cls, raw: object) -> History:
        """The history that `to_json` gave.

        Raises:
            ValueError: it is not one; says where.
        """
        if not isinstance(raw, dict) or set(raw) != {"step", "arms", "marks", "diverged"}:
            raise ValueError(f"history: expected step, arms, marks and diverged, got {_show(raw)}")
        step, arms, marks, diverged = raw["step"], raw["arms"], raw["marks"], raw["diverged"]
        for name, steps in (("step", step), ("marks", marks)):
            if not isinstance(steps, list) or not all(map(_is_step, steps)) or steps != sorted(set(steps)):
                raise ValueError(f"history: {name}: expected whole numbers, ascending, got {_show(steps)}")
        if not set(marks) <= set(step):
            raise ValueError(f"history: marks: expected steps that have a frame, got {_show(marks)}")
        if not isinstance(arms, dict) or not set(arms) <= set(ARMS):
            raise ValueError(f"history: arms: expected some of {', '.join(ARMS)}, got {_show(arms)}")
        for name, curves in arms.items():
            if not isinstance(curves, dict) or set(curves) != set(METRICS):
                raise ValueError(f"history: {name}: expected {', '.join(METRICS)}, got {_show(curves)}")
            for metric, values in curves.items():
                if not isinstance(values, list) or len(values) != len(step) or not all(map(_is_value, values)):
                    wanted = f"{len(step)} finite numbers or None"
                    raise ValueError(f"history: {name}, {metric}: expected {wanted}, got {_show(values)}")
        if not isinstance(diverged, dict) or set(diverged) - set(arms) or not all(map(_is_step, diverged.values())):
            wanted = f"a step for some of {', '.join(arms)}"
            raise ValueError(f"history: diverged: expected {wanted}, got {_show(diverged)}")
        copied = {name: {metric: list(curves[metric]) for metric in METRICS} for name, curves in arms.items()}
        return cls(list(step), copied, list(marks), dict(diverged))


def _is_step(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_value(value: object) -> bool:
    return value is None or (type(value) in (int, float) and math.isfinite(value))  # type: ignore[arg-type]


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
