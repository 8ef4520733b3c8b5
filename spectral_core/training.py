"""One training loop, a generator of records: notebooks, plots and the app all read it.

Between two yields the caller may do what it likes with the model's corrections, for example
`correction.update(lam=1.0)`: the next step uses the new settings.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spectral_core._checks import check_number
from spectral_core.conditioning import advance
from spectral_core.data import ImageData
from spectral_core.jacobian import AttentionJacobian
from spectral_core.models import VisionTransformer
from spectral_core.spectrum import condition_number

__all__ = ["HeadProbe", "Record", "fit", "probe_head"]


@dataclass(frozen=True)
class HeadProbe:
    """One head of a model at one image.

    Attributes:
        kappa_w: κ of the whole corrected D × D matrix of the layer, by role "q", "k", "v".
        kappa_j: exact κ of the head's Jacobian with respect to W_Q, W_K, W_V; inf when rank deficient.
        saturation: mean over tokens of max_j p_ij.
        block_norms: Frobenius norms of the Q, K and V blocks of J.
        attention: P, (n, n).
    """

    kappa_w: dict[str, float]
    kappa_j: float
    saturation: float
    block_norms: dict[str, float]
    attention: Tensor


@dataclass(frozen=True)
class Record:
    """The state of a run after `step` optimiser steps.

    Attributes:
        step: steps done; the first record is step 0, before any update.
        loss: mean training cross-entropy (nats) over the steps since the last record; at step 0 that of the
            first `batch_size` training images.
        accuracy: share of the held-out images classified rightly.
        kappa_w, kappa_j, saturation, block_norms: see `HeadProbe`; head 0 of block 0 at the first held-out image.
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


@torch.no_grad()
def probe_head(model: VisionTransformer, image: Tensor, *, layer: int = 0, head: int = 0) -> HeadProbe:
    """κ(W), the exact κ(J), saturation and attention map of one head at one image (channels, H, W)."""
    attention = model.block(layer).attention
    x = model.attention_input(image.unsqueeze(0), layer)[0]
    weights = {"q": attention.query.weight, "k": attention.key.weight, "v": attention.value.weight}
    jac = AttentionJacobian(x, *(w[head] for w in attention.head_weights()))
    return HeadProbe(
        kappa_w={role: float(condition_number(w)) for role, w in weights.items()},
        kappa_j=float(jac.condition_number()),
        saturation=float(jac.attention().amax(-1).mean()),
        block_norms={role: float(norm) for role, norm in jac.norms().items()},
        attention=jac.attention(),
    )


def fit(
    model: VisionTransformer,
    data: ImageData,
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
        data: as from `load_digits`.
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
    for name, value in {"steps": steps, "batch_size": batch_size, "every": every}.items():
        if check_number(value, name, minimum=1) != int(value):
            raise ValueError(f"{name}: expected a whole number, got {value!r}")
    check_number(batch_size, "batch_size", maximum=len(data.train_y))
    check_number(lr, "lr", minimum=0.0, exclusive=True)
    check_number(weight_decay, "weight_decay", minimum=0.0)
    check_number(warmup, "warmup", minimum=0)
    return _fit(model, data, int(steps), int(batch_size), lr, weight_decay, warmup, int(every), seed)


def _fit(
    model: VisionTransformer,
    data: ImageData,
    steps: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    warmup: int,
    every: int,
    seed: int,
) -> Iterator[Record]:
    started = time.perf_counter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    batches = _batches(len(data.train_y), batch_size, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        losses = [F.cross_entropy(model(data.train_x[:batch_size]), data.train_y[:batch_size])]
    for step in range(steps + 1):
        if step % every == 0 or step == steps:
            mean_loss = float(torch.stack(losses).mean())
            losses.clear()
            if not math.isfinite(mean_loss):
                raise _diverged(f"the loss became {mean_loss}", step, lr)
            with torch.no_grad():
                logits = model(data.test_x)
            if not torch.isfinite(logits).all():
                raise _diverged("the outputs stopped being finite", step, lr)
            yield _record(model, data, logits, step, mean_loss, started)
        if step == steps:
            return
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / max(1, warmup))
        advance(model, step)  # scheduled corrections follow
        picked = next(batches)
        loss = F.cross_entropy(model(data.train_x[picked]), data.train_y[picked])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        # here rather than at the next record: corrections refuse such weights with an error of their own
        if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
            raise _diverged("the weights stopped being finite", step + 1, lr)


def _diverged(what: str, step: int, lr: float) -> FloatingPointError:
    return FloatingPointError(f"{what} by step {step}: lower lr (now {lr:g}) or weaken the correction")


def _record(
    model: VisionTransformer, data: ImageData, logits: Tensor, step: int, loss: float, started: float
) -> Record:
    probe = probe_head(model, data.test_x[0])
    accuracy = (logits.argmax(-1) == data.test_y).float().mean()
    return Record(
        step=step, loss=loss, accuracy=float(accuracy), kappa_w=probe.kappa_w, kappa_j=probe.kappa_j,
        saturation=probe.saturation, block_norms=probe.block_norms, seconds=time.perf_counter() - started,
    )


def _batches(size: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of indices; every pass is a new permutation, its incomplete last batch dropped."""
    while True:
        yield from torch.randperm(size, generator=generator)[: size // batch_size * batch_size].split(batch_size)
