"""spectral_penalty against its definition in NumPy, finite differences, and what makes a loss term usable."""

import copy

import numpy as np
import pytest
import torch
from families import TIMM, TRANSFORMERS, Asymmetric, asymmetric
from matrices import prescribed, svd_forbidden
from torch import nn

from spectral_core import IdentityCorrection, SpectralConditionedAttention, condition, spectral_penalty

KINDS = ("isometry", "log-spread")
FLOOR = 1e-6


class One(nn.Module):
    """Three projections of shapes of their own."""

    def __init__(self, *weights):
        super().__init__()
        for name, w in zip(("q_proj", "k_proj", "v_proj"), weights, strict=True):
            layer = nn.Linear(*reversed(w.shape), bias=False).to(w.dtype)
            layer.weight = nn.Parameter(w.clone())
            setattr(self, name, layer)


def expected(w, kind):
    values = np.linalg.svd(w.detach().double().numpy(), compute_uv=False) ** 2
    mean = values.mean()
    if kind == "isometry":
        return np.mean((values / mean - 1) ** 2)
    return np.log1p(FLOOR) - np.mean(np.log(values / mean + FLOOR))


def three(values, dtype=torch.float64):
    return [prescribed(values, *shape, seed=i)[0].to(dtype) for i, shape in enumerate([(4, 4), (4, 6), (7, 4)])]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", [[3, 2, 1, 0.5], [2, 2, 2, 2], [1, 1, 1e-3, 0], [1, 1e-9, 1e-9, 1e-9]])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_it_is_what_it_says(values, kind, scale, monkeypatch):
    weights = [scale * w for w in three(values)]
    mean = np.mean([expected(w, kind) for w in weights])
    with svd_forbidden(monkeypatch):
        value = spectral_penalty(One(*weights), kind)
    assert value.ndim == 0
    assert float(value) == pytest.approx(mean, rel=1e-6, abs=1e-9)
    assert float(spectral_penalty(One(*weights), kind, projections="v")) == pytest.approx(
        expected(weights[2], kind), rel=1e-6, abs=1e-9
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", [[3, 2, 1, 0.5], [2, 2, 1, 1], [1, 1, 1, 0]])
def test_the_gradient_is_the_derivative_also_at_repeated_and_zero_values(values, kind):
    model = One(*three(values))
    spectral_penalty(model, kind).backward()
    w = model.v_proj.weight
    direction = torch.randn(w.shape, dtype=w.dtype, generator=torch.Generator().manual_seed(3))
    h = 1e-6 if values[-1] else 1e-5  # rounding, 1e-12, over h; the floor bends at 1e-3
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            w += sign * h * direction
            sides.append(float(spectral_penalty(model, kind)))
            w -= sign * h * direction
    slope = (sides[0] - sides[1]) / (2 * h)
    assert float((w.grad * direction).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_weights_and_half_types_stay_finite(kind, dtype):
    weights = [torch.zeros(4, 4), 1e20 * torch.eye(4, 6), 1e-30 * torch.eye(7, 4)]
    model = One(*(w.to(dtype) for w in weights))
    value = spectral_penalty(model, kind)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)  # all singular values equal, at any scale
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_descending_it_conditions_the_weights(kind):
    torch.manual_seed(0)
    model = SpectralConditionedAttention(24, 4)
    before = max(np.linalg.cond(getattr(model, n).weight.detach().numpy()) for n in ("query", "key", "value"))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        spectral_penalty(model, kind).backward()
        optimizer.step()
    after = max(np.linalg.cond(getattr(model, n).weight.detach().numpy()) for n in ("query", "key", "value"))
    assert before > 20
    assert after < 3


def test_conditioned_weights_count_as_they_are_used():
    model = SpectralConditionedAttention(6, 2)
    by_hand = One(*(getattr(model, n).weight.detach() + 3 * torch.eye(6) for n in ("query", "key", "value")))
    condition(model, IdentityCorrection(3.0))
    torch.testing.assert_close(spectral_penalty(model), spectral_penalty(by_hand))


def small():
    return SpectralConditionedAttention(4, 2)


def nan_weight():
    model = SpectralConditionedAttention(4, 2)
    model.key.weight.data[0, 0] = torch.nan
    return model


@pytest.mark.parametrize(("make", "arguments", "message"), [
    (small, {"kind": "svd"}, r"kind: expected one of \('isometry', 'log-spread'\), got 'svd'"),
    (small, {"projections": "qx"}, r'projections: .* subset of "qkv", got \'qx\''),
    (lambda: nn.Linear(3, 3), {}, r"expected a model with query, key and value weights"),
    (nan_weight, {}, r"key.weight: expected finite entries, got 1 inf or nan of 16"),
])
def test_bad_input_is_refused(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        spectral_penalty(make(), **arguments)


@pytest.mark.parametrize("name", ["GPT-2", "GPT-NeoX", "Falcon, key-value groups", "timm ViT"])
@pytest.mark.parametrize("is_conditioned", [False, True])
def test_fused_weights_count_role_by_role_and_send_gradients_to_their_rows(name, is_conditioned):
    family = next(f for f in TIMM + TRANSFORMERS if f.name == name)
    model = family.model()
    expected, hand = [], copy.deepcopy(model)
    if is_conditioned:
        condition(model, Asymmetric())
        family.by_hand(hand, lambda _, w: w + asymmetric(*w.shape))
    for _, parameter, rows in family.parameters(hand):
        w = parameter.detach().double().numpy()
        for index in rows.values():
            s = np.linalg.svd((w.T if family.columns else w)[index], compute_uv=False) ** 2
            expected.append(np.mean((s / s.mean() - 1) ** 2))
    value = spectral_penalty(model)
    assert float(value) == pytest.approx(np.mean(expected), rel=1e-4)
    value.backward()
    for key, parameter in model.named_parameters():
        touched = key.removesuffix(".original").replace("parametrizations.", "") in dict(family.added(family.model()))
        assert (parameter.grad is not None and bool(parameter.grad.abs().max() > 0)) == touched
