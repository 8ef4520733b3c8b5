"""Lesson 10, language and long sequences: its views, predictions and quiz, as data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spectral_core import plots
from spectral_core.lessons.lesson_10_models import LAMS, inverse, maps, relative_error
from spectral_core.lessons.registry import Choice, Option, Question, Slider, View
from spectral_core.plots.landmarks import landmark_inverse
from spectral_core.spectrum import condition_number, singular_values
from spectral_core.svg import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ENTRIES", "errors_of", "reach"]

INITS = ("normal", "xavier", "conditioned")


def reach(steps: int) -> float:
    """The κ at which the smallest direction is inverted by half after `steps`, where σ_max² is ‖A‖₁‖A‖_∞."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = t = (low + high) / 2
        for _ in range(steps):
            t = t * (13 - t * (15 - t * (7 - t))) / 4
        low, high = (middle, high) if t < 0.5 else (low, middle)
    return high**-0.5


def errors_of(lam: float, landmarks: int, steps: int, init: str = "normal") -> tuple[Tensor, Tensor, Tensor]:
    """κ(A), the error of its inverse and that of the attention map, (expressions, heads) each."""
    m = maps(lam, landmarks, init)
    z = inverse(m.middle, steps)
    eye = torch.eye(landmarks, dtype=z.dtype).expand_as(z)
    return (
        condition_number(m.middle), relative_error(m.middle @ z, eye), relative_error(m.left @ z @ m.right, m.exact),
    )  # fmt: skip


def draw_open(landmarks: str, steps: int, init: str) -> Figure:
    """κ of the landmark matrix and the error of its inverse against λ, medians."""
    by_lam = [errors_of(lam, int(landmarks), int(steps), init) for lam in LAMS]
    kappas, inverses = ([max(float(e[i].median()), 1e-12) for e in by_lam] for i in range(2))
    panels = {"κ of the matrix": kappas, "error of the inverse": inverses}
    title = f"A head that inverts a {landmarks} × {landmarks} matrix in {steps} steps, λI on W_Q and W_K"
    guides = {"κ of the matrix": {f"{steps} steps reach {reach(int(steps)):.3g}": reach(int(steps))}}
    return plots.sweep(LAMS, panels, x_label="λ", title=title, log=list(panels), guides=guides)


def draw_inverse(lam: float, landmarks: str, steps: int) -> Figure:
    """The landmark matrix of one head, which of its directions get inverted, and errors by step."""
    m = maps(lam, int(landmarks))
    a, left, right, exact = (t[0, 0] for t in (m.middle, m.left, m.right, m.exact))
    u = torch.linalg.svd(a).U
    share = (u.mT @ a @ inverse(a, int(steps)) @ u).diagonal()
    sigma = singular_values(a)
    eye = torch.eye(len(a), dtype=a.dtype)
    errors: dict[str, list[float]] = {"inverse": [], "map": []}
    for step in range(16):
        z = inverse(a, step)
        errors["inverse"].append(float(relative_error(a @ z, eye)))
        errors["map"].append(float(relative_error(left @ z @ right, exact)))
    values = (sigma[0] / sigma.clamp(min=1e-16 * float(sigma[0]))).tolist()
    title = f"λ = {lam:g}, {landmarks} landmarks: κ(A) = {format_number(float(condition_number(a)))}"
    return landmark_inverse(
        a.tolist(), values, share.tolist(), errors, steps=int(steps), reach=reach(int(steps)), title=title
    )


LANDMARKS = Choice("landmarks", "landmarks m", ("8", "16", "32"), "16", "64 tokens in m segments; A is m × m")
STEPS = Slider("steps", "steps", 1, 15, 1, 6, "of the iteration for the inverse; the library does 6")
INIT = Choice("init", "initialisation", INITS, "normal", "how W_Q and W_K were drawn, before λI is added")

VIEWS = (
    View("10.open", draw_open, (LANDMARKS, STEPS, INIT)),
    View("10.inverse", draw_inverse, (
        Slider("lam", "λ on W_Q and W_K", 0, 10, 0.25, 1, "0 leaves both as they are"), LANDMARKS, STEPS,
    )),
)  # fmt: skip

QUESTIONS = (
    Question(
        "10.below",
        "The entropy of single characters is 2.88 nats. After 150 steps a masked-language model is at 2.72 on text it "
        "has not seen. Does it use the neighbours of a hidden character?",
        {
            "a": Option("yes: without context nothing can beat the entropy", "True at places that show [MASK]. But a "
                        "fifth of the places that count show a character, and half of those show the right one."),
            "b": Option("it need not: 2.72 can be reached with attention switched off", "The floor without context "
                        "is about 2.69, because some of the characters asked for are shown. Only a control tells."),
            "c": Option("no: a model that uses context would be near 0", "English cannot be guessed that well from "
                        "seven neighbours, by anyone."),
        },
        "b",
    ),
    Question(
        "10.landmark",
        "λ on W_Q and W_K takes κ of the landmark matrix from tens of thousands to below ten. What becomes of "
        "the error with which Nyström's product stands for the exact attention map?",
        {
            "a": Option("it falls too: the inverse is right at last", "The inverse is. But the map it stands for has "
                        "become the n × n identity, and three factors of rank m cannot be that."),
            "b": Option("it stays: κ does not enter the product", "It does, through the six steps; another "
                        "quantity is moved far more by λ: the rank that the map needs."),
            "c": Option("it rises from about 2 % to about 100 %", "A nearly uniform map has rank one, which is "
                        "easy. A saturated one has rank n, and m landmarks cannot follow."),
        },
        "c",
    ),
    Question(
        "10.quiz-floor",
        "Which number tells you that a masked-language model has begun to use context?",
        {
            "a": Option("its loss is below that of the same model with attention off", "This control sees all that can "
                        "be had without neighbours, leaks included."),
            "b": Option("its loss is below the entropy of single characters", "10 % of the places show their own "
                        "character: that alone goes below."),
            "c": Option("its κ(J) fell", "It says how evenly the weights act, not what they have learned."),
        },
        "a",
    ),
    Question(
        "10.quiz-steps",
        "Each early step multiplies what is inverted of a small direction by 13/4. To reach ten times the κ you need",
        {
            "a": Option("ten times the steps", "Growth is geometric, not linear."),
            "b": Option("about four steps more", "The share goes with 1/κ²: a factor 100 = (13/4)^3.9."),
            "c": Option("one step more", "One step is a factor 13/4 in the share, √(13/4) = 1.8 in κ."),
        },
        "b",
    ),
    Question(
        "10.quiz-control",
        "On ListOps λ = 1 is ahead of plain weights after 50 steps. What must be asked before λI gets the credit?",
        {
            "a": Option("whether κ(A) fell", "It fell at λ = 10 too, and that arm is behind."),
            "b": Option("nothing, it has three seeds", "Seeds say how sure a difference is, not what it comes from."),
            "c": Option("how far Xavier weights come, larger and without λ", "They come as near on one seed of "
                        "three. Whether size or I does it, three seeds do not say."),
        },
        "c",
    ),
)  # fmt: skip

ENTRIES = (*VIEWS, *QUESTIONS)
