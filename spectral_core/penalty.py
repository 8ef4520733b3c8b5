"""A loss term on the singular values of the projections, for those who prefer one to a reparametrisation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spectral_core._checks import check_choice, check_tensor
from spectral_core.layouts import Layout
from spectral_core.projections import ROLES, find_projections

__all__ = ["spectral_penalty"]

KINDS = ("isometry", "log-spread")
FLOOR = 1e-6  # of the mean σ²: below a thousandth of the root mean square a singular value no longer pulls harder


def spectral_penalty(
    model: nn.Module,
    kind: str = "isometry",
    *,
    projections: str = "qkv",
    layouts: Mapping[str, Layout] | None = None,
) -> Tensor:
    """How far the singular values of the query, key and value weights are from being equal; 0 when they are.

    With G = WᵀW (the smaller side, k rows) and c = ‖W‖_F²/k, the mean of the σ_i²:

    * "isometry": ‖G/c − I‖_F²/k, the variance of the σ_i² over the square of their mean, in [0, k − 1]. It feels
      the large singular values most.
    * "log-spread": log c − (1/k) log det(G + εcI), ε = 10⁻⁶, the log of the ratio of arithmetic to geometric mean of
      the σ_i². It feels the small ones too, down to a thousandth of the root mean square; in float64.

    Neither uses an SVD, neither depends on the scale of W, both are smooth, with finite gradients also for repeated
    and zero singular values and for W = 0. Conditioned weights enter as they are used, W + C.

    Args:
        model: any model of `find_projections`.
        kind: "isometry" or "log-spread".
        projections: the roles that count, any subset of "qkv".
        layouts: as in `find_projections`.

    Returns:
        (), the mean over all matrices; add it to the loss, with a weight.

    Raises:
        ValueError: no projections, an unknown `kind` or role, or weights that are not finite (on the CPU).
    """
    check_choice(kind, "kind", KINDS)
    if not isinstance(projections, str) or not projections or set(projections) - set(ROLES):
        raise ValueError(f'projections: expected a non-empty subset of "qkv", got {projections!r}')
    by_shape: dict[tuple, list[Tensor]] = defaultdict(list)
    with parametrize.cached():  # a conditioned weight that holds three roles is computed once
        for p in find_projections(model, layouts=layouts):
            if p.role in projections:
                w = p.weight
                check_tensor(w, f"{p.name}.{p.parameter}".lstrip("."), finite=w.device.type == "cpu")
                by_shape[(*w.shape, w.dtype, w.device)].append(w)
    measure = {"isometry": _isometry, "log-spread": _log_spread}[kind]
    with torch.autocast(device_type=w.device.type, enabled=False):
        values = [measure(torch.stack(weights)) for weights in by_shape.values()]  # equal shapes in one product
        return torch.cat([value.to(values[0]) for value in values]).mean()


def _gram(w: Tensor) -> tuple[Tensor, Tensor]:
    """The smaller Gram matrix of W (b, m, n) over its mean eigenvalue, and whether W = 0, (b)."""
    unit = w.detach().abs().amax((-2, -1), keepdim=True)  # or squares overflow and vanish
    w = w / unit.where(unit > 0, 1)
    gram = w @ w.mT if w.shape[-2] < w.shape[-1] else w.mT @ w
    zero = (unit == 0).flatten()
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1) + zero.to(w.dtype)
    return gram / mean[:, None, None], zero


def _isometry(w: Tensor) -> Tensor:
    scaled, zero = _gram(w.to(torch.promote_types(w.dtype, torch.float32)))
    eye = torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=w.device)
    return ((scaled - eye).square().sum((-2, -1)) / len(eye)).where(~zero, 0)


def _log_spread(w: Tensor) -> Tensor:
    scaled, zero = _gram(w.cpu().double() if w.device.type == "mps" else w.double())
    eye = torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
    factor = torch.linalg.cholesky(scaled + (FLOOR + zero.to(scaled.dtype))[:, None, None] * eye)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().mean(-1)
    return (torch.log1p(scaled.new_tensor(FLOOR)) - log_det).where(~zero, 0).to(w.device)
