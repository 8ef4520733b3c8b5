"""Write results/README.md and its figures from the runs in results/evidence.jsonl; nothing in them is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spectral_core.experiments.report_data import OUTCOMES, ArmLike, TaskEvidence, collect
from spectral_core.experiments.report_figures import curves, forest, predictors, slug
from spectral_core.experiments.report_limits import limits, provenance
from spectral_core.experiments.report_predictors import LIMIT, PREDICTORS, Prediction, predict
from spectral_core.experiments.report_tables import (
    diagnostics_table,
    outcome_table,
    paper_table,
    predictor_table,
    wins_table,
)
from spectral_core.experiments.report_words import (
    chance,
    paragraph,
    predicts,
    recommendation,
    verdict,
)
from spectral_core.experiments.task import Task
from spectral_core.plots.style import png

__all__ = ["write_report"]

READING = (
    "A gain is an improvement over the other arm on the same seeds: positive is better, for a loss (plain less arm) as "
    "for a metric. ± and the t intervals are at 95 %; the bootstrap resamples pairs 10 000 times. An arm beats another "
    "where its t interval lies above zero. Holm's p is corrected over the arms of a task; 'both' corrects the larger "
    "of the p values against plain and against the best control; an arm that builds on another (Muon, calibrated on "
    "Muon) must beat that too, and is compared with the better of the two. A run that diverged counts as the worst "
    "value seen in its task. The final training loss is the mean over the last tenth of the steps."
)


def write_report(
    lines: Sequence[Mapping[str, Any]], folder: Path, *, tasks: Mapping[str, Task], arms: Mapping[str, ArmLike]
) -> Path:
    """Write README.md and evidence_*.png into the folder.

    Args:
        lines: of results/evidence.jsonl, one run each; only those with purpose "final" enter the statistics.
        folder: made if missing.
        tasks, arms: registered, by name, in the order of the report.

    Returns:
        The path of README.md.

    Raises:
        ValueError: no final run, or a task or an arm that is not registered.
    """
    if not lines:
        raise ValueError("evidence: expected at least one finished run, got none; run make evidence")
    found = collect(lines, tasks=tasks, arms=arms)
    predicted = predict(found)
    groups: dict[str, list[TaskEvidence]] = {}
    for evidence in found:
        groups.setdefault(evidence.task.group, []).append(evidence)
    folder.mkdir(parents=True, exist_ok=True)
    sections = [
        "# Does conditioning attention help training?",
        "This page and its figures are generated from [evidence.jsonl](evidence.jsonl) by `make evidence`.",
        *_summary(found, arms),
        *_paper(found, arms),
        *_tasks(groups, folder, arms),
        *_curves(found, folder, arms),
        *_predictors(predicted, folder, arms),
        "## What these runs cannot show",
        limits(found, lines, arms),
        "## Seeds, versions, machines, commands",
        provenance(found, lines),
    ]
    page = folder / "README.md"
    page.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return page


def _summary(found: Sequence[TaskEvidence], arms: Mapping[str, ArmLike]) -> list[str]:
    sections = ["## In short", *(paragraph(verdict(found, outcome, arms)) for outcome in OUTCOMES)]
    sections.append(paragraph(f"**What the data recommend.** {recommendation(found, arms)}"))
    sections.append(paragraph(f"Many arms are compared. {' '.join(chance(found, o, arms) for o in OUTCOMES)}"))
    for outcome, name in OUTCOMES.items():
        counts = wins_table(found, outcome, arms)
        sections += [f"Number of tasks, {name}:", counts]
    return [*sections, "## How to read the tables", paragraph(READING)]


def _paper(found: Sequence[TaskEvidence], arms: Mapping[str, ArmLike]) -> list[str]:
    rows = paper_table(found, arms)
    if not rows:
        return []
    words = (
        "The left half is **reported by the paper, at full size, not ours** (Saratchandran & Lucey, arXiv 2603.07162); "
        "the right half is ours, with another model, budget and often another data set. Only the sign can be compared."
    )
    return ["## Beside the paper's numbers", paragraph(words), rows]


def _tasks(groups: Mapping[str, Sequence[TaskEvidence]], folder: Path, arms: Mapping[str, ArmLike]) -> list[str]:
    sections = []
    for group, found in groups.items():
        sections += [f"## Tasks: {group}", _save(forest(group, found, arms), folder, f"evidence_forest_{slug(group)}")]
        for evidence in found:
            sections += [f"### {evidence.title}", paragraph(_about(evidence))]
            for outcome, name in OUTCOMES.items():
                if evidence.values[outcome]:
                    sections += [f"{name.capitalize()}:", outcome_table(evidence, outcome, arms)]
                else:
                    sections.append(f"{name.capitalize()}: no run that did not diverge has a finite number.")
                    if outcome == "loss":
                        sections.append(outcome_table(evidence, outcome, arms))
            sections += ["Condition numbers (geometric means) and saturation:", diagnostics_table(evidence, arms)]
    return sections


def _about(evidence: TaskEvidence) -> str:
    task = evidence.task
    words = [f"Test {task.metric}, {'higher' if task.higher_is_better else 'lower'} is better."]
    words.append(
        "Every training batch is new, so the training loss is free of overfitting."
        if task.fresh
        else "Training batches come from a fixed set, so a lower training loss may be overfitting."
    )
    if evidence.plain is None:
        words.append("Plain was not run, so there is no gain to report.")
    if evidence.best("loss", ("control",)) is None:
        words.append("No initialisation control has a usable run.")
    if evidence.at_chance:
        words.append(
            f"No arm does better than a guess ({task.chance:g}): at this size and budget it says nothing about arms."
        )
    failed = sum(r.failed for by_seed in evidence.runs.values() for r in by_seed.values())
    if failed:
        worst = ", ".join(f"{'loss' if o == 'loss' else task.metric} {v:.4g}" for o, v in evidence.worst.items())
        words.append(f"{failed} runs diverged or lack a finite number and count as the worst value ({worst}).")
    return " ".join(words)


def _curves(found: Sequence[TaskEvidence], folder: Path, arms: Mapping[str, ArmLike]) -> list[str]:
    shown = [e for e in found if e.values["loss"]]
    if not shown:
        return []
    words = "Plain and, of each kind, the arm with the best final training loss; a line is a mean over all its seeds."
    return ["## Loss curves", paragraph(words), _save(curves(shown, arms), folder, "evidence_curves")]


def _predictors(
    predicted: Mapping[str, Mapping[str, Prediction]], folder: Path, arms: Mapping[str, ArmLike]
) -> list[str]:
    missing = [
        f"{p.missing} for {name}" for name, p in predicted["loss"].items() if p.missing and name in PREDICTORS[:2]
    ]
    words = (
        "Spearman's ρ between a condition number at the start and how bad the end is (final training loss; test "
        "metric, turned so that higher is worse), over all arms, seeds and tasks. Positive is what the paper's thesis "
        "predicts. Ranks are taken within a task; intervals resample arms of a task, with all their seeds, 10 000 "
        f"times. The last predictor keeps the runs whose saturation at the start is known and below {LIMIT}."
    )
    if missing:
        words += f" Runs left out since κ was not measured or not finite: {', '.join(missing)}."
    figure = predictors(predicted, {arm.name: arm.kind for arm in arms.values()})
    return [
        "## Which number predicts the end of training?",
        paragraph(predicts(predicted)),
        _save(figure, folder, "evidence_predictors"),
        paragraph(words),
        predictor_table(predicted),
    ]


def _save(figure: Any, folder: Path, name: str) -> str:
    (folder / f"{name}.png").write_bytes(png(figure))
    return f"![{figure.alt}]({name}.png)"
