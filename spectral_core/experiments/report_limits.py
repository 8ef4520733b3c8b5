"""The end of the report: how the numbers were made, with which versions and machines, and what they cannot show."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from spectral_core.experiments.report_data import ArmLike, TaskEvidence, number
from spectral_core.experiments.report_words import bullets, paragraph

__all__ = ["limits", "provenance"]

SHOWN = 6  # commands


def limits(found: Sequence[TaskEvidence], lines: Sequence[Mapping[str, Any]], arms: Mapping[str, ArmLike]) -> str:
    """What these runs cannot show, by what they are."""
    runs = [run for e in found for by_seed in e.runs.values() for run in by_seed.values()]
    seeds = sorted({len(by_seed) for e in found for by_seed in e.runs.values()})
    steps = sorted({int(r.line["steps"]) for r in runs if r.line.get("steps")})
    sizes = Counter(e.size for e in found)
    tuning = sum(line.get("purpose") == "tune" for line in lines)
    few = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    budget = (
        f"{' to '.join(map(str, dict.fromkeys((steps[0], steps[-1]))))} optimiser steps" if steps else "steps unknown"
    )
    items = [
        f"Sizes: {', '.join(f'{n} of {len(found)} tasks at size {s!r}' for s, n in sizes.items())}, {budget}. A "
        "small model and a short budget say nothing certain about a large one; the paper's claim is at full size.",
        f"Seeds: {few} for each arm. A t interval of so few assumes gains that are roughly normal; a bootstrap "
        "interval of fewer than about ten pairs is too narrow, which is why wins are counted by t.",
        "The interval of a rank correlation resamples arms, of which there are few: a resample repeats some, so its "
        "ρ is pulled to zero, and the interval can even end below ρ itself.",
        "The best control is picked by its mean on the same runs, which favours the controls.",
        f"Learning rates were chosen arm by arm from the same rates, by validation data, in {tuning} runs that "
        "enter no other number."
        if tuning
        else "No run that chose a learning rate is recorded, so an arm may do badly by its learning rate alone.",
    ]
    tuned = {(line["task"], str(line.get("size", "small"))) for line in lines if line.get("purpose") == "tune"}
    untuned = [e.title for e in found if (e.task.name, e.size) not in tuned]
    if tuned and untuned:
        items.append(f"No learning rate was chosen in {', '.join(untuned)}: there every arm has the same one.")
    twins = _twins(found)
    if twins:
        items.append(
            f"{' and '.join(twins)} hold runs with one and the same training loss: the same training under two "
            "metrics, so these tasks are not independent of each other."
        )
    chance = [f"{e.title} ({e.task.chance:g})" for e in found if e.at_chance]
    if chance:
        items.append(
            f"No arm does better than a guess in {', '.join(chance)}: these tasks say nothing about arms at this size "
            "and budget, and are counted all the same."
        )
    mixed = [e.title for e in found if len({_machine(r.line) for by in e.runs.values() for r in by.values()}) > 1]
    if mixed:
        items.append(
            f"The arms of {', '.join(mixed)} ran on more than one machine. The same seed rounds differently there, and "
            "training can make much of it, so such arms share data and batches and not the noise of the rounding: "
            "intervals between them stay valid and are wider than they need be."
        )
    edge = _at_edge(found, arms)
    if edge:
        items.append(f"The chosen learning rate lies at the edge of the rates tried for: {'; '.join(edge)}.")
    failed = [r for r in runs if r.failed]
    if failed:
        items.append(
            f"{len(failed)} of {len(runs)} runs diverged or ended without a finite number; none is dropped, each "
            "counts as the worst value seen in its task, which may be kinder than the truth."
        )
    probed = [r for r in runs if ((r.line.get("probes") or {}).get("start") or {}).get("kappa_j") is not None]
    standing = [r for r in probed if r.line["probes"]["start"].get("kappa_j_of") == "stand-in"]
    if standing:
        items.append(f"κ(J) was measured on a stand-in for the model in {len(standing)} of {len(probed)} runs.")
    final = [line for line in lines if line.get("purpose") == "final"]
    if len(final) > len(runs):
        items.append(f"{len(final) - len(runs)} runs were repeated with the same seed; the latest counts.")
    notes = Counter(str(n) for r in runs for n in r.line.get("notes") or ())
    items += [f"Noted in {n} runs: {note}" for note, n in notes.most_common(8)]
    return bullets(items)


def provenance(found: Sequence[TaskEvidence], lines: Sequence[Mapping[str, Any]]) -> str:
    """Seeds, versions, machines and commands."""
    seeds = [
        f"{e.title}: seeds {', '.join(map(str, sorted({s for by_seed in e.runs.values() for s in by_seed})))}"
        for e in found
    ]
    tuning = sum(line.get("purpose") != "final" for line in lines)
    hours = sum(t for line in lines if (t := number(line.get("seconds"))) > 0) / 3600
    machines = Counter(_machine(line) for line in lines)
    versions = Counter(_versions(line) for line in lines)
    dtypes = sorted({str(line.get("dtype")) for line in lines if line.get("dtype")})
    commands = list(dict.fromkeys(str(line["command"]) for line in lines if line.get("command")))
    parts = [
        paragraph(
            f"{len(lines) - tuning} final runs and {tuning} to choose learning rates, {hours:.1f} hours of computing "
            f"in all, {', '.join(dtypes) or 'dtype not recorded'}. The same seed gives every arm the same batches."
        ),
        bullets(seeds),
        "Machines and versions:",
        bullets(f"{name} ({n} runs)" for name, n in (*machines.items(), *versions.items())),
    ]
    if commands:
        left = len(commands) - SHOWN
        parts.append("Commands:" if left <= 0 else f"Commands, the first {SHOWN} of {len(commands)}:")
        parts.append("\n".join(["```bash", *commands[:SHOWN], "```"]))
    parts += ["All of it again, and this page from the stored runs:", "```bash\nmake evidence\n```"]
    return "\n\n".join(parts)


def _twins(found: Sequence[TaskEvidence]) -> list[str]:
    """Titles of tasks that share a run: the same arm, seed, rate and training loss."""
    seen: dict[tuple[Any, ...], list[str]] = {}
    for e in found:
        for arm, by_seed in e.runs.items():
            for seed, run in by_seed.items():
                if math.isfinite(run.loss):
                    seen.setdefault((arm, seed, run.line.get("lr"), run.loss), []).append(e.title)
    shared = {title for titles in seen.values() if len(titles) > 1 for title in titles}
    return [e.title for e in found if e.title in shared]


def _at_edge(found: Sequence[TaskEvidence], arms: Mapping[str, ArmLike]) -> list[str]:
    named = []
    for e in found:
        ends = (min(e.task.rates), max(e.task.rates))
        at = [
            arms[a].title
            for a, by_seed in e.runs.items()
            if any(number(r.line.get("lr")) in ends for r in by_seed.values())
        ]
        if at and len(e.task.rates) > 1:
            named.append(f"{e.title} ({', '.join(at)})")
    return named


def _machine(line: Mapping[str, Any]) -> str:
    machine = line.get("machine") or {}
    words = [str(machine[k]) for k in ("device", "processor") if machine.get(k)]
    words += [f"{machine['cores']} cores"] if machine.get("cores") else []
    words += [f"Python {machine['python']}"] if machine.get("python") else []
    return ", ".join(dict.fromkeys(words)) or "machine not recorded"


def _versions(line: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in sorted((line.get("versions") or {}).items())) or "versions not recorded"
