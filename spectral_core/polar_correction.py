"""The paper's exact correction, κ(W + C) ≤ 2, from matrix products and refreshed only when it must be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from spectral_core._checks import check_number, check_tensor
from spectral_core.corrections import Correction
from spectral_core.polar import polar_with_norm

__all__ = ["PolarCorrection"]

DENSE = 128  # rows of a Gram matrix up to which its eigenvalues cost little more than two Cholesky factorisations


class PolarCorrection(Correction):
    """C = strength · σ_max(W) · Q, Q the polar factor of W: the paper's exact correction (Theorem 3.5), without an SVD.

    The singular values become σ_i + strength · σ_max, so κ(W + C) ≤ (1 + strength) / strength, 2 at strength 1.

    A factor serves for many steps. Let W₀ be the weight it was made from, σ = σ_max(W₀), and δ = ‖W − W₀‖. The
    singular values of W₀ + C lie in [strength σ, (1 + strength) σ], and adding W − W₀ moves each by at most δ (Weyl):

        κ(W + C) ≤ ((1 + strength) σ + δ) / (strength σ − δ).

    As long as this stays within the limit nothing is computed but δ, as a Frobenius norm or, near the limit, as a
    Schatten-4 norm, which are no smaller than the spectral one. When it no longer does, W + C is looked at: the
    eigenvalues of its Gram matrix, or if that is large two Cholesky factorisations, which exist only if all singular
    values lie between two given numbers, tell at a fraction of the price of a new factor whether the old C still
    serves; if so, the bound goes on from there. Only otherwise the factor is made anew. So every κ is within the
    limit by proof, up to rounding, and a factor lasts many times longer than by the bound alone.

    Weights are remembered while they live, as `nn.Parameter`s of a model: two copies of each. Other tensors, and
    weights under `torch.compile`, get a new factor at every call.

    Args:
        strength: > 0.
        max_kappa: ≥ 2, the limit on κ(W + C) at strength 1; in proportion at other strengths, the limit is
            max_kappa · (1 + strength) / (2 strength).
        every: instead of that rule, a new factor whenever the weight has changed so many times since the last one
            (1: at every training step), or has been replaced altogether.
        preserve: see `Correction`; without it the spectral norm grows by 1 + strength.

    Attributes:
        refreshes, looks, calls: how often a factor was made, W + C was looked at, and a weight was corrected.

    Raises:
        ValueError: strength ≤ 0, max_kappa < 2, `every` not a positive integer, or `preserve` unknown; in use, a
            weight that is not finite or so large that σ_max overflows.

    >>> PolarCorrection()(torch.diag(torch.tensor([4.0, 1.0])))       # σ + σ_max: (4, 1) -> (8, 5), κ 4 -> 1.6
    tensor([[8., 0.],
            [0., 5.]])
    """

    def __init__(
        self, strength: float = 1.0, *, max_kappa: float = 2.05, every: int | None = None, preserve: str | None = None
    ) -> None:
        super().__init__(preserve=preserve)
        self.strength = check_number(strength, "strength", minimum=0.0, exclusive=True)
        self.max_kappa = check_number(max_kappa, "max_kappa", minimum=2.0)
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise ValueError(f"every: expected an integer >= 1 or None, got {every!r}")
        self.every = every
        self.calls = self.looks = self.refreshes = 0
        self._memory = _Memory()

    def correct(self, w: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return w + torch.ops.spectral_core.polar_term(w.detach(), self.strength)
        self.calls += 1
        self.refreshes += 1
        return w + _term(w, self.strength)[0]

    def _corrected(self, work: Tensor, source: tuple[Tensor, str]) -> Tensor:
        if torch.compiler.is_compiling() or not isinstance(source[0], nn.Parameter):
            return self.correct(work)
        self.calls += 1
        # what is remembered in inference mode must serve in training too
        with torch.inference_mode(False), torch.no_grad():
            term = self._recall(work.detach(), *source)
        return work + term

    def _recall(self, w: Tensor, stored: Tensor, part: str) -> Tensor:
        """C for the weight as it is now, from memory while that is within the rule."""
        kept = self._memory.get(stored, {}).get(part)
        if kept is None or not kept.fits(w):
            return self._refresh(w, stored, part)
        # float64 for the sum alone: squares of tiny weights vanish in float32, those of huge ones overflow
        drift = _frobenius(w - kept.anchor)
        if not math.isfinite(drift):
            raise ValueError("w: expected finite entries, got inf or nan")
        state = (drift, -1 if stored.is_inference() else stored._version)
        if state == kept.state:  # the weight of the last call: also when a checkpointed forward is run again
            return kept.term
        looks = self.looks
        if not self._serves(kept, w, drift):
            return self._refresh(w, stored, part)
        # a look has moved the anchor here: the next drift of this weight is zero
        kept.state = (drift if self.looks == looks else 0.0, state[1])
        return kept.term

    def _serves(self, kept: _Kept, w: Tensor, drift: float) -> bool:
        """Whether the old C is within the rule for a weight that has changed."""
        if self.every is not None:
            kept.changes += 1
            return kept.changes < self.every and drift <= float(kept.norm.min())
        if drift <= kept.allowed or kept.nearer_bound(w, drift) <= kept.allowed:
            return True
        if drift > float(kept.norm.min()):
            return False
        self.looks += 1
        limit = self._limit()
        fresh = (limit * self.strength - 1 - self.strength) / (1 + limit)  # what a new factor allows, over σ_max
        found = _look((w + kept.term) / kept.norm[..., None, None].to(w), self.strength, limit, fresh)
        if found is None:
            return False
        kept.anchor, kept.allowed = w.clone(), self._allowed(found[0] * kept.norm, found[1] * kept.norm)
        return True

    def _limit(self) -> float:
        return self.max_kappa * (1 + self.strength) / (2 * self.strength)

    def _allowed(self, low: Tensor, high: Tensor) -> float:
        """The δ at which the bound reaches the limit, for the first of several matrices."""
        limit = self._limit()
        return float(((limit * low - high) / (1 + limit)).min())

    def update(self, **changes) -> None:
        """As `Correction.update`; what was remembered under the old settings is forgotten."""
        super().update(**changes)
        self._memory = _Memory()

    def _refresh(self, w: Tensor, stored: Tensor, part: str) -> Tensor:
        term, sigma = _term(w, self.strength)
        norm = sigma.cpu().double()
        self.refreshes += 1
        low, error = self.strength * norm, 5e-9 if w.dtype == torch.float64 else 5e-4  # of σ_max, at worst
        version = -1 if stored.is_inference() else stored._version
        kept = _Kept(term, w.clone(), norm, self._allowed(low, low + (1 + error) * norm), (0.0, version))
        self._memory.setdefault(stored, {})[part] = kept
        return term


@dataclass
class _Kept:
    """What is remembered of one weight, or of all heads of one: C, and how far W may go from the anchor."""

    term: Tensor
    anchor: Tensor
    norm: Tensor  # σ_max (…) of the weight that C was made from
    allowed: float
    state: tuple[float, int]  # ‖W − anchor‖_F and the version of W when last accepted: they tell a change
    changes: int = 0
    ratio: float = 0.5  # of Schatten-4 to Frobenius norm when last seen: what it may gain

    def nearer_bound(self, w: Tensor, drift: float) -> float:
        """A bound on ‖W − anchor‖₂ nearer than the Frobenius norm `drift`, where it has a chance to be allowed."""
        if drift * self.ratio > self.allowed:
            return drift
        self.ratio = _schatten_4((w - self.anchor) / drift)
        return drift * self.ratio

    def fits(self, w: Tensor) -> bool:
        a = self.anchor
        return a.shape == w.shape and a.dtype == w.dtype and a.device == w.device


class _Memory(WeakTensorKeyDictionary):
    """By weight, for as long as the weight lives. A copied or pickled correction starts without one."""

    def __deepcopy__(self, memo: dict) -> _Memory:
        return _Memory()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Memory, ()


def _term(w: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """C (…, m, n) and σ_max (…)."""
    q, norm = polar_with_norm(check_tensor(w, "w"))
    if not bool(torch.isfinite(norm).all()):
        raise ValueError("w: expected finite entries with a finite norm, got σ_max that is not finite")
    return (strength * norm)[..., None, None].to(q.dtype) * q, norm


def _frobenius(m: Tensor) -> float:
    """‖M‖_F; the largest of several."""
    if m.ndim == 2:
        return float(torch.linalg.vector_norm(m, dtype=torch.float64))
    return float(torch.linalg.vector_norm(m, dim=(-2, -1), dtype=torch.float64).max())


def _schatten_4(m: Tensor) -> float:
    """‖MᵀM‖_F^½, between the spectral and the Frobenius norm, for one product; the largest of several."""
    gram = m @ m.mT if m.shape[-2] < m.shape[-1] else m.mT @ m
    return math.sqrt(_frobenius(gram))


def _look(m: Tensor, low: float, limit: float, fresh: float) -> tuple[Tensor, Tensor] | None:
    """Two numbers (…) between which all min(m, n) singular values lie, if they leave room below κ = limit, else None.

    Room r means (high + r) ≤ limit (low − r); a quarter of `fresh` must be left, or every step from here on would look.
    From the eigenvalues of the Gram matrix, where that is small. Else numbers are tried, first such that leave more
    room: MᵀM − low² I and high² I − MᵀM are positive definite, or they are not.
    """
    gram = m @ m.mT if m.shape[-2] < m.shape[-1] else m.mT @ m
    if fresh <= 0:
        return None
    if gram.shape[-1] <= DENSE or gram.ndim > 2:
        values = torch.linalg.eigvalsh(gram).cpu().double().clamp(min=0).sqrt()  # κ is near 2: the square loses nothing
        lowest, highest = values[..., 0], values[..., -1]
        return (lowest, highest) if fresh / 4 < float(((limit * lowest - highest) / (1 + limit)).min()) else None
    for below, room in ((0.1 * fresh, 0.6 * fresh), (0.25 * fresh, 0.25 * fresh)):
        lower = low - below
        upper = limit * (lower - room) - room
        if _is_definite(gram, -(lower**2)) and _is_definite(-gram, upper**2):
            return torch.tensor(lower, dtype=torch.float64), torch.tensor(upper, dtype=torch.float64)
    return None


def _is_definite(matrix: Tensor, shift: float) -> bool:
    """Whether matrix + shift · I is positive definite: it has a Cholesky factor, or it has none."""
    matrix = matrix.clone()
    matrix.diagonal().add_(shift)
    return not bool(torch.linalg.cholesky_ex(matrix).info)


@torch.library.custom_op("spectral_core::polar_term", mutates_args=(), schema="(Tensor w, float strength) -> Tensor")
def _polar_term(w, strength):
    return _term(w, strength)[0].contiguous()


@_polar_term.register_fake
def _(w, strength):
    return w.new_empty(w.shape)
