"""condition and fold against models whose weights were edited by hand in NumPy."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from spectral_core import (
    FixedCorrection,
    IdentityCorrection,
    PolarCorrection,
    SpectralConditionedAttention,
    condition,
    find_projections,
    fold,
)
from spectral_core.models import VisionTransformer

LAYERS = ("query", "key", "value")


class Toy(nn.Module):
    """Attention with biases and rectangular weights, every layer of its own shape."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 9)

    def forward(self, x):
        return (self.q_proj(x) @ self.k_proj(x).mT).softmax(-1) @ self.v_proj(x)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Toy(1), Toy(2)

    def forward(self, x):
        return self.second(x) + self.first(x)


def numpy_weight(layer):
    return layer.weight.detach().numpy().astype(np.float64)


def by_hand(model, edit, names):
    """A copy of a plain model with `edit` applied in NumPy to the named linear weights."""
    other = copy.deepcopy(model)
    for name in names:
        layer = other.get_submodule(name)
        layer.weight = nn.Parameter(torch.from_numpy(edit(numpy_weight(layer))).float())
    return other


def shift(lam):
    return lambda w: w + lam * np.eye(*w.shape)


def polar(w):
    u, s, vh = np.linalg.svd(w, full_matrices=False)
    return u * (s + s[0]) @ vh


NAMES = [f"{part}.{role}_proj" for part in ("first", "second") for role in "qkv"]
X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
CASES = [
    (IdentityCorrection(0.7), {}, shift(0.7), NAMES),
    (PolarCorrection(), {}, polar, NAMES),
    (IdentityCorrection(3.0), {"projections": "q"}, shift(3.0), NAMES[::3]),
    (IdentityCorrection(3.0), {"projections": "vk"}, shift(3.0), [n for n in NAMES if "q_" not in n]),
    (IdentityCorrection(3.0), {"include": "first.*"}, shift(3.0), NAMES[:3]),
    (IdentityCorrection(3.0), {"include": ["first.q*", "*.v_*"]}, shift(3.0), [NAMES[i] for i in (0, 2, 5)]),
    (IdentityCorrection(3.0), {"exclude": "first.*"}, shift(3.0), NAMES[3:]),
    (IdentityCorrection(3.0), {"include": "second.*", "exclude": ["*.k_proj"]}, shift(3.0), NAMES[3::2]),
    ({"v": PolarCorrection()}, {}, polar, NAMES[2::3]),
    ({"k": IdentityCorrection(2.0)}, {"projections": "q"}, shift(2.0), NAMES[1::3]),  # a dict's keys decide
]


@pytest.mark.parametrize(("correction", "settings", "edit", "names"), CASES)
def test_condition_and_fold_equal_weights_edited_by_hand(correction, settings, edit, names):
    model = Two()
    plain, keys = copy.deepcopy(model), list(model.state_dict())
    expected = by_hand(plain, edit, names)
    report = condition(model, correction, **settings)
    torch.testing.assert_close(model(X), expected(X))
    assert not torch.allclose(model(X), plain(X), atol=1e-3)
    for name, _ in model.named_parameters():  # only these are parametrized, and nothing else is stored
        layer, marked, _ = name.partition(".parametrizations.weight.original")
        assert bool(marked) == (layer in names)
    assert len(list(model.state_dict())) == len(keys)
    for line, name in zip(report, names, strict=True):
        before, after = (np.linalg.cond(numpy_weight(m.get_submodule(name))) for m in (plain, expected))
        assert (line.name, line.shape) == (name, tuple(plain.get_submodule(name).weight.shape))
        assert line.kappa_before == pytest.approx(before, rel=1e-5)
        assert line.kappa_after == pytest.approx(after, rel=1e-5)
    assert fold(model) is model
    torch.testing.assert_close(model(X), expected(X))
    assert list(model.state_dict()) == keys  # in this order: optimizers save their state by it
    assert not any(parametrize.is_parametrized(module) for module in model.modules())


def test_a_dict_gives_each_role_its_own_correction():
    model = Toy()
    expected = by_hand(by_hand(model, shift(0.5), ["q_proj"]), polar, ["v_proj"])
    report = condition(model, {"q": IdentityCorrection(0.5), "v": PolarCorrection()})
    torch.testing.assert_close(model(X), expected(X))
    assert [(line.role, line.correction) for line in report] == [
        ("q", "IdentityCorrection(lam=0.5, relative=False)"), ("v", "PolarCorrection(strength=1.0)"),
    ]


def test_the_report_says_scope_and_what_became_worse():
    model = Toy()
    with torch.no_grad():
        model.q_proj.weight.copy_(-torch.eye(4, 6) + 1e-3 * model.q_proj.weight)
    report = condition(model, IdentityCorrection(1.0))
    lines = str(report).splitlines()
    assert len(lines) == 1 + len(report) == 4
    assert "scope: matrix" in lines[0]
    assert lines[1].startswith("q_proj")
    assert "4×6" in lines[1]
    assert lines[1].endswith("worse")
    worse = [line.name for line in report if line.kappa_after > line.kappa_before]
    assert [line.split()[0] for line in lines if line.endswith("worse")] == worse


