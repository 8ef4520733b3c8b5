"""Lesson 12, the capstone: its views, predictions and quiz, as data."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from spectral_core import plots
from spectral_core.lessons.lesson_12_exercises import diagnose
from spectral_core.lessons.lesson_12_models import HeadRecord, Recaller, infect, sick_head, train
from spectral_core.lessons.registry import Option, Question, Slider, View
from spectral_core.svg import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ENTRIES", "REPORTED", "open_losses"]

#: what the authors report, and what this course measured beside it: (subject, theirs, where ours is)
REPORTED = (
    ("ViT-B on ImageNet-1k, top-1 in %", "80.7 → 81.7"),
    ("Crammed BERT, GLUE average", "78.6 → 79.4"),
    ("Nyströmformer, LRA Text in %", "63.8 → 64.8"),
    ("cost of λI, time of a training", "29:29 → 29:33"),
    ("cost of an SVD at every step", "29:29 → 41:38"),
)


@lru_cache(maxsize=16)
def open_losses(seed: int) -> dict[str, list[float]]:
    """Training loss of two copies of one model, mean of the last ten steps: one as it was made, one infected."""
    runs = {"A": train(Recaller(seed=seed), seed=seed), "B": train(infect(Recaller(seed=seed)), seed=seed)}
    return {name: [sum(loss[i - 10 : i]) / 10 for i in range(10, len(loss) + 1)] for name, loss in runs.items()}


def draw_open(seed: int) -> Figure:
    """The two losses by step."""
    title = f"Two copies of one small transformer, same data, same seed {seed:g}"
    return plots.curves(open_losses(int(seed)), title=title, y_label="training loss")


@lru_cache(maxsize=64)
def _head(
    size: float, kappa: float, alike: float
) -> tuple[list[list[float]], list[float], dict[str, float], HeadRecord]:
    """Map, singular values of J, block norms and record of a head made to order."""
    jac, record = sick_head(size, kappa, alike)
    norms = {role: float(norm) for role, norm in jac.norms().items()}
    return jac.attention().tolist(), jac.singular_values().tolist(), norms, record


def draw_head(size: float, decades: float, alike: float) -> Figure:
    """A head made to order beside a healthy one: map, spectrum, block norms, and the word that fits."""
    _, healthy_values, healthy_norms, _ = _head(1.0, 10**0.5, 0.0)
    attention, values, norms, record = _head(2.0**size, 10.0**decades, alike)
    word = diagnose(*record.symptoms)
    title = (
        f"“{word}”:  κ(W) {format_number(record.kappa_w)},  κ(J) {format_number(record.kappa_j)},  κ(X) "
        f"{format_number(record.kappa_x)},  mean of max p {record.saturation:.2f},  share of Q and K {record.share:.2g}"
    )
    return plots.attention_head(attention, healthy_values, values, healthy_norms, norms, title=title)


VIEWS = (
    View("12.open", draw_open, (Slider("seed", "seed", 0, 4, 1, 0, "of the start and of the data"),)),
    View("12.head", draw_head, (
        Slider("size", "size of W_Q and W_K, as a power of 2", -7, 4, 0.5, 0, "0: as large as Xavier weights"),
        Slider("decades", "κ of W_Q and W_K, as a power of 10", 0.5, 6, 0.5, 0.5, "at the same size"),
        Slider("alike", "correlation of the tokens", 0, 0.99, 0.01, 0, "0: independent, near 1: all alike"),
    )),
)  # fmt: skip

QUESTIONS = (
    Question(
        "12.layout",
        "A fused weight holds v, q, k in this order, and you tell an audit q, k, v. What notices?",
        {
            "a": Option("attention_jacobians: it refuses", "It computes attention from what you stated and compares "
                        "with what the layer gave out. They do not agree, so it stops."),
            "b": Option("κ(W): the numbers become absurd", "They are the κ of real matrices, only under wrong names. "
                        "No κ(W) can tell."),
            "c": Option("nothing can: a layout is a matter of belief", "For weights alone that is so. Once the model "
                        "runs, its output shows how it was cut."),
        },
        "a",
    ),
    Question(
        "12.renamed",
        "calibrate finds a treatment for model B: some I on Q and K. As a control, random rotations of the same size. "
        "In task 1 the question names its key as before, in task 2 by another name. Where does I beat the rotations?",
        {
            "a": Option("in both tasks: its κ(J) is lower in both", "Its κ(J) is lower in both. But in task 2 that "
                        "buys no lower loss."),
            "b": Option("in task 1 alone", "There I is the answer itself: look for the token that is like you. With "
                        "other names that is gone, and five seeds show no lead any more."),
            "c": Option("in neither: size is all that counts", "In task 1 I is far better than rotations of the same "
                        "size."),
        },
        "b",
    ),
    Question(
        "12.quiz-size",
        "W_Q and W_K of a layer are 50 times too small. You lift their small singular values until κ(W) ≤ 4. What "
        "happens to κ(J)?",
        {
            "a": Option("it falls to that of a healthy layer", "κ does not know the size of W. The Q and K blocks of J "
                        "stay small, and so does its smallest singular value."),
            "b": Option("it becomes infinite", "Nothing loses rank here."),
            "c": Option("it stays in the millions", "The illness is size, and a ceiling on κ(W) hardly changes that. "
                        "Diagnose first."),
        },
        "c",
    ),
    Question(
        "12.quiz-order",
        "A layer has a share of Q and K of 0.005, a mean of max p of 0.1, and κ(X) = 65. What is wrong?",
        {
            "a": Option("the tokens are nearly alike", "κ(X) says so, and it explains the share. Look at what the "
                        "layer reads before you treat its weights."),
            "b": Option("W_Q and W_K are too small", "They may be just right: if all tokens are alike, values do not "
                        "vary, and the slopes N_i, a covariance, are small whatever W is."),
            "c": Option("attention is saturated", "The mean of max p is about 1/n here."),
        },
        "a",
    ),
    Question(
        "12.quiz-mind",
        "Five paired seeds: the loss less the baseline's is −0.3 ± 0.4 (95 % interval). What do you write?",
        {
            "a": Option("the method lowers the loss by 0.3", "The interval goes up to +0.1: no effect, or harm, would "
                        "look like this too."),
            "b": Option("undecided; more seeds would tell", "The interval contains 0 and large gains too. Say so, with "
                        "the numbers."),
            "c": Option("the method has no effect", "The interval goes down to −0.7. Not seen is not absent."),
        },
        "b",
    ),
)  # fmt: skip

ENTRIES = (*VIEWS, *QUESTIONS)
