"""From lines of evidence to compared arms: reading, filling diverged runs, gains over plain and the best control."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from spectral_core.experiments.statistics import Difference, fill, holm, paired_gain, worst
from spectral_core.experiments.task import Task

__all__ = ["CONTENDERS", "OUTCOMES", "ArmLike", "Comparison", "Run", "TaskEvidence", "collect", "number"]

OUTCOMES = {"loss": "optimisation", "metric": "generalisation"}
CONTENDERS = ("paper", "correction", "rival")
LEVEL = 0.05


class ArmLike(Protocol):
    """What the report needs of an arm."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def kind(self) -> str:
        """One of "plain", "control", "paper", "correction", "rival"."""
        ...


@dataclass(frozen=True)
class Run:
    """One finished run; a number that is missing or was not finite is NaN, except an infinity stored as such."""

    line: Mapping[str, Any]
    seed: int
    loss: float
    metric: float
    diverged: int | None

    @property
    def failed(self) -> bool:
        """Whether it diverged, or ended without a finite loss or metric."""
        return self.diverged is not None or not (math.isfinite(self.loss) and math.isfinite(self.metric))

    def probe(self, when: str, name: str) -> float:
        """A diagnostic at "start", "middle" or "end"."""
        return number(((self.line.get("probes") or {}).get(when) or {}).get(name))

    def steps_to(self, loss: float) -> float:
        """First step of the curve with at most this loss, ∞ where none has."""
        return min((step for step, v in self.line.get("curve") or () if number(v) <= loss), default=math.inf)


@dataclass(frozen=True)
class Comparison:
    """One arm on one task and one outcome.

    Attributes:
        to_plain, to_control: gains, None where there is no such arm to compare with.
        control: the best control; holm: p value against plain, corrected over the arms of the task.
        joint_holm: p value of both gains, the larger of the two, corrected over arms of paper, correction and rivals.
    """

    to_plain: Difference | None
    control: str | None
    to_control: Difference | None
    holm: float | None
    joint_holm: float | None

    @property
    def judged(self) -> bool:
        """Whether both comparisons have at least two common seeds."""
        return all(d is not None and d.count >= 2 for d in (self.to_plain, self.to_control))

    @property
    def wins_both(self) -> bool:
        """Whether both intervals lie above zero."""
        return all(d is not None and d.wins for d in (self.to_plain, self.to_control))

    @property
    def wins_both_corrected(self) -> bool:
        """The same, with the corrected p value below 0.05 too."""
        return self.wins_both and self.joint_holm is not None and self.joint_holm < LEVEL


