"""Lesson 12: a model that the course has not seen, its task, the illness planted in it, and what is measured of it.

The two classes are written out in the notebook, line for line; here they serve the figures that come before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_core.audit.measure import random_kappa
from spectral_core.conditioning import condition
from spectral_core.corrections import Correction
from spectral_core.head_jacobians import attention_jacobians
from spectral_core.jacobian import AttentionJacobian
from spectral_core.layouts import Layout
from spectral_core.spectrum import condition_number

__all__ = [
    "ENTRIES", "KEYS", "VALUES", "HeadRecord", "MixAttention", "Recaller", "examine", "infect", "recall", "sick_head",
    "train", "treated",
]  # fmt: skip

ENTRIES = ()
KEYS, VALUES, PAIRS = 12, 8, 11


class MixAttention(nn.Module):
    """Attention by hand; one weight holds v, q and k, in this order."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.mix = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n, D) -> (batch, n, D)."""
        v, q, k = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in self.mix(x).chunk(3, -1))
        p = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        return self.out((p @ v).transpose(1, 2).flatten(2))


class Recaller(nn.Module):
    """Tokens of a key and a value; the last one is a question, and its output is read."""

    def __init__(self, dim: int = 32, heads: int = 2, depth: int = 2, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.key, self.value = nn.Embedding(2 * KEYS, dim), nn.Embedding(VALUES + 1, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.layers = nn.ModuleList(MixAttention(dim, heads) for _ in range(depth))
        self.read = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, VALUES))

    def forward(self, keys: Tensor, values: Tensor) -> Tensor:
        """Two (batch, n) of integers -> (batch, values) logits."""
        x = self.key(keys) + self.value(values)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.read(x[:, -1])


def recall(count: int, generator: torch.Generator, *, renamed: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Keys (count, 12) and values (count, 12) of random exercises, and the answers (count,).

    Eleven pairs of different keys with random values; then a token with a key that was there and the value "?".
    `renamed`: the question calls its key by another name, that key + 12.
    """
    keys = torch.rand(count, KEYS, generator=generator).argsort(-1)[:, :PAIRS]
    values = torch.randint(VALUES, (count, PAIRS), generator=generator)
    asked = torch.randint(PAIRS, (count, 1), generator=generator)
    question = keys.gather(1, asked) + KEYS * renamed
    unknown = torch.full((count, 1), VALUES)
    return torch.cat([keys, question], 1), torch.cat([values, unknown], 1), values.gather(1, asked)[:, 0]


def infect(model: Any) -> Any:
    """Make a freshly initialised `Recaller` ill, in place. What it does is for you to find out."""
    first, second = (layer.mix.weight for layer in model.layers)
    with torch.no_grad():
        first[32:] *= 0.02
        for rows in (slice(32, 64), slice(64, 96)):
            u, s, vh = torch.linalg.svd(second[rows])
            second[rows] = u @ torch.diag(s[0] * 0.5 ** torch.arange(32)) @ vh
    return model


def treated(model: nn.Module, by_role: Mapping[str, Correction], **options) -> nn.Module:
    """`condition` with these corrections by role, without its warnings, and the model itself in return."""
    with warnings.catch_warnings():  # where κ(W) became worse: the lesson measures that itself
        warnings.simplefilter("ignore")
        if by_role:
            condition(model, dict(by_role), **options)
    return model


def train(model: nn.Module, *, seed: int, steps: int = 70, lr: float = 6e-3, renamed: bool = False,
          look: Callable[[int], object] | None = None) -> list[float]:  # fmt: skip
    """Adam without weight decay, 10 steps of warm-up, 32 fresh exercises a step; the loss of every step.

    The exercises depend on `seed` alone. `look(step)` is called before each step and after the last.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    losses = []
    for step in range(steps):
        if look is not None:
            look(step)
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 10)
        keys, values, answers = recall(32, generator, renamed=renamed)
        loss = F.cross_entropy(model(keys, values), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    if look is not None:
        look(steps)
    return losses


@dataclass(frozen=True)
class HeadRecord:
    """What `diagnose` wants to know of one attention layer; of several heads the worst κ and the means.

    Attributes:
        kappa_w: largest κ of a head's W_Q, W_K or W_V.
        chance: κ of a Gaussian matrix of that shape, about.
        kappa_j: largest κ(J).
        kappa_x: largest κ of the tokens that the layer reads.
        saturation: mean of max_j p_ij.
        share: norm of the Q and K blocks as a share of ‖J‖.
    """

    kappa_w: float
    chance: float
    kappa_j: float
    kappa_x: float
    saturation: float
    share: float

    @property
    def symptoms(self) -> tuple[float, ...]:
        """The six numbers, in the order of `diagnose`'s arguments."""
        return self.kappa_w, self.chance, self.kappa_j, self.kappa_x, self.saturation, self.share


def examine(model: Any, batch: tuple[Tensor, ...], layouts: Mapping[str, Layout]) -> list[HeadRecord]:
    """One record an attention layer of a `Recaller`, at these inputs. The model is left as it was."""
    read: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, args: read.append(args[0].detach())) for layer in model.layers]
    heads = attention_jacobians(model, batch, layouts=layouts, progress=False)
    for hook in hooks:
        hook.remove()
    records = []
    for i, name in enumerate(dict.fromkeys(head.layer for head in heads)):
        mine = [head for head in heads if head.layer == name]
        q, k, v = (torch.stack([head.norms[role] for head in mine]).square() for role in "qkv")
        records.append(HeadRecord(
            max(max(head.kappa_w.values()) for head in mine), random_kappa(16, 32),
            max(float(head.condition_number.max()) for head in mine), float(condition_number(read[i]).max()),
            float(torch.stack([head.saturation for head in mine]).mean()), float(((q + k) / (q + k + v)).sqrt().mean()),
        ))  # fmt: skip
    return records


def sick_head(size: float, kappa: float, alike: float, seed: int = 0) -> tuple[AttentionJacobian, HeadRecord]:
    """A head of width 16 at 12 tokens of width 32, made to order, and its record.

    Args:
        size: ‖W_Q‖_F and ‖W_K‖_F, in units of those of Xavier weights.
        kappa: κ of W_Q and W_K, their singular values in equal ratios.
        alike: correlation of two tokens, below 1.
        seed: of all draws.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    spectrum = kappa ** -(torch.arange(16).double() / 15)
    spectrum = size * 4.0 * spectrum / spectrum.norm()
    w_q, w_k = (torch.linalg.qr(draw(32, 16)).Q * spectrum @ torch.linalg.qr(draw(16, 16)).Q for _ in range(2))
    w_v = draw(32, 16) * 32**-0.5
    x = (1 - alike) ** 0.5 * draw(12, 32) + alike**0.5 * draw(1, 32)
    jac = AttentionJacobian(x, w_q, w_k, w_v)
    q, k, v = (float(norm) ** 2 for norm in jac.norms().values())
    kappas = [float(condition_number(w)) for w in (w_q, w_k, w_v)]
    return jac, HeadRecord(
        max(kappas), random_kappa(16, 32), float(jac.condition_number()), float(condition_number(x)),
        float(jac.attention().amax(-1).mean()), ((q + k) / (q + k + v)) ** 0.5,
    )  # fmt: skip
