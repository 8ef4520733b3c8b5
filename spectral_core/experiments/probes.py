"""κ(W), κ(J) and saturation of a model while it trains, as plain numbers for the record."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from spectral_core.experiments.stand_in import LARGEST, StandIn, stand_in
from spectral_core.head_jacobians import HeadJacobian, attention_jacobians
from spectral_core.projections import find_projections
from spectral_core.spectrum import condition_number

__all__ = ["probe"]


def probe(model: nn.Module, inputs: Any) -> dict[str, Any]:
    """Of one example: head 0 of the first and the last attention layer.

    Returns:
        kappa_w: geometric mean of κ over all whole W_Q, W_K, W_V, corrections included; kappa_j: geometric mean of
        κ(J), κ⁺ where J is rank deficient; saturation: mean of max_j p_ij; norms: of J's Q, K and V blocks;
        kappa_j_of: "model", or "stand-in" where a layer's own Jacobian is another one, or "none" with the reason.
    """
    weights = [p.weight.detach() for p in find_projections(model)]
    if not all(bool(torch.isfinite(w).all()) for w in weights):
        return {"kappa_w": None, "kappa_j": None, "saturation": None, "kappa_j_of": "none: weights are not finite"}
    found: dict[str, Any] = {"kappa_w": _mean_kappa([float(condition_number(w)) for w in weights])}
    refused: dict[str, str] = {}
    try:
        double: StandIn | None = stand_in(model, inputs, (0, -1))
    except ValueError as error:
        double, refused[""] = None, str(error)
    records, what = [], "model"
    if double is None or double.rows <= LARGEST:
        records = attention_jacobians(model, inputs, layers=(0, -1), heads=(0,), refused=refused, progress=False)
    if (refused or not records) and double is not None:
        what = "stand-in"
        records = attention_jacobians(double, torch.zeros(1), heads=(0,), refused=refused, progress=False)
    if not records:
        reason = f"none: {next(iter(refused.values()), '')}"
        return found | {"kappa_j": None, "saturation": None, "kappa_j_of": reason}
    return found | {
        "kappa_j": _mean_kappa([k for record in records for k in _kappas(record)]),
        "saturation": sum(float(r.saturation.mean()) for r in records) / len(records),
        "norms": {role: sum(float(r.norms[role].mean()) for r in records) / len(records) for role in "qkv"},
        "kappa_j_of": what,
    }


def _kappas(record: HeadJacobian) -> list[float]:
    value = record.condition_number
    return torch.where(torch.isfinite(value), value, record.effective_condition_number).tolist()


def _mean_kappa(values: list[float]) -> float | str:
    logs = [math.log(value) for value in values if value > 0]
    if not logs or not all(map(math.isfinite, logs)):
        return "inf"
    return math.exp(sum(logs) / len(logs))
