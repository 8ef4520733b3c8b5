"""What the demo's small models learn, 16 tokens at a time: digits, ListOps, English; and the models themselves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from spectral_core import listops, text
from spectral_core.data import load_digits
from spectral_core.models import INITS, SequenceTransformer, Transformer, VisionTransformer
from spectral_core.training import Data

__all__ = ["TOKENS", "Rows", "load_task", "new_model"]

TOKENS = 16
PATCH = {"digits": 2, "mnist": 7}  # 16 tokens each
HELD_OUT = 300


@dataclass(frozen=True)
class Rows:
    """Rows of ids (N, 16) and their labels, (N,) or (N, 16)."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@lru_cache(maxsize=4)
def load_task(source: str) -> Data:
    """"digits" and "mnist" as in `load_digits`; "listops", the value of expressions of 4 to 15 tokens; "text", the
    next character of English at every place. Not to be written to."""
    if source in PATCH:
        return load_digits(source)
    if source == "listops":
        drawn = listops.generate(3000 + HELD_OUT, min_length=3, max_length=TOKENS, max_depth=3, max_args=5)
        x = listops.encode(drawn, TOKENS)
        y = torch.tensor([listops.evaluate(expression) for expression in drawn])
        return Rows(x[HELD_OUT:], y[HELD_OUT:], x[:HELD_OUT], y[:HELD_OUT])
    data, generator = text.load_text(), torch.Generator().manual_seed(0)
    train, test = (text.windows(ids, TOKENS + 1, count, generator) for ids, count in
                   ((data.train, 6000), (data.test, HELD_OUT)))
    return Rows(train[:, :-1], train[:, 1:], test[:, :-1], test[:, 1:])


def new_model(init: str, source: str, seed: int, *, qk_norm: bool = False) -> Transformer:
    """Width 32, two blocks of two heads. MiniLM's head cannot be trained here: "minilm" gives small random weights."""
    known = init if init in INITS else "trunc-normal"
    model: Transformer
    if source in PATCH:
        size = load_digits(source).image_size
        model = VisionTransformer(size, PATCH[source], init=known, seed=seed, qk_norm=qk_norm)
    elif source == "listops":
        model = SequenceTransformer(
            len(listops.TOKENS), TOKENS, num_classes=10, init=known, seed=seed, qk_norm=qk_norm
        )
    else:
        model = SequenceTransformer(
            text.VOCABULARY, TOKENS, num_classes=text.VOCABULARY, is_causal=True, init=known, seed=seed,
            qk_norm=qk_norm,
        )  # fmt: skip
    if init in ("gaussian", "collapsed"):
        _draw(model, init, torch.Generator().manual_seed(seed))
    return model


@torch.no_grad()
def _draw(model: Transformer, init: str, generator: torch.Generator) -> None:
    """Q, K and V from N(0, 1/D); or of rank 2 and noise, at the norm of such a Gaussian."""
    for name, weight in model.named_parameters():
        if not name.endswith(("query.weight", "key.weight", "value.weight")):
            continue
        dim = weight.shape[1]
        full = torch.randn(weight.shape, generator=generator) / dim**0.5
        if init == "gaussian":
            weight.copy_(full)
            continue
        low = torch.randn(len(weight), 2, generator=generator) @ torch.randn(2, dim, generator=generator)
        collapsed = low / low.norm() + 1e-3 * full / full.norm()
        weight.copy_(collapsed * dim**0.5 / collapsed.norm())
