"""Lesson 2, the Jacobian of attention: its views, predictions and quiz, as data."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from spectral_core import plots
from spectral_core.corrections import IdentityCorrection
from spectral_core.jacobian import AttentionJacobian
from spectral_core.lessons.heads import DigitHead, digit_head, random_head
from spectral_core.lessons.registry import Choice, Option, Question, Slider, View
from spectral_core.models import INITS
from spectral_core.spectrum import condition_number
from spectral_core.svg import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ENTRIES", "LAMS", "identity_head"]

LAMS = [0.0, 0.1, 0.25, *(0.5 * i for i in range(1, 21))]


@lru_cache(maxsize=256)
def identity_head(lam_q: float, lam_k: float, lam_v: float, init: str = "trunc-normal", image: int = 0) -> DigitHead:
    """The head of `digit_head` with λI added to W_Q, W_K and W_V; `image` is also the seed of the initialisation."""
    by_role = {"q": lam_q, "k": lam_k, "v": lam_v}
    fixes = {role: IdentityCorrection(lam) for role, lam in by_role.items()}
    return digit_head(fixes, init=init, seed=image, image=image)


def draw_open(image: int) -> Figure:
    """κ(J) of the head against λ on W_Q, W_K and W_V alike."""
    kappas = [identity_head(lam, lam, lam, image=int(image)).kappa for lam in LAMS]
    title = f"κ(J) of one attention head on digit {image:g}, as λI is added to W_Q, W_K, W_V"
    return plots.sweep(LAMS, {"κ(J)": kappas}, x_label="λ", title=title, log=["κ(J)"])


def draw_sweep(image: int) -> Figure:
    """As `draw_open`, with the mean of max_j p_ij and the share of the Q and K blocks in ‖J‖ beside it."""
    heads = [identity_head(lam, lam, lam, image=int(image)) for lam in LAMS]
    panels = {
        "κ(J)": [head.kappa for head in heads],
        "mean of max p": [head.saturation for head in heads],
        "share of Q and K in ‖J‖": [head.query_key_share for head in heads],
    }
    guides = {"κ(J)": {"κ(X)": float(condition_number(heads[0].x))}, "mean of max p": {"1/n": 1 / len(heads[0].x)}}
    title = f"The same sweep of λ on digit {image:g}, with what κ(J) hides"
    return plots.sweep(LAMS, panels, x_label="λ", title=title, log=["κ(J)"], guides=guides)


def draw_head(lam_q: float, lam_k: float, lam_v: float, init: str, image: int) -> Figure:
    """The head before and after λI: its map, the spectrum of J and the block norms."""
    before, after = identity_head(0, 0, 0, init, int(image)), identity_head(lam_q, lam_k, lam_v, init, int(image))
    old, new = (head.jacobian.singular_values().tolist() for head in (before, after))
    title = (
        f"κ(J) {format_number(before.kappa)} → {format_number(after.kappa)},  mean of max p {before.saturation:.2f} → "
        f"{after.saturation:.2f}"
    )
    attention = after.jacobian.attention().tolist()
    return plots.attention_head(attention, old, new, before.norms, after.norms, title=title)


def draw_blocks(n: int, seed: int) -> Figure:
    """J of a random head with D = 4 and d = 2, entry by entry."""
    jac = AttentionJacobian(*random_head(int(n), 4, 2, 2, seed=int(seed)))
    return plots.jacobian_blocks(jac.dense().tolist(), {"W_Q": 8, "W_K": 8, "W_V": 8}, height=2)


def draw_null(n: int, d: int) -> Figure:
    """The singular values of J of a random head with D = 4 and d_k = d_v = `d`, and the rank that is expected."""
    n, d = int(n), int(d)
    jac = AttentionJacobian(*random_head(n, 4, d, d))
    columns = jac.shape[1]
    return plots.jacobian_spectrum(jac.singular_values().tolist(), min(n * d, columns - d * d), columns)


IMAGE = Slider("image", "digit", 0, 9, 1, 0, "which held-out image, with an initialisation of its own")

VIEWS = (
    View("02.open", draw_open, (IMAGE,)),
    View("02.sweep", draw_sweep, (IMAGE,)),
    View("02.head", draw_head, (
        Slider("lam_q", "λ on W_Q", 0, 12, 0.25, 1, "0 leaves W_Q as it is"),
        Slider("lam_k", "λ on W_K", 0, 12, 0.25, 1, "0 leaves W_K as it is"),
        Slider("lam_v", "λ on W_V", 0, 12, 0.25, 1, "0 leaves W_V as it is"),
        Choice("init", "initialisation", INITS, "trunc-normal", "how W_Q, W_K and W_V were drawn"),
        IMAGE,
    )),
    View("02.blocks", draw_blocks, (
        Slider("n", "tokens n", 1, 6, 1, 3, "two rows of J a token"),
        Slider("seed", "seed", 0, 9, 1, 0, "which random head"),
    )),
    View("02.null", draw_null, (
        Slider("n", "tokens n", 2, 24, 1, 20, "d rows of J a token"),
        Slider("d", "head width d", 1, 4, 1, 3, "4 · 3d columns"),
    )),
)  # fmt: skip

QUESTIONS = (
    Question(
        "02.celebrate",
        "λ = 10 on W_Q, W_K and W_V takes κ(J) of this head from about 900 000 to 11. What is its attention map then?",
        {
            "a": Option("sharper: each token attends to the few that matter", "λ² puts every token's own logit "
                        "hundreds above the others: there is nothing left for the few."),
            "b": Option("the identity: each token attends to itself alone", "Logits of a token with itself grow like "
                        "λ²√d, those with others do not: softmax saturates, P = I, and Q and K get no gradient."),
            "c": Option("uniform: the identity treats all tokens alike", "It treats all channels alike. The logit of "
                        "a token with itself is its squared length, the largest in the row."),
        },
        "b",
    ),
    Question(
        "02.rank",
        "20 tokens, D = 4, d_k = d_v = 3: J has 60 rows and 36 columns. What is its rank?",
        {
            "a": Option("27", "The matrices M have 9 entries, and each is a direction that the output does not see: "
                        "36 − 9."),
            "b": Option("36, all columns", "W_Q → W_Q M, W_K → W_K M⁻ᵀ changes weights and not the output: "
                        "those directions are lost."),
            "c": Option("60, all rows", "The rank is never more than the number of columns."),
        },
        "a",
    ),
    Question(
        "02.quiz-null",
        "Λ_i is singular whatever the logits are. Which change of row i's logits has no effect?",
        {
            "a": Option("doubling them all", "That sharpens the softmax."),
            "b": Option("none: softmax is one-to-one", "n logits go in, but the n weights sum to 1."),
            "c": Option("adding the same number to them all", "The softmax divides it out: Λ_i 1 = 0."),
        },
        "c",
    ),
    Question(
        "02.quiz-value",
        "Which block of J does not depend on W_V at all?",
        {
            "a": Option("the Q block", "Its slopes N_i are covariances of tokens with values, V = X W_V."),
            "b": Option("the K block", "It contains the same slopes N_i as the Q block."),
            "c": Option("the V block", "A is linear in W_V: the block is PX ⊗ I, so its κ is that of PX."),
        },
        "c",
    ),
    Question(
        "02.quiz-beside",
        "A report says: κ(J) fell from 900 000 to 11. What do you ask for before you believe that training improves?",
        {
            "a": Option("κ(W_Q) and κ(W_K), to see that they fell too", "They did: both are near 1 at λ = 10. It is "
                        "the same good news with the same blind spot."),
            "b": Option("the mean of max p and the norms of the Q and K blocks", "κ(J) can be small because attention "
                        "is off; these two say so at a glance."),
            "c": Option("nothing: κ(J) is exact", "Exact it is. It does not say what the Jacobian is of."),
        },
        "b",
    ),
)  # fmt: skip

ENTRIES = (*VIEWS, *QUESTIONS)
