"""An audit in sentences: what was found, whether it matters, and what to try."""

from __future__ import annotations

import math

from spectral_core.audit.result import Audit, Summary
from spectral_core.bounds import suggest_lambda
from spectral_core.svg import format_number

__all__ = ["overview", "suggestions"]

FAR = 10.0  # times the typical κ of a Gaussian matrix: beyond what chance does to one that is not square
SQUARE = 1.05  # ratio of sides up to which κ spreads as that of square matrices, P(κ > r typical) ≈ 1 / 2r (Edelman)
TOKENS = 128  # the length for which the limit on λ is named


def overview(audit: Audit) -> list[str]:
    """Sentences: how much was looked at, κ per head and whole beside chance, and what could not be read."""
    layers = len(audit.layers)
    per_head, whole = audit.summaries(heads=True), audit.summaries(heads=False)
    out = [
        f"{_count(layers, 'attention layer')}, {_count(sum(s.count for s in whole), 'whole matrix', 'whole matrices')} "
        f"and {_count(sum(s.count for s in per_head), 'head matrix', 'head matrices')} were measured."
    ]
    out += [_sentence("Head", s) for s in per_head[:3]] + [_sentence("Whole", s) for s in whole[:3]]
    deficient = [m for m in audit.matrices if math.isinf(m.kappa)]
    if deficient:
        zero = sum(m.rank == 0 for m in deficient)
        named = f"{_count(len(deficient), 'matrix is', 'matrices are')} rank deficient, so that κ is infinite"
        out.append(f"{named}{f', {zero} of them all zero' if zero else ''}; the first is {deficient[0].where}.")
    if audit.heads:
        worst = max(audit.heads, key=lambda h: h.kappa_j)
        top = max(audit.heads, key=lambda h: h.saturation)
        out.append(
            f"On {audit.data}: the largest κ(J) of a head is {'at least ' * worst.lower_bound}"
            f"{format_number(worst.kappa_j)} (layer {worst.index}, head {worst.head}); the most saturated head puts "
            f"{top.saturation:.2f} of its attention on one token, as a mean (layer {top.index}, head {top.head})."
        )
    if audit.gaps:
        out.append(f"The audit is incomplete: {_count(len(audit.gaps), 'gap')}, listed below.")
    return out


def suggestions(audit: Audit) -> list[str]:
    """What to try, most urgent first. They depend on what was found; none of them is a promise."""
    out = []
    heads, whole = audit.summaries(heads=True), audit.summaries(heads=False)
    deficient = [m for m in audit.matrices if math.isinf(m.kappa) and (m.head is not None or not heads)]
    limits = {s.shape: limit(s) for s in (heads or whole)}
    far = [m for m in audit.measured(heads=bool(heads)) if limits[m.shape] * m.random < m.kappa < math.inf]
    if audit.gaps:
        out.append("Close the gaps first: what is not listed as measured is not judged here.")
    if deficient:
        out.append(
            "A matrix of deficient rank has directions that its softmax or its values never see. Where all of W_V is "
            "zero a head adds nothing but a bias, and can be pruned; where W_Q or W_K is, it averages over tokens. "
            "Before further training such heads can be started anew."
        )
    if far:
        layers = ", ".join(map(str, sorted({m.index for m in far})[:12]))
        out.append(
            f"{_count(len(far), 'matrix lies', 'matrices lie')} far above chance (layers {layers}). "
            "If you go on training, condition those layers: condition(model, PolarCorrection(preserve=\"frobenius\"), "
            "include=…) gives κ ≤ 2; SpectrumTarget(kappa=…) clamps only what is beyond. Both change what a trained "
            "model computes at once, so measure the loss before and after; neither helps a model that is only used."
        )
    elif (heads or whole) and not deficient:
        what = "head" if heads else "matrix"
        out.append(f"No {what} is far above what chance gives its shape: that is no reason to correct anything.")
    if heads and whole and not far:
        if whole[0].ratio > limit(whole[0]):
            out.append(
                "The large κ of whole matrices lies between heads, not inside them. A head's Jacobian sees its own "
                "rows alone, so that it hardly reaches κ(J)."
            )
        elif whole[0].ratio > FAR:
            out.append("The large κ of whole square matrices is no more than chance: among so many, some are large.")
    if not audit.heads and not audit.data:
        out.append(
            "Does it matter? κ(W) does not say: κ(J) at real inputs does. Run the audit again with --data."
        )
    widths = {s.shape[0] for s in heads if s.worst.role in "qk"}
    if widths and not audit.advice:  # which names the limit at the inputs themselves
        width = min(widths)
        lam = suggest_lambda(n=TOKENS, d_k=width)
        out.append(
            f"With λI instead, stay below λ ≈ {lam:.2g} on Q and K together (heads of {width}, {TOKENS} tokens): above "
            "it attention collapses to the identity, and a lower κ(J) is then no success. The paper's λ = 10 is above."
        )
    if audit.advice:
        out.append(f"If you go on training, calibrate says on the same data: {audit.advice}")
    return out


def limit(s: Summary) -> float:
    """Times the typical κ that the worst of so many Gaussian matrices exceeds once in a hundred cases, or `FAR`."""
    return 50.0 * s.count if _is_square(s) else FAR


def _is_square(s: Summary) -> bool:
    return max(s.shape) <= SQUARE * min(s.shape)


def _sentence(kind: str, s: Summary) -> str:
    shape = f"{s.shape[0]} × {s.shape[1]}"
    name = f"{kind} matrices of {shape}" if s.count > 1 else f"{kind} matrix of {shape}"
    spread = f"κ from {format_number(s.low)} to {format_number(s.worst.kappa)}, median {format_number(s.median)}"
    times = f"{format_number(s.ratio)} times" if math.isfinite(s.ratio) else "infinitely many times"
    chance = ""
    if _is_square(s) and s.count > 1:
        half = s.count / (2 * math.log(2))  # N / 2r = ln 2
        chance = f" Among {s.count} Gaussian square ones the worst is over {half:.0f} times that in half of all cases."
    return (
        f"{name}: {spread if s.count > 1 else f'κ {format_number(s.low)}'}; a Gaussian one typically has "
        f"{format_number(s.random)}. The worst, {s.worst.where}, is {times} that.{chance}"
    )


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"
