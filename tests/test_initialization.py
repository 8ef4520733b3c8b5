"""Each scheme by its definition, head by head; nothing else moves."""

import itertools

import numpy as np
import pytest
import torch
from families import TIMM, TRANSFORMERS
from torch import nn

from spectral_core import IdentityCorrection, SpectralConditionedAttention, condition, find_projections, initialize
from spectral_core.models import VisionTransformer


class Grouped(nn.Module):
    """Four query heads and two key and value heads of width 3, on a width of 10."""

    def __init__(self):
        super().__init__()
        self.num_heads = 4
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(10, 12), nn.Linear(10, 6), nn.Linear(10, 6)


def weights(model):
    return {p.name: p.weight.detach().clone() for p in find_projections(model)}


def values(w):
    return np.linalg.svd(w.double().numpy(), compute_uv=False)


@pytest.mark.parametrize(("make", "width"), [(Grouped, 3), (lambda: SpectralConditionedAttention(12, 3), 4)])
def test_conditioned_heads_are_semi_orthogonal_and_values_the_identity(make, width):
    model = initialize(make(), "conditioned")
    for p in find_projections(model):
        w = p.weight.detach()
        if p.role == "v":
            assert torch.equal(w, torch.eye(*w.shape))
            continue
        heads = w.split(width)
        for head in heads:
            np.testing.assert_allclose(head @ head.T, np.eye(width), atol=1e-6)
        for a, b in itertools.pairwise(heads):
            assert float((a @ b.T).abs().max()) > 1e-2  # independent draws, not slices of one orthogonal matrix


def test_orthogonal_and_xavier():
    model = initialize(Grouped(), "orthogonal")
    for w in weights(model).values():
        np.testing.assert_allclose(values(w), 1, atol=1e-6)
    model = initialize(VisionTransformer(dim=64, depth=1), "xavier")
    for w in weights(model).values():
        bound = (6 / 128) ** 0.5
        assert 0.95 * bound < float(w.abs().max()) <= bound
        assert float(w.std()) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_identity_shift_adds_and_everything_else_stays():
    model = Grouped()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert initialize(model, "identity-shift", lam=0.7) is model
    for name, p in model.named_parameters():
        expected = before[name] + 0.7 * torch.eye(*p.shape) if name.endswith("weight") else before[name]
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("scheme", ["conditioned", "orthogonal", "xavier"])
def test_seeds(scheme):
    state = torch.random.get_rng_state()
    runs = [weights(initialize(Grouped(), scheme, seed=seed)) for seed in (0, 0, 1)]
    del state
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
    assert not torch.equal(runs[0]["q_proj"], runs[2]["q_proj"])
    assert not torch.equal(runs[0]["q_proj"][:6], runs[0]["k_proj"])
    model, before = Grouped(), torch.random.get_rng_state()
    initialize(model, scheme)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_and_identity_of_parameters(dtype):
    model = Grouped().to(dtype)
    parameters = list(model.parameters())
    initialize(model, "orthogonal")
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert {p.dtype for p in parameters} == {dtype}


def without_heads():
    model = Grouped()
    del model.num_heads
    return model


def with_heads(count):
    model = Grouped()
    model.num_heads = count
    return model


def wide_heads():
    model = with_heads(1)
    model.k_proj = nn.Linear(10, 12)
    return model


def conditioned():
    model = SpectralConditionedAttention(4, 2)
    condition(model, IdentityCorrection(3.0))
    return model


@pytest.mark.parametrize(("make", "arguments", "message"), [
    (Grouped, {"scheme": "identity"}, r"scheme: expected one of .*'identity-shift'\), got 'identity'"),
    (Grouped, {"scheme": "identity-shift", "lam": float("nan")}, r"lam: expected a finite number, got nan"),
    (without_heads, {"scheme": "conditioned"}, r"q_proj: .* number of heads under one of .*'num_heads'.* got none"),
    (lambda: with_heads(5), {"scheme": "conditioned"}, r"q_proj: .* got none for 12 rows"),
    (lambda: with_heads(1), {"scheme": "conditioned"}, r"q_proj: .* got none for 12 rows"),
    (wide_heads, {"scheme": "conditioned"}, r"q_proj: expected heads no wider .* got width 12 > 10"),
    (conditioned, {"scheme": "xavier"}, r"query: expected a plain weight, got one that is already parametrized"),
    (lambda: nn.Linear(2, 2), {"scheme": "xavier"}, r"expected a model with query, key and value weights"),
])
def test_bad_input_is_refused_and_changes_nothing(make, arguments, message):
    model = make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        initialize(model, **arguments)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["GPT-2", "GPT-NeoX", "Falcon, key-value groups", "timm ViT", "Llama"])
def test_fused_weights_are_set_head_by_head(name):
    family = next(f for f in TIMM + TRANSFORMERS if f.name == name)
    model = family.model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    initialize(model, "conditioned")
    stored = {key: rows for key, _, rows in family.parameters(model)}
    for _, parameter, rows in family.parameters(model):
        w = parameter.detach().mT if family.columns else parameter.detach()
        for role, index in rows.items():
            if role == "v":
                assert torch.equal(w[index], torch.eye(*w[index].shape))
                continue
            count = family.heads if role == "q" or family.kv_heads is None else family.kv_heads
            for head in w[index].chunk(count):
                torch.testing.assert_close(head @ head.mT, torch.eye(len(head)), rtol=0, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items() if key not in stored)
    shifted = family.model()
    initialize(shifted, "identity-shift", lam=2.0)
    by_hand = family.by_hand(family.model(), lambda _, w: w + 2 * np.eye(*w.shape))
    for mine, theirs in zip(shifted.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
