"""The arms: how a model's queries, keys and values differ from plain, each one line.

An arm is a row of changes that are made to a model in place before its first step. A change takes (model, what it is
called with, seed) and may raise ValueError where it has no meaning for that model; the run is then refused, by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from spectral_core._checks import check_choice
from spectral_core.calibration import Calibration, calibrate
from spectral_core.conditioned_weight import conditioned_weights
from spectral_core.conditioning import condition, fold
from spectral_core.corrections import Correction, FixedCorrection, IdentityCorrection
from spectral_core.experiments.stand_in import LARGEST, stand_in
from spectral_core.initialization import initialize
from spectral_core.polar_correction import PolarCorrection
from spectral_core.projections import HEAD_COUNTS, find_projections
from spectral_core.spectrum_target import SpectrumTarget

__all__ = ["ARMS", "Arm", "find_arm", "recalibrate"]

Change = Callable[[nn.Module, Any, int], "str | None"]  # returns a note for the record
PAPER = 10.0  # λ
WIDE = 20_000_000  # parameters of a model on all of whose layers candidates are still quick to try


@dataclass(frozen=True)
class Arm:
    """One way to start and to correct a model.

    Attributes:
        name: on the command line; title: in tables.
        kind: "plain", "control" (initialisations and placebos), "paper", "correction" (ours), or "rival".
        changes: made in this order.
        optimizer: "adamw", or "muon" for the matrices inside the blocks.
        again: calibrate anew at each quarter of the run.
        against: arms that it builds on, and must beat beside the initialisation controls.
    """

    name: str
    title: str
    kind: str
    changes: tuple[Change, ...] = ()
    optimizer: str = "adamw"
    again: bool = False
    against: tuple[str, ...] = ()

    def prepare(self, model: nn.Module, inputs: Any, seed: int) -> list[str]:
        """Make the changes; returns notes."""
        return [note for change in self.changes if (note := change(model, inputs, seed))]


def find_arm(name: str) -> Arm:
    """Raises ValueError, with the known ones, for an unknown name."""
    check_choice(name, "arm", tuple(ARMS))
    return ARMS[name]


def _initialize(scheme: str, lam: float, model: nn.Module, inputs: Any, seed: int) -> None:
    initialize(model, scheme, lam=lam, seed=seed + 77)  # another draw than the model's own


def _condition(correction: Correction | dict[str, Correction], scope: str, model: nn.Module, *_: Any) -> None:
    # each model gets corrections of its own: some remember weights
    make = _copy(correction) if isinstance(correction, Correction) else {r: _copy(c) for r, c in correction.items()}
    condition(model, make, scope=scope)


def _copy(correction: Correction) -> Correction:
    return type(correction)(**correction.settings())


def _rotate(model: nn.Module, inputs: Any, seed: int) -> None:
    """A random (semi-)orthogonal matrix in place of I, of the same norm, another one for every weight."""
    by_name: dict[str, dict[str, Correction]] = {}
    for i, projection in enumerate(find_projections(model)):
        generator = torch.Generator().manual_seed(1000 * seed + i)
        c = nn.init.orthogonal_(torch.empty(projection.weight.shape), generator=generator)
        by_name.setdefault(projection.name, {})[projection.role] = FixedCorrection(c)
    for name, corrections in by_name.items():
        condition(model, corrections, include=re.escape(name))


def _calibrate(model: nn.Module, inputs: Any, seed: int) -> str:
    """What `calibrate` chooses at one training example, in the first and the last layer."""
    found, what = calibrated_choice(model, inputs)
    if found.choice:
        condition(model, {role: _copy(fix) for role, fix in found.choice.items()})
    return f"calibrated on {what}: {found.table[0].name}"


def calibrated_choice(model: nn.Module, inputs: Any) -> tuple[Calibration, str]:
    """The choice, and what it was made on: "the model", or "a stand-in" where its own Jacobian is another one."""
    double = stand_in(model, inputs, (0, -1))
    try:
        if double.rows > LARGEST or sum(p.numel() for p in model.parameters()) > WIDE:
            raise ValueError("too large for every candidate on every layer")
        return calibrate(model, inputs, layers=(0, -1), heads=(0,), exact=True, progress=False), "the model"
    except ValueError:
        return calibrate(double, torch.zeros(1), heads=(0,), exact=True, progress=False), "a stand-in"


def recalibrate(model: nn.Module, inputs: Any) -> str:
    """Fold what is there, so that the model computes what it did, and calibrate again."""
    if conditioned_weights(model):
        fold(model)
    return _calibrate(model, inputs, 0)


def _qk_norm(model: nn.Module, *_: Any) -> None:
    """RMS norms on queries and keys, where a module has a place for them.

    Raises:
        ValueError: no attention module has.
    """
    done = 0
    for module in model.modules():
        for q, k in (("q_norm", "k_norm"), ("norm_q", "norm_k")):
            if not isinstance(getattr(module, q, None), nn.Identity):
                continue
            heads = next(n for key in HEAD_COUNTS if isinstance(n := getattr(module, key, None), int))
            layer: Any = getattr(module, "qkv", None) or getattr(module, "query", None)
            width = layer.in_features // heads
            setattr(module, q, nn.RMSNorm(width))
            setattr(module, k, nn.RMSNorm(width))
            done += 1
    if not done:
        raise ValueError("qk-norm: expected attention with q_norm and k_norm (ViT and DeiT of timm), got none")


class _Gain(nn.Module):
    """γ of σReparam, learned, 1 at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, w: Tensor) -> Tensor:
        return self.gain * w