@dataclass(frozen=True)
class TaskEvidence:
    """All final runs on one task at one size: arm -> seed -> run, in the order of the registered arms.

    `against`: arm -> the arms that it builds on, which it must beat beside the controls.
    """

    task: Task
    size: str
    runs: Mapping[str, Mapping[int, Run]]
    kinds: Mapping[str, str]
    against: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return self.task.title if self.size == "small" else f"{self.task.title} ({self.size} size)"

    @property
    def plain(self) -> str | None:
        """The arm without any change, None where it has not run."""
        return next((arm for arm in self.runs if self.kinds[arm] == "plain"), None)

    def better(self, outcome: str) -> bool:
        """Whether a higher value of the outcome is better."""
        return outcome == "metric" and self.task.higher_is_better

    @cached_property
    def worst(self) -> dict[str, float]:
        """Outcome -> the worst value of a run that did not diverge, which stands for those that did."""
        kept = [run for runs in self.runs.values() for run in runs.values() if run.diverged is None]
        return {o: worst((getattr(r, o) for r in kept), higher_is_better=self.better(o)) for o in OUTCOMES}

    @cached_property
    def values(self) -> dict[str, dict[str, dict[int, float]]]:
        """Outcome -> arm -> seed -> value, diverged runs filled; no arms where no run of the task has a number."""
        found: dict[str, dict[str, dict[int, float]]] = {}
        for outcome, bad in self.worst.items():
            found[outcome] = {}
            for arm, runs in self.runs.items() if math.isfinite(bad) else ():
                raw = {s: getattr(r, outcome) if r.diverged is None else math.nan for s, r in runs.items()}
                found[outcome][arm] = fill(raw, bad)
        return found

    def mean(self, outcome: str, arm: str) -> float:
        """Mean over the seeds, NaN without a number."""
        values = list(self.values[outcome].get(arm, {}).values())
        return sum(values) / len(values) if values else math.nan

    def best(self, outcome: str, kinds: Sequence[str]) -> str | None:
        """The arm of these kinds with the best mean, from those with two seeds where there are such."""
        arms = [arm for arm in self.values[outcome] if self.kinds[arm] in kinds]
        arms = [arm for arm in arms if len(self.runs[arm]) > 1] or arms
        sign = -1 if self.better(outcome) else 1
        return min(arms, key=lambda arm: sign * self.mean(outcome, arm), default=None)

    @cached_property
    def at_chance(self) -> bool:
        """Whether no arm's held-out metric is better than a guess, by t, with Holm's correction over the arms."""
        if self.task.chance is None or not self.values["metric"]:
            return False
        higher = self.task.higher_is_better
        gains = {
            arm: paired_gain(by_seed, dict.fromkeys(by_seed, self.task.chance), higher_is_better=higher)
            for arm, by_seed in self.values["metric"].items()
        }
        p = holm({arm: gain.p for arm, gain in gains.items()})
        return not any(gains[arm].mean > 0 and (p[arm] or 0.0) < LEVEL for arm in gains)

    @cached_property
    def comparisons(self) -> dict[str, dict[str, Comparison]]:
        """Outcome -> arm other than plain -> its comparison."""
        return {outcome: self._compare(outcome) for outcome in OUTCOMES}

    def _compare(self, outcome: str) -> dict[str, Comparison]:
        values, control = self.values[outcome], self.best(outcome, ("control",))
        rivals = {arm: self._hardest(outcome, arm, control) for arm in values}
        plain: dict[str, Difference | None] = {}
        versus: dict[str, Difference | None] = {}
        for arm in values:
            if self.kinds[arm] != "plain":
                plain[arm] = self._gain(outcome, arm, self.plain)
                versus[arm] = self._gain(outcome, arm, rivals[arm]) if arm != control else None
        p_plain = {arm: d.p if d else None for arm, d in plain.items()}
        joint = {arm: _both(plain[arm], versus[arm]) for arm in plain if self.kinds[arm] in CONTENDERS}
        corrected, joint_corrected = holm(p_plain), holm(joint)
        return {
            arm: Comparison(plain[arm], rivals[arm], versus[arm], corrected[arm], joint_corrected.get(arm))
            for arm in plain
        }

    def _hardest(self, outcome: str, arm: str, control: str | None) -> str | None:
        """The best by mean of the best control and of the arms that this one builds on."""
        others = [control, *(a for a in self.against.get(arm, ()) if a in self.values[outcome])]
        sign = -1 if self.better(outcome) else 1
        return min((a for a in others if a), key=lambda a: sign * self.mean(outcome, a), default=None)

    def _gain(self, outcome: str, arm: str, other: str | None) -> Difference | None:
        values = self.values[outcome]
        if other not in values:
            return None
        return paired_gain(values[arm], values[other], higher_is_better=self.better(outcome))


def number(value: Any) -> float:
    """A stored number: null and what is no number are NaN, the strings "inf", "-inf" and "nan" what they say."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def collect(
    lines: Sequence[Mapping[str, Any]], *, tasks: Mapping[str, Task], arms: Mapping[str, ArmLike]
) -> list[TaskEvidence]:
    """Final runs by task and size, in the order of `tasks`; of two runs with one seed the later line counts.

    Raises:
        ValueError: no final run, or a task or an arm that is not registered.
    """
    final = [line for line in lines if line.get("purpose") == "final"]
    if not final:
        raise ValueError(
            f"evidence: expected runs of purpose 'final', got {len(lines)} lines without; run make evidence"
        )
    for key, known in (("task", set(tasks)), ("arm", set(arms))):
        unknown = sorted({str(line.get(key)) for line in final} - known)
        if unknown:
            raise ValueError(f"{key}: expected one of {sorted(known)}, got {unknown}; register it or remove its lines")
    found = []
    for name, task in tasks.items():
        for size in sorted({str(line.get("size", "small")) for line in final if line["task"] == name}, reverse=True):
            mine = [line for line in final if line["task"] == name and str(line.get("size", "small")) == size]
            runs = {a: {int(x["seed"]): _run(x) for x in mine if x["arm"] == a} for a in arms}
            found.append(
                TaskEvidence(
                    task, size, {a: r for a, r in runs.items() if r}, {a: arms[a].kind for a in arms},
                    {a: getattr(arms[a], "against", ()) for a in arms},
                )
            )
    return found


def _run(line: Mapping[str, Any]) -> Run:
    step = line.get("diverged")
    diverged = None if step is None or step is False else int(step)
    return Run(line, int(line["seed"]), number(line.get("final_loss")), number(line.get("test")), diverged)


def _both(plain: Difference | None, control: Difference | None) -> float | None:
    """p value of being better than both: the larger one, and 1 where either gain is not even positive."""
    if plain is None or control is None or plain.p is None or control.p is None:
        return None
    return max(plain.p, control.p) if plain.mean > 0 and control.mean > 0 else 1.0
