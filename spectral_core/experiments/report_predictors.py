"""Which number at the start of training predicts its end: κ(W), κ(J), or κ(J) where attention is not saturated?

Outcomes are turned so that a higher rank is worse: a positive ρ says that a larger condition number goes with a worse
end. Ranks are taken within a task, and the bootstrap resamples arms of a task, seeds together.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spectral_core.experiments.report_data import OUTCOMES, TaskEvidence
from spectral_core.experiments.statistics import Correlation, rank_correlation

__all__ = ["LIMIT", "PREDICTORS", "Point", "Prediction", "predict"]

LIMIT = 0.5  # of saturation
PREDICTORS = ("κ(W)", "κ(J)", f"κ(J) at saturation < {LIMIT}")


@dataclass(frozen=True)
class Point:
    """One run: κ at the start, and its rank by badness within the task, from 0 (best) to 1 (worst)."""

    task: str
    arm: str
    kappa: float
    kappa_rank: float
    badness: float


@dataclass(frozen=True)
class Prediction:
    """One predictor for one outcome: points, ρ over all of them (ranked within tasks) and by task."""

    points: Sequence[Point]
    pooled: Correlation
    by_task: dict[str, Correlation]
    missing: int

    @property
    def pooled_words(self) -> str:
        return _words(self.pooled)

    def words(self, title: str) -> str:
        """ρ of one task with its interval and number of runs."""
        return _words(self.by_task.get(title))


def predict(found: Sequence[TaskEvidence]) -> dict[str, dict[str, Prediction]]:
    """Outcome -> predictor -> what it predicts."""
    return {outcome: {name: _predict(found, outcome, name) for name in PREDICTORS} for outcome in OUTCOMES}


def _predict(found: Sequence[TaskEvidence], outcome: str, name: str) -> Prediction:
    raw: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    missing = 0
    for evidence in found:
        sign = -1 if evidence.better(outcome) else 1
        for arm, values in evidence.values[outcome].items():
            for seed, value in values.items():
                run = evidence.runs[arm][seed]
                kappa = run.probe("start", "kappa_w" if name == "κ(W)" else "kappa_j")
                limited = name == PREDICTORS[2] and not run.probe("start", "saturation") < LIMIT
                if math.isnan(kappa):
                    missing += 1
                elif not limited:
                    raw[evidence.title].append((arm, kappa, sign * value))
    points, by_task = [], {}
    for title, rows in raw.items():
        arms, kappas, bad = [list(column) for column in zip(*rows, strict=True)]
        by_task[title] = rank_correlation(kappas, bad, arms)  # type: ignore[arg-type]
        x, y = _scaled_ranks(kappas), _scaled_ranks(bad)  # type: ignore[arg-type]
        points += [Point(title, arm, kappa, a, b) for (arm, kappa, _), a, b in zip(rows, x, y, strict=True)]
    pooled = rank_correlation(
        [p.kappa_rank for p in points], [p.badness for p in points], [(p.task, p.arm) for p in points]
    )
    return Prediction(points, pooled, by_task, missing)


def _scaled_ranks(values: Sequence[float]) -> list[float]:
    """Middle ranks from 0 to 1; 0.5 for a single value."""
    v = np.array(values)
    below, equal = (v[:, None] > v).sum(axis=1), (v[:, None] == v).sum(axis=1)
    rank = below + (equal - 1) / 2
    return (rank / (len(v) - 1)).tolist() if len(v) > 1 else [0.5] * len(v)


def _words(found: Correlation | None) -> str:
    if found is None or found.rho is None:
        return "–"
    ends = f" ({found.interval[0]:+.2f} to {found.interval[1]:+.2f})" if found.interval else " (no interval)"
    return f"{found.rho:+.2f}{ends}, {found.count} runs"
