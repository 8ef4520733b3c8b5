"""One head before and after its correction: every number and picture of the first tab, all of them exact."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from spectral_core.bounds import bound_factors, suggest_lambda
from spectral_core.demo.live import correct
from spectral_core.demo.settings import ROLES, Settings
from spectral_core.demo.starts import Start, load_start
from spectral_core.jacobian import AttentionJacobian
from spectral_core.spectrum import spectrum

__all__ = ["GRID", "HeadState", "HeadView", "Law", "head_view"]

GRID = tuple(10 ** (-1 + 2.0792 * i / 32) for i in range(33))  # λ from 0.1 to 12


@dataclass(frozen=True)
class HeadState:
    """One head with one set of weights.

    Attributes:
        spectra: singular values by role, of the matrices that are shaped (scope).
        kappa_w: κ of those matrices, by role.
        kappa_j, is_bound: exact κ(J), or a lower bound of it.
        kappa_j_effective, rank, full: κ⁺(J) over the numerical rank, and min(rows, columns).
        saturation: mean over tokens of max_j p_ij.
        block_norms: ‖J_Q‖_F, ‖J_K‖_F, ‖J_V‖_F.
        attention: the map P.
        factors: of Theorem 3.4's right side, by name, per head and by κ⁺; "right" is that side.
        lam: the λ on W_Q and W_K that gives tr(W_Q W_Kᵀ), which is λ itself where λI is all there is.
    """

    spectra: dict[str, list[float]]
    kappa_w: dict[str, float]
    kappa_j: float
    is_bound: bool
    kappa_j_effective: float
    rank: int
    full: int
    saturation: float
    block_norms: dict[str, float]
    attention: list[list[float]]
    factors: dict[str, float]
    lam: float


@dataclass(frozen=True)
class Law:
    """Saturation of this head with λI on W_Q and W_K, for the λ of `GRID`.

    Attributes:
        measured: of these weights and tokens.
        predicted: 1 / (1 + (n − 1) exp(−λ²√d_k)), for LayerNormed tokens that are orthogonal, and no W.
        limit: λ_sat = (log n / √d_k)^½.
    """

    measured: tuple[float, ...]
    predicted: tuple[float, ...]
    limit: float


@dataclass(frozen=True)
class HeadView:
    """The head `before` and `after` the correction, and the λ_sat law of its start."""

    before: HeadState
    after: HeadState
    law: Law
    name: str
    shape: tuple[int, int, int]  # n, D, d_k


def head_view(settings: Settings) -> HeadView:
    """Spectra, κ(W), exact κ(J), bound, saturation and attention map, before and after the corrections.

    Raises:
        AuditError: the settings ask for MiniLM, whose package is not installed.
    """
    start = load_start(settings.init, settings.source, settings.seed)
    after = correct(settings, start.weights, start.heads)
    before = _before(settings.init, settings.source, settings.seed, settings.scope)
    n, dim = start.x.shape
    width = len(start.weights["q"]) // start.heads
    law = _law(settings.init, settings.source, settings.seed)
    return HeadView(before, _measure(start, after, settings.scope), law, start.name, (n, dim, width))


@lru_cache(maxsize=64)
def _before(init: str, source: str, seed: int, scope: str) -> HeadState:
    start = load_start(init, source, seed)
    return _measure(start, start.weights, scope)


def _measure(start: Start, weights: dict[str, Tensor], scope: str) -> HeadState:
    """Everything about one head; `scope` says of which matrices the spectra are."""
    q, k, v = (w[: len(w) // start.heads].mT.double() for w in (weights[r] for r in ROLES))  # (out, in) -> (D, d)
    x = start.x.double()
    jac = AttentionJacobian(x, q, k, v, is_causal=start.is_causal, b_q=start.b_q)
    kappa = jac.condition_number(method="svd" if jac.shape[0] <= 512 else "auto")
    spectra = {role: spectrum(w) for role, w in shaped(weights, start.heads, scope).items()}
    p = jac.attention()
    return HeadState(
        spectra={r: s.singular_values.tolist() for r, s in spectra.items()},
        kappa_w={r: float(s.condition_number) for r, s in spectra.items()},
        kappa_j=float(kappa), is_bound=not bool(kappa.converged), kappa_j_effective=float(kappa.effective_value),
        rank=int(kappa.rank), full=min(jac.shape), saturation=float(p.amax(-1).mean()),
        block_norms={r: float(norm) for r, norm in jac.norms().items()}, attention=p.tolist(),
        factors={name: float(value) for name, value in bound_factors(x, q, k, v, p).items()},
        lam=math.sqrt(max(0.0, float((q * k).sum())) / q.shape[-1]),
    )  # fmt: skip


def shaped(weights: dict[str, Tensor], heads: int, scope: str) -> dict[str, Tensor]:
    """The matrices whose singular values the sliders shape: whole, of head 1, or all three as one."""
    if scope == "packed":
        return dict.fromkeys(ROLES, torch.cat([weights[r] for r in ROLES]).double())
    share = heads if scope == "head" else 1
    return {r: w[: len(w) // share].double() for r, w in weights.items()}


@lru_cache(maxsize=64)
def _law(init: str, source: str, seed: int) -> Law:
    start = load_start(init, source, seed)
    x = start.x.double()
    q, k = (w[: len(w) // start.heads].mT.double() for w in (start.weights["q"], start.weights["k"]))
    n, width = len(x), q.shape[-1]
    lam = torch.tensor(GRID, dtype=x.dtype)[:, None, None]
    eye = torch.eye(*q.shape, dtype=x.dtype)
    bias = 0 if start.b_q is None else start.b_q.double()
    logits = (x @ (q + lam * eye) + bias) @ (x @ (k + lam * eye)).mT / math.sqrt(width)
    if start.is_causal:
        logits = logits.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -math.inf)
    measured = logits.softmax(-1).amax(-1).mean(-1)
    predicted = tuple(1 / (1 + (n - 1) * math.exp(-(value**2) * math.sqrt(width))) for value in GRID)
    return Law(tuple(measured.tolist()), predicted, suggest_lambda(n, width))
