"""Every architecture: condition and fold against plain weights edited by hand; where Q, K and V are, by function."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import TIMM, TRANSFORMERS, Asymmetric, asymmetric, timm, whole
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from spectral_core import condition, find_projections, fold, unfold
from spectral_core.families import KNOWN
from spectral_core.projections import survey

FAMILIES = TIMM + TRANSFORMERS
PER_HEAD = [family for family in FAMILIES if family.heads]
FUSED = [family for family in FAMILIES if any(rows.__name__ != whole("q").__name__ for rows in family.stored.values())]
FACTOR = {"q": 1.0, "k": -0.5, "v": 2.0}


def near(out, expected, tolerance=1e-5):
    """Relative in the Euclidean norm, float32."""
    return float((out - expected).norm()) <= tolerance * float(expected.norm())


def described(model):
    return [(key, tuple(value.shape), value.dtype) for key, value in model.state_dict().items()]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_condition_and_fold_equal_weights_edited_by_hand(family):
    model = family.model()
    plain, before = family.run(model), described(model)
    expected = family.run(
        family.by_hand(copy.deepcopy(model), lambda role, w: w + FACTOR[role] * asymmetric(*w.shape))
    )
    report = condition(model, {role: Asymmetric(factor) for role, factor in FACTOR.items()})
    stored = list(family.parameters(family.model()))
    assert len(report) == sum(len(rows) for _, _, rows in stored)
    assert {p.name for p in report} == {name.removesuffix(".weight") for name, _, _ in stored}
    assert not report.unmatched
    assert near(family.run(model), expected)
    assert not near(expected, plain, 1e-3)
    fold(model)
    assert near(family.run(model), expected)
    assert described(model) == before
    assert not any(parametrize.is_parametrized(module) for module in model.modules())


@torch.no_grad()
@pytest.mark.parametrize("family", PER_HEAD, ids=str)
def test_scope_head_corrects_every_head_by_itself(family):
    model = family.model()
    heads = {"q": family.heads, "k": family.kv_heads or family.heads, "v": family.kv_heads or family.heads}

    def edit(role, w):
        return np.concatenate([head + asymmetric(*head.shape) for head in np.split(w, heads[role])])

    expected = family.run(family.by_hand(copy.deepcopy(model), edit))
    report = condition(model, Asymmetric(), scope="head")
    assert near(family.run(model), expected)
    for line in report:
        assert line.shape[0] == heads[line.role]
    fold(model)
    assert near(family.run(model), expected)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_one_role_alone_leaves_the_others_and_unfold_leaves_all(family):
    model = family.model()
    plain, before = family.run(model), {key: value.clone() for key, value in model.state_dict().items()}
    expected = family.run(
        family.by_hand(copy.deepcopy(model), lambda role, w: w + asymmetric(*w.shape) * (role == "k"))
    )
    condition(model, Asymmetric(), projections="k")
    assert near(family.run(model), expected)
    unfold(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert torch.equal(family.run(model), plain)


class Seen(TorchFunctionMode):
    """The queries, keys and values that reach F.scaled_dot_product_attention."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            self.calls.append({name[0]: given[name] for name in ("query", "key", "value")})
        return func(*args, **kwargs)


def rows_by_attention(family, model):
    """{attention module: {role: (name of the layer, rows of its weight, index)}} by hand."""
    found = {}
    for name, parameter, rows in family.parameters(model):
        layer = name.removesuffix(".weight")
        for role, index in rows.items():
            w = parameter.mT if family.columns else parameter
            found.setdefault(layer.rpartition(".")[0], {})[role] = layer, w[index], index
    return found


def bias_of(model, attention, layer, index):
    module = model.get_submodule(attention)
    if getattr(module, "q_bias", None) is not None:  # BEiT and EVA keep it beside the layer
        return torch.cat([module.q_bias, module.k_bias, module.v_bias])[index]
    bias = model.get_submodule(layer).bias
    return torch.zeros(len(index)) if bias is None else bias[index]


