"""Each scheme by its definition, head by head; nothing else moves."""

import itertools

import numpy as np
import pytest
import torch
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


def conditioned():
    model = SpectralConditionedAttention(4, 2)
    condition(model, IdentityCorrection(3.0))
    return model


@pytest.mark.parametrize(("make", "arguments", "message"), [
    (Grouped, {"scheme": "identity"}, r"scheme: expected one of .*'identity-shift'\), got 'identity'"),
    (Grouped, {"scheme": "identity-shift", "lam": float("nan")}, r"lam: expected a finite number, got nan"),
    (without_heads, {"scheme": "conditioned"}, r"q_proj: .* number of heads under one of .*'num_heads'.* got none"),
    (lambda: with_heads(5), {"scheme": "conditioned"}, r"q_proj: .* got \[5\] for 12 rows"),
    (lambda: with_heads(1), {"scheme": "conditioned"}, r"q_proj: expected heads no wider .* got width 12 > 10"),
    (conditioned, {"scheme": "xavier"}, r"query: expected a plain weight, got one that is already parametrized"),
    (lambda: nn.Linear(2, 2), {"scheme": "xavier"}, r"expected a model with separate nn.Linear layers"),
])
def test_bad_input_is_refused_and_changes_nothing(make, arguments, message):
    model = make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        initialize(model, **arguments)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
