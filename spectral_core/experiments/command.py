"""What `spectral-core train TASK` and `spectral-core evidence` do, once their options are known."""

from __future__ import annotations

import math
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from spectral_core.experiments.arms import ARMS
from spectral_core.experiments.registry import TASKS
from spectral_core.experiments.run import Run
from spectral_core.experiments.store import read
from spectral_core.experiments.sweep import Sweep, key_of, make_runs, run_and_keep

__all__ = ["CORE_ARMS", "EVERY_ARM", "make_evidence", "plan", "train_one"]

# every task has these; "digits" and "vit" have all arms
CORE_ARMS = (
    "plain", "xavier", "conditioned-init", "rotation", "paper", "calibrated", "polar", "v1", "xavier-calibrated",
)  # fmt: skip
EVERY_ARM = ("digits", "vit")
Say = Callable[[str], None]


def train_one(run: Run, out: Path, say: Say) -> dict[str, Any]:
    """One run with a bar; a run that is in `out` is not made again."""
    for record in read(out):
        if key_of(record) == run.key:
            say(f"already in {out}; --out OTHER.jsonl makes it again")
            return record
    with _bar() as bar:
        task = bar.add_task(f"{run.task}, {run.arm}, seed {run.seed}", total=run.steps)
        return run_and_keep(run, out, _command(), lambda steps: bar.advance(task, steps))


def describe(record: dict[str, Any]) -> list[str]:
    """A finished run in a few lines."""
    task = TASKS[record["task"]]
    if "refused" in record:
        return [f"refused: {record['refused']}"]
    if record["diverged"] is not None:
        return [f"diverged: the loss stopped being finite at step {record['diverged']} (recorded)"]
    lines = [f"{'step':>6} {'loss':>9}"]
    curve = record["curve"]
    lines += [f"{step:6} {loss:9.4f}" for step, loss in curve[:: max(1, len(curve) // 10)]]
    lines.append(f"{task.metric}: validation {record['validation']:.4f}, test {record['test']:.4f}")
    for when, p in record["probes"].items():
        shown = ", ".join(f"{name} {_number(p[key])}" for name, key in
                          (("κ(W)", "kappa_w"), ("κ(J)", "kappa_j"), ("saturation", "saturation")))  # fmt: skip
        lines.append(f"{when:>6}: {shown} (κ(J) of the {p['kappa_j_of']})")
    return [*lines, *record["notes"]]


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value if value is not None else "–")


def plan(tasks: str, arms: str, **more: Any) -> list[Sweep]:
    """Sweeps for comma-separated names; "all" is every task, and the arms of `CORE_ARMS` or, for some tasks, all."""
    names = tuple(TASKS) if tasks == "all" else _names(tasks)
    if arms != "all":
        return [Sweep(names, _names(arms), **more)]
    seeds = more.pop("seeds")
    wide, narrow = [t for t in names if t in EVERY_ARM], [t for t in names if t not in EVERY_ARM]
    found = []
    if wide:
        found.append(Sweep(tuple(wide), tuple(ARMS), seeds=max(5, seeds), **more))
    if narrow:
        found.append(Sweep(tuple(narrow), CORE_ARMS, seeds=seeds, **more))
    return found


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def make_evidence(
    sweeps: list[Sweep], out: Path, say: Say, *, workers: int, minutes: float = math.inf, report: bool = True
) -> Path | None:
    """Make all missing runs with a bar and the time left, then write the report beside the file."""
    deadline = time.monotonic() + 60 * minutes
    with _bar() as bar:
        for sweep in sweeps:
            line = bar.add_task("runs", total=None)
            left = (deadline - time.monotonic()) / 60
            for done, total, record in make_runs(sweep, out, workers=workers, minutes=left, command=_command()):
                name = "runs" if record is None else f"{record['task']}, {record['arm']}, seed {record['seed']}"
                bar.update(line, completed=done, total=total, description=name)
                if record is not None and not sys.stderr.isatty():
                    say(f"{done}/{total} {name}, lr {record['lr']:g}: {_outcome(record)} ({record['seconds']:.0f} s)")
    if not report:
        return None
    from spectral_core.experiments.report import write_report

    return write_report(read(out), out.parent, tasks=TASKS, arms=ARMS)


def _outcome(record: dict[str, Any]) -> str:
    if "refused" in record:
        return "refused by the model"
    if record["diverged"] is not None:
        return f"diverged at step {record['diverged']}"
    return f"loss {_number(record['final_loss'])}, validation {_number(record['validation'])}"


def _bar() -> Progress:
    from rich.console import Console

    quiet = not sys.stderr.isatty() or int(os.environ.get("RANK", "0")) > 0
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True), disable=quiet,
    )  # fmt: skip


def _command() -> str:
    """The command line as typed, without the path of the program."""
    return shlex.join(["spectral-core", *sys.argv[1:]])
