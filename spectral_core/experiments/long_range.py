"""The five tasks of the Long Range Arena with transformers' Nyströmformer, as in the paper's table of long sequences.

Small tasks take seconds and short sequences (`long_range_data`); full ones read the Arena's files (`long_range_files`)
and have the sizes of Nyströmformer's own configuration for the Arena.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_core.experiments import long_range_data as small
from spectral_core.experiments import long_range_files as files
from spectral_core.experiments.task import Batch, Examples, Setting, Task, random_state
from spectral_core.listops import TOKENS
from spectral_core.torchvision_schemas import declare_missing

__all__ = ["Reader", "tasks"]

# name: (title, classes, ids and length small, ids and length full, fresh, reported plain and spectral)
KINDS: dict[str, tuple[str, int, tuple[int, int], tuple[int, int], bool, tuple[float, float]]] = {
    "listops": ("ListOps", 10, (len(TOKENS), 64), (len(TOKENS), 2048), True, (37.1, 37.8)),
    "text": ("Text", 2, (256, 128), (256, 4096), False, (63.8, 64.8)),
    "retrieval": ("Retrieval", 2, (256, 64), (256, 4096), False, (79.8, 80.6)),
    "image": ("Image", 10, (small.GREY, 64), (256, 1024), False, (39.9, 40.2)),
    "pathfinder": ("Pathfinder", 2, (256, 256), (256, 1024), True, (72.9, 73.7)),
}
SMALL: dict[str, Callable[[], Examples]] = {
    "listops": small.listops_stream, "text": small.passages, "retrieval": small.pairs, "image": small.digits,
    "pathfinder": small.pathfinder_stream,
}  # fmt: skip
# of Nyströmformer's configuration for the Arena
FULL_STEPS = {"listops": 5_000, "text": 20_000, "retrieval": 30_000, "image": 35_000, "pathfinder": 62_400}
FULL_BATCH = {"listops": 32, "text": 32, "retrieval": 32, "image": 256, "pathfinder": 256}


class Reader(nn.Module):
    """An encoder, the mean over the places, and a perceptron, as in Nyströmformer's configuration for the Arena.

    Of two documents, read one after the other, the perceptron sees [x₁, x₂, x₁ x₂, x₁ − x₂].
    """

    def __init__(self, encoder: nn.Module, dim: int, num_classes: int, *, documents: int = 1) -> None:
        super().__init__()
        self.encoder = encoder
        wide = dim if documents == 1 else 4 * dim
        self.head = nn.Sequential(nn.Linear(wide, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, num_classes))

    def forward(self, input_ids: Tensor, other_ids: Tensor | None = None) -> Tensor:
        """Ids (batch, n), of the second document too if there are two -> logits (batch, classes)."""
        ids = input_ids if other_ids is None else torch.cat([input_ids, other_ids])
        x = self.encoder(input_ids=ids).last_hidden_state.mean(1)
        if other_ids is not None:
            first, second = x.chunk(2)
            x = torch.cat([first, second, first * second, first - second], -1)
        return self.head(x)


def _model(name: str, setting: Setting, seed: int) -> nn.Module:
    """Two layers with two heads, no dropout, weights as the library draws them."""
    declare_missing()
    from transformers import NystromformerConfig, NystromformerModel

    _, classes, *sizes, _, _ = KINDS[name]
    vocabulary, length = sizes[setting.size == "full"]
    dim, landmarks, kernel = (64, 128, 35) if setting.size == "full" else (32, 8, 3)
    config = NystromformerConfig(
        vocab_size=vocabulary, hidden_size=dim, num_hidden_layers=2, num_attention_heads=2, intermediate_size=2 * dim,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=length,
        segment_means_seq_len=length, num_landmarks=landmarks, conv_kernel_size=kernel, pad_token_id=None,
    )  # fmt: skip
    with random_state(seed):
        return Reader(NystromformerModel(config), dim, classes, documents=1 + (name == "retrieval"))


def _inputs(batch: Batch) -> dict[str, Tensor]:
    """One example, as the model takes it."""
    return {name: value[:1] for name, value in batch.items() if name != "labels"}


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    return model(**{name: value for name, value in batch.items() if name != "labels"})


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(_logits(model, batch).float(), batch["labels"])


@torch.no_grad()
def _accuracy(model: nn.Module, batches: Sequence[Batch]) -> float:
    """The share of all examples whose largest logit is the label's."""
    right = sum(int((_logits(model, batch).argmax(-1) == batch["labels"]).sum()) for batch in batches)
    return right / sum(len(batch["labels"]) for batch in batches)


def _task(name: str) -> Task:
    title, _, _, _, fresh, (plain, spectral) = KINDS[name]

    def data(setting: Setting) -> Examples:
        if setting.size == "small" or setting.folder is None:
            return SMALL[name]()
        return files.READERS[name](setting.folder)

    return Task(
        name=name,
        title=f"Long Range Arena, {title}",
        group="long range arena",
        model=lambda setting, examples, seed: _model(name, setting, seed),
        data=data,
        loss=_loss,
        evaluate=_accuracy,
        inputs=_inputs,
        steps=300,
        batch_size=32,
        full_steps=FULL_STEPS[name],
        full_batch_size=FULL_BATCH[name],
        chance={"image": 0.1, "listops": None}.get(name, 0.5),  # of ListOps, some answers are more frequent
        fresh=fresh,
        paper=(f"Nyströmformer, LRA {title}", plain, spectral),
    )


def tasks() -> list[Task]:
    """ListOps, Text, Retrieval, Image and Pathfinder, in the order of the Arena."""
    return [_task(name) for name in KINDS]
