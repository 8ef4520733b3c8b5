"""Lesson 3, what governs κ(J): its views, predictions and quiz, as data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spectral_core.bounds import JacobianBound, jacobian_bound
from spectral_core.corrections import IdentityCorrection
from spectral_core.lessons.heads import DigitHead, digit_head
from spectral_core.lessons.registry import Choice, Option, Question, Slider, View
from spectral_core.models import INITS
from spectral_core.plots.bound import LinePanel, coin_shadow, line_panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ENTRIES", "bootstrap", "gauge", "lam_head", "rank_correlation", "sides", "spread"]

LAMS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
MIXES = tuple(10.0**i for i in (-3, -2, -1, -0.5, 0, 0.5, 1, 2, 3))
SPREADS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


@lru_cache(maxsize=512)
def lam_head(lam: float, roles: str = "qkv", *, init: str = "trunc-normal", seed: int = 0, image: int = 0) -> DigitHead:
    """The head of `digit_head` with λI added to the weights named in `roles`."""
    return digit_head({role: IdentityCorrection(lam) for role in roles}, init=init, seed=seed, image=image)


def sides(head: DigitHead) -> JacobianBound:
    """Both sides of Theorem 3.4 and every factor, in the κ⁺ convention."""
    return jacobian_bound(head.x, head.w_q, head.w_k, head.w_v)


def gauge(head: DigitHead, m: Tensor) -> DigitHead:
    """The head with W_Q M and W_K M⁻ᵀ: other weights, the same function."""
    return DigitHead(head.x, head.w_q @ m, head.w_k @ torch.linalg.inv(m).mT, head.w_v)


def spread(size: int, kappa: float, seed: int = 0) -> Tensor:
    """A random size × size matrix with κ = `kappa` and determinant ±1, singular values evenly spaced in log."""
    generator = torch.Generator().manual_seed(seed)
    draws = (torch.randn(size, size, dtype=torch.float64, generator=generator) for _ in range(2))
    u, v = (torch.linalg.qr(draw).Q for draw in draws)
    return u * kappa ** torch.linspace(0.5, -0.5, size, dtype=torch.float64) @ v.mT


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation; 0 when one side is constant to six digits, for then it orders nothing."""
    ranks = [_ranks(values) for values in (a, b)]
    x, y = (r - r.mean() for r in ranks)
    size = float(x.norm() * y.norm())
    return float(x @ y) / size if size > 0 else 0.0


def bootstrap(values: Sequence[float], draws: int = 4000) -> tuple[float, float, float]:
    """The mean, and the ends of its 95 % bootstrap interval over `values` (percentiles)."""
    x = torch.tensor(values, dtype=torch.float64)
    picks = torch.randint(len(values), (draws, len(values)), generator=torch.Generator().manual_seed(0))
    low, high = x[picks].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(x.mean()), low, high


def _ranks(values: Sequence[float]) -> Tensor:
    x = torch.tensor([float(f"{value:.6g}") for value in values], dtype=torch.float64)  # rounding is no order
    return (x[:, None] > x).sum(1) + ((x[:, None] == x).sum(1) - 1) / 2


def draw_open(image: int) -> Figure:
    """κ(J) and the right side against small λ on W_Q, W_K and W_V alike; `draw_factors` shows how it goes on."""
    small = LAMS[:3]
    both = [sides(lam_head(lam, seed=int(image), image=int(image))) for lam in small]
    lines = {"right side of the theorem": [float(b.right) for b in both], "κ(J)": [float(b.left) for b in both]}
    panel = LinePanel(f"one head, digit {image:g}, λI on W_Q, W_K and W_V", "λ", small, lines)
    return line_panels([panel], title="A bound and what it bounds")


def draw_factors(roles: str, init: str, image: int) -> Figure:
    """Both sides against λ, and the four parts of the right side beside them."""
    image = int(image)
    both = [sides(lam_head(lam, roles.lower(), init=init, seed=image, image=image)) for lam in LAMS]
    left = LinePanel("the two sides", "λ", LAMS, {
        "right side": [float(b.right) for b in both], "κ(J)": [float(b.left) for b in both],
    })  # fmt: skip
    right = LinePanel("what the right side is made of", "λ", LAMS, {
        "κ(X)³": [float(b.kappa_x**3) for b in both],
        "κ(Λ)": [float(b.kappa_lambda) for b in both],
        "κ(W_V)(κ(W_Q) + κ(W_K))": [float(b.kappa_wv * (b.kappa_wq + b.kappa_wk)) for b in both],
        "κ(X) κ(P)": [float(b.kappa_x * b.kappa_softmax) for b in both],
    })  # fmt: skip
    return line_panels([left, right], title=f"λI on {', '.join(roles)}; {init} initialisation, digit {image}")