def _sigma_reparam(model: nn.Module, *_: Any) -> None:
    """W -> γ W / σ(W) on every linear layer, σ by power iteration (Zhai et al. 2023)."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError("sigma-reparam: expected nn.Linear layers, got none")
    for module in linear:
        parametrizations.spectral_norm(module)
        parametrize.register_parametrization(module, "weight", _Gain())


def _output(lam: float, model: nn.Module, *_: Any) -> None:
    """λI on the output layer of every attention module, too."""
    for layer in _output_layers(model):
        parametrize.register_parametrization(layer, "weight", IdentityCorrection(lam))


@torch.no_grad()
def _xavier_output(model: nn.Module, inputs: Any, seed: int) -> None:
    """Xavier for the output layers too: what λI on them must beat."""
    generator = torch.Generator().manual_seed(seed + 78)
    for layer in _output_layers(model):
        layer.weight.copy_(nn.init.xavier_uniform_(torch.empty(layer.weight.shape), generator=generator))


def _output_layers(model: nn.Module) -> list[Any]:
    """The output layer of every attention module.

    Raises:
        ValueError: an attention module whose output layer is not known.
    """
    names = ("proj", "out", "out_proj", "c_proj", "output.dense", "o_proj")
    modules, found = dict(model.named_modules()), []
    for attention in dict.fromkeys(p.attention for p in find_projections(model)):
        parent = attention.rpartition(".")[0]
        places = [f"{attention}.{n}" for n in names] + [f"{parent}.{n}" for n in names]
        place = next((p for p in places if hasattr(modules.get(p), "weight")), None)
        if place is None:
            raise ValueError(f"output: expected an output layer of {attention} under one of {names}, got none")
        found.append(modules[place])
    return found


def _all(arm: list[Arm]) -> dict[str, Arm]:
    return {a.name: a for a in arm}


_start = partial(partial, _initialize)
XAVIER, CALIBRATED, QK_NORM = _start("xavier", 0.0), _calibrate, _qk_norm


def _fix(correction: Correction | dict[str, Correction], scope: str = "matrix") -> Change:
    return partial(_condition, correction, scope)


ARMS = _all([
    Arm("plain", "plain (the model's own initialisation)", "plain"),
    # controls: initialisations, and placebos of the same norm
    Arm("xavier", "Xavier", "control", (XAVIER,)),
    Arm("orthogonal", "orthogonal", "control", (_start("orthogonal", 0.0),)),
    Arm("xavier-output", "Xavier, the output too", "control", (XAVIER, _xavier_output)),
    Arm("identity-init", "I added at the start only", "control", (_start("identity-shift", 1.0),)),
    Arm("conditioned-init", "Conditioned Initialization", "control", (_start("conditioned", 0.0),)),
    Arm("rotation", "random orthogonal C, norm 1", "control", (_rotate,)),
    # the paper, three readings of its scope, and one role at a time
    Arm("paper", "paper, λ = 10", "paper", (_fix(IdentityCorrection(PAPER)),)),
    Arm("paper-head", "paper, λ = 10 by head", "paper", (_fix(IdentityCorrection(PAPER), "head"),)),
    Arm("paper-packed", "paper, λ = 10 on the packed weight", "paper", (_fix(IdentityCorrection(PAPER), "packed"),)),
    Arm("q-only", "λ = 10 on Q", "paper", (_fix({"q": IdentityCorrection(PAPER)}),)),
    Arm("k-only", "λ = 10 on K", "paper", (_fix({"k": IdentityCorrection(PAPER)}),)),
    Arm("v-only", "λ = 10 on V", "paper", (_fix({"v": IdentityCorrection(PAPER)}),)),
    # ours
    Arm("identity", "λ = 1", "correction", (_fix(IdentityCorrection(1.0)),)),
    Arm("calibrated", "calibrated", "correction", (CALIBRATED,)),
    Arm("polar", "polar", "correction", (_fix(PolarCorrection()),)),
    Arm("target", "target κ = 4, ‖W‖_F kept", "correction",
        (_fix(SpectrumTarget(kappa=4.0, gradient="straight-through", preserve="frobenius")),)),
    Arm("v1", "λ = 1 on V", "correction", (_fix({"v": IdentityCorrection(1.0)}),)),
    Arm("xavier-v1", "Xavier, λ = 1 on V", "correction", (XAVIER, _fix({"v": IdentityCorrection(1.0)}))),
    Arm("xavier-v1-output", "Xavier, λ = 1 on V and on the output", "correction",
        (XAVIER, _xavier_output, _fix({"v": IdentityCorrection(1.0)}), partial(_output, 1.0))),
    Arm("xavier-polar", "Xavier, polar, ‖W‖_F kept", "correction",
        (XAVIER, _fix(PolarCorrection(preserve="frobenius")))),
    Arm("xavier-calibrated", "Xavier, calibrated", "correction", (XAVIER, CALIBRATED)),
    Arm("recalibrated", "calibrated again each quarter", "correction", (CALIBRATED,), again=True),
    Arm("calibrated-output", "calibrated, λ = 1 on the output", "correction", (CALIBRATED, partial(_output, 1.0))),
    # rivals, and ours with them
    Arm("qk-norm", "QK-norm", "rival", (QK_NORM,)),
    Arm("qk-norm-v1", "QK-norm, λ = 1 on V", "correction", (QK_NORM, _fix({"v": IdentityCorrection(1.0)})),
        against=("qk-norm",)),
    Arm("sigma-reparam", "σReparam", "rival", (_sigma_reparam,)),
    Arm("muon", "Muon", "rival", optimizer="muon"),
    Arm("muon-xavier", "Muon, Xavier", "rival", (XAVIER,), optimizer="muon", against=("muon",)),
    Arm("muon-calibrated", "Muon, calibrated", "correction", (CALIBRATED,), optimizer="muon",
        against=("muon", "muon-xavier")),
    Arm("muon-xavier-v1", "Muon, Xavier, λ = 1 on V", "correction", (XAVIER, _fix({"v": IdentityCorrection(1.0)})),
        optimizer="muon", against=("muon", "muon-xavier")),
])  # fmt: skip
