"""Lesson 10: a small BERT that reads characters, a small Nyströmformer, and the matrices that the latter inverts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from spectral_core.capture import capture_calls, choose_layers
from spectral_core.initialization import initialize
from spectral_core.lessons.environment import device
from spectral_core.listops import TOKENS, encode, generate
from spectral_core.projections import find_projections
from spectral_core.text import MASK, VOCABULARY, load_text
from spectral_core.torchvision_schemas import declare_missing

__all__ = [
    "ENTRIES", "LAMS", "Maps", "accuracy_of", "attention_input", "bert", "inverse", "loss_of", "maps", "nystromformer",
    "relative_error", "train",
]  # fmt: skip

ENTRIES = ()
LAMS = (0.0, 0.1, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)
WIDTH = 64
COMMON: dict[str, Any] = {
    "hidden_size": WIDTH, "num_hidden_layers": 1, "intermediate_size": 2 * WIDTH, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def bert(seed: int = 0, *, length: int = 8) -> nn.Module:
    """transformers' BertForMaskedLM for characters: one layer, D = 64, four heads of 16, no dropout.

    W_Q, W_K and W_V are BERT's own, normal with standard deviation 0.02. Everything else is drawn with 1/√D, and the
    output starts with the frequencies of the characters, or most of a short run would be spent on learning those. There
    is one type of text only, so the embedding of its type is zero.
    """
    declare_missing()
    from transformers import BertConfig, BertForMaskedLM

    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "num_attention_heads": 4, "max_position_embeddings": length}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = BertForMaskedLM(BertConfig(**COMMON, **sizes, initializer_range=WIDTH**-0.5, pad_token_id=None))
        for projection in find_projections(model):
            projection.assign(0.02 * torch.randn(projection.weight.shape))
    with torch.no_grad():
        model.cls.predictions.bias.copy_(_log_frequencies())
        model.bert.embeddings.token_type_embeddings.weight.zero_()
    return model.to(device())


@lru_cache(maxsize=1)
def _log_frequencies() -> Tensor:
    counts = torch.bincount(load_text().train, minlength=VOCABULARY).float()
    counts[MASK] = 1.0
    return (counts / counts.sum()).log()


def nystromformer(seed: int = 0, *, length: int = 64, landmarks: int = 8) -> nn.Module:
    """transformers' NystromformerForSequenceClassification for ListOps: one layer, D = 64, two heads of 32.

    All weights are normal with standard deviation 0.02, as the library draws them.
    """
    declare_missing()
    from transformers import NystromformerConfig, NystromformerForSequenceClassification

    sizes: dict[str, Any] = {
        "vocab_size": len(TOKENS), "num_attention_heads": 2, "max_position_embeddings": length, "num_labels": 10,
        "segment_means_seq_len": length, "num_landmarks": landmarks, "conv_kernel_size": 3, "pad_token_id": None,
    }  # fmt: skip
    config = NystromformerConfig(**COMMON, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = NystromformerForSequenceClassification(config)
    return model.to(device())


def train(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, lr: float = 4e-3, warmup: int = 20,
    attention: bool = True,
) -> list[float]:
    """The loss at every step of AdamW without weight decay, one step a batch of (ids, labels).

    Args:
        attention: False puts P = I by a mask: every token sees itself alone.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, fused=True)
    losses = []
    for step, (ids, labels) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / warmup)
        loss = _forward(model, ids, labels, attention)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


@torch.no_grad()
def loss_of(model: nn.Module, ids: Tensor, labels: Tensor, *, attention: bool = True) -> float:
    """The mean loss in nats at (ids, labels)."""
    return float(_forward(model, ids, labels, attention))


@torch.no_grad()
def accuracy_of(model: nn.Module, ids: Tensor, labels: Tensor) -> float:
    """The share of `ids` (N, n) that is classified as `labels` (N,)."""
    found = model(input_ids=ids.to(device())).logits.argmax(-1).cpu()
    return float((found == labels).double().mean())


def _forward(model: nn.Module, ids: Tensor, labels: Tensor, attention: bool) -> Tensor:
    more: dict[str, Any] = {}
    if not attention:
        n = ids.shape[1]
        alone = torch.full((n, n), float("-inf"), device=device()).fill_diagonal_(0.0)
        more = {"attention_mask": alone.expand(len(ids), 1, n, n)}
    return model(input_ids=ids.to(device()), labels=labels.to(device()), **more).loss


def attention_input(model: nn.Module, ids: Tensor) -> Tensor:
    """X of the first attention layer, (batch, n, D) in float64."""
    chosen = choose_layers(model, [0])
    return capture_calls(model, {"input_ids": ids.to(device())}, chosen)[0][1].inputs["q"].double().cpu()


@dataclass(frozen=True)
class Maps:
    """The softmaxes of Nyströmformer's first layer, (expressions, heads, …), in float64.

    Attributes:
        left: n × m, tokens attend to landmarks.
        middle: m × m, landmarks attend to landmarks: the matrix that is inverted.
        right: m × n, landmarks attend to tokens.
        exact: n × n, the attention map that all this stands for.
    """

    left: Tensor
    middle: Tensor
    right: Tensor
    exact: Tensor


@lru_cache(maxsize=64)
def maps(lam: float = 0.0, landmarks: int = 16, init: str = "normal", length: int = 64) -> Maps:
    """What eight ListOps expressions give at initialisation, with λI added to the layer's W_Q and W_K."""
    x, (w_q, w_k) = _parts(init, length)
    shift = lam * torch.eye(WIDTH, dtype=torch.float64)
    q, k = ((x @ (w + shift)).unflatten(-1, (2, -1)).transpose(1, 2) for w in (w_q, w_k))
    scale = q.shape[-1] ** -0.5
    mean_q, mean_k = (t.unflatten(2, (landmarks, -1)).mean(3) for t in (q, k))
    pairs = ((q, mean_k), (mean_q, mean_k), (mean_q, k), (q, k))
    return Maps(*((scale * a @ b.mT).softmax(-1) for a, b in pairs))


@lru_cache(maxsize=8)
def _parts(init: str, length: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """X, W_Q and W_K acting on the right."""
    model = nystromformer(length=length)
    if init != "normal":
        initialize(model, init)
    expressions = generate(8, min_length=length - 6, max_length=length, max_depth=6, max_args=6)
    weights = {p.role: p.weight.detach().mT.double().cpu() for p in find_projections(model)}
    return attention_input(model, encode(expressions, length)), (weights["q"], weights["k"])


def inverse(a: Tensor, steps: int) -> Tensor:
    """The iteration of Nyströmformer for A⁻¹, each matrix with norms of its own, (…, m, m)."""
    norms = a.abs().sum(-2).amax(-1) * a.abs().sum(-1).amax(-1)
    z, eye = a.mT / norms[..., None, None], torch.eye(a.shape[-1], dtype=a.dtype)
    for _ in range(steps):
        az = a @ z
        z = z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az))) / 4
    return z


def relative_error(got: Tensor, expected: Tensor) -> Tensor:
    """‖got − expected‖_F / ‖expected‖_F, one a matrix."""
    return torch.linalg.matrix_norm(got - expected) / torch.linalg.matrix_norm(expected)