def test_a_kappa_that_became_worse_is_a_warning_with_both_numbers():
    model = Toy()
    with torch.no_grad():
        model.q_proj.weight[:, :4] = 1e-3 * model.q_proj.weight[:, :4] - torch.eye(4)  # κ near 1; + I leaves little
        model.q_proj.weight[:, 4:] *= 1e-3
    with pytest.warns(UserWarning, match=r"the correction made κ worse for \d of 3 projections") as seen:
        report = condition(model, IdentityCorrection(1.0))
    (line,) = [line for line in report if line.name == "q_proj"]
    assert line.kappa_after > 2 * line.kappa_before
    shown = f"q_proj: κ {line.kappa_before:.3g} -> {line.kappa_after:.3g}, IdentityCorrection(lam=1.0, relative=False)"
    assert shown in str(seen[0].message)
    assert seen[0].filename == __file__  # it points at the caller


def test_no_warning_where_nothing_became_worse(recwarn):
    condition(Two(), PolarCorrection())
    assert not recwarn.list


def test_an_optimizer_made_before_still_trains_the_same_parameters():
    model = VisionTransformer()
    originals = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    condition(model, IdentityCorrection(0.5))
    name = "blocks.1.attention.key"
    layer = model.get_submodule(name)
    assert layer.parametrizations.weight.original is originals[f"{name}.weight"]
    before = originals[f"{name}.weight"].detach().clone()
    model(torch.randn(3, 1, 8, 8)).square().sum().backward()
    gradient = originals[f"{name}.weight"].grad.clone()
    optimizer.step()
    assert gradient.abs().max() > 0
    torch.testing.assert_close(layer.weight, before - 0.1 * gradient + 0.5 * torch.eye(32))
    fold(model)
    assert layer.weight is originals[f"{name}.weight"]
    torch.testing.assert_close(layer.weight.detach(), before - 0.1 * gradient + 0.5 * torch.eye(32))


def test_the_gradient_is_that_of_the_model_edited_by_hand():
    model = Two()
    expected = by_hand(model, shift(0.7), NAMES)
    condition(model, IdentityCorrection(0.7))
    for m in (model, expected):
        m(X).sin().sum().backward()
    for name in NAMES:
        gradient = model.get_submodule(name).parametrizations.weight.original.grad
        torch.testing.assert_close(gradient, expected.get_submodule(name).weight.grad, rtol=1e-4, atol=1e-6)


def test_update_reaches_every_layer_and_a_deepcopy_is_independent():
    model, correction = Two(), IdentityCorrection(1.0)
    plain = copy.deepcopy(model)
    condition(model, correction)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(X), model(X))
    correction.update(lam=0.2)
    torch.testing.assert_close(model(X), by_hand(plain, shift(0.2), NAMES)(X))
    torch.testing.assert_close(twin(X), by_hand(plain, shift(1.0), NAMES)(X))
    twin.first.q_proj.parametrizations.weight[0].update(lam=-3.0)  # its layers share its own
    torch.testing.assert_close(twin(X), by_hand(plain, shift(-3.0), NAMES)(X))
    torch.testing.assert_close(model(X), by_hand(plain, shift(0.2), NAMES)(X))


def test_state_dict_keys():
    model = SpectralConditionedAttention(4, 2, correction=PolarCorrection())
    originals = [f"{name}.parametrizations.weight.original" for name in LAYERS]
    assert sorted(model.state_dict()) == sorted([*originals, "out.weight"])
    assert len(list(model.parameters())) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_models_dtype_is_kept(dtype):
    model = Toy().to(dtype)
    condition(model, PolarCorrection(preserve="spectral"))
    assert model(X.to(dtype)).dtype == dtype
    fold(model)
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_a_correction_makes_no_graph_break():
    model = SpectralConditionedAttention(8, 2, correction=IdentityCorrection(1.0))
    x = torch.randn(2, 3, 8)
    explained = torch._dynamo.explain(model)(x)
    assert (explained.graph_break_count, explained.graph_count) == (0, 1), explained.break_reasons
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


def tied(**shared):
    model = Toy()
    for name, source in shared.items():
        setattr(model, name, getattr(model, source))
    return model


def broken(model, edit):
    edit(model)
    return model


def put_nan(model):
    model.second.v_proj.weight.data[0, 0] = torch.nan


def tie_weights(model):
    model.second.k_proj.weight = model.first.q_proj.weight


def tie_to_a_stranger(model):
    model.other = nn.Linear(6, 4, bias=False)
    model.other.weight = model.first.q_proj.weight


