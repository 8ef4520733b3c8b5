"""What an experiment is: a task (model, data, loss, metric, budget), and one place where tasks are registered.

Training batches are a function of (seed, step) alone. So a killed run goes on with the same numbers, several processes
take their own slices of the same batch, and two arms with one seed see the same examples in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spectral_core._checks import check_choice

__all__ = ["SIZES", "Batch", "Examples", "Setting", "Task", "epoch_indices", "generator_of", "random_state"]

SIZES = ("small", "full")
Batch = dict[str, Any]  # tensors, or lists, with one entry an example
PARTS = ("validation", "test")


@dataclass(frozen=True)
class Setting:
    """Which version of a task: "small" with embedded data, or "full" as in the paper, with data from `folder`.

    A small model may read a folder too. Raises ValueError for an unknown size, or "full" without a folder.
    """

    size: str = "small"
    folder: Path | None = None

    def __post_init__(self) -> None:
        check_choice(self.size, "size", SIZES)
        if self.size == "full" and self.folder is None:
            raise ValueError("size 'full': expected --folder FOLDER with the full-size data, got none")


class Examples(Protocol):
    """The data of a task."""

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Training batch number `step`, of `size` examples; the same arguments give the same batch."""
        ...

    def held_out(self, part: str) -> Sequence[Batch]:
        """All batches of "validation" (to choose a learning rate by) or "test" (looked at once, at the end)."""
        ...


@dataclass(frozen=True)
class Task:
    """One experiment.

    Attributes:
        name: on the command line; title: in tables; group: the part of the paper that it belongs to.
        model: (setting, examples, seed) -> a model at its own initialisation, without dropout.
        data: setting -> its `Examples`.
        loss: (model, batch) -> mean over the examples of the batch; model is in training mode.
        evaluate: (model, batches) -> the held-out metric.
        inputs: batch -> what the model is called with for one example, as `calibrate` takes it.
        metric, higher_is_better: of `evaluate`; a share, a percentage or nats.
        steps, batch_size: the small budget; full_steps, full_batch_size: the paper's (or its recipe's).
        rates, full_rates: learning rates to choose from, for every arm alike, at the small and the full size.
        chance: the metric of a guess among classes that are equally frequent, where the task has these.
        fresh: whether every training batch is newly generated, so that training loss is free of overfitting.
        paper: (what, plain, spectral) as reported by the paper; empty where it has no such experiment.
    """

    name: str
    title: str
    group: str
    model: Callable[[Setting, Any, int], nn.Module]
    data: Callable[[Setting], Examples]
    loss: Callable[[nn.Module, Batch], Tensor]
    evaluate: Callable[[nn.Module, Sequence[Batch]], float]
    inputs: Callable[[Batch], Any]
    metric: str = "accuracy"
    higher_is_better: bool = True
    steps: int = 300
    batch_size: int = 32
    full_steps: int = 100_000
    full_batch_size: int = 256
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    full_rates: tuple[float, ...] = (3e-4, 1e-3)
    chance: float | None = None
    fresh: bool = False
    paper: tuple[str, float, float] | None = field(default=None)


def generator_of(*numbers: int) -> torch.Generator:
    """A generator that depends on all of `numbers` (≥ 0), for example (seed, step)."""
    state = 0
    for number in numbers:
        state = (state * 1_000_003 + number + 12_345) % (2**63 - 25)
    return torch.Generator().manual_seed(state)


@lru_cache(maxsize=64)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator_of(seed, epoch))


def epoch_indices(count: int, seed: int, step: int, size: int) -> Tensor:
    """Which of `count` examples batch `step` holds; every pass is a new permutation, its incomplete batch dropped.

    Raises:
        ValueError: a batch larger than the data.
    """
    if size > count:
        raise ValueError(f"batch_size: expected at most the {count} training examples, got {size}")
    per_epoch = count // size
    epoch, place = divmod(step, per_epoch)
    return _order(count, seed, epoch)[place * size : (place + 1) * size]


@contextmanager
def random_state(*numbers: int) -> Iterator[None]:
    """Global generators set from `numbers` inside, and as before afterwards: for libraries that take no generator."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(generator_of(*numbers).initial_seed())
        yield
