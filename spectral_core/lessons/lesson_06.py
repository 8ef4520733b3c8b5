"""Lesson 6, saturation: its views, predictions and quiz, as data."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from spectral_core import plots
from spectral_core.bounds import saturation, suggest_lambda
from spectral_core.lessons.lesson_06_heads import STD, head_at, tokens, weights
from spectral_core.lessons.lesson_06_training import first_gradient, trained
from spectral_core.lessons.registry import Option, Question, Slider, View
from spectral_core.plots.saturation import families
from spectral_core.svg import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ENTRIES", "LAMS", "SIZES", "curve"]

SIZES = ((16, 16), (16, 64), (64, 16), (64, 64), (256, 64), (256, 256))  # n, d_k
LAMS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)


@lru_cache(maxsize=64)
def curve(n: int, d_k: int, rho: float, std: float) -> tuple[list[float], list[float]]:
    """λ and the mean of max p with λI + W on Q and K; D = 256, one seed."""
    top = 2.5 * suggest_lambda(n, d_k)
    x, (w_q, w_k) = tokens(n, 256, rho=rho), weights(256, d_k, d_k, std=std)
    eye = torch.eye(256, d_k, dtype=torch.float64)
    lams = [top * i / 25 for i in range(26)]
    return lams, [float(saturation(x, lam * eye + w_q, lam * eye + w_k)) for lam in lams]


def draw_open(seed: int) -> Figure:
    """Training loss, a mean over ten steps, of three arms."""
    lines = {}
    for name, arm in {"plain": "plain", "no attention": "P = I", "λ = 10": "λ = 10 on QKV"}.items():
        losses = trained(arm, int(seed)).losses
        lines[name] = [sum(losses[i - 10 : i]) / 10 for i in range(10, len(losses) + 1)]
    title = "The same small transformer on digits, three times"
    return plots.curves(lines, title=title, y_label="training loss")


def draw_collapse(rho: float, std: float) -> Figure:
    """Saturation of six sizes of head against λ, and against λ / λ_sat."""
    plain, scaled = {}, {}
    for n, d_k in SIZES:
        lams, values = curve(n, d_k, rho, std)
        name, unit = f"n = {n}, d_k = {d_k}", suggest_lambda(n, d_k)
        plain[name], scaled[name] = (lams, values), ([lam / unit for lam in lams], values)
    title = f"Six sizes of head, token correlation {rho:g}, entries of W with standard deviation {std:g}"
    panels = {"λ on W_Q and W_K": plain, "λ / λ_sat": scaled}
    return families(panels, y_label="mean of max p", title=title, marks={"λ / λ_sat": 1.0})


def draw_head(lam: float, n: int, d_k: int, rho: float) -> Figure:
    """A head with λI + W on Q, K and V: its map, the spectrum of J and the block norms, beside λ = 0."""
    n, d_k = int(n), int(d_k)
    before, after = (head_at(value, n, d_k, rho=rho) for value in (0.0, lam))
    old, new = (head.singular_values().tolist() for head in (before, after))
    norms = [{role: float(norm) for role, norm in head.norms().items()} for head in (before, after)]
    attention = after.attention()
    kappa = new[0] / new[-1] if new[-1] > 1e-12 * new[0] else float("inf")
    title = (
        f"λ_sat {suggest_lambda(n, d_k):.2f},  κ(J) {format_number(kappa)},  mean of max p "
        f"{attention.amax(-1).mean():.2f},  weight on itself {attention.diagonal().mean():.2f}"
    )
    return plots.attention_head(attention.tolist(), old, new, *norms, title=title)


def draw_gradient(seed: int) -> Figure:
    """What λ on Q and K does to ‖J_Q‖ of an ideal head, to the gradient of W_Q on digits, and to its rows."""
    first = [first_gradient(lam, int(seed)) for lam in LAMS]
    panels = {
        "‖J_Q‖, Gaussian": [float(head_at(lam, 48, 32, dim=256, seed=int(seed)).norms()["q"]) for lam in LAMS],
        "W_Q gradient, digits": [gradients["q"] for gradients, _ in first],
        "rows switched off, digits": [float((maps.amax(-1) > 0.99).double().mean()) for _, maps in first],
    }
    log = list(panels)[:2]
    title = "Gaussian tokens and real images"
    return plots.sweep(LAMS, panels, x_label="λ on W_Q and W_K", title=title, log=log)


SEED = Slider("seed", "seed", 0, 2, 1, 0, "of the initialisation and of the batches")

VIEWS = (
    View("06.open", draw_open, (SEED,)),
    View("06.collapse", draw_collapse, (
        Slider("rho", "token correlation", 0, 0.9, 0.1, 0, "0: independent tokens"),
        Slider("std", "standard deviation of W", 0, 0.12, 0.01, STD, "0.0625 is Xavier's here"),
    )),
    View("06.head", draw_head, (
        Slider("lam", "λ on Q, K and V", 0, 10, 0.25, 1, "0 leaves W as it is"),
        Slider("n", "tokens n", 4, 40, 4, 24, "the others that a token competes with"),
        Slider("d_k", "head width d_k", 4, 64, 4, 16, "D = 64 throughout"),
        Slider("rho", "token correlation", 0, 0.9, 0.1, 0, "0: independent tokens"),
    )),
    View("06.gradient", draw_gradient, (SEED,)),
)  # fmt: skip

QUESTIONS = (
    Question(
        "06.width",
        "λI goes on W_Q and W_K. Heads get 16 times wider, d_k = 16 to d_k = 256, with the usual scale 1/√d_k and as "
        "many tokens as before. The λ at which attention switches off",
        {
            "a": Option("stays: the scale 1/√d_k is there to take care of the width", "It keeps the spread of logits "
                        "between different tokens. The logit of a token with itself still grows, like √d_k."),
            "b": Option("becomes half as large", "The logit with itself is λ²√d_k: 16 times the width is 4 times the "
                        "logit, and half the λ is enough."),
            "c": Option("becomes 4 times larger: wider heads are more robust", "It goes the other way: wider heads "
                        "have a larger logit of each token with itself."),
        },
        "b",
    ),
    Question(
        "06.recover",
        "λ = 10 on W_Q and W_K of both blocks, then 100 steps of AdamW on digits. Nearly all rows of attention start "
        "switched off. After training",
        {
            "a": Option("most have recovered: W is free, so it can learn −10 I", "It is free, and AdamW moves an entry "
                        "by about the learning rate a step: after 100 steps of 0.003 it has come 0.3 of the 10."),
            "b": Option("nearly all are still off, and the model is about as good as without attention", "The few rows "
                        "that get a gradient cannot move W by 10. What is left is P = I with some noise."),
            "c": Option("training has diverged", "Nothing diverges: a switched-off head is perfectly calm. That is why "
                        "it goes unnoticed."),
        },
        "b",
    ),
    Question(
        "06.quiz-long",
        "You go from n = 200 tokens to n = 40 000, the square of it, with the same d_k. λ_sat",
        {
            "a": Option("grows by √2", "log n doubles, and λ_sat goes with its square root."),
            "b": Option("grows by √200", "Only the logarithm of n counts: e^(λ²√d_k) has to beat n others."),
            "c": Option("stays", "There are more others to beat, if only a little more."),
        },
        "a",
    ),
    Question(
        "06.quiz-twins",
        "Two heads have the same κ(J) to 1 %. Which of these shows that only one of them is on?",
        {
            "a": Option("κ⁺(J) beside κ(J)", "Both have full rank here: κ⁺ and κ are the same number."),
            "b": Option("κ(W_Q) and κ(W_K)", "They are better, closer to 1, for the head that is off."),
            "c": Option("the mean of max p, or the norm of the Q block", "1.00 against 0.35 for the first pair of "
                        "section 5.7, and a norm that is zero for every practical purpose against 28."),
        },
        "c",
    ),
    Question(
        "06.quiz-value",
        "What does λ = 10 on W_V alone do?",
        {
            "a": Option("it switches attention off, at a larger λ", "The attention map does not depend on W_V at all: "
                        "P is the same to the last bit."),
            "b": Option("P stays as it is; values become 10 times the first coordinates of a token, which can hurt "
                        "in another way", "No limit from saturation is not a promise: in section 8 its loss was above "
                        "plain's by 0.14 ± 0.20, on each of three seeds, with an interval that includes 0."),
            "c": Option("nothing: a constant is a constant", "The output, and the gradient of everything below it, are "
                        "multiplied."),
        },
        "b",
    ),
)  # fmt: skip

ENTRIES = (*VIEWS, *QUESTIONS)
