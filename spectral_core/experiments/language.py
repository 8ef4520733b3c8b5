"""Language: BERT on masked words, BERT fine-tuned after that, and a causal GPT-2, all from transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_core.experiments.corpora import Corpus, Labelled, embedded, folder_corpus, glue, topics
from spectral_core.experiments.task import Batch, Setting, Task, random_state
from spectral_core.projections import find_projections
from spectral_core.torchvision_schemas import declare_missing

__all__ = ["tasks"]

WIDTH, LAYERS, HEADS, LENGTH = 64, 2, 4, 64
LOOK = 16  # tokens at which κ(J) is measured
HIDDEN = 0.25  # of the places, as crammed BERT does
PRETRAIN = 200  # steps on masked words before fine-tuning, at the small size
FULL_PRETRAIN = 600_000


def sizes(setting: Setting) -> tuple[int, int]:
    """Tokens of a row for BERT and for GPT-2."""
    return (128, 1024) if setting.size == "full" else (LENGTH, LENGTH)


def masked(setting: Setting) -> Corpus:
    """Rows with a quarter of the places hidden."""
    length = sizes(setting)[0]
    return embedded(length, HIDDEN) if setting.folder is None else folder_corpus(setting.folder, length, HIDDEN)


def causal(setting: Setting) -> Corpus:
    """Rows and, at every place, the next token."""
    length = sizes(setting)[1]
    return embedded(length, 0.0) if setting.folder is None else folder_corpus(setting.folder, length, 0.0)


@dataclass(frozen=True)
class Tuning:
    """Masked words for `pretrain` steps, then passages with labels."""

    corpus: Corpus
    labelled: Labelled
    pretrain: int

    def batch(self, seed: int, step: int, size: int) -> Batch:
        if step < self.pretrain:
            return self.corpus.batch(seed, step, size)
        return self.labelled.batch(seed, step - self.pretrain, size)

    def held_out(self, part: str) -> Sequence[Batch]:
        return self.labelled.held_out(part)


def tuning(setting: Setting) -> Tuning:
    length = sizes(setting)[0]
    if setting.folder is None:
        return Tuning(masked(setting), topics(length), PRETRAIN)
    return Tuning(masked(setting), glue(setting.folder, length), FULL_PRETRAIN if setting.size == "full" else PRETRAIN)


class Bert(nn.Module):
    """transformers' BERT with a head for masked words and, where there are classes, one for the mean over tokens.

    W_Q, W_K, W_V are BERT's own, normal with standard deviation 0.02; at the small size everything else is drawn with
    1/√D, since 0.02 is made for width 768 and a short run would be spent on growing out of it.
    """

    def __init__(self, setting: Setting, vocabulary: int, classes: int) -> None:
        super().__init__()
        declare_missing()
        from transformers import BertConfig, BertForMaskedLM

        small = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": 2 * WIDTH,
                 "num_attention_heads": HEADS, "initializer_range": WIDTH**-0.5}  # fmt: skip
        config: Any = BertConfig(
            vocab_size=vocabulary, max_position_embeddings=sizes(setting)[0], hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, pad_token_id=None, **(small if setting.size == "small" else {}),
        )
        self.body: Any = BertForMaskedLM(config)
        for projection in find_projections(self.body):
            projection.assign(0.02 * torch.randn(projection.weight.shape))
        self.classify = nn.Linear(config.hidden_size, classes) if classes else None

    def forward(self, x: Tensor, *, is_labelled: bool = False) -> Tensor:
        """ids (N, n) -> logits (N, n, vocabulary), or (N, classes)."""
        if not is_labelled or self.classify is None:
            return self.body(input_ids=x).logits
        return self.classify(self.body.bert(input_ids=x).last_hidden_state.mean(1))


def bert(setting: Setting, examples: Any, seed: int) -> nn.Module:
    corpus = examples.corpus if isinstance(examples, Tuning) else examples
    with random_state(seed):
        return Bert(setting, corpus.vocabulary, examples.labelled.classes if isinstance(examples, Tuning) else 0)


def gpt2(setting: Setting, examples: Corpus, seed: int) -> nn.Module:
    """GPT-2 at its own initialisation (0.02 throughout), without dropout."""
    declare_missing()
    from transformers import GPT2Config, GPT2LMHeadModel

    small: dict[str, Any] = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
    with random_state(seed):
        config = GPT2Config(
            vocab_size=examples.vocabulary, n_positions=sizes(setting)[1], resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, bos_token_id=None, eos_token_id=None, use_cache=False,
            **(small if setting.size == "small" else {}),
        )
        return GPT2LMHeadModel(config)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy in nats, of the hidden, the next, or the class."""
    if "label" in batch:
        return F.cross_entropy(model(batch["x"], is_labelled=True).float(), batch["label"])
    logits = model(batch["x"])
    logits = logits if isinstance(logits, Tensor) else logits.logits
    return F.cross_entropy(logits.float().flatten(0, 1), batch["y"].flatten())


def mean_loss(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Cross-entropy a token, in nats; all batches have the same size."""
    return sum(float(loss(model, batch)) for batch in batches) / len(batches)


def accuracy(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Share of the passages that are classified rightly."""
    hits = [(model(b["x"], is_labelled=True).argmax(-1) == b["label"]).double() for b in batches]
    return float(torch.cat(hits).mean())


def inputs(batch: Batch) -> Tensor:
    """The beginning of one row: κ(J) of more tokens costs with their third power."""
    return batch["x"][:1, :LOOK]


def tasks() -> list[Task]:
    """`bert`, `finetune` and `gpt2`."""
    common: dict[str, Any] = {"loss": loss, "inputs": inputs, "rates": (1e-3, 3e-3, 1e-2)}
    nats: dict[str, Any] = {"metric": "loss", "higher_is_better": False, "evaluate": mean_loss}
    return [
        Task("bert", "BERT, masked characters", "language", model=bert, data=masked, steps=400, **nats, **common,
             full_steps=FULL_PRETRAIN, full_batch_size=4096),
        Task("finetune", "BERT, then topics of passages", "language", model=bert, data=tuning, evaluate=accuracy,
             steps=PRETRAIN + 200, full_steps=FULL_PRETRAIN + 60_000, full_batch_size=4096,
             paper=("crammed BERT, GLUE average", 78.6, 79.4), **common),
        Task("gpt2", "GPT-2, next character", "language", model=gpt2, data=causal, steps=400, **nats, **common,
             full_steps=100_000, full_batch_size=512),
    ]  # fmt: skip
