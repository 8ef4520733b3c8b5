"""Lesson 7: the small ViT with corrections, what is measured of it, and a short training loop."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_core.calibration import Calibration, calibrate
from spectral_core.conditioning import condition
from spectral_core.corrections import Correction, FixedCorrection
from spectral_core.data import load_digits
from spectral_core.lessons.statistics import interval
from spectral_core.models import VisionTransformer

__all__ = [
    "ENTRIES", "Look", "Run", "build", "calibrated", "digits", "effective", "look", "paired", "rotation", "run",
    "step_through", "train",
]  # fmt: skip

ENTRIES = ()
ROUNDING = 2.0**-42  # a smallest eigenvalue of J Jᵀ below this share of the largest is rounding: κ(J) > 2·10⁶


def digits(first: int, count: int = 1) -> Tensor:
    """Held-out digits `first` … `first + count − 1`, (count, 1, 8, 8)."""
    return load_digits().test_x[first : first + count]


def build(
    by_role: Mapping[str, Correction] | None = None, *, init: str = "trunc-normal", seed: int = 0
) -> VisionTransformer:
    """The ViT of the demo (2 blocks of 2 heads, 16 tokens, D = 32), with corrections on its 32 × 32 matrices."""
    model = VisionTransformer(init=init, seed=seed)
    if by_role:
        with warnings.catch_warnings():  # where κ(W) became worse: the lesson measures that itself
            warnings.simplefilter("ignore")
            condition(model, dict(by_role))
    return model


@lru_cache(maxsize=16)
def calibrated(seed: int, init: str = "trunc-normal") -> Calibration:
    """What `calibrate` finds for the model of that seed on the held-out digit of the same number."""
    return calibrate(build(init=init, seed=seed), digits(seed), progress=False)


def rotation(size: float, seed: int) -> FixedCorrection:
    """`size` times a random 32 × 32 rotation: as large as `size` · I, and as well conditioned."""
    draw = torch.randn(32, 32, generator=torch.Generator().manual_seed(seed))
    return FixedCorrection(size * torch.linalg.qr(draw).Q)


@dataclass(frozen=True)
class Look:
    """All heads of a model at some digits.

    Attributes:
        by_digit: geometric mean of κ(J) over the heads, a number a digit; at most 2·10⁶ a head, a lower bound there.
        saturation: mean of max_j p_ij over tokens, heads and digits.
        share: norm of the Q and K blocks as a share of ‖J‖, mean over heads and digits.
        lower_bound: whether some head is beyond 2·10⁶.
    """

    by_digit: tuple[float, ...]
    saturation: float
    share: float
    lower_bound: bool

    @property
    def kappa(self) -> float:
        """Geometric mean of κ(J) over heads and digits."""
        return float(torch.tensor(self.by_digit).double().log().mean().exp())


@torch.no_grad()
def look(model: VisionTransformer, images: Tensor) -> Look:
    """κ(J), saturation and the share of Q and K in ‖J‖ of every head, at the inputs that it really sees."""
    logs, saturations, shares, lowest = [], [], [], 1.0
    for layer in range(len(model.blocks)):
        jac = model.block(layer).attention.jacobian(model.attention_input(images, layer))
        values = torch.linalg.eigvalsh(jac.gram())
        share = values[..., 0] / values[..., -1]
        lowest = min(lowest, float(share.min()))
        logs.append(-share.clamp(min=ROUNDING).log() / 2)
        saturations.append(jac.attention().amax(-1).mean())
        q, k, v = (jac.norms()[role].square() for role in "qkv")
        shares.append(((q + k) / (q + k + v)).sqrt().mean())
    by_digit = torch.cat(logs, -1).mean(-1).exp().tolist()
    saturation, share_qk = (float(torch.stack(column).mean()) for column in (saturations, shares))
    return Look(tuple(by_digit), saturation, share_qk, lowest < ROUNDING)


def train(model: VisionTransformer, *, seed: int, steps: int = 80, batch: int = 32, lr: float = 2e-3) -> float:
    """Adam without weight decay, 20 steps of warm-up; the mean training loss of the last 20 steps.

    The batches depend on `seed` alone.
    """
    data, generator = load_digits(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    order = torch.randperm(len(data.train_y), generator=generator).repeat(2)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 20)
        picked = order[step * batch : (step + 1) * batch]
        loss = F.cross_entropy(model(data.train_x[picked]), data.train_y[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses[-20:]) / 20


def effective(model: VisionTransformer) -> Tensor:
    """All W_Q, W_K and W_V as attention uses them, corrections included, in one vector."""
    attentions = [model.block(i).attention for i in range(len(model.blocks))]
    layers = (layer for a in attentions for layer in (a.query, a.key, a.value))
    return torch.cat([layer.weight.detach().flatten() for layer in layers])


def step_through(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> Tensor:
    """`effective` of a float64 model before and after each of `steps` steps on batches of 16, (steps + 1, entries)."""
    data = load_digits()
    path = [effective(model)]  # type: ignore[arg-type]
    for step in range(steps):
        rows = slice(16 * step, 16 * (step + 1))
        loss = F.cross_entropy(model(data.train_x[rows].double()), data.train_y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        path.append(effective(model))  # type: ignore[arg-type]
    return torch.stack(path)


@dataclass(frozen=True)
class Run:
    """One short training: a look before it, the mean loss of its last 20 steps, and the model after it."""

    start: Look
    loss: float
    model: VisionTransformer


def run(by_role: Mapping[str, Correction] | None, *, init: str, seed: int) -> Run:
    """Build, look at the held-out digit of the same number as the seed, and train."""
    model = build(by_role, init=init, seed=seed)
    start = look(model, digits(seed))
    return Run(start, train(model, seed=seed), model)


def paired(a: Sequence[Run], b: Sequence[Run]) -> tuple[float, float]:
    """Mean of loss(a) − loss(b) over five paired seeds, and half the width of its 95 % interval (Student's t)."""
    return interval([x.loss - y.loss for x, y in zip(a, b, strict=True)])