@torch.no_grad()
@pytest.mark.parametrize("family", [f for f in FUSED if f.sdpa], ids=str)
def test_the_rows_written_by_hand_are_the_queries_keys_and_values_of_the_model(family):
    """At the first token, where rotary embeddings turn nothing."""
    model, inputs = family.model(), {}
    expected = rows_by_attention(family, model)
    for attention, roles in expected.items():
        module = model.get_submodule(attention)
        module.fused_attn = True
        layers = {layer for layer, _, _ in roles.values()}
        for name in [attention, *layers]:  # some call their layer, some only its weight
            model.get_submodule(name).register_forward_pre_hook(
                lambda _, args, kwargs, name=name: inputs.update({name: next(iter([*args, *kwargs.values()]))}),
                with_kwargs=True,
            )
    with Seen() as seen:
        family.run(model)
    assert len(seen.calls) == len(expected)
    for (attention, roles), call in zip(expected.items(), seen.calls, strict=True):
        for role, (layer, w, index) in roles.items():
            x = inputs.get(layer, inputs[attention])
            x = x.flatten(0, -3) if x.ndim != 4 else x.flatten(1, 2)
            made = x[:, 0] @ w.mT + bias_of(model, attention, layer, index)
            got = call[role].reshape(-1, *call[role].shape[-3:])[:, :, 0]
            count = getattr(model.get_submodule(attention), "num_heads", family.heads)
            of_role = count if role == "q" or family.kv_heads is None else family.kv_heads
            made, got = made.unflatten(-1, (of_role, -1)), got.repeat_interleave(count // got.shape[1], 1)
            torch.testing.assert_close(got, made.repeat_interleave(count // of_role, 1), rtol=1e-4, atol=1e-5)


def by_rows(model, family, x):
    """q, k and v (…, heads, n, d) of every attention module of the model, for input x, by the rows written by hand."""
    for attention, roles in rows_by_attention(family, model).items():
        module = model.get_submodule(attention)
        heads = getattr(module, "num_heads", getattr(module, "groups", family.heads))
        yield module, {
            role: (x @ w.mT + bias_of(model, attention, layer, index)).unflatten(-1, (heads, -1)).transpose(-3, -2)
            for role, (layer, w, index) in roles.items()
        }


@torch.no_grad()
def test_cross_covariance_attention_is_that_of_separate_projections():
    family = next(f for f in FAMILIES if f.name == "timm XCiT")
    x = torch.randn(2, 16, 24)
    for module, made in by_rows(family.model(), family, x):
        if type(module).__name__ == "XCA":
            q, k, v = (made[role].mT for role in "qkv")  # tokens are what is summed over
            attention = (q / q.norm(dim=-1, keepdim=True)) @ (k / k.norm(dim=-1, keepdim=True)).mT
            out = (attention * module.temperature).softmax(-1) @ v
            expected = module.proj(out.permute(0, 3, 1, 2).flatten(2))
            torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["timm DaViT", "timm DaViT, channel attention V2"])
def test_channel_attention_of_davit_puts_keys_and_values_into_the_softmax_but_for_its_second_version(name):
    family = next(f for f in FAMILIES if f.name == name)
    model, checked = family.model(), 0
    for width in (12, 24):
        for module, made in by_rows_of_width(model, family, width):
            q, k, v = (made[role] for role in "qkv")
            if type(module).__name__ == "ChannelAttention":
                attention = (k.mT @ v * q.shape[-1] ** -0.5).softmax(-1)  # q plays the part of the values
                out = (attention @ q.mT).mT
            elif type(module).__name__ == "ChannelAttentionV2":
                out = ((q.mT @ k * q.shape[-2] ** -0.5).softmax(-1) @ v.mT).mT
            else:
                out = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v
            expected = module.proj(out.transpose(1, 2).flatten(2))
            torch.testing.assert_close(module(inputs_of(width)), expected, rtol=1e-4, atol=1e-5)
            checked += 1
    assert checked == 4


def inputs_of(width):
    return torch.randn(2, 16, width, generator=torch.Generator().manual_seed(width))


def by_rows_of_width(model, family, width):
    small = copy.copy(family)
    small.parameters = lambda m: [(n, p, r) for n, p, r in family.parameters(m) if p.shape[1] == width]
    return by_rows(model, small, inputs_of(width))


@torch.no_grad()
def test_swin_v2_normalizes_what_the_rows_make(monkeypatch):
    family = next(f for f in FAMILIES if f.name == "timm Swin V2")
    seen, normalize = [], F.normalize
    monkeypatch.setattr(F, "normalize", lambda t, *a, **k: seen.append(t) or normalize(t, *a, **k))
    x = torch.randn(2, 16, 12)
    for module, made in by_rows(family.model(), family, x):
        seen.clear()
        module(x)
        torch.testing.assert_close(seen[0], made["q"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(seen[1], made["k"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_bloom_and_codegen_make_what_the_rows_say(monkeypatch):
    bloom = next(f for f in FAMILIES if f.name == "BLOOM")
    x = torch.randn(2, 5, 24)
    for module, made in by_rows(bloom.model(), bloom, x):
        for role, got in zip("qkv", module._reshape(module.query_key_value(x)), strict=True):
            torch.testing.assert_close(got, made[role], rtol=1e-4, atol=1e-5)
    codegen = next(f for f in FAMILIES if f.name == "CodeGen")
    model, seen = codegen.model(), []
    for module, _ in by_rows(model, codegen, x):
        def attend(q, k, v, *rest, attend=module._attn):
            seen.append((q, k, v))
            return attend(q, k, v, *rest)

        monkeypatch.setattr(module, "_attn", attend)
        module(x, position_ids=torch.arange(5)[None], attention_mask=None)
    for (_, made), got in zip(by_rows(model, codegen, x), seen, strict=True):
        for role, tensor in zip("qkv", got, strict=True):
            torch.testing.assert_close(tensor[:, :, 0], made[role][:, :, 0], rtol=1e-4, atol=1e-5)


def test_every_fused_family_is_proved():
    written_out = {"timm XCiT", "timm DaViT", "timm DaViT, channel attention V2", "timm Swin V2", "BLOOM", "CodeGen"}
    assert {f.name for f in FUSED if not f.sdpa} == written_out


def test_every_known_class_is_met_in_a_model():
    met = {f"{type(m).__module__}.{type(m).__qualname__}" for family in FAMILIES for m in family.model().modules()}
    elsewhere = {
        "torch.nn.modules.activation.MultiheadAttention",  # test_multihead.py
        "timm.models.vision_transformer.Attention",  # the older place of timm.layers.attention.Attention
    }
    assert set(KNOWN) - met == elsewhere


def test_pooling_whose_latent_is_the_query_has_keys_and_values_alone():
    pool = timm.layers.AttentionPoolLatent(24, num_heads=3, q_proj=False)
    found = find_projections(pool)
    assert [(p.name, p.role, p.layout.heads_of(p.role)) for p in found] == [("kv", "k", 3), ("kv", "v", 3)]


def test_a_subclass_with_another_forward_is_not_taken_for_its_parent():
    family = next(f for f in FAMILIES if f.name == "timm ViT")
    model = family.model()
    parent = type(model.blocks[0].attn)
    model.blocks[0].attn.__class__ = type("Same", (parent,), {})
    assert len(find_projections(model)) == 6
    model.blocks[0].attn.__class__ = type("Own", (parent,), {"forward": lambda self, x: x})
    found, unmatched = survey(model)
    assert [p.name for p in found] == ["blocks.1.attn.qkv"] * 3
    assert [(u.name, u.kind) for u in unmatched] == [("blocks.0.attn", "Own")]
    assert "ambiguous layout: qkv (72, 24)" in unmatched[0].reason
