"""Lesson 6, the short trainings: a small ViT on digits, with λI on some weights or with attention cut out by hand."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_core.attention import SpectralConditionedAttention
from spectral_core.conditioning import condition
from spectral_core.corrections import IdentityCorrection
from spectral_core.data import load_digits
from spectral_core.models import VisionTransformer

__all__ = ["ARMS", "ENTRIES", "LR", "STEPS", "Run", "attention_maps", "build", "first_gradient", "trained"]

ENTRIES = ()
STEPS, BATCH, LR = 100, 32, 3e-3
#: arm: (initialisation, λ, the roles that get it, whether P = I by hand)
ARMS = {
    "plain": ("trunc-normal", 0.0, "", False),
    "Xavier": ("xavier", 0.0, "", False),
    "λ = 1 on QKV": ("trunc-normal", 1.0, "qkv", False),
    "λ = 10 on Q": ("trunc-normal", 10.0, "q", False),
    "λ = 10 on V": ("trunc-normal", 10.0, "v", False),
    "λ = 10 on QK": ("trunc-normal", 10.0, "qk", False),
    "P = I": ("trunc-normal", 0.0, "", True),
    "λ = 10 on QKV": ("trunc-normal", 10.0, "qkv", False),
    "P = I, λ = 10 on V": ("trunc-normal", 10.0, "v", True),
}


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        losses: cross-entropy of each batch, before its step.
        loss: cross-entropy over all training images after the last step.
        accuracy: share of the held-out images classified rightly.
        before, after: attention maps at the first 128 held-out images, (blocks, images, heads, n, n).
        moved: Frobenius norm of the change of W_Q of block 0.
        furthest: the largest change of a single entry of any weight, bias or gain.
    """

    losses: tuple[float, ...]
    loss: float
    accuracy: float
    before: Tensor
    after: Tensor
    moved: float
    furthest: float


def build(init: str, lam: float, roles: str, cut: bool, seed: int) -> VisionTransformer:
    """The ViT of an arm; `cut` sets P = I: every token passes its own value on, W_Q and W_K are out of use."""
    model = VisionTransformer(init=init, seed=seed)
    if lam:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a κ(W) that became worse: not the subject here
            condition(model, IdentityCorrection(lam), projections=roles)
    if cut:
        for block in model.blocks:
            block.attention = OwnValue(block.attention)  # type: ignore[arg-type]
    return model


class OwnValue(nn.Module):
    """An attention layer with P = I: its value and output layers, one after the other; W_Q and W_K are kept unused."""

    def __init__(self, attention: SpectralConditionedAttention) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (attention.query, attention.key, attention.value, attention.out)

    def forward(self, x: Tensor) -> Tensor:
        """(…, n, D) -> (…, n, D), token by token."""
        return self.out(self.value(x))


@torch.no_grad()
def attention_maps(model: VisionTransformer, cut: bool = False) -> Tensor:
    """P of every block and head at the first 128 held-out images, (blocks, images, heads, n, n)."""
    images = load_digits().test_x[:128]
    if cut:
        return torch.eye(16).expand(2, len(images), 2, 16, 16)
    layers = range(len(model.blocks))
    return torch.stack([
        model.block(i).attention(model.attention_input(images, i), need_weights=True)[1] for i in layers
    ])  # fmt: skip


@lru_cache(maxsize=64)
def trained(arm: str, seed: int) -> Run:
    """Train an arm of `ARMS` for `STEPS` steps of AdamW; `seed` is that of the initialisation and of the batches."""
    data, model = load_digits(), build(*ARMS[arm], seed)
    before = attention_maps(model, ARMS[arm][3])
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.05, fused=True)
    start = model.block(0).attention.query.weight.detach().clone()
    every = [parameter.detach().clone() for parameter in model.parameters()]
    losses: list[float] = []
    for _ in range(STEPS):
        picked = torch.randint(len(data.train_y), (BATCH,), generator=generator)
        loss = F.cross_entropy(model(data.train_x[picked]), data.train_y[picked])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        return Run(
            losses=tuple(losses),
            loss=float(F.cross_entropy(model(data.train_x), data.train_y)),
            accuracy=float((model(data.test_x).argmax(-1) == data.test_y).float().mean()),
            before=before,
            after=attention_maps(model, ARMS[arm][3]),
            moved=float((model.block(0).attention.query.weight - start).norm()),
            furthest=max(float((p - old).abs().max()) for p, old in zip(model.parameters(), every, strict=True)),
        )


@lru_cache(maxsize=64)
def first_gradient(lam: float, seed: int) -> tuple[dict[str, float], Tensor]:
    """λ on W_Q and W_K, nothing trained: gradient norms of the loss at 512 images by role, and attention maps."""
    data, model = load_digits(), build("trunc-normal", lam, "qk", False, seed)
    F.cross_entropy(model(data.train_x[:512]), data.train_y[:512]).backward()
    gradients = {
        role: float(parameter.grad.norm())
        for role, word in {"q": "query", "k": "key", "v": "value"}.items()
        for name, parameter in model.block(0).attention.named_parameters()
        if name.startswith(word) and parameter.grad is not None
    }
    return gradients, attention_maps(model)
