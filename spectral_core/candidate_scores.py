"""What a choice of corrections does to a model on a batch: exact κ(J), saturation, logits, and the limits on those."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_core.corrections import Correction
from spectral_core.head_plans import Plan
from spectral_core.jacobian_condition import GRAM_FLOOR
from spectral_core.lanczos import largest, random_block

__all__ = ["Candidate", "check_limits", "score"]

DENSE_ROWS = 2048  # of J, up to which all eigenvalues of J Jᵀ are affordable
SVD_ROWS = 1024  # of J, up to which an SVD is affordable where the Gram matrix has no answer
Layers = dict[str, float]
Refuse = Callable[[Layers, Layers], str]
SOFT = 2.0  # logits that spread by less leave softmax soft, whatever they grew from: Xavier's spread by 1


@dataclass(frozen=True)
class Candidate:
    """What one choice of corrections does to the model on the batch.

    Attributes:
        name: in words; corrections: by role, roles left alone are absent.
        kappa: geometric mean of κ(J) over layers, heads and examples; nan where it was not computed because a limit
            had already been passed.
        kappa_worst: the largest of them.
        lower_bound: whether some κ(J) is beyond 2·10⁶, so that both numbers are lower bounds.
        saturation: mean of max_j p_ij by layer.
        logit_scale: root mean square over rows of the standard deviation of the logits in a row, by layer.
        refused: the limit that it passes, in words; empty when it is within both.
    """

    name: str
    corrections: dict[str, Correction]
    kappa: float
    kappa_worst: float
    lower_bound: bool
    saturation: dict[str, float]
    logit_scale: dict[str, float]
    refused: str = ""

    @property
    def mean_saturation(self) -> float:
        return sum(self.saturation.values()) / len(self.saturation)


def score(
    name: str,
    by_role: dict[str, Correction],
    plans: list[Plan],
    *,
    refuse: Refuse,
    always: bool = True,
    exact: bool = False,
) -> Candidate:
    """The candidate with corrections `by_role`, from the plans of a pass through the corrected model.

    Args:
        refuse: (saturation, logit_scale), by layer -> the limit that is passed, in words.
        always: compute κ(J) also of what is refused.
        exact: an SVD where the Gram matrix has no answer and J has at most `SVD_ROWS` rows.
    """
    saturation, scale = _softmax(plans)
    refused = refuse(saturation, scale)
    logs, bounded = [math.nan], False
    if always or not refused:
        logs = []
        for plan in plans:
            for values, lower in _head_kappas(plan, exact):
                logs += values.log().flatten().tolist()
                bounded |= lower
    mean = sum(logs) / len(logs)
    return Candidate(name, dict(by_role), math.exp(mean), math.exp(max(logs)), bounded, saturation, scale, refused)


def _softmax(plans: list[Plan]) -> tuple[Layers, Layers]:
    """By layer: mean of max_j p_ij, and the spread of the logits in a row."""
    saturation, scale = {}, {}
    for plan in plans:
        p = plan.jacobian(slice(None), slice(None)).attention()
        saturation[plan.name] = float(p.amax(-1).mean())
        q = plan.x.double().unsqueeze(1) @ plan.weights["q"].double()
        q = q if plan.b_q is None else q + plan.b_q.double().unsqueeze(-2)
        k = (plan.x if plan.x_kv is None else plan.x_kv).double().unsqueeze(1) @ plan.weights["k"].double()
        logits = q @ k.mT * (q.shape[-1] ** -0.5 if plan.scale is None else plan.scale)
        scale[plan.name] = float(logits.var(-1, correction=0).mean().sqrt())
    return saturation, scale


def _head_kappas(plan: Plan, exact: bool) -> Iterator[tuple[Tensor, bool]]:
    """κ(J) of every head and example, chunk by chunk, and whether some are lower bounds."""
    tokens, width = plan.x.shape[-2], plan.weights["v"].shape[-1]
    rows, d_k = tokens * width, plan.weights["q"].shape[-1]
    dim = min(w.shape[-2] for w in plan.weights.values())
    # fewer where W_Q and W_K have their gauge freedom, and LayerNormed tokens one dimension less
    rank = min(tokens, dim - 1) * (2 * d_k + width) - d_k**2
    heads = max(1, min(len(plan.heads), 2**27 // rows**2))  # about a gigabyte of Gram matrices at a time
    for e in range(len(plan.x)):
        for h in range(0, len(plan.heads), heads):
            jac = plan.jacobian(slice(e, e + 1), slice(h, h + heads))
            if rows > rank:  # κ⁺, over the rank that there is
                result = jac.condition_number(method="svd")
                yield result.effective_value, not bool(result.converged.all())
            elif rows > DENSE_ROWS:
                result = jac.condition_number(method="cholesky")
                yield result.value, not bool(result.converged.all())
            else:
                top, last = _extremes(jac.gram())
                floor = GRAM_FLOOR * top
                if exact and rows <= SVD_ROWS and bool((last <= floor).any()):  # lower bounds would all tie
                    result = jac.condition_number(method="svd")
                    yield result.effective_value, not bool(result.converged.all())
                    continue
                kappa = (top / torch.maximum(last, floor)).sqrt()
                yield kappa.where(top > 0, torch.inf), bool((last <= floor).any())


def _extremes(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Largest and smallest eigenvalue of Gram matrices (1, h, m, m): Lanczos on them and on their inverses.

    To 1e-9 relative or so, beside the eps κ² of any Gram matrix, in half the time of all eigenvalues.
    """
    factor, info = torch.linalg.cholesky_ex(gram)
    if bool(info.any()):  # singular to rounding
        values = torch.linalg.eigvalsh(gram)
        return values[..., -1], values[..., 0]
    inverse = torch.cholesky_inverse(factor)
    start = random_block(tuple(gram.shape[:-2]), gram.shape[-1], 1, gram.device)
    top, low = (
        largest(m.__matmul__, m.__matmul__, start, 1, tolerance=1e-6).values[..., 0] for m in (gram, inverse)
    )
    return top, 1 / low


def check_limits(saturation: Layers, scale: Layers, plain: Candidate, limit: float, change: float) -> str:
    """The first limit that is passed, in words; empty when none is. `plain` is the model without corrections."""
    # a layer that is beyond the limit by itself may stay where it is, to half a percent
    allowances = {name: max(limit, own + 0.005) for name, own in plain.saturation.items()}
    worst = max(saturation, key=lambda name: saturation[name] - allowances[name])
    allowed = allowances[worst]
    if saturation[worst] > allowed:
        return (
            f"attention saturates, mean of the largest weight {saturation[worst]:.2f} > {allowed:.2f} in {worst} "
            f"(plain {plain.saturation[worst]:.2f})"
        )
    for name, now in scale.items():
        before = plain.logit_scale[name]
        if now > max(change * before, SOFT):
            return f"logits grow from {before:.2g} to {now:.2g} in {name}, over {change:g} times"
        if now < before / change:
            return f"logits shrink from {before:.2g} to {now:.2g} in {name}, over {change:g} times"
    return ""
