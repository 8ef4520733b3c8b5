"""Everything that a visitor can set, as one value: parsed from untrusted input, and written back as an address.

Sliders, addresses and limits on the server are the same numbers: `RANGES` and `CHOICES`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlencode

from spectral_core.projections import ROLES

__all__ = [
    "ARMS", "CHOICES", "INITS", "KINDS", "LIMITS", "MOST_ARMS", "PRESERVES", "RANGES", "ROLES", "SCOPES", "SEED_MAX",
    "SOURCES", "Settings", "control_names", "parse_settings", "to_query",
]  # fmt: skip

KINDS = {
    "targets": "Clamp to σ_min … σ_max", "kappa": "Target κ", "profile": "Profile: σ_max, σ_min, decay",
    "drawn": "Drawn by hand", "identity": "λ·I (paper)", "polar": "Polar, κ ≤ 2",
}  # fmt: skip
SCOPES = {"matrix": "whole matrix", "head": "each head", "packed": "Q, K, V stacked"}
PRESERVES = {"none": "no", "spectral": "‖W‖₂", "frobenius": "‖W‖_F"}
INITS = {
    "trunc-normal": "small, std 0.02", "xavier": "Xavier", "gaussian": "Gaussian, std 1/√D", "orthogonal": "orthogonal",
    "collapsed": "collapsed: rank 2 and noise", "minilm": "MiniLM's real head",
}  # fmt: skip
SOURCES = {
    "digits": "8×8 digits (UCI)", "mnist": "28×28 digits (MNIST)", "listops": "ListOps, short",
    "text": "English, next character",
}  # fmt: skip
ARMS = {
    "plain": "plain", "shaped": "your sliders", "identity": "λ·I", "polar": "polar", "calibrated": "calibrated",
    "conditioned": "Conditioned Initialization", "qk-norm": "QK-norm", "xavier": "Xavier, plain",
}  # fmt: skip
CHOICES: dict[str, Mapping[str, str]] = {
    "kind": KINDS, "preserve": PRESERVES, "scope": SCOPES, "init": INITS, "source": SOURCES,
}  # fmt: skip
#: setting by role: (smallest, largest, default, step)
RANGES = {
    "min": (0.0, 4.0, 0.5, 0.05),
    "max": (0.05, 6.0, 2.0, 0.05),
    "decay": (0.0, 8.0, 1.0, 0.1),
    "kappa": (1.0, 100.0, 4.0, 0.5),
    "lam": (0.0, 12.0, 1.0, 0.05),
}
LIMITS = {"seed": (0.0, 9999.0, 0.0, 1.0), "log_lr": (-4.0, -1.5, -3.0, 0.1)}  # the settings that no role has
SEED_MAX = int(LIMITS["seed"][1])
MOST_ARMS, MOST_VALUES, LARGEST = 4, 32, 16.0  # arms of a race; bars of a drawn spectrum; their height: λ = 12 and W


def _defaults(name: str) -> dict[str, float]:
    return dict.fromkeys(ROLES, RANGES[name][2])


@dataclass(frozen=True)
class Settings:
    """One visitor's controls. The dicts are by role; only those that `kind` names are used.

    Attributes:
        kind, roles, preserve, scope: the correction, where it is put, and to what.
        init, source, seed: the weights and the tokens that it is put on.
        min, max, decay, kappa, lam: the sliders.
        drawn: singular values as drawn, largest first; empty where nothing was drawn.
        arms, log_lr: of the race; log10 of the learning rate.
    """

    kind: str = "targets"
    roles: str = "qkv"
    preserve: str = "none"
    scope: str = "matrix"
    init: str = "trunc-normal"
    source: str = "digits"
    seed: int = 0
    min: dict[str, float] = field(default_factory=lambda: _defaults("min"))
    max: dict[str, float] = field(default_factory=lambda: _defaults("max"))
    decay: dict[str, float] = field(default_factory=lambda: _defaults("decay"))
    kappa: dict[str, float] = field(default_factory=lambda: _defaults("kappa"))
    lam: dict[str, float] = field(default_factory=lambda: _defaults("lam"))
    drawn: dict[str, tuple[float, ...]] = field(default_factory=lambda: dict.fromkeys(ROLES, ()))
    arms: tuple[str, ...] = ("plain", "shaped", "xavier")
    log_lr: float = -3.0

    @property
    def lr(self) -> float:
        """Learning rate of every arm."""
        return 10**self.log_lr


def control_names() -> list[str]:
    """Every control by name, in the order in which pages list their values."""
    by_role = [f"{name}_{role}" for name in (*RANGES, "drawn") for role in ROLES]
    return [*CHOICES, "roles", "seed", *by_role, "arms", "log_lr"]


def parse_settings(raw: Mapping[str, object]) -> tuple[Settings, list[str]]:
    """Settings from untrusted values, and a sentence for each value that was clamped or refused.

    Args:
        raw: by the names of `control_names`. Missing names keep their default; unknown ones are ignored.
    """
    out, notices = Settings(), []
    for name, allowed in CHOICES.items():
        if name in raw:
            if isinstance(raw[name], str) and raw[name] in allowed:
                out = replace(out, **{name: raw[name]})  # type: ignore[arg-type]
            else:
                used = f"{getattr(out, name)} is used"
                notices.append(f"{name}: {_show(raw[name])} is not one of {', '.join(allowed)}; {used}")
    if "roles" in raw:
        out = replace(out, roles=_roles(raw["roles"], notices))
    if "arms" in raw:
        out = replace(out, arms=_arms(raw["arms"], out.arms, notices))
    for name, (low, high, default, _) in LIMITS.items():
        if name in raw:
            number = _clamp(name, raw[name], low, high, default, notices)
            out = replace(out, **{name: int(number) if name == "seed" else number})  # type: ignore[arg-type]
    for name, (low, high, default, _) in RANGES.items():
        values = {
            r: _clamp(key, raw[key], low, high, default, notices) if (key := f"{name}_{r}") in raw else default
            for r in ROLES
        }
        out = replace(out, **{name: values})  # type: ignore[arg-type]
    out = replace(out, drawn={r: _drawn(f"drawn_{r}", raw.get(f"drawn_{r}", ""), notices) for r in ROLES})
    if out.kind in ("targets", "profile"):
        for r in ROLES:
            if out.min[r] > out.max[r]:
                low, high = out.min[r], out.max[r]
                notices.append(f"σ_min {low:g} is above σ_max {high:g} for {r.upper()}; {high:g} is used for both")
                out = replace(out, min={**out.min, r: out.max[r]})
    return out, notices


def to_query(settings: Settings) -> str:
    """The address of these settings, without "?": what differs from the defaults, and always the seed.

    >>> to_query(Settings(kind="identity", lam={"q": 10.0, "k": 1.0, "v": 1.0}))
    'kind=identity&seed=0&lam_q=10'
    """
    plain, out = Settings(), {}
    for name in control_names():
        stem, _, role = name.rpartition("_")
        by_role = stem in (*RANGES, "drawn")
        value, default = ((getattr(s, stem)[role] if by_role else getattr(s, name)) for s in (settings, plain))
        if value != default or name == "seed":
            out[name] = _write(value) or "none"  # parse_qsl drops what is empty
    return urlencode(out, safe=",")


def _write(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(_write(v) for v in value)
    return value if isinstance(value, str) else f"{value:.4g}"


def _roles(value: object, notices: list[str]) -> str:
    listed = "" if value == "none" else value
    is_list = isinstance(listed, (str, list, tuple))
    letters = {r.lower() if isinstance(r, str) else "?" for r in listed} if is_list else {"?"}  # type: ignore[attr-defined]
    if letters - set(ROLES):
        notices.append(f"roles: {_show(value)} is not a subset of Q, K, V; all three are used")
        return "".join(ROLES)
    return "".join(r for r in ROLES if r in letters)


def _arms(value: object, default: tuple[str, ...], notices: list[str]) -> tuple[str, ...]:
    named = value.split(",") if isinstance(value, str) else value
    chosen = [a for a in named[:99] if isinstance(a, str)] if isinstance(named, (list, tuple)) else []
    known = tuple(a for a in ARMS if a in chosen)
    unknown = not isinstance(named, (list, tuple)) or len(chosen) < len(named) or any(a not in ARMS for a in chosen)
    if unknown or not known:
        used = ", ".join(known or default)
        notices.append(f"arms: {_show(value)} is not a choice of {', '.join(ARMS)}; {used} used")
    if len(known) > MOST_ARMS:
        notices.append(f"arms: at most {MOST_ARMS} can race, got {len(known)}; {', '.join(known[:MOST_ARMS])} race")
    return known[:MOST_ARMS] or default


def _drawn(name: str, value: object, notices: list[str]) -> tuple[float, ...]:
    """Up to `MOST_VALUES` numbers in [0, LARGEST], sorted; () for nothing or for what cannot be read."""
    parts = value.replace(",", " ").split() if isinstance(value, str) else value
    if parts is None or parts == [] or parts == ():
        return ()
    wanted = f"up to {MOST_VALUES} numbers from 0 to {LARGEST:g}"
    if not isinstance(parts, (list, tuple)) or len(parts) > MOST_VALUES:
        notices.append(f"{name}: {_show(value)} is not {wanted}; it is ignored")
        return ()
    try:
        numbers = [float(p) if type(p) in (str, int, float) else math.nan for p in parts]
    except (ValueError, OverflowError):
        numbers = [math.nan]
    if any(math.isnan(x) for x in numbers):
        notices.append(f"{name}: {_show(value)} is not {wanted}; it is ignored")
        return ()
    inside = [min(max(x, 0.0), LARGEST) for x in numbers]
    if inside != numbers:
        notices.append(f"{name}: values outside [0, {LARGEST:g}]; the nearest limit is used")
    if not any(inside):
        notices.append(f"{name}: all zero, which leaves nothing of W; it is ignored")
        return ()
    return tuple(sorted((float(f"{x:.4g}") for x in inside), reverse=True))  # as it is written in an address


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
    try:
        text = repr(value[:99] if isinstance(value, (str, list, tuple)) else value)
    except ValueError:  # a whole number of more digits than Python writes
        text = "a huge number"
    return text if len(text) <= 40 else text[:37] + "…"
