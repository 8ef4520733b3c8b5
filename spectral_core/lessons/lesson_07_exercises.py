"""Lesson 7, choosing a correction: the checks of its exercises, as data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_core.lessons.lesson_01 import with_spectrum
from spectral_core.lessons.registry import Case, Exercise
from spectral_core.spectrum_target import SpectrumTarget

__all__ = ["ENTRIES"]


def choose(kappas: Sequence[float], saturations: Sequence[float], limit: float) -> int:
    """Position of the lowest κ among saturations ≤ limit, the less saturated of equals; −1 if none is allowed."""
    allowed = [(k, s, i) for i, (k, s) in enumerate(zip(kappas, saturations, strict=True)) if s <= limit]
    return min(allowed)[2] if allowed else -1


def _among(kappas: Sequence[float], saturations: Sequence[float], limit: float) -> int:
    """As `choose`, with the position counted among the allowed ones only."""
    allowed = [k for k, s in zip(kappas, saturations, strict=True) if s <= limit]
    return allowed.index(min(allowed)) if allowed else -1


def _first_of_equals(kappas: Sequence[float], saturations: Sequence[float], limit: float) -> int:
    allowed = [i for i, s in enumerate(saturations) if s <= limit]
    return min(allowed, key=lambda i: kappas[i]) if allowed else -1


TABLE = ([900.0, 40.0, 2000.0, 300.0], [0.06, 0.96, 0.1, 0.2])

CHOOSE = Exercise(
    "07.choose", "the lowest κ within a limit",
    (
        Case("four candidates, limit 0.5: the one at position 3, not the lowest of all", "reference",
             lambda: (*TABLE, 0.5), lambda *_: 3, "look only at candidates with saturation ≤ limit"),
        Case("a looser limit never gives a higher κ: 900, 300, 40 at limits 0.1, 0.5, 1", "property",
             lambda: (*TABLE, 1.0), lambda *_: (900.0, 300.0, 40.0), "the position is one of the whole list",
             observe=lambda fn, k, s, _: tuple(k[int(fn(k, s, limit))] for limit in (0.1, 0.5, 1.0))),
        Case("a saturation equal to the limit is allowed", "edge", lambda: ([5.0, 9.0], [0.5, 0.1], 0.5),
             lambda *_: 0, "use <=, not <"),
        Case("two with the same κ: the less saturated", "edge",
             lambda: ([70.0, 20.0, 30.0, 30.0], [0.1, 0.9, 0.4, 0.2], 0.5), lambda *_: 3, "break ties by saturation"),
        Case("none is allowed: −1, leave the model alone", "edge", lambda: ([9.0, 5.0, 7.0], [0.9, 0.95, 0.8], 0.5),
             lambda *_: -1, "return −1 when no candidate is within the limit"),
    ),
    (
        ("the limit is ignored: the lowest κ of all may be that of a model that is switched off",
         lambda k, s, limit: choose(k, s, 1.0)),
        ("the position is counted among the allowed ones; it is wanted in the whole list", _among),
        ("a saturation equal to the limit is within it: <=, not <",
         lambda k, s, limit: choose(k, s, limit - 1e-9)),
        ("of two with the same κ you take the first: take the less saturated", _first_of_equals),
        ("you take the lowest saturation: that is the limit, κ is the aim",
         lambda k, s, limit: choose(s, k, float("inf"))),
        ("with none allowed the answer is −1, not the first", lambda k, s, limit: max(choose(k, s, limit), 0)),
    ),
    choose,
)  # fmt: skip


def clamp_spectrum(w: Tensor, low: float, high: float) -> Tensor:
    """W with its singular values clamped to [low, high]."""
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    return u @ torch.diag(s.clamp(low, high)) @ vh


def _values(fn, w: Tensor, low: float, high: float) -> Tensor:
    return torch.linalg.svdvals(torch.as_tensor(fn(w, low, high)).double())


def _transposed(w: Tensor, low: float, high: float) -> Tensor:
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    return u @ torch.diag(s.clamp(low, high)) @ vh.mT


def _scaled(w: Tensor, low: float, high: float) -> Tensor:
    return w * high / torch.linalg.matrix_norm(w, 2)


CLAMP = Exercise(
    "07.clamp", "clamp a spectrum",
    (
        Case("a 5 × 3 matrix with σ = 3, 1, 0.1, clamped to [0.5, 2]", "reference",
             lambda: (with_spectrum([3.0, 1.0, 0.1], seed=3, m=5), 0.5, 2.0),
             lambda w, low, high: SpectrumTarget(low, high)(w), "SVD, clamp σ, multiply back"),
        Case("the singular values afterwards: 2, 1, 0.5", "property",
             lambda: (with_spectrum([3.0, 1.0, 0.1], seed=4, m=4), 0.5, 2.0),
             lambda *_: torch.tensor([2.0, 1.0, 0.5]), "each σ on its own: floor and ceiling", observe=_values),
        Case("a spectrum inside the limits: nothing changes", "edge",
             lambda: (with_spectrum([1.5, 1.0, 0.7], seed=5, m=6), 0.5, 2.0), lambda w, *_: w,
             "σ between the limits stay as they are"),
        Case("a wide matrix, 3 × 5, works as well", "edge",
             lambda: (with_spectrum([3.0, 1.0, 0.1], seed=6, m=5).mT.contiguous(), 0.5, 2.0),
             lambda w, low, high: SpectrumTarget(low, high)(w), "use full_matrices=False"),
    ),
    (
        ("you clamp the entries of W; it is the singular values that are wanted", torch.clamp),
        ("the ceiling is missing", lambda w, low, high: clamp_spectrum(w, low, float("inf"))),
        ("the floor is missing", lambda w, low, high: clamp_spectrum(w, 0.0, high)),
        ("svd returns Vᵀ already: multiply by vh, not by its transpose", _transposed),
        ("you rescale the whole matrix: that changes the size and leaves κ(W) as it was", _scaled),
    ),
    clamp_spectrum,
)  # fmt: skip


def decayed(w: Tensor, c: Tensor, lr: float, decay: float, steps: int) -> Tensor:
    """W + C after `steps` AdamW steps with zero gradient: W (1 − ηω)^k + C."""
    return w * (1 - lr * decay) ** steps + c


def _adamw(w: Tensor, c: Tensor, lr: float, decay: float, steps: int) -> Tensor:
    """The same from torch's own AdamW."""
    parameter = torch.nn.Parameter(w.clone())
    optimizer = torch.optim.AdamW([parameter], lr=lr, weight_decay=decay)
    for _ in range(steps):
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    return parameter.detach() + c