ONE = IdentityCorrection(1.0)
REFUSED = [
    (Two, ONE, {"projections": "qo"}, r'projections: expected a non-empty subset of "qkv", got \'qo\''),
    (Two, ONE, {"projections": ""}, r"projections: expected a non-empty subset .* got ''"),
    (Two, ONE, {"projections": None}, r"projections: expected a non-empty subset .* got None"),
    (Two, ONE, {"scope": "fused"}, r"scope: expected one of \('matrix', 'head', 'packed'\), got 'fused'"),
    (Two, ONE, {"scope": "head"},
     r'first.q_proj: scope "head" needs the number of heads, which first does not tell; state it with layouts='),
    (Two, ONE, {"scope": "packed"},
     r"""first.q_proj: scope "packed" is for a weight that holds several roles, got 'separate'; take "matrix" """),
    (Two, {}, {}, r'correction: expected a dict with keys among "q", "k", "v", got keys \[\]'),
    (Two, {"q": ONE, "o": ONE}, {}, r"correction: expected a dict .* got keys \['q', 'o'\]"),
    (Two, {"q": ONE, 1: ONE}, {}, r"correction: expected a dict .* got keys \['q', 1\]"),
    (Two, 10.0, {}, r"correction for 'q': expected a Correction, got float"),
    (Two, {"q": ONE, "v": nn.Identity()}, {}, r"correction for 'v': expected a Correction, got Identity"),
    (Two, ONE, {"include": "third.*"},
     r"expected at least one projection, got none with roles 'qkv', include='third.\*', exclude=None; "
     r"the model has \['first.q_proj', 'first.k_proj', .*'second.v_proj'\]"),
    (Two, ONE, {"exclude": "*"}, r"got none with roles 'qkv', include=None, exclude='\*'"),
    (Two, {"v": ONE}, {"exclude": "*v_proj"}, r"got none with roles 'v'"),
    (lambda: nn.Linear(4, 2), ONE, {}, r"expected a model with query, key and value weights that are known"),
    (lambda: broken(Two(), put_nan), ONE, {}, r"second.v_proj.weight: .* got 1 inf or nan of 54"),
    (lambda: broken(Two(), tie_weights), ONE, {"include": "second.*"},
     r"second.k_proj: expected a weight of its own, got one shared by \['first.q_proj', 'second.k_proj'\], of which "
     r"\['first.q_proj \(q\)'\] are left out; choose all or none of them, or untie it first"),
    (lambda: broken(Two(), tie_weights), {"q": ONE, "k": IdentityCorrection(2.0)}, {},
     r"first.q_proj: .* shared by .* with several corrections or layouts; give all of them the same, or untie it"),
    (lambda: broken(Two(), tie_to_a_stranger), ONE, {},
     r"first.q_proj: .* shared by \['first.q_proj', 'other'\], of which \['other'\] are not projections; untie it"),
    (lambda: tied(k_proj="q_proj"), ONE, {"projections": "k"},
     r"k_proj: .* shared by \['q_proj', 'k_proj'\], of which \['q_proj \(q\)'\] are left out"),
    (Two, {"q": ONE, "v": FixedCorrection(torch.ones(9, 5))}, {},
     r"first.v_proj \(v\): c: expected the weight's shape \(9, 6\), got \(9, 5\)"),
]


@pytest.mark.parametrize(("make", "correction", "settings", "message"), REFUSED)
def test_refusals_change_nothing(make, correction, settings, message):
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        condition(model, correction, **settings)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) or name == "second.v_proj.weight" for name in before)


def test_conditioning_twice_is_refused_and_leaves_the_rest_plain():
    model = Two()
    condition(model, ONE, include="second.k_proj")
    with pytest.raises(ValueError, match=r"second.k_proj: .* already parametrized; fold\(model\) first"):
        condition(model, ONE)
    conditioned = [p.name for p in find_projections(model) if parametrize.is_parametrized(p.module)]
    assert conditioned == ["second.k_proj"]
    condition(fold(model), ONE)


def test_fold_refuses_a_foreign_parametrization_in_the_stack_and_leaves_others_alone():
    class Double(nn.Module):
        def forward(self, w):
            return 2 * w

    model = Two()
    condition(model, ONE)
    parametrize.register_parametrization(model.second.q_proj, "weight", Double())
    message = r"second.q_proj.weight: .* corrections only, got .* \['ConditionedWeight', 'Double'\]; remove"
    with pytest.raises(ValueError, match=message):
        fold(model)
    assert parametrize.is_parametrized(model.first.q_proj)  # nothing was folded

    other = Two()
    parametrize.register_parametrization(other.first.q_proj, "weight", Double())
    condition(other, ONE, include="second.*")
    out = other(X)
    fold(other)
    assert [n for n, m in other.named_modules() if parametrize.is_parametrized(m)] == ["first.q_proj"]
    torch.testing.assert_close(other(X), out)


def test_fold_of_a_plain_model_does_nothing():
    model = Two()
    before = copy.deepcopy(model.state_dict())
    fold(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
