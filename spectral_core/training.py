"""One training loop, a generator of records: notebooks, plots and the app all read it.

Between two yields the caller may do what it likes with the model's corrections, for example
`correction.update(lam=1.0)`: the next step uses the new settings.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from spectral_core._checks import check_number
from spectral_core.conditioning import advance
from spectral_core.models import Transformer
from spectral_core.polar_correction import PolarCorrection
from spectral_core.probe import HeadProbe, probe_head

__all__ = ["Data", "HeadProbe", "Record", "Trainer", "fit", "probe_head"]


class Data(Protocol):
    """Inputs (N, …) and labels (N,), or (N, n) where every place has one; a training part and a held-out one."""

    @property
    def train_x(self) -> Tensor: ...
    @property
    def train_y(self) -> Tensor: ...
    @property
    def test_x(self) -> Tensor: ...
    @property
    def test_y(self) -> Tensor: ...


@dataclass(frozen=True)
class Record:
    """The state of a run after `step` optimiser steps.

    Attributes:
        step: steps done; the first record is step 0, before any update.
        loss: mean training cross-entropy (nats) over the steps since the last record; at step 0 that of the
            first `batch_size` training images.
        accuracy: share of the held-out labels that are predicted.
        kappa_w, kappa_j, saturation, block_norms: see `HeadProbe`; head 0 of block 0 at the first held-out example.
        seconds: time since the start, probing included.
    """

    step: int
    loss: float
    accuracy: float
    kappa_w: dict[str, float]
    kappa_j: float
    saturation: float
    block_norms: dict[str, float]
    seconds: float


def fit(
    model: Transformer,
    data: Data,
    *,
    steps: int = 300,
    batch_size: int = 64,
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    warmup: int = 20,
    every: int = 1,
    seed: int = 0,
) -> Iterator[Record]:
    """Train with AdamW, yielding a `Record` before the first step, every `every` steps, and after the last.

    The order of the batches depends on `seed` alone: two models with the same seed see the same batches.

    Args:
        model: trained in place.
        data: as from `load_digits`, or any `Data`.
        steps: optimiser steps, ≥ 1.
        batch_size: images a step, at most the training set.
        lr: learning rate after `warmup` linear steps, > 0; constant from there.
        weight_decay: decoupled, ≥ 0.
        every: steps between records, ≥ 1.
        seed: of the batches.

    Raises:
        ValueError: a setting out of range (at the call, not at the first record).
        FloatingPointError: the loss, the weights or the outputs stopped being finite.
    """
    for name, value in {"steps": steps, "every": every}.items():
        if check_number(value, name, minimum=1) != int(value):
            raise ValueError(f"{name}: expected a whole number, got {value!r}")
    trainer = Trainer(
        model, data, batch_size=batch_size, lr=lr, weight_decay=weight_decay, warmup=warmup, seed=seed
    )
    return _fit(trainer, int(steps), int(every))


def _fit(trainer: Trainer, steps: int, every: int) -> Iterator[Record]:
    yield trainer.record()
    while trainer.step < steps:
        trainer.advance(min(every, steps - trainer.step))
        yield trainer.record()


class Trainer:
    """One model in training, a step at a time; its state can be taken and given back, to the bit.

    Args: as those of `fit`.

    Attributes:
        step: optimiser steps done.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        model: Transformer,
        data: Data,
        *,
        batch_size: int = 64,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        warmup: int = 20,
        seed: int = 0,
    ) -> None:
        if check_number(batch_size, "batch_size", minimum=1, maximum=len(data.train_y)) != int(batch_size):
            raise ValueError(f"batch_size: expected a whole number, got {batch_size!r}")
        check_number(lr, "lr", minimum=0.0, exclusive=True)
        check_number(weight_decay, "weight_decay", minimum=0.0)
        check_number(warmup, "warmup", minimum=0)
        self.model, self.data, self.step = model, data, 0
        self._batch_size, self._lr, self._warmup, self._seed = int(batch_size), lr, warmup, seed
        self._started, self._mean_loss = time.perf_counter(), math.nan
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
        self._batches = self._order()
        with torch.no_grad():
            self._losses = [_loss(model(data.train_x[: self._batch_size]), data.train_y[: self._batch_size])]

    def advance(self, steps: int = 1) -> None:
        """Make optimiser steps.

        Raises:
            FloatingPointError: the weights stopped being finite.
        """
        for _ in range(steps):
            for group in self._optimizer.param_groups:
                group["lr"] = self._lr * min(1.0, (self.step + 1) / max(1, self._warmup))
            advance(self.model, self.step)  # scheduled corrections follow
            picked = next(self._batches)
            loss = _loss(self.model(self.data.train_x[picked]), self.data.train_y[picked])
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            self._losses.append(loss.detach())
            self.step += 1
            # here rather than at the next record: corrections refuse such weights with an error of their own
            if not all(torch.isfinite(parameter).all() for parameter in self.model.parameters()):
                raise self._diverged("the weights stopped being finite")

    def record(self) -> Record:
        """The state now; the loss is the mean over the steps since the last record.

        Raises:
            FloatingPointError: the loss or the outputs stopped being finite.
        """
        if self._losses:
            self._mean_loss = float(torch.stack(self._losses).mean())
            self._losses.clear()
        if not math.isfinite(self._mean_loss):
            raise self._diverged(f"the loss became {self._mean_loss}")
        with torch.no_grad():
            logits = self.model(self.data.test_x)
        if not torch.isfinite(logits).all():
            raise self._diverged("the outputs stopped being finite")
        probe = probe_head(self.model, self.data.test_x[0])
        accuracy = (logits.argmax(-1) == self.data.test_y).float().mean()
        return Record(
            step=self.step, loss=self._mean_loss, accuracy=float(accuracy), kappa_w=probe.kappa_w,
            kappa_j=probe.kappa_j, saturation=probe.saturation, block_norms=probe.block_norms,
            seconds=time.perf_counter() - self._started,
        )

    def state(self) -> dict[str, Any]:
        """All that the next steps depend on, copied: weights, optimizer, order of batches, reused polar factors."""
        flat = torch.cat([t.detach().flatten() for t in self._tensors()])  # one copy is faster than hundreds
        factors = [
            (i, j, part, replace(kept), kept.state[1] == w._version)
            for i, memory in enumerate(self._memories()) for j, w in enumerate(self.model.parameters())
            for part, kept in memory.get(w, {}).items()
        ]  # fmt: skip
        losses = list(self._losses)
        return {"step": self.step, "losses": losses, "mean_loss": self._mean_loss, "flat": flat, "factors": factors}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a `state` of this trainer; what follows is the same to the bit.

        Raises:
            ValueError: the state is of a later step, and this trainer has made none; nothing is changed.
        """
        if state["step"] and not self._optimizer.state:
            raise ValueError(f"expected a state of step 0 before the first step, got one of step {state['step']}")
        self.step, self._losses, self._mean_loss = state["step"], list(state["losses"]), state["mean_loss"]
        if self.step == 0:
            self._optimizer.state.clear()
        tensors = self._tensors()
        with torch.no_grad():
            for tensor, kept in zip(tensors, state["flat"].split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(kept.view_as(tensor))
        advance(self.model, max(0, self.step - 1))  # as the last step did
        memories, weights = self._memories(), list(self.model.parameters())
        for memory in memories:
            memory.clear()
        for i, j, part, kept, is_current in state["factors"]:
            version = weights[j]._version if is_current else kept.state[1]  # writing the weight has raised it
            memories[i].setdefault(weights[j], {})[part] = replace(kept, state=(kept.state[0], version))
        self._batches = self._order()
        for _ in range(self.step):
            next(self._batches)

    def _memories(self) -> list[Any]:
        return [module._memory for module in self.model.modules() if isinstance(module, PolarCorrection)]

    def _tensors(self) -> list[Tensor]:
        kept = [t for moments in self._optimizer.state.values() for t in moments.values()]
        return [*self.model.parameters(), *kept]

    def _order(self) -> Iterator[Tensor]:
        return _batches(len(self.data.train_y), self._batch_size, torch.Generator().manual_seed(self._seed))

    def _diverged(self, what: str) -> FloatingPointError:
        return FloatingPointError(f"{what} by step {self.step}: lower lr (now {self._lr:g}) or weaken the correction")


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats; logits (N, C) or, with a label at every place, (N, n, C)."""
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


def _batches(size: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of indices; every pass is a new permutation, its incomplete last batch dropped."""
    while True:
        yield from torch.randperm(size, generator=generator)[: size // batch_size * batch_size].split(batch_size)
