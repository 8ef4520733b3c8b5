"""The corrections that `Settings` describe: applied to given weights, or living in a model while it trains.

C is a constant in the backward pass whatever its kind, as in the paper: gradients pass straight through.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spectral_core.attention import SpectralConditionedAttention
from spectral_core.corrections import Correction, IdentityCorrection
from spectral_core.demo.settings import ROLES, Settings
from spectral_core.polar_correction import PolarCorrection
from spectral_core.spectrum_target import SpectrumTarget

__all__ = ["DrawnSpectrum", "Live", "correct", "corrections_differ", "profile"]


STORED = "parametrizations.weight.original"  # where torch keeps W of a parametrized layer


class DrawnSpectrum(Correction):
    """Singular values replaced by given ones: U diag(values) Vᵀ, with C a constant in the backward pass.

    Args:
        values: as many numbers ≥ 0 as one likes, largest first; for another count of singular values they are
            interpolated.
        preserve: see `Correction`.

    >>> DrawnSpectrum([3.0, 1.0])(torch.diag(torch.tensor([7.0, 5.0])))
    tensor([[3., 0.],
            [0., 1.]])
    """

    def __init__(self, values, *, preserve: str | None = None) -> None:
        super().__init__(preserve=preserve)
        self.values = tuple(float(v) for v in values)

    def correct(self, w: Tensor) -> Tensor:
        u, s, vh = torch.linalg.svd(w.detach().double(), full_matrices=False)
        given = torch.tensor(self.values, dtype=s.dtype)
        at = torch.linspace(0, len(given) - 1, s.shape[-1], dtype=s.dtype)
        low = at.floor().long()
        high = (low + 1).clamp(max=len(given) - 1)
        target = torch.lerp(given[low], given[high], at - low)
        return w + ((u * (target - s).unsqueeze(-2)) @ vh).to(w.dtype)


def profile(top: float, bottom: float, decay: float, count: int) -> list[float]:
    """`count` values from `top` to `bottom`, bottom + (top − bottom)(1 − t)^decay for t from 0 to 1.

    >>> profile(2.0, 1.0, 1.0, 3), profile(2.0, 1.0, 0.0, 3)
    ([2.0, 1.5, 1.0], [2.0, 2.0, 2.0])
    """
    places = [i / max(count - 1, 1) for i in range(count)]
    return [bottom + (top - bottom) * (1 - t) ** decay for t in places]


def correct(settings: Settings, weights: Mapping[str, Tensor], heads: int = 1) -> dict[str, Tensor]:
    """W + C by role, detached, for W (out, in) by role.

    With scope "packed" the three are stacked into one matrix, which the sliders of Q shape; rows of roles that are not
    selected stay as they are.
    """
    plain = {role: w.detach() for role, w in weights.items()}
    if settings.scope == "packed":
        stacked = torch.cat([plain[role] for role in ROLES])
        parts = _correction(settings, "q")(stacked).split([len(plain[role]) for role in ROLES])
        fresh = dict(zip(ROLES, parts, strict=True))
    elif settings.scope == "head":
        fresh = {
            role: _correction(settings, role)(w.unflatten(0, (heads, -1))).flatten(0, 1) for role, w in plain.items()
        }
    else:
        fresh = {role: _correction(settings, role)(w) for role, w in plain.items() if role in settings.roles}
    return {role: fresh[role] if role in settings.roles else w for role, w in plain.items()}


def _correction(settings: Settings, role: str) -> Correction:
    preserve = None if settings.preserve == "none" else settings.preserve
    low, high = settings.min[role], settings.max[role]
    if settings.kind == "polar":
        return PolarCorrection(every=1, preserve=preserve)  # what is drawn is of this very step
    if settings.kind == "kappa":
        return SpectrumTarget(kappa=settings.kappa[role], gradient="straight-through", preserve=preserve)
    if settings.kind == "targets":
        return SpectrumTarget(low, high, gradient="straight-through", preserve=preserve)
    if settings.kind == "profile":
        return DrawnSpectrum(profile(high, low, settings.decay[role], 32), preserve=preserve)
    if settings.kind == "drawn":
        values = settings.drawn[role]
        return DrawnSpectrum(values, preserve=preserve) if values else IdentityCorrection(0.0)
    return IdentityCorrection(settings.lam[role], preserve=preserve)


class Live:
    """The corrections of one attention module, exchangeable between two training steps: set `settings`.

    Args:
        attention: a `SpectralConditionedAttention`; its query, key and value weights become W + C.
        settings: of the start; None leaves W as it is.
    """

    def __init__(self, attention: SpectralConditionedAttention, settings: Settings | None) -> None:
        self.settings, self.heads = settings, attention.num_heads
        self._layers: dict[str, nn.Module] = {"q": attention.query, "k": attention.key, "v": attention.value}
        for role, layer in self._layers.items():
            parametrize.register_parametrization(layer, "weight", _Part(self, role), unsafe=True)

    def target(self, role: str, w: Tensor) -> Tensor:
        """W + C of one role, detached."""
        if self.settings is None:
            return w.detach()
        weights = {role: w}
        if self.settings.scope == "packed":
            weights = {r: layer.get_parameter(STORED) for r, layer in self._layers.items()}
        return correct(self.settings, weights, self.heads)[role]


class _Part(nn.Module):
    def __init__(self, live: Live, role: str) -> None:
        super().__init__()
        self._live, self.role = (live,), role  # a tuple: not a submodule

    def forward(self, w: Tensor) -> Tensor:
        live = self._live[0]
        return w if live.settings is None else w + (live.target(self.role, w) - w.detach())


def corrections_differ(a: Settings, b: Settings) -> bool:
    """Whether two settings lead to different corrections; what only a start takes up does not count."""
    names = ("kind", "roles", "preserve", "scope", "min", "max", "decay", "kappa", "lam", "drawn")
    return any(getattr(a, name) != getattr(b, name) for name in names)
