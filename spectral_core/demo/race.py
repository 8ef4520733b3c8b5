"""Up to four models with the same seed and batches, a frame at a time; sliders act between steps, time turns back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from spectral_core.demo.arms import build_arm
from spectral_core.demo.live import corrections_differ
from spectral_core.demo.settings import Settings, to_query
from spectral_core.demo.tasks import load_task
from spectral_core.training import Trainer

__all__ = ["EVERY", "STEPS", "Frame", "Race"]

EVERY, STEPS = 5, 600  # optimiser steps between two frames, and of a race

#: {"step": …, "changed": whether sliders had moved before the last steps, "query": their address if so,
#: "arms": {name: {metric: value or None}}, "diverged": {name: step}}, ready for JSON
Frame = dict[str, Any]
Values = dict[str, float | None]
METRICS = ("loss", "accuracy", "log_kappa", "saturation")


class Race:
    """A race from its start; `advance` goes on by `every` steps.

    Args:
        settings: initial weights, task, seed, learning rate and arms are taken up here, the corrections also later.
    """

    def __init__(self, settings: Settings, *, every: int = EVERY, steps: int = STEPS) -> None:
        self.every, self.steps = every, steps
        self._now = settings
        data = load_task(settings.source)
        self._arms = {name: build_arm(name, settings) for name in settings.arms}
        self._trainers = {
            name: Trainer(arm.model, data, lr=settings.lr, seed=settings.seed) for name, arm in self._arms.items()
        }
        self._diverged: dict[str, int] = {}
        self._changed = False
        self._past: dict[int, tuple[Frame, dict[str, Any]]] = {}
        self._keep(0, {name: _read(trainer) for name, trainer in self._trainers.items()})

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return max(self._past)

    @property
    def is_over(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.steps

    def frame(self) -> Frame:
        """The frame at the current step."""
        return self._past[self.step][0]

    def update(self, settings: Settings) -> None:
        """Take new corrections, from the next step on."""
        self._changed |= corrections_differ(self._now, settings)
        self._now = settings
        for arm in self._arms.values():
            arm.update(settings)

    def advance(self) -> Frame:
        """Go on by `every` steps and give the frame there.

        Raises:
            ValueError: all steps are done.
        """
        *_, frame = self.go()
        return frame

    def go(self) -> Iterator[Frame]:
        """`advance`, with a frame after each arm: the values of the others are still None in it."""
        if self.is_over:
            raise ValueError(f"expected a race with steps left, got one at its last step, {self.steps}")
        step = min(self.step + self.every, self.steps)
        arms: dict[str, Values] = {name: dict.fromkeys(METRICS) for name in self._trainers}
        for name, trainer in self._trainers.items():
            if name not in self._diverged:
                try:
                    trainer.advance(step - trainer.step)
                    arms[name] = _read(trainer)
                except (FloatingPointError, ValueError):  # a correction refuses weights that are not finite
                    self._diverged[name] = trainer.step
            if name != next(reversed(self._trainers)):
                yield self._frame(step, arms)
        yield self._keep(step, arms)

    def rewind(self, step: int) -> Frame:
        """Go back to the frame at `step`; what was after it is forgotten.

        Raises:
            ValueError: there is no frame at that step.
        """
        if step not in self._past:
            raise ValueError(f"expected a step with a frame, 0 to {self.step} by {self.every}, got {step!r}")
        self._past = {at: kept for at, kept in self._past.items() if at <= step}
        frame, states = self._past[step]
        for name, state in states.items():
            self._trainers[name].restore(state)
        self._diverged = {name: at for name, at in self._diverged.items() if name not in states}
        self._changed = True  # the sliders may stand elsewhere than they did at that step
        return frame

    def _frame(self, step: int, arms: dict[str, Values]) -> Frame:
        query = to_query(self._now) if self._changed else ""
        return {
            "step": step, "changed": self._changed, "query": query, "arms": dict(arms),
            "diverged": dict(self._diverged),
        }  # fmt: skip

    def _keep(self, step: int, arms: dict[str, Values]) -> Frame:
        frame = self._frame(step, arms)
        self._changed = False
        states = {name: t.state() for name, t in self._trainers.items() if name not in self._diverged}
        self._past[step] = frame, states
        return frame


def _read(trainer: Trainer) -> Values:
    record = trainer.record()
    log_kappa = math.log10(record.kappa_j) if 0 < record.kappa_j < math.inf else math.nan
    values = {"loss": record.loss, "accuracy": record.accuracy, "log_kappa": log_kappa,
              "saturation": record.saturation}
    return {name: float(f"{value:.5g}") if math.isfinite(value) else None for name, value in values.items()}