def draw_gauge(init: str, seed: int, image: int) -> Figure:
    """κ(J) and the right side for heads that all compute the same function."""
    head = lam_head(0.0, init=init, seed=int(image), image=int(image))
    eye = torch.eye(head.w_q.shape[1], dtype=head.x.dtype)
    panels = []
    for title, label, x, mixes in (
        ("M = c I", "c", MIXES, [c * eye for c in MIXES]),
        ("M random", "κ(M)", SPREADS, [spread(len(eye), k, int(seed)) for k in SPREADS]),
    ):
        both = [sides(gauge(head, m)) for m in mixes]
        lines = {"right side": [float(b.right) for b in both], "κ(J)": [float(b.left) for b in both]}
        panels.append(LinePanel(title, label, x, lines, log_x=True))
    return line_panels(panels, title=f"W_Q M and W_K M⁻ᵀ: one function ({init}, digit {image:g}), many κ(J)")


IMAGE = Slider("image", "digit", 0, 9, 1, 0, "which held-out image, with an initialisation of its own")

VIEWS = (
    View("03.open", draw_open, (IMAGE,)),
    View("03.shadow", coin_shadow, (Slider("theta", "tilt θ (°)", 0, 89, 1, 60, "angle between coin and floor"),)),
    View("03.factors", draw_factors, (
        Choice("roles", "λI on", ("QKV", "QK", "Q", "V"), "QKV", "which weights are corrected"),
        Choice("init", "initialisation", INITS, "trunc-normal", "how W_Q, W_K and W_V were drawn"),
        IMAGE,
    )),
    View("03.gauge", draw_gauge, (
        Choice("init", "initialisation", INITS, "xavier", "how W_Q, W_K and W_V were drawn"),
        Slider("seed", "seed of M", 0, 9, 1, 0, "which random M, for the panel on the right"),
        IMAGE,
    )),
)  # fmt: skip

QUESTIONS = (
    Question(
        "03.direction",
        "As λ on W_Q, W_K and W_V goes on from 0.25 to 1.5, κ(W) of each falls towards 1, and κ(J) falls a "
        "hundredfold. What does the right side of the theorem do?",
        {
            "a": Option("it falls about as much: it is made of κ(W)", "It is made of κ(Λ) and κ(P) too, and those "
                        "depend on W_Q and W_K."),
            "b": Option("it stays: κ(X)³ dominates it", "κ(X)³ stays, but it is one factor among several."),
            "c": Option("it rises by several powers of ten", "κ(Λ) grows from about 2 to tens of millions as attention "
                        "sharpens; what the κ(W) give back is a factor of about 4. Up to 0.25 both sides fall, beyond "
                        "it they part."),
        },
        "c",
    ),
    Question(
        "03.same",
        "Two heads give the same output for every input. Their weights differ. What of their κ(J)?",
        {
            "a": Option("equal: J is the derivative of the function", "It is the derivative by the weights, and those "
                        "are not the same weights."),
            "b": Option("they differ by a factor of 2 at most", "A 2 would have to come from somewhere; this lesson "
                        "shows a factor above 50."),
            "c": Option("they may differ by powers of ten", "c·W_Q and W_K/c are the same function. They shrink the Q "
                        "block by c and stretch the K block by c."),
        },
        "c",
    ),
    Question(
        "03.quiz-vacuous",
        "Take κ over all singular values, zeros included. What does Theorem 3.4 say then?",
        {
            "a": Option("nothing: its right side is infinite for every head", "Rows of Λ sum to zero, so it is "
                        "singular, always, and κ(Λ) = ∞."),
            "b": Option("the same as with κ⁺", "With κ⁺ the right side is finite, and the statement can fail."),
            "c": Option("that κ(J) is infinite", "A bound of ∞ is no statement about what it bounds."),
        },
        "a",
    ),
    Question(
        "03.quiz-product",
        "A is 4 × 9 with orthonormal rows, B is 9 × 4 with orthonormal columns. How large is κ⁺(AB)?",
        {
            "a": Option("1, as both factors have κ⁺ = 1", "A drops five directions, and B's columns may lie close to "
                        "them."),
            "b": Option("at most 4", "The size limits the rank, not the condition number."),
            "c": Option("any number from 1 up", "Neither A has full column rank nor B full row rank: the angle between "
                        "their spaces decides, and X W_K is such a product when n < D."),
        },
        "c",
    ),
    Question(
        "03.quiz-gauge",
        "We multiply W_V by 10. What happens to the right side, and to κ(J)?",
        {
            "a": Option("neither moves: κ does not depend on scale", "κ of one matrix does not. J has three blocks, "
                        "and only two of them grow by 10."),
            "b": Option("the right side stays, κ(J) may move", "Q and K blocks grow by 10, the V block does not. No "
                        "bound made of κ's alone can see that."),
            "c": Option("both grow by 10", "κ(10·W_V) = κ(W_V), and nothing else on the right depends on W_V."),
        },
        "b",
    ),
)  # fmt: skip

ENTRIES = (*VIEWS, *QUESTIONS)
