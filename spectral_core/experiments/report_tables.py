"""The tables of the report, in Markdown: outcomes and diagnostics of a task, wins by arm, the paper's numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import geometric_mean, median

from spectral_core.experiments.report_data import OUTCOMES, ArmLike, TaskEvidence
from spectral_core.experiments.report_predictors import Prediction
from spectral_core.experiments.statistics import Difference
from spectral_core.lessons.statistics import interval
from spectral_core.svg import format_number

__all__ = ["diagnostics_table", "outcome_table", "paper_table", "predictor_table", "table", "wins_table"]

NONE = "–"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> str:
    """A Markdown table; its first `text` columns are words, the others numbers, aligned right."""
    rule = ["---" if i < text else "---:" for i in range(len(head))]
    safe = [[cell.replace("|", "\\|") for cell in row] for row in (head, rule, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in safe)


def outcome_table(evidence: TaskEvidence, outcome: str, arms: Mapping[str, ArmLike]) -> str:
    """Means, gains over plain and over the best control, one row an arm."""
    name = "final training loss" if outcome == "loss" else f"test {evidence.task.metric}"
    head = ["arm", "learning rate", "seeds", name, "gain over plain", "t interval", "bootstrap interval", "Holm p"]
    head += ["gain over best control", "t interval", "Holm p, both"]
    head += ["steps to plain's loss", "diverged"] if outcome == "loss" else []
    rows = []
    for arm, runs in evidence.runs.items():
        compared = evidence.comparisons[outcome].get(arm)
        plain, control = (compared.to_plain, compared.to_control) if compared else (None, None)
        rates = sorted({f"{float(r.line['lr']):g}" for r in runs.values() if r.line.get("lr") is not None})
        row = [arms[arm].title, ", ".join(rates) or NONE, str(len(runs))]
        row += [_mean(list(evidence.values[outcome].get(arm, {}).values()))]
        row += [_gain(plain), _ends(plain, "t"), _ends(plain, "bootstrap"), _p(compared.holm if compared else None)]
        row += [_gain(control), _ends(control, "t"), _p(compared.joint_holm if compared else None)]
        if compared and arm == compared.control:
            row[8] = "is the best control"
        elif compared and compared.control and compared.control != evidence.best(outcome, ("control",)):
            row[8] += f" over {arms[compared.control].title}"
        rows.append(row + ([_steps(evidence, arm), _diverged(evidence, arm)] if outcome == "loss" else []))
    return table(head, rows)


def diagnostics_table(evidence: TaskEvidence, arms: Mapping[str, ArmLike]) -> str:
    """κ(W), κ(J) and saturation at the start and the end: geometric means over the seeds, means for saturation."""
    head = ["arm", "κ(W) start", "end", "κ(J) start", "end", "saturation start", "end"]
    rows = []
    for arm, runs in evidence.runs.items():
        row = [arms[arm].title]
        for name in ("kappa_w", "kappa_j", "saturation"):
            for when in ("start", "end"):
                values = [v for v in (run.probe(when, name) for run in runs.values()) if not math.isnan(v)]
                row.append(_average(values, name) + (f" ({len(values)} seeds)" if 0 < len(values) < len(runs) else ""))
        rows.append(row)
    return table(head, rows)


def wins_table(found: Sequence[TaskEvidence], outcome: str, arms: Mapping[str, ArmLike]) -> str:
    """On how many tasks each arm other than plain wins or loses."""
    head = ["arm", "kind", "tasks", "better mean than plain", "beats plain", "beats plain, Holm", "loses to plain"]
    head += ["beats plain and best control", "the same, Holm"]
    rows = []
    for arm in arms.values():
        mine = [c for e in found if (c := e.comparisons[outcome].get(arm.name)) is not None]
        if not mine:
            continue
        plain = [c.to_plain for c in mine if c.to_plain is not None]
        judged = sum(c.judged for c in mine)
        corrected = sum(d.wins and c.holm is not None and c.holm < 0.05 for c in mine if (d := c.to_plain))
        both = (
            ["", ""]
            if arm.kind == "control"
            else [
                f"{sum(c.wins_both for c in mine)} of {judged}",
                f"{sum(c.wins_both_corrected for c in mine)} of {judged}",
            ]
        )
        counts = [sum(d.mean > 0 for d in plain), sum(d.wins for d in plain), corrected, sum(d.loses for d in plain)]
        rows.append([arm.title, arm.kind, str(len(mine)), *map(str, counts), *both])
    return table(head, rows, text=2)


def paper_table(found: Sequence[TaskEvidence], arms: Mapping[str, ArmLike]) -> str:
    """The paper's numbers beside ours, one row for each arm of kind "paper"."""
    head = ["task", "reported by the paper, at full size, not ours", "plain", "spectral", "gain"]
    head += ["our task, our metric", "our plain", "our arm", "mean", "gain over plain", "t interval"]
    rows = []
    for evidence in found:
        if not evidence.task.paper:
            continue
        what, plain, spectral = evidence.task.paper
        reported = [evidence.title, what, f"{plain:g}", f"{spectral:g}", f"{spectral - plain:+.3g}"]
        ours = [f"{evidence.size}, test {evidence.task.metric}", _mean_of(evidence, evidence.plain)]
        paper_arms = [arm for arm in evidence.runs if arms[arm].kind == "paper"]
        for arm in paper_arms:
            compared = evidence.comparisons["metric"].get(arm)
            gain = compared.to_plain if compared else None
            rows.append([*reported, *ours, arms[arm].title, _mean_of(evidence, arm), _gain(gain), _ends(gain, "t")])
        if not paper_arms:
            rows.append([*reported, *ours, "not run", NONE, NONE, NONE])
    return table(head, rows, text=2) if rows else ""


