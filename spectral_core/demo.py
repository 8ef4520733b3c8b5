"""What the demo computes, free of any web framework: settings, one conditioned head, and a race of two models.

Everything is a function of `Settings`. Nothing here is kept for a visitor; the only cache holds initial models,
which are read and never written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache

import torch
from torch import Tensor

from spectral_core.bounds import saturation
from spectral_core.conditioning import condition
from spectral_core.corrections import Correction, IdentityCorrection
from spectral_core.data import load_digits
from spectral_core.jacobian import AttentionJacobian
from spectral_core.models import INITS, VisionTransformer
from spectral_core.polar_correction import PolarCorrection
from spectral_core.projections import ROLES, find_projections
from spectral_core.spectrum import spectrum
from spectral_core.spectrum_target import SpectrumTarget
from spectral_core.training import Record, fit

__all__ = ["Frame", "HeadView", "Settings", "corrections", "head_view", "parse_settings", "race"]

KINDS = {"targets": "Targets σ_min, σ_max", "kappa": "Target κ", "identity": "λ·I (paper)", "polar": "Polar, κ ≤ 2"}
PRESERVES = ("none", "spectral", "frobenius")
SOURCES = {"digits": 2, "mnist": 7}  # patch size: 16 tokens each
#: setting: (smallest, largest, default, step); the sliders and the server's limits are the same numbers
RANGES = {
    "min": (0.0, 4.0, 0.5, 0.05),
    "max": (0.05, 6.0, 2.0, 0.05),
    "kappa": (1.0, 100.0, 4.0, 0.5),
    "lam": (0.0, 12.0, 1.0, 0.05),
}
SEED_MAX = 9999
STEPS, EVERY = 600, 5


def _defaults(name: str) -> dict[str, float]:
    return dict.fromkeys(ROLES, RANGES[name][2])


@dataclass(frozen=True)
class Settings:
    """One visitor's controls. The four dicts are by role; only those that `kind` names are used."""

    kind: str = "targets"
    roles: str = "qkv"
    preserve: str = "none"
    init: str = "trunc-normal"
    source: str = "digits"
    seed: int = 0
    min: dict[str, float] = field(default_factory=lambda: _defaults("min"))
    max: dict[str, float] = field(default_factory=lambda: _defaults("max"))
    kappa: dict[str, float] = field(default_factory=lambda: _defaults("kappa"))
    lam: dict[str, float] = field(default_factory=lambda: _defaults("lam"))


def parse_settings(raw: Mapping[str, object]) -> tuple[Settings, list[str]]:
    """Settings from untrusted values, and a sentence for each value that was clamped or refused.

    Args:
        raw: by control name: kind, roles, preserve, init, source, seed, and min_q … lam_v. Missing names keep
            their default; unknown ones are ignored.
    """
    out, notices = Settings(), []
    choices = {"kind": tuple(KINDS), "preserve": PRESERVES, "init": INITS, "source": tuple(SOURCES)}
    for name, allowed in choices.items():
        if name in raw:
            if raw[name] in allowed:
                out = replace(out, **{name: raw[name]})  # type: ignore[arg-type]
            else:
                used = f"{getattr(out, name)} is used"
                notices.append(f"{name}: {_show(raw[name])} is not one of {', '.join(allowed)}; {used}")
    if "roles" in raw:
        value = raw["roles"]
        letters = [str(r).lower() for r in value] if isinstance(value, (str, list, tuple)) else None
        if letters is None or set(letters) - set(ROLES):
            notices.append(f"roles: {_show(value)} is not a subset of Q, K, V; all three are used")
        else:
            out = replace(out, roles="".join(r for r in ROLES if r in letters))
    if "seed" in raw:
        out = replace(out, seed=int(_clamp("seed", raw["seed"], 0, SEED_MAX, 0, notices)))
    for name, (low, high, default, _) in RANGES.items():
        values = {
            r: _clamp(key, raw[key], low, high, default, notices) if (key := f"{name}_{r}") in raw else default
            for r in ROLES
        }
        out = replace(out, **{name: values})  # type: ignore[arg-type]
    if out.kind == "targets":
        for r in ROLES:
            if out.min[r] > out.max[r]:
                low, high = out.min[r], out.max[r]
                notices.append(f"σ_min {low:g} is above σ_max {high:g} for {r.upper()}; {high:g} is used for both")
                out = replace(out, min={**out.min, r: out.max[r]})
    return out, notices


def _clamp(name: str, value: object, low: float, high: float, default: float, notices: list[str]) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or math.isnan(number):
        notices.append(f"{name}: {_show(value)} is not a number; {default:g} is used")
        return default
    if not low <= number <= high:
        notices.append(f"{name}: {number:g} is outside [{low:g}, {high:g}]; the nearest limit is used")
    return min(max(number, low), high)


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"


class LiveCorrection(Correction):
    """A place in a model whose correction can be exchanged between two steps; None leaves W as it is."""

    def __init__(self, inner: Correction | None = None) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, w: Tensor, part_of: tuple[Tensor, str] | None = None) -> Tensor:
        return w if self.inner is None else self.inner(w, part_of)