def _pair(seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.randn(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return draw[0], draw[1]


DECAY = Exercise(
    "07.decay", "where weight decay pulls",
    (
        Case("what torch's AdamW does in 7 steps with zero gradient", "reference", lambda: (*_pair(0), 0.1, 0.5, 7),
             _adamw, "only W decays, by the factor 1 − ηω a step"),
        Case("the distance to C shrinks by (1 − ηω) a step: 0.81 of ‖W‖ after 2 steps at ηω = 0.1", "property",
             lambda: (*_pair(1), 0.2, 0.5, 2), lambda w, *_: 0.81 * w.norm(), "C itself does not decay",
             observe=lambda fn, w, c, *rest: (torch.as_tensor(fn(w, c, *rest)).double() - c).norm()),
        Case("no steps: W + C", "edge", lambda: (*_pair(2), 0.1, 0.5, 0), lambda w, c, *_: w + c,
             "the power 0 is 1"),
        Case("ηω = 1: one step, and C is all that is left", "edge", lambda: (*_pair(3), 1.0, 1.0, 1),
             lambda w, c, *_: c, "W decays towards 0, so W + C towards C"),
    ),
    (
        ("you let C decay too: that is plain attention started at W + C",
         lambda w, c, lr, decay, steps: (w + c) * (1 - lr * decay) ** steps),
        ("C is missing: the layer uses W + C", lambda w, c, lr, decay, steps: w * (1 - lr * decay) ** steps),
        ("decay compounds: (1 − ηω) to the power k, not 1 − ηωk",
         lambda w, c, lr, decay, steps: w * (1 - lr * decay * steps) + c),
        ("the learning rate is missing: AdamW takes ηω a step, not ω",
         lambda w, c, lr, decay, steps: w * (1 - decay) ** steps + c),
        ("you decay once, whatever the number of steps", lambda w, c, lr, decay, steps: w * (1 - lr * decay) + c),
    ),
    decayed,
)  # fmt: skip

ENTRIES = (CHOOSE, CLAMP, DECAY)