def predictor_table(found: Mapping[str, Mapping[str, Prediction]]) -> str:
    """ρ with its interval, one row a task (pooled first), one column for each outcome and predictor."""
    names = [(outcome, predictor) for outcome, rows in found.items() for predictor in rows]
    head = ["task", *(f"{OUTCOMES[outcome]}: {predictor}" for outcome, predictor in names)]
    titles = dict.fromkeys(title for o, p in names for title in found[o][p].by_task)
    rows = [["all, ranked within each task", *(found[o][p].pooled_words for o, p in names)]]
    rows += [[title, *(found[o][p].words(title) for o, p in names)] for title in titles]
    return table(head, rows)


def _mean_of(evidence: TaskEvidence, arm: str | None) -> str:
    return _mean(list(evidence.values["metric"].get(arm or "", {}).values()))


def _mean(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.4g}" if values else NONE
    mean, half = interval(values)
    return f"{mean:.4g} ± {half:.2g}"


def _gain(difference: Difference | None) -> str:
    return NONE if difference is None or difference.count == 0 else f"{difference.mean:+.3g}"


def _ends(difference: Difference | None, which: str) -> str:
    if difference is None:
        return NONE
    ends = difference.t if which == "t" else difference.bootstrap
    return f"{ends[0]:+.3g} to {ends[1]:+.3g}" if ends else (difference.note if which == "t" else NONE)


def _p(p: float | None) -> str:
    return NONE if p is None else ("< 0.001" if p < 0.001 else f"{p:.3f}")


def _average(values: Sequence[float], name: str) -> str:
    if not values:
        return NONE
    if name == "saturation":
        return f"{sum(values) / len(values):.2f}"
    return "∞" if math.inf in values else format_number(geometric_mean(values) if min(values) > 0 else math.nan)


def _steps(evidence: TaskEvidence, arm: str) -> str:
    """Median over the seeds, and how many got there."""
    target = evidence.mean("loss", evidence.plain) if evidence.plain else math.nan
    if math.isnan(target):
        return NONE
    steps = [run.steps_to(target) for run in evidence.runs[arm].values()]
    reached = sum(map(math.isfinite, steps))
    middle = median(steps)
    return f"{f'{middle:.0f}' if math.isfinite(middle) else 'not reached'} ({reached} of {len(steps)})"


def _diverged(evidence: TaskEvidence, arm: str) -> str:
    runs = evidence.runs[arm].values()
    steps = [str(run.diverged) for run in runs if run.diverged is not None]
    rest = sum(run.failed and run.diverged is None for run in runs)
    words = [f"{len(steps)} (step {', '.join(steps)})"] if steps else []
    return "; ".join([*words, *([f"{rest} without a number"] if rest else [])]) or "0"
