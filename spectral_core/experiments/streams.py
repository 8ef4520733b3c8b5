"""Two endless tasks that only attention solves: copying what came after the last time, and regression in context.

Induction: the second half of a row repeats the first from a shifted place, so each next token is found by looking for
the present one further back (Olsson et al. 2022). Regression: pairs (x, y) with y = w · x and a new w for each row;
y is predicted at each x from the pairs before it (Garg et al. 2022). Every batch is new, so training loss is test loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_core.experiments.task import PARTS, Batch, Setting, Task, generator_of
from spectral_core.models import SequenceTransformer, Transformer
from spectral_core.text import IGNORED

__all__ = ["InContextRegression", "Stream", "induction_batch", "regression_batch", "tasks"]

VOCABULARY, LENGTH = 16, 32  # of induction; a row is LENGTH inputs
FEATURES, PAIRS = 4, 16  # of regression
WIDTH = {"small": 64, "full": 256}
DEPTH = {"small": 2, "full": 6}
HELD_OUT = {"validation": 2, "test": 8}  # batches of 256
HELD_OUT_SIZE = 256


@dataclass(frozen=True)
class Stream:
    """Endless examples: `draw(count, generator)` gives a batch. Held-out draws are never those of training."""

    draw: Callable[[int, torch.Generator], Batch]

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """New examples for each (seed, step)."""
        return self.draw(size, generator_of(0, seed, step))

    def held_out(self, part: str) -> Sequence[Batch]:
        """The same batches at every call."""
        kind = 1 + PARTS.index(part)
        return [self.draw(HELD_OUT_SIZE, generator_of(kind, 0, step)) for step in range(HELD_OUT[part])]


def induction_batch(count: int, generator: torch.Generator) -> Batch:
    """Rows with a period of a quarter to a half of their length, a new one for each row.

    Returns:
        inputs (count, LENGTH) and labels (count, LENGTH): the next token, or IGNORED where it is not yet determined.
    """
    prefix = torch.randint(VOCABULARY, (count, LENGTH // 2), generator=generator)
    period = torch.randint(LENGTH // 4, LENGTH // 2 + 1, (count, 1), generator=generator)
    place = torch.arange(LENGTH + 1)
    row = prefix.gather(1, place % period)
    return {"inputs": row[:, :-1], "labels": torch.where(place[1:] > period, row[:, 1:], IGNORED)}


def regression_batch(count: int, generator: torch.Generator) -> Batch:
    """x ~ N(0, I) and y = w · x with w ~ N(0, I): x (count, PAIRS, FEATURES) and y (count, PAIRS) in float32."""
    x = torch.randn(count, PAIRS, FEATURES, generator=generator)
    w = torch.randn(count, FEATURES, 1, generator=generator)
    return {"x": x, "y": (x @ w).squeeze(-1)}


class InContextRegression(Transformer):
    """A causal transformer that reads x₁, y₁, x₂, y₂, … through one linear map, and predicts yᵢ at xᵢ.

    Args:
        features, pairs: of the rows; dim, depth, num_heads, seed: as in `SequenceTransformer`.
    """

    is_causal = True

    def __init__(self, features: int, pairs: int, *, dim: int, depth: int, num_heads: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.embed = nn.Linear(features + 1, dim)
            self.position = nn.Parameter(torch.zeros(1, 2 * pairs, dim))
            self._add_blocks(dim, depth, num_heads, 4, 1, qk_norm=False)
        self._initialize("trunc-normal", torch.Generator().manual_seed(seed))

    def tokens(self, inputs: Tensor) -> Tensor:
        """Pairs (batch, pairs, features + 1), y last -> (batch, 2 pairs, D): (x, 0) and (x, y) by turns.

        Garg et al. show (0, y); with x beside it, one layer can compare pairs, and 400 steps suffice to learn.
        """
        x, y = inputs[..., :-1], inputs[..., -1:]
        rows = torch.stack([F.pad(x, (0, 1)), torch.cat([x, y], -1)], 2).flatten(1, 2)
        return self.embed(rows) + self.position

    def forward(self, inputs: Tensor) -> Tensor:
        """Pairs (batch, pairs, features + 1) -> predictions (batch, pairs); yᵢ is not seen by prediction i."""
        return self.head(self.norm(self.features(inputs)[:, ::2])).squeeze(-1)


def _induction_model(setting: Setting, examples: Stream, seed: int) -> nn.Module:
    return SequenceTransformer(
        VOCABULARY, LENGTH, num_classes=VOCABULARY, dim=WIDTH[setting.size], depth=DEPTH[setting.size], num_heads=4,
        mlp_ratio=2, is_causal=True, seed=seed,
    )  # fmt: skip


def _regression_model(setting: Setting, examples: Stream, seed: int) -> nn.Module:
    size = setting.size
    return InContextRegression(FEATURES, PAIRS, dim=WIDTH[size], depth=DEPTH[size], num_heads=4, seed=seed)


def _copy_loss(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(batch["inputs"]).float()
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED)


@torch.no_grad()
def _copy_accuracy(model: nn.Module, batches: Sequence[Batch]) -> float:
    """The share of right tokens among those that are determined."""
    right = total = 0
    for batch in batches:
        counted = batch["labels"] != IGNORED
        right += int((model(batch["inputs"]).argmax(-1) == batch["labels"])[counted].sum())
        total += int(counted.sum())
    return right / total


def _pairs_of(batch: Batch) -> Tensor:
    return torch.cat([batch["x"], batch["y"][..., None]], -1)


def _errors(model: nn.Module, batch: Batch) -> Tensor:
    """Squared errors over d, the variance of y: (batch, pairs)."""
    return (model(_pairs_of(batch)).float() - batch["y"]).square() / batch["x"].shape[-1]


def _regression_loss(model: nn.Module, batch: Batch) -> Tensor:
    return _errors(model, batch).mean()


@torch.no_grad()
def _last_error(model: nn.Module, batches: Sequence[Batch]) -> float:
    """The mean at the last place; 1 is what a guess of 0 has."""
    return float(torch.cat([_errors(model, batch)[:, -1] for batch in batches]).mean())


def tasks() -> list[Task]:
    """Induction and in-context regression; "full" is the same data with a larger model."""
    common: dict[str, Any] = {"group": "streams", "steps": 400, "batch_size": 32, "full_batch_size": 64, "fresh": True}
    return [
        Task(
            name="induction", title="Induction heads", model=_induction_model,
            data=lambda setting: Stream(induction_batch), loss=_copy_loss, evaluate=_copy_accuracy,
            inputs=lambda batch: batch["inputs"][:1], **common,
        ),
        Task(
            name="in-context-regression", title="Regression in context", model=_regression_model,
            data=lambda setting: Stream(regression_batch), loss=_regression_loss, evaluate=_last_error,
            inputs=lambda batch: _pairs_of(batch)[:1], metric="squared error", higher_is_better=False, **common,
        ),
    ]  # fmt: skip
