"""nn.MultiheadAttention and nn.TransformerEncoder: packed, split, and the fast path that reads weights directly."""

import copy

import numpy as np
import pytest
import torch
from families import Asymmetric, asymmetric
from torch import nn

from spectral_core import IdentityCorrection, condition, find_projections, fold

FACTOR = {"q": 1.0, "k": -0.5, "v": 2.0}


def corrections():
    return {role: Asymmetric(factor) for role, factor in FACTOR.items()}


def edit_packed(attention, roles="qkv"):
    w = attention.in_proj_weight.detach().numpy()
    third = len(w) // 3
    for i, role in enumerate("qkv"):
        if role in roles:
            w[i * third : (i + 1) * third] += FACTOR[role] * asymmetric(third, w.shape[1])


def make_encoder(**settings):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 2, 20, dropout=0.0, batch_first=True, **settings)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)


@pytest.mark.parametrize(("settings", "is_fast"), [({}, True), ({"norm_first": True}, True), ({"bias": False}, False)])
def test_the_fast_path_of_an_encoder_sees_the_correction(settings, is_fast, monkeypatch):
    plain, x = make_encoder(**settings).eval(), torch.randn(3, 5, 12)
    expected = copy.deepcopy(plain)
    for layer in expected.layers:
        edit_packed(layer.self_attn)
    fused, calls = torch._transformer_encoder_layer_fwd, []
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *a: calls.append(1) or fused(*a))
    model = copy.deepcopy(plain)
    report = condition(model, corrections())
    assert [(p.name, p.role) for p in report][:3] == [("layers.0.self_attn.in_proj_weight", r) for r in "qkv"]
    with torch.no_grad():
        fast = model.eval()(x)
        taken = len(calls)
        slow = model.train()(x)
        torch.testing.assert_close(fast, expected(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(slow, expected.train()(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    assert taken == 2 * is_fast
    keys = list(plain.state_dict())
    fold(model)
    assert list(model.state_dict()) == keys
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    torch.testing.assert_close(model.eval()(x), expected.eval()(x), rtol=1e-5, atol=1e-5)


def test_padding_and_nested_tensors():
    plain = make_encoder().eval()
    expected = copy.deepcopy(plain)
    for layer in expected.layers:
        edit_packed(layer.self_attn, "v")
    condition(plain, Asymmetric(FACTOR["v"]), projections="v")
    x, padding = torch.randn(3, 5, 12), torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    with torch.no_grad():
        torch.testing.assert_close(
            plain(x, src_key_padding_mask=padding), expected(x, src_key_padding_mask=padding), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("training", [True, False])
def test_packed_attention_by_itself_and_its_gradient(training):
    torch.manual_seed(1)
    plain, x = nn.MultiheadAttention(12, 3, batch_first=True).train(training), torch.randn(2, 5, 12)
    model, expected = copy.deepcopy(plain), copy.deepcopy(plain)
    edit_packed(expected)
    condition(model, corrections())
    for m in (model, expected):
        m(x, x, x)[0].sin().sum().backward()
    torch.testing.assert_close(model(x, x, x)[0], expected(x, x, x)[0], rtol=1e-5, atol=1e-5)
    gradient = model.parametrizations.in_proj_weight.original.grad
    torch.testing.assert_close(gradient, expected.in_proj_weight.grad, rtol=1e-4, atol=1e-6)


def test_scopes_of_a_packed_weight():
    plain = nn.MultiheadAttention(12, 3)
    w = plain.in_proj_weight.detach().clone()
    model = copy.deepcopy(plain)
    report = condition(model, IdentityCorrection(2.0), scope="packed")
    assert [(p.role, p.shape) for p in report] == [("qkv", (36, 12))]
    torch.testing.assert_close(model.in_proj_weight, w + 2 * torch.eye(36, 12))  # that is Q alone
    assert report.projections[0].kappa_after == pytest.approx(np.linalg.cond((w + 2 * torch.eye(36, 12)).numpy()), 1e-4)
    model = copy.deepcopy(plain)
    report = condition(model, IdentityCorrection(2.0), scope="head", projections="qk")
    eye = torch.cat([torch.eye(4, 12)] * 6 + [torch.zeros(12, 12)])
    torch.testing.assert_close(model.in_proj_weight, w + 2 * eye)
    assert [p.shape for p in report] == [(3, 4, 12)] * 2
    worst = max(np.linalg.cond(head) for head in (w + 2 * eye).numpy()[:12].reshape(3, 4, 12))
    assert report.projections[0].kappa_after == pytest.approx(worst, 1e-4)
    assert "κ of the worst head" in str(report)


def test_keys_and_values_of_other_widths_are_split():
    torch.manual_seed(2)
    plain = nn.MultiheadAttention(12, 3, kdim=7, vdim=5, batch_first=True)
    q, k, v = torch.randn(2, 4, 12), torch.randn(2, 6, 7), torch.randn(2, 6, 5)
    model, expected = copy.deepcopy(plain), copy.deepcopy(plain)
    for role, factor in FACTOR.items():
        w = getattr(expected, f"{role}_proj_weight").detach().numpy()
        w += factor * asymmetric(*w.shape)
    report = condition(model, corrections())
    assert [(p.name, p.shape) for p in report] == [
        ("q_proj_weight", (12, 12)), ("k_proj_weight", (12, 7)), ("v_proj_weight", (12, 5)),
    ]
    torch.testing.assert_close(model(q, k, v)[0], expected(q, k, v)[0], rtol=1e-5, atol=1e-5)
    fold(model)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert list(model._parameters) == list(plain._parameters)
    torch.testing.assert_close(model(q, k, v)[0], expected(q, k, v)[0], rtol=1e-5, atol=1e-5)


def test_extra_keys_and_decoders_are_found():
    decoder = nn.TransformerDecoderLayer(8, 2, 16)
    assert [p.name for p in find_projections(decoder)] == ["self_attn"] * 3 + ["multihead_attn"] * 3
    model = nn.MultiheadAttention(8, 2, add_bias_kv=True, batch_first=True)
    expected, x = copy.deepcopy(model), torch.randn(2, 3, 8)
    edit_packed(expected)
    condition(model, corrections())
    torch.testing.assert_close(model(x, x, x)[0], expected(x, x, x)[0], rtol=1e-5, atol=1e-5)
