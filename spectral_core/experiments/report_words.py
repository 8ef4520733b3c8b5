"""The sentences of the report: what is supported, what is not, what to do, what predicts, and the limits."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from spectral_core.experiments.report_data import CONTENDERS, OUTCOMES, ArmLike, Comparison, TaskEvidence
from spectral_core.experiments.report_predictors import Prediction

__all__ = ["bullets", "chance", "paragraph", "predicts", "recommendation", "verdict"]

ENOUGH = 3  # tasks
FAMILIES = {"correction": ("paper", "correction"), "rival method": ("rival",)}
Arms = Mapping[str, ArmLike]


def paragraph(text: str, indent: str = "") -> str:
    """Text wrapped at 120 characters, where no line starts with what Markdown would take for a list or a heading."""
    glued = re.sub(r" (?=(?:\d+[.)]|[-+*#>]+) )", "\0", " ".join(text.split()))
    lines = textwrap.fill(glued, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\0", " ")


def bullets(items: Iterable[str]) -> str:
    """A Markdown list."""
    return "\n".join(paragraph(f"- {item}", "  ") for item in items)


def verdict(found: Sequence[TaskEvidence], outcome: str, arms: Arms) -> str:
    """What is and is not supported for one outcome."""
    where = "training loss" if outcome == "loss" else "the held-out metric"
    sentences = []
    for family, kinds in FAMILIES.items():
        wins = {
            arm.name: [(e, c) for e, c in _of(found, outcome, arm.name) if c.judged]
            for arm in arms.values()
            if arm.kind in kinds and _of(found, outcome, arm.name)
        }
        tasks = len({e.title for rows in wins.values() for e, _ in rows})
        if not wins:
            sentences.append(f"No {family} was run with a usable {'loss' if outcome == 'loss' else 'metric'}.")
        elif not tasks:
            sentences.append(
                f"No claim for a {family} can be made: it takes plain, an initialisation control and two common seeds "
                "on one task, and no task has these."
            )
        else:
            sentences.append(_wins(family, wins, tasks, arms))
    return f"**{OUTCOMES[outcome].capitalize()}** ({where}). {' '.join(sentences)}"


def _wins(family: str, judged: Mapping[str, Sequence[tuple[TaskEvidence, Comparison]]], tasks: int, arms: Arms) -> str:
    won = {arm: [(e, c) for e, c in rows if c.wins_both] for arm, rows in judged.items()}
    many = {arm: rows for arm, rows in won.items() if len(rows) >= ENOUGH}
    few = {arm: rows for arm, rows in won.items() if 0 < len(rows) < ENOUGH}
    words = []
    for arm, rows in many.items():
        corrected = sum(c.wins_both_corrected for _, c in rows)
        words.append(
            f"{arms[arm].title} beats plain and the best initialisation control with an interval that excludes zero on "
            f"{len(rows)} of {_count(len(judged[arm]))} ({_titles(rows)}); after Holm's correction over the arms of a "
            f"task, on {corrected}."
        )
        if corrected < ENOUGH:
            words.append("Since it is the pick of several arms, this is a hint, and not yet a finding.")
    if not many:
        words.append(
            f"No {family} beats plain and the best initialisation control with an interval that excludes zero on three "
            "or more tasks."
        )
        if tasks < ENOUGH:
            words.append(f"With {_count(tasks)} to judge by, it could not have come out otherwise.")
    for arm, rows in few.items():
        corrected = sum(c.wins_both_corrected for _, c in rows)
        words.append(f"{arms[arm].title} does on {len(rows)} ({_titles(rows)}), after Holm on {corrected}.")
    return " ".join(words)


def chance(found: Sequence[TaskEvidence], outcome: str, arms: Arms) -> str:
    """How many gains over plain luck alone would give."""
    tested = [
        c
        for e in found
        for arm, c in e.comparisons[outcome].items()
        if arms[arm].kind in CONTENDERS and c.to_plain is not None and c.to_plain.t is not None
    ]
    won = sum(c.to_plain is not None and c.to_plain.wins for c in tested)
    return (
        f"In {OUTCOMES[outcome]}, {won} of {len(tested)} intervals of paper, correction and rival arms lie above "
        f"plain, where about {0.025 * len(tested):.1f} would by luck alone."
    )


def recommendation(found: Sequence[TaskEvidence], arms: Arms) -> str:
    """What the data recommend."""
    hints: dict[str, list[str]] = {}
    findings: dict[str, list[str]] = {}
    for arm in (a for a in arms.values() if a.kind in CONTENDERS):
        for outcome, name in OUTCOMES.items():
            rows = [c for _, c in _of(found, outcome, arm.name)]
            if sum(c.wins_both_corrected for c in rows) >= ENOUGH:
                findings.setdefault(arm.name, []).append(name)
            elif sum(c.wins_both for c in rows) >= ENOUGH:
                hints.setdefault(arm.name, []).append(name)
    words = []
    if findings:
        words.append(
            f"Try {_outcomes(findings, arms)}: ahead of plain and the best control on three or more tasks after Holm."
        )
        if all(arms[a].kind == "rival" for a in findings):
            words.append("That is a rival method, no correction of weights.")
    if hints:
        words.append(f"Worth a confirmation with new seeds, chosen in advance: {_outcomes(hints, arms)}.")
    best = Counter(b for e in found if (b := e.best("metric", ("control",))) is not None)
    if not best:
        words.append(
            "No initialisation control was run, so a gain over plain may be no more than a gain over an initialisation "
            "that is too small: run the controls before any recommendation."
        )
        return " ".join(words)
    control, times = best.most_common(1)[0]
    gains = [d for _, c in _of(found, "metric", control) if (d := c.to_plain) is not None and d.count]
    ahead, sure = sum(d.mean > 0 for d in gains), sum(d.wins for d in gains)
    corrected = [a for a in findings if arms[a].kind != "rival"]
    words.append("" if corrected else "No correction is recommended over a well-scaled initialisation.")
    words.append(
        f"The control that most often has the best held-out mean is {arms[control].title} (on {times} of "
        f"{_count(sum(best.values()))}); it has a better mean than plain on {ahead} of {len(gains)}, beyond its "
        f"interval on {sure}."
    )
    if not findings:
        words.append("Try it first." if 2 * ahead > len(gains) else "Nor does a control have the edge: keep plain.")
    return " ".join(filter(None, words))


def predicts(found: Mapping[str, Mapping[str, Prediction]]) -> str:
    """Which quantity at the start predicts the end, by the pooled ρ and its interval."""
    return " ".join(_predicts(OUTCOMES[outcome], rows) for outcome, rows in found.items())


def _predicts(name: str, rows: Mapping[str, Prediction]) -> str:
    known = {k: p.pooled for k, p in rows.items() if p.pooled.rho is not None and p.pooled.interval is not None}
    if not known:
        return f"For {name}, there are too few arms with a measured κ to say."
    right = [k for k, c in known.items() if c.interval and c.interval[0] > 0]
    wrong = [k for k, c in known.items() if c.interval and c.interval[1] < 0]
    words = []
    if right:
        top = max(right, key=lambda k: known[k].rho or 0.0)
        words.append(f"For {name}, a larger {_and(right, 'or')} at the start goes with a worse end.")
        low = known[top].interval or (0.0, 0.0)
        close = [k for k, c in known.items() if k != top and c.interval and c.interval[1] >= low[0]]
        words.append(
            f"The largest ρ is that of {top}"
            + (
                f", but its interval overlaps with that of {_and(close)}, so these data do not rank them."
                if close
                else ", and its interval overlaps with no other."
                if len(known) > 1
                else ", the only one measured."
            )
        )
    if wrong:
        words.append(f"For {name}, a larger {_and(wrong, 'or')} goes with a better end, against the thesis.")
    rest = [k for k in known if k not in right + wrong]
    if rest:
        words.append(f"For {name}, the interval of {_and(rest)} contains zero: no prediction is shown.")
    return " ".join(words)


def _of(found: Sequence[TaskEvidence], outcome: str, arm: str) -> list[tuple[TaskEvidence, Comparison]]:
    return [(e, e.comparisons[outcome][arm]) for e in found if arm in e.comparisons[outcome]]


def _outcomes(found: Mapping[str, Sequence[str]], arms: Arms) -> str:
    return _and([f"{arms[arm].title} ({_and(names)})" for arm, names in found.items()])


def _titles(rows: Sequence[tuple[TaskEvidence, Comparison]]) -> str:
    return ", ".join(e.title for e, _ in rows)


def _count(tasks: int) -> str:
    return f"{tasks} task" + ("" if tasks == 1 else "s")


def _and(words: Sequence[str], last: str = "and") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