def corrections(settings: Settings) -> dict[str, Correction | None]:
    """The correction of each role, None where the role is not selected."""
    preserve = None if settings.preserve == "none" else settings.preserve

    def build(role: str) -> Correction:
        if settings.kind == "identity":
            return IdentityCorrection(settings.lam[role], preserve=preserve)
        if settings.kind == "polar":
            return PolarCorrection(every=1, preserve=preserve)  # what is drawn is of this very step
        if settings.kind == "kappa":
            return SpectrumTarget(kappa=settings.kappa[role], gradient="straight-through", preserve=preserve)
        low, high = settings.min[role], settings.max[role]
        return SpectrumTarget(low, high, gradient="straight-through", preserve=preserve)

    return {role: build(role) if role in settings.roles else None for role in ROLES}


@dataclass(frozen=True)
class HeadState:
    """One head with one set of weights. Spectra and κ(W) are of the layer's whole D × D matrices."""

    spectra: dict[str, list[float]]
    kappa_w: dict[str, float]
    kappa_j: float
    rank: int
    saturation: float
    block_norms: dict[str, float]
    attention: list[list[float]]


@dataclass(frozen=True)
class HeadView:
    """Head 1 of layer 1 at initialisation, on a real digit: `before` and `after` the correction."""

    before: HeadState
    after: HeadState


def head_view(settings: Settings) -> HeadView:
    """Spectra, κ(W), exact κ(J), saturation and attention map, before and after the corrections."""
    x, weights = _initial_head(settings.init, settings.source, settings.seed)
    chosen = corrections(settings)
    after = {r: w if (fix := chosen[r]) is None else fix(w) for r, w in weights.items()}
    return HeadView(_plain_head_state(settings.init, settings.source, settings.seed), _head_state(x, after))


def _head_state(x: Tensor, weights: dict[str, Tensor], heads: int = 2) -> HeadState:
    spectra = {r: spectrum(w.double()) for r, w in weights.items()}
    q, k, v = (weights[r][: weights[r].shape[0] // heads].mT for r in ROLES)  # head 1: the first rows of (out, in)
    jac = AttentionJacobian(x, q, k, v)
    condition_j = jac.condition_number()
    return HeadState(
        spectra={r: s.singular_values.tolist() for r, s in spectra.items()},
        kappa_w={r: float(s.condition_number) for r, s in spectra.items()},
        kappa_j=float(condition_j),
        rank=int(condition_j.rank),
        saturation=float(saturation(x, q, k)),
        block_norms={r: float(norm) for r, norm in jac.norms().items()},
        attention=jac.attention().tolist(),
    )


@lru_cache(maxsize=64)
def _initial_head(init: str, source: str, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    data, model = load_digits(source), new_model(init, source, seed)
    with torch.no_grad():
        x = model.attention_input(data.test_x[:1])[0]
    return x, {p.role: p.weight.detach() for p in find_projections(model)[:3]}


@lru_cache(maxsize=64)
def _plain_head_state(init: str, source: str, seed: int) -> HeadState:
    return _head_state(*_initial_head(init, source, seed))


def new_model(init: str, source: str, seed: int) -> VisionTransformer:
    """The small ViT of the demo: 16 tokens, width 32, two blocks of two heads."""
    return VisionTransformer(load_digits(source).image_size, SOURCES[source], init=init, seed=seed)


@dataclass(frozen=True)
class Frame:
    """The newest pair of records of a race, and whether the settings had changed since the pair before."""

    baseline: Record
    conditioned: Record
    changed: bool


def race(settings: Callable[[], Settings], *, steps: int = STEPS, every: int = EVERY) -> Iterator[Frame]:
    """Train two models with the same seed and batches; `settings()` is read before every pair of records.

    Initialisation, data and seed are those of the first reading; the corrections follow every later one, from the
    next step on.

    Raises:
        FloatingPointError: the loss of one of the models stopped being finite.
    """
    now = settings()
    start = now
    data = load_digits(start.source)
    models = [new_model(start.init, start.source, start.seed) for _ in range(2)]
    live = {role: LiveCorrection(fix) for role, fix in corrections(now).items()}
    condition(models[1], live)  # type: ignore[arg-type]
    runs = [fit(model, data, steps=steps, every=every, seed=start.seed) for model in models]
    changed = False
    for baseline, conditioned in zip(*runs, strict=True):
        yield Frame(baseline, conditioned, changed)
        new = settings()
        changed = corrections_differ(now, new)
        if changed:
            for role, fix in corrections(new).items():
                live[role].inner = fix
        now = new


def corrections_differ(a: Settings, b: Settings) -> bool:
    """Whether two settings lead to different corrections (initialisation, data and seed do not count)."""
    fixed = {"init", "source", "seed"}
    return any(getattr(a, f.name) != getattr(b, f.name) for f in fields(Settings) if f.name not in fixed)
