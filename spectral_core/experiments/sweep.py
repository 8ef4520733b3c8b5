"""All runs of the evidence: learning rates chosen on validation seeds, then paired final seeds, several at a time.

A run that is in the file is not made again; one that was killed goes on from its checkpoint.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from spectral_core.experiments.arms import find_arm
from spectral_core.experiments.registry import find_task
from spectral_core.experiments.run import Run, train
from spectral_core.experiments.store import append, describe_machine, read, versions
from spectral_core.experiments.task import Setting

__all__ = ["TUNING_SEED", "Sweep", "choose_rate", "key_of", "make_runs", "run_and_keep"]

TUNING_SEED = 1000  # never among the final seeds


@dataclass(frozen=True)
class Sweep:
    """What is to be compared.

    Attributes:
        tasks, arms: by name; seeds: final ones, 0 … seeds − 1, the same for every arm.
        tuning_seeds: on which the learning rate is chosen; 0 takes the middle rate of the task for all arms.
        steps, batch_size, setting, device, dtype: as in `Run`.
    """

    tasks: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: int = 5
    tuning_seeds: int = 1
    steps: int = 0
    batch_size: int = 0
    setting: Setting = field(default_factory=Setting)
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in self.tasks:
            find_task(name)
        for name in self.arms:
            find_arm(name)

    def _run(self, task: str, arm: str, seed: int, lr: float, purpose: str) -> Run:
        return Run(task, arm, seed, lr, purpose, self.steps, self.batch_size, self.setting, self.device, self.dtype)

    def tuning(self, task: str, arm: str) -> list[Run]:
        """The runs that choose a learning rate."""
        seeds = range(TUNING_SEED, TUNING_SEED + self.tuning_seeds)
        return [self._run(task, arm, seed, lr, "tune") for lr in self.rates(task) for seed in seeds]

    def rates(self, task: str) -> tuple[float, ...]:
        """What a learning rate is chosen from."""
        return find_task(task).full_rates if self.setting.size == "full" else find_task(task).rates

    def final(self, task: str, arm: str, lr: float) -> list[Run]:
        """The runs that are compared."""
        return [self._run(task, arm, seed, lr, "final") for seed in range(self.seeds)]


def choose_rate(task: str, records: Sequence[dict[str, Any]]) -> float:
    """The rate with the best mean validation metric; one run that diverged rules a rate out, unless all have.

    >>> choose_rate("digits", [{"lr": 0.1, "validation": None}, {"lr": 0.01, "validation": 0.6}])
    0.01
    """
    sign = 1.0 if find_task(task).higher_is_better else -1.0
    by_rate: dict[float, list[float]] = {}
    for record in records:
        value = record["validation"]
        by_rate.setdefault(record["lr"], []).append(-math.inf if value is None else sign * value)
    return max(sorted(by_rate), key=lambda lr: sum(by_rate[lr]) / len(by_rate[lr]))


def make_runs(
    sweep: Sweep, path: Path, *, workers: int = 1, minutes: float = math.inf, command: str = ""
) -> Iterator[tuple[int, int, dict[str, Any] | None]]:
    """Make what is missing, and yield (done, known total, record) at the start and after each run.

    Args:
        path: the JSON-lines file; checkpoints lie in a folder beside it while runs go on.
        workers: processes, of one thread each where there are several.
        minutes: after which no new run is begun.
        command: for the records.
    """
    known = {key_of(record): record for record in read(path)}
    pairs = [(task, arm) for task in sweep.tasks for arm in sweep.arms]
    waiting: dict[tuple[str, str], set[tuple]] = {}
    queue: list[Run] = []
    done, total, started = 0, 0, time.monotonic()

    def enqueue(runs: Iterable[Run]) -> None:
        nonlocal done, total
        for run in runs:
            total += 1
            if run.key in known:
                done += 1
            else:
                queue.append(run)

    def begin_final(pair: tuple[str, str]) -> None:
        tuned = [known[run.key] for run in sweep.tuning(*pair)]
        rates = sweep.rates(pair[0])
        if any("refused" in record for record in tuned):
            return
        enqueue(sweep.final(*pair, choose_rate(pair[0], tuned) if tuned else rates[len(rates) // 2]))

    def settle(pair: tuple[str, str]) -> None:
        missing = {run.key for run in sweep.tuning(*pair)} - set(known)
        waiting[pair] = missing
        if not missing:
            begin_final(pair)

    for pair in pairs:
        enqueue(sweep.tuning(*pair))
        settle(pair)
    yield done, total, None
    running: dict[Future, Run] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread, initargs=(workers,)) as pool:
        while queue or running:
            while queue and len(running) < workers and time.monotonic() - started < 60 * minutes:
                run = queue.pop(0)
                running[pool.submit(run_and_keep, run, path, command)] = run
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run = running.pop(future)
                record = future.result()
                known[run.key] = record
                done += 1
                pair = run.task, run.arm
                if run.purpose == "tune":
                    waiting[pair].discard(run.key)
                    if not waiting[pair]:
                        before = len(queue)
                        begin_final(pair)
                        queue[:0] = [queue.pop() for _ in range(len(queue) - before)][::-1]  # finish a pair early
                yield done, total, record


def run_and_keep(run: Run, path: Path, command: str = "", progress: Any = None) -> dict[str, Any]:
    """Train one run and add it to the file; an arm that has no meaning for the model is a record that says so."""
    place = {"command": command, "versions": versions(), "machine": describe_machine(run.device)}
    begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    try:
        record = train(run, checkpoints=path.parent / f".{path.stem}-checkpoints", progress=progress)
    except ValueError as error:
        if not _has_no_meaning(run, error):
            raise
        record = run.describe() | {"refused": str(error), "validation": None, "test": None, "final_loss": None,
                                   "curve": [], "diverged": None, "notes": [], "probes": {}, "seconds": 0.0}
    record |= place | {"begun": begun}
    if int(os.environ.get("RANK", "0")) == 0:
        append(path, record)
    return record


def _has_no_meaning(run: Run, error: ValueError) -> bool:
    """Whether the arm itself was refused by the model, and not the data or the settings."""
    try:
        task = find_task(run.task)
        examples = task.data(run.setting)
        model = task.model(run.setting, examples, run.seed)
        example = task.inputs(examples.batch(run.seed, 0, run.batch_size))
    except ValueError:
        return False
    try:
        find_arm(run.arm).prepare(model, example, run.seed)
    except ValueError as again:
        return str(again) == str(error)
    return False


def key_of(record: dict[str, Any]) -> tuple:
    """`Run.key` of a record."""
    return (record["task"], record["arm"], record["seed"], float(record["lr"]), record["purpose"], record["steps"],
            record["batch_size"], record["size"], record["folder"], record["dtype"])  # fmt: skip


def _one_thread(workers: int) -> None:
    if workers > 1:
        torch.set_num_threads(1)
