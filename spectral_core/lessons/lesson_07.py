"""Lesson 7, choosing a correction: its views, predictions and quiz, as data."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from spectral_core.corrections import Correction
from spectral_core.lessons.heads import DigitHead, digit_head
from spectral_core.lessons.lesson_07_models import calibrated
from spectral_core.lessons.registry import Choice, Option, Question, Slider, View
from spectral_core.models import VisionTransformer
from spectral_core.plots.choice import candidate_map, spectra_pair
from spectral_core.spectrum import condition_number, singular_values
from spectral_core.spectrum_target import SpectrumTarget
from spectral_core.svg import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ENTRIES", "target_head"]

NAMED = ("plain", "λ = 1 on Q, K and V", "λ = 3 on Q, K and V", "λ = 10 on Q, K and V")


def draw_open(seed: int) -> Figure:
    """κ(J) and saturation of every candidate of `calibrate` for one model and one digit."""
    found = calibrated(int(seed))
    points = [(c.name, c.mean_saturation, c.kappa, bool(c.refused)) for c in found.table if not math.isnan(c.kappa)]
    title = f"What each correction does to a small ViT at digit {seed:g}"
    return candidate_map(points, limit=found.max_saturation, named=(*NAMED, found.table[0].name), title=title)


@lru_cache(maxsize=128)
def target_head(low: float, high: float, kappa: float, preserve: str, init: str) -> DigitHead:
    """The head of `digit_head` with one `SpectrumTarget` on W_Q, W_K and W_V."""
    return digit_head(dict.fromkeys("qkv", _target(low, high, kappa, preserve)), init=init)


def _target(low: float, high: float, kappa: float, preserve: str) -> Correction:
    kept = None if preserve == "none" else preserve
    return SpectrumTarget(min(low, high), high, kappa, gradient="straight-through", preserve=kept)


def draw_target(low: float, high: float, kappa: float, preserve: str, init: str) -> Figure:
    """Singular values of W_Q (the layer's) and of J (its first head) before and after a target on Q, K and V."""
    before, after = digit_head(init=init), target_head(low, high, kappa, preserve, init)
    w = VisionTransformer(init=init).block(0).attention.query.weight.detach().double()
    moved = _target(low, high, kappa, preserve)(w)
    numbers = {
        "κ(W_Q)": (float(condition_number(w)), float(condition_number(moved))),
        "‖W_Q‖_F": (float(w.norm()), float(moved.norm())),
        "κ(J)": (before.kappa, after.kappa),
        "mean of max p": (before.saturation, after.saturation),
    }
    title = ",   ".join(f"{name} {format_number(old)} → {format_number(new)}" for name, (old, new) in numbers.items())
    spectra = {
        "W_Q, the layer's 32 × 32 matrix": (singular_values(w).tolist(), singular_values(moved).tolist()),
        "J of the layer's first head": (
            before.jacobian.singular_values().tolist(), after.jacobian.singular_values().tolist()
        ),
    }
    return spectra_pair(spectra, title=title)


VIEWS = (
    View("07.open", draw_open, (
        Slider("seed", "digit and seed", 0, 4, 1, 0, "which held-out digit, and which initialisation"),
    )),
    View("07.target", draw_target, (
        Slider("low", "σ_min", 0, 2, 0.1, 0, "floor of the singular values"),
        Slider("high", "σ_max", 0.1, 4, 0.1, 4, "ceiling; the floor is never above it"),
        Slider("kappa", "κ", 1, 100, 1, 4, "σ_max / σ_min is at most this"),
        Choice("preserve", "preserve", ("none", "spectral", "frobenius"), "none", "norm of W that is kept"),
        Choice("init", "initialisation", ("xavier", "trunc-normal"), "xavier", "how W_Q, W_K and W_V were drawn"),
    )),
)  # fmt: skip

QUESTIONS = (
    Question(
        "07.lowest",
        "Take the lowest κ(J) of the whole table, limits ignored. On four of five seeds that is λ = 3 on Q, K and V. "
        "Train for 80 steps. Where is its loss on those four seeds?",
        {
            "a": Option("below that of the best allowed candidate, whose κ(J) is several times higher",
                        "That is what κ(J) alone promises. Attention is nearly off: a mean of max p above 0.9."),
            "b": Option("above that of the plain model, on all four",
                        "κ(J) is the lowest there is, and the loss is worse than with no correction at all."),
            "c": Option("about that of the plain model", "It differs on every one of these seeds, to the wrong side."),
        },
        "b",
    ),
    Question(
        "07.same",
        "Two copies of a model. One is conditioned: its layers use W + I at every step. In the other I is added to the "
        "weights once, before training. Same batches, Adam, no weight decay, 50 steps. How far apart are the weights "
        "that the layers use?",
        {
            "a": Option("far: one adds I at every step, the other only once",
                        "W is another matrix in the two, W + C is the same: the gradient passes straight through C."),
            "b": Option("a few percent: Adam's moments differ", "Adam's moments are made of gradients, and those are "
                        "the same."),
            "c": Option("about as far as rounding", "d/dW f(W + C) = f'(W + C): the same gradients, so the same steps, "
                        "from the same start."),
        },
        "c",
    ),
    Question(
        "07.quiz-size",
        "On the 0.02 model the polar correction on Q, K and V takes κ(J) down by a factor of 10 to 40. With ‖W‖_F kept "
        "it takes it down by a factor below 2.5. What did most of the work?",
        {
            "a": Option("the size of W", "Without `preserve` W + C has a far larger norm than W. Keep the norm, "
                        "and most of the gain is gone."),
            "b": Option("the spectrum: κ(W) is at most 2 in both", "That is what both have in common, so it cannot be "
                        "the difference."),
            "c": Option("the rank of J", "J has full rank in all of them."),
        },
        "a",
    ),
    Question(
        "07.quiz-kind",
        "Which of these is not the same as another start of plain attention?",
        {
            "a": Option("λ = 10 on Q alone", "A constant C: the same as starting at W₀ + 10 I on Q."),
            "b": Option("a clamp of the singular values, made anew at every step", "C depends on W, so W + C does not "
                        "move as W does: it parts at the first step."),
            "c": Option("a random rotation, drawn once and kept", "Drawn once is a constant, whatever it is."),
        },
        "b",
    ),
    Question(
        "07.quiz-curse",
        "With Xavier weights `calibrate` promises a κ(J) more than 3 times lower on the digit that it saw. On six "
        "other digits the same correction gains less than a factor of 2. Why?",
        {
            "a": Option("κ(J) is not exact", "It is, on each digit."),
            "b": Option("held-out digits are harder", "None of the digits was used in training: none took place."),
            "c": Option("the lowest of many noisy numbers is partly luck", "The winner's curse: the candidates differ "
                        "by little, the digits by more, and the minimum picks what suits this digit."),
        },
        "c",
    ),
)  # fmt: skip

ENTRIES = (*VIEWS, *QUESTIONS)
