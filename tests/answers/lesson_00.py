"""Lesson 0: right answers written differently, and wrong ones as a learner would write them (see lesson_01)."""

import numpy as np


def sorted_ratio(values):
    ordered = np.sort(np.asarray(values))
    with np.errstate(divide="ignore"):
        return ordered[-1] / ordered[0]


def looped_choice(lams, kappas, saturations, limit):
    best = None
    for i in range(len(lams)):
        if saturations[i] > limit:
            continue
        if best is None or kappas[i] < kappas[best]:
            best = i
    return np.float64(lams[best])


OTHERS = {"00.ratio": sorted_ratio, "00.choose": looped_choice}

MUTANTS = {
    "00.ratio": [
        ("return min(values) / max(values)", "upside down"),
        ("return max(values) - min(values)", "difference"),
        ("return values[0] / values[-1] if values[-1] else float('inf')", "need not be sorted"),
        ("return max(values)", "a size"),
        ("max(values) / min(values)", "your function"),
    ],
    "00.choose": [
        ("return lams[kappas.index(min(kappas))]", "not looked at"),
        ("return min(k for k, s in zip(kappas, saturations) if s <= limit)", "you return κ(J)"),
        ("return max(v for v, s in zip(lams, saturations) if s <= limit)", "largest λ"),
        ("return min((k, v) for v, k, s in zip(lams, kappas, saturations) if s < limit)[1]", "<= and not <"),
    ],
}

NAMES = {}
