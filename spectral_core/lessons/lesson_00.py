"""Lesson 0, start here: the runs behind the picture of the whole story, its views, prediction and quiz, as data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from spectral_core import plots
from spectral_core.attention import SpectralConditionedAttention
from spectral_core.conditioning import condition
from spectral_core.corrections import IdentityCorrection
from spectral_core.data import load_digits
from spectral_core.lessons.lesson_02 import identity_head
from spectral_core.lessons.registry import Option, Question, Slider, View
from spectral_core.models import VisionTransformer
from spectral_core.spectrum import condition_number
from spectral_core.training import probe_head

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ENTRIES", "STORY", "Run", "train"]

STORY = (0.0, 0.5, 1.0, 2.0, 4.0, 10.0)
DIALS = tuple(0.25 * i for i in range(41))
STEPS, WARMUP, BATCH, RATE = 80, 10, 64, 3e-3


@dataclass(frozen=True)
class Run:
    """One training run: its first head before the first step, and the loss at the end.

    Attributes:
        kappa_w: κ of the whole corrected W_Q of the first layer.
        kappa_j, saturation: of the first head, at a held-out digit.
        loss: mean training cross-entropy (nats) over the last 20 of 80 steps.
    """

    kappa_w: float
    kappa_j: float
    saturation: float
    loss: float


@lru_cache(maxsize=64)
def train(seed: int, lam: float = 0.0, init: str = "trunc-normal", attention_off: bool = False) -> Run:
    """Train the demo's ViT on digits for 80 steps of AdamW.

    Args:
        seed: of the initialisation and of the batches, and which held-out digit is looked at.
        lam: λI added to W_Q, W_K and W_V of every layer, fixed; the initialised W trains.
        init: as in `VisionTransformer`.
        attention_off: every token attends to itself alone, P = I, whatever W_Q and W_K are.
    """
    model, data = VisionTransformer(init=init, seed=seed), load_digits()
    if lam:
        condition(model, IdentityCorrection(lam))
    head = probe_head(model, data.test_x[seed])
    if attention_off:
        for i in range(2):
            layer = model.block(i).attention
            layer.forward = partial(_values_alone, layer)  # type: ignore[method-assign, assignment]
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, fused=True)
    generator, losses = torch.Generator().manual_seed(seed), []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / WARMUP)
        picked = torch.randint(len(data.train_x), (BATCH,), generator=generator)
        loss = F.cross_entropy(model(data.train_x[picked]), data.train_y[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Run(head.kappa_w["q"], head.kappa_j, head.saturation, sum(losses[-20:]) / 20)


def _values_alone(layer: SpectralConditionedAttention, x: Tensor) -> Tensor:
    return layer.out(layer.value(x))


def draw_story(seeds: int) -> Figure:
    """The four dials against λ: κ(W_Q), κ(J), saturation before training, and the loss after it."""
    runs = [[train(seed, lam) for seed in range(int(seeds))] for lam in STORY]
    names = {"1. κ(W_Q)": "kappa_w", "2. κ(J) of a head": "kappa_j", "3. saturation": "saturation",
             "4. training loss after 80 steps": "loss"}  # fmt: skip
    panels = {name: [[getattr(run, field) for run in row] for row in runs] for name, field in names.items()}
    plain = [train(seed, init="xavier").loss for seed in range(int(seeds))]
    return plots.story(
        STORY, panels, log=["1. κ(W_Q)", "2. κ(J) of a head"],
        guides={"3. saturation": {"attention is off": 1.0},
                "4. training loss after 80 steps": {"Xavier start, no correction": sorted(plain)[len(plain) // 2]}},
        title=f"The whole story: λI on a small vision transformer, {seeds:g} seeds",
    )  # fmt: skip


def draw_dials(lam: float, image: int) -> Figure:
    """κ(W_Q), κ(J) and saturation of one head against λ, the present λ marked."""
    heads = [identity_head(value, value, value, image=int(image)) for value in DIALS]
    panels = {
        "κ(W_Q) of the head": [float(condition_number(head.w_q)) for head in heads],
        "κ(J)": [head.kappa for head in heads],
        "saturation": [head.saturation for head in heads],
    }
    return plots.dials(DIALS, panels, min(range(41), key=lambda i: abs(DIALS[i] - lam)), log=["κ(J)"])


VIEWS = (
    View("00.story", draw_story, (Slider("seeds", "seeds", 1, 3, 1, 3, "how many runs at every λ"),)),
    View("00.dials", draw_dials, (
        Slider("lam", "λ", 0, 10, 0.25, 1, "added to W_Q, W_K and W_V"),
        Slider("image", "digit", 0, 9, 1, 0, "which held-out image, with an initialisation of its own"),
    )),
)  # fmt: skip

QUESTIONS = (
    Question(
        "00.best",
        "We add λI to three weight matrices of a small transformer and train it for 80 steps. Which λ ends at the "
        "lowest training loss?",
        {
            "a": Option("0: leave the weights alone", "Zero is a λ too, and here not the best one: the weights start "
                        "small, and a little help pays."),
            "b": Option("about 1", "It helps until the attention map is taken over by λ; then it hurts."),
            "c": Option("10, the paper's default", "It gives the smallest κ(W) of all. It also makes every token look "
                        "at itself alone, so that two of the three matrices stop learning."),
        },
        "b",
    ),
    Question(
        "00.quiz-lie",
        "Which of the four dials improved all the way to λ = 10 while training got worse?",
        {
            "a": Option("κ(W_Q)", "It falls at every step of λ, and from λ = 1 on the loss rises."),
            "b": Option("saturation", "It rises, and that is the bad news."),
            "c": Option("κ(J) of a head", "Nearly: but its median rises from λ = 2 to 4, and at λ = 10 it is "
                        "infinite for one of the three seeds."),
        },
        "a",
    ),
    Question(
        "00.quiz-control",
        "λ = 1 ends at a lower loss than no correction. What do you have to see before you thank λI for it?",
        {
            "a": Option("a run with another start and no correction", "Xavier weights need no λI and come close: most "
                        "of the gain is a gain over weights that start too small."),
            "b": Option("a smaller κ(W)", "It is smaller, and at λ = 10 smaller still."),
            "c": Option("the same run once more", "It repeats to the last digit: same seed, same run. What is missing "
                        "is a comparison with something else."),
        },
        "a",
    ),
    Question(
        "00.quiz-seeds",
        "Why does every picture of this course show at least three seeds?",
        {
            "a": Option("to find the best seed", "The best of three is luck by construction: that is what must not be "
                        "shown."),
            "b": Option("because one run may be luck: the spread says how large a difference has to be",
                        "Two runs that differ in the seed alone can differ more than two methods."),
            "c": Option("because the average of three is the truth", "It is less wrong; the spread belongs to it."),
        },
        "b",
    ),
)  # fmt: skip

ENTRIES = (*VIEWS, *QUESTIONS)
