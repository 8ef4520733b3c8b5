"""κ ≤ 2 without an SVD, and a factor that is kept for as long as the bound, derived here once more, allows it."""

import copy
import gc
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import prescribed, svd_forbidden
from torch import nn
from torch.utils.checkpoint import checkpoint

from spectral_core import PolarCorrection, SpectralConditionedAttention, condition, find_projections

LARGE = [(768, 768), (768, 64), (3072, 768)]


def kappa(w):
    values = np.linalg.svd(w.detach().double().numpy(), compute_uv=False)
    return values[0] / values[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("m", "n"), LARGE)
@pytest.mark.parametrize("spectrum", ["gaussian", 1e2, 1e4, 1e6])
def test_kappa_is_at_most_two_at_real_sizes(m, n, spectrum, dtype, monkeypatch):
    if spectrum == "gaussian":
        w = 0.02 * torch.randn(m, n, generator=torch.Generator().manual_seed(0))
    else:
        w = prescribed(np.geomspace(1, 1 / spectrum, min(m, n)), m, n)[0].float()
    with svd_forbidden(monkeypatch):
        out = PolarCorrection()(w.to(dtype))
    assert out.dtype == dtype
    assert kappa(out) <= (2.001 if dtype == torch.float32 else 2.05)


@pytest.mark.parametrize("strength", [0.25, 1.0, 4.0])
def test_the_fused_and_the_kept_norm(strength, monkeypatch):
    w = prescribed(np.geomspace(3, 3e-4, 90), 270, 90)[0].float()
    for preserve in (None, "spectral", "frobenius"):
        with svd_forbidden(monkeypatch):
            out = PolarCorrection(strength, preserve=preserve)(w)
        assert kappa(out) <= (1 + strength) / strength * 1.0005
        if preserve is not None:
            order = 2 if preserve == "spectral" else "fro"
            norms = [np.linalg.norm(t.double().numpy(), order) for t in (w, out)]
            assert norms[1] == pytest.approx(norms[0], rel=1e-4)


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6), m=st.integers(1, 8), n=st.integers(1, 8), strength=st.floats(0.2, 5),
    share=st.floats(0, 0.9),
)  # fmt: skip
def test_the_bound_on_a_stale_factor_holds_for_any_change(seed, m, n, strength, share):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((m, n))
    u, s, vh = np.linalg.svd(w, full_matrices=False)
    change = rng.standard_normal((m, n))
    delta = share * strength * s[0]
    change *= delta / np.linalg.norm(change, 2)
    values = np.linalg.svd(w + change + strength * s[0] * u @ vh, compute_uv=False)
    bound = ((1 + strength) * s[0] + delta) / (strength * s[0] - delta)
    assert values[0] / values[-1] <= bound * (1 + 1e-12)


def test_the_bound_is_attained():
    # W₀ = diag(1, 0), Q = I: lower the small direction by δ and raise the large one by δ
    delta = 0.01
    stale = np.diag([1 + delta, -delta]) + np.eye(2)
    assert np.linalg.cond(stale) == pytest.approx((2 + delta) / (1 - delta), rel=1e-12)


def drift(weight, size, generator):
    """A random change of the given Frobenius norm."""
    with torch.no_grad():
        change = torch.randn(weight.shape, generator=generator)
        weight += size * change / change.norm()


@pytest.mark.parametrize(("m", "n"), [(24, 24), (40, 16), (16, 40), (150, 150), (200, 140)])
@pytest.mark.parametrize("size", [1e-3, 1e-2, 0.3, 2.0])
@pytest.mark.parametrize(("strength", "max_kappa"), [(1.0, 2.05), (1.0, 2.5), (0.5, 2.05)])
def test_under_the_default_rule_kappa_stays_within_the_limit(m, n, size, strength, max_kappa):
    g = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(m, n, generator=g) / n**0.5)
    sigma = np.linalg.norm(weight.detach().numpy(), 2)
    correction = PolarCorrection(strength, max_kappa=max_kappa)
    limit = max_kappa * (1 + strength) / (2 * strength)
    steps = 40
    for _ in range(steps):
        assert kappa(correction(weight)) <= limit * 1.0005
        drift(weight, size * sigma, g)
    assert correction.calls == steps
    assert 1 <= correction.refreshes <= steps
    if size == 1e-3:  # δ grows to 0.04 σ at most: far fewer than one in four
        assert correction.refreshes <= 3
    if size == 1e-2:  # the bound alone would ask for one in two
        assert correction.refreshes <= steps // 4


def test_it_is_kept_until_the_bound_passes_and_then_looked_at():
    g = torch.Generator().manual_seed(0)
    weight = nn.Parameter(prescribed(np.linspace(1, 0.01, 20), 20, 20)[0].float())
    correction = PolarCorrection()
    term = (correction(weight) - weight).detach()
    allowed = 0.05 / 3.05  # (2 + δ)/(1 − δ) = 2.05
    drift(weight, 0.99 * allowed, g)
    assert torch.equal((correction(weight) - weight).detach().round(decimals=5), term.round(decimals=5))
    assert (correction.refreshes, correction.looks) == (1, 0)
    drift(weight, 5 * allowed, g)  # the bound has passed by far; spread over all directions κ has not
    correction(weight)
    assert (correction.refreshes, correction.looks) == (1, 1)
    with torch.no_grad():
        weight *= 1.1  # now σ_max itself has grown: κ would be 2.1
    assert kappa(correction(weight)) <= 2.05
    assert (correction.refreshes, correction.looks) == (2, 2)


def test_max_kappa_two_allows_no_drift():
    g = torch.Generator().manual_seed(0)
    weight, correction = nn.Parameter(torch.randn(9, 9, generator=g)), PolarCorrection(max_kappa=2)
    for _ in range(5):
        assert kappa(correction(weight)) <= 2.0005
        drift(weight, 1e-4, g)
    assert correction.refreshes == 5


@pytest.mark.parametrize(("every", "expected"), [(1, 12), (3, 4), (5, 3), (100, 1)])
def test_every_counts_changes_of_the_weight_and_not_calls(every, expected):
    g = torch.Generator().manual_seed(0)
    weight, correction = nn.Parameter(torch.randn(10, 8, generator=g)), PolarCorrection(every=every)
    for _ in range(12):
        for _ in range(3):  # gradient accumulation, evaluation, a checkpointed forward run again
            correction(weight)
        drift(weight, 1e-3, g)
    assert (correction.calls, correction.refreshes, correction.looks) == (36, expected, 0)


@pytest.mark.parametrize("settings_", [{}, {"every": 1000}])
def test_a_weight_that_was_replaced_gets_its_own_factor(settings_):
    layer = nn.Linear(12, 12, bias=False)
    correction = PolarCorrection(**settings_)
    correction(layer.weight)
    fresh = torch.randn(12, 12, generator=torch.Generator().manual_seed(5))
    layer.load_state_dict({"weight": fresh})
    torch.testing.assert_close(correction(layer.weight), PolarCorrection()(fresh), rtol=0, atol=1e-5)
    correction.update(strength=3.0)
    torch.testing.assert_close(correction(layer.weight), PolarCorrection(3.0)(fresh), rtol=0, atol=1e-5)
    double = layer.double()
    torch.testing.assert_close(correction(double.weight), PolarCorrection(3.0)(fresh.double()), rtol=0, atol=1e-11)


def test_weights_of_a_model_are_remembered_apart_and_forgotten_with_it():
    correction = PolarCorrection()
    model = SpectralConditionedAttention(8, 2)
    condition(model, correction)
    x = torch.randn(3, 8)
    model(x)
    start = correction.refreshes
    for _ in range(5):
        model(x)
    assert correction.refreshes == start
    for p in find_projections(model):
        assert kappa(p.weight) <= 2.0005
    assert len(correction._memory) == 3
    twin = copy.deepcopy(model)
    assert len(correction._memory) == 3
    assert len(twin.query.parametrizations.weight[0].corrections["q"]._memory) == 0
    torch.testing.assert_close(twin(x), model(x))
    assert len(pickle.loads(pickle.dumps(correction))._memory) == 0
    del twin, model, p
    gc.collect()
    assert len(correction._memory) == 0


def test_a_checkpointed_forward_has_the_same_gradient():
    torch.manual_seed(0)
    model = SpectralConditionedAttention(8, 2, correction=PolarCorrection(every=2))
    x = torch.randn(3, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(4):
        twin = copy.deepcopy(model)
        for p, o in zip(find_projections(twin), find_projections(model), strict=True):
            term = (o.weight - o.module.parametrizations.weight.original).detach()
            p.module.parametrizations.weight[0] = Constant(term)
        optimizer.zero_grad()
        checkpoint(model, x, use_reentrant=False).square().sum().backward()
        twin.zero_grad()
        twin(x).square().sum().backward()
        for name in ("query", "key", "value"):
            ours, theirs = (getattr(m, name).parametrizations.weight.original.grad for m in (model, twin))
            torch.testing.assert_close(ours, theirs)
        optimizer.step()


class Constant(nn.Module):
    def __init__(self, term):
        super().__init__()
        self.term = term

    def forward(self, w):
        return w + self.term


def test_half_weights_and_three_dimensions():
    weight = nn.Parameter(torch.randn(20, 12, generator=torch.Generator().manual_seed(0)).bfloat16())
    correction = PolarCorrection()
    for _ in range(3):
        out = correction(weight)
        assert out.dtype == torch.bfloat16
        assert kappa(out) <= 2.05
    assert correction.refreshes == 1
    heads = nn.Parameter(torch.randn(3, 10, 4))
    assert correction(heads).shape == (3, 10, 4)
    assert all(kappa(head) <= 2.0005 for head in correction(heads))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_factor_made_in_inference_mode_serves_in_training(dtype):
    torch.manual_seed(0)
    model = SpectralConditionedAttention(8, 2, correction=PolarCorrection(preserve="spectral")).to(dtype)
    x = torch.randn(2, 3, 8).to(dtype)
    with torch.inference_mode():
        model(x)
    model(x).square().sum().backward()
    assert model.query.parametrizations.weight.original.grad.abs().max() > 0


def test_it_compiles_without_a_graph_break():
    torch.manual_seed(0)
    model = SpectralConditionedAttention(8, 2, correction=PolarCorrection())
    x = torch.randn(2, 3, 8)
    explained = torch._dynamo.explain(model)(x)
    assert (explained.graph_break_count, explained.graph_count) == (0, 1), explained.break_reasons
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    compiled(x).square().sum().backward()
    assert model.value.parametrizations.weight.original.grad.abs().max() > 0


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 5)])
def test_the_compiled_operator_is_what_it_pretends_to_be(shape):
    torch.library.opcheck(torch.ops.spectral_core.polar_term, (torch.randn(shape), 1.0))
    torch.library.opcheck(torch.ops.spectral_core.polar_term, (torch.randn(shape).mT, 0.5))


@pytest.mark.parametrize("size", [4, 150])
@pytest.mark.parametrize("scale", [1.0, 1e-24, 1e24])
def test_the_worst_drift_there_is_never_passes_the_limit(size, scale):
    """Along the directions in which W + C is smallest and largest, a little at every step."""
    weight = nn.Parameter(scale * prescribed(np.geomspace(1, 0.02, size), size, size)[0].float())
    correction = PolarCorrection()
    for step in range(30):
        out = correction(weight)
        assert kappa(out / scale) <= 2.05 * 1.0005
        u, _, vh = np.linalg.svd((out.detach() / scale).double().numpy())
        down, up = np.outer(u[:, -1], vh[-1]), np.outer(u[:, 0], vh[0])
        change = [-down, up, up - down][step % 3] * 0.004 * scale
        with torch.no_grad():
            weight += torch.from_numpy(change)
    assert 1 < correction.refreshes < 30


def test_new_settings_count_from_the_next_call_on():
    weight = nn.Parameter(torch.diag(torch.tensor([1.0, 0.5])))
    correction = PolarCorrection(max_kappa=50)
    correction(weight)
    with torch.no_grad():
        weight[1, 1] = -0.5
    assert kappa(correction(weight)) == pytest.approx(4, rel=1e-5)  # within 50
    correction.update(max_kappa=2.05)
    assert kappa(correction(weight)) <= 2.0005


def test_another_weight_with_the_same_distance_is_another_weight():
    w0 = torch.diag(torch.cat([torch.ones(1), torch.full((63,), 2.0**-18)]))
    weight, correction = nn.Parameter(w0.clone()), PolarCorrection()
    correction(weight)
    with torch.no_grad():
        weight.copy_(w0 + 2.0**-5 / 8 * torch.eye(64))
    correction(weight)
    with torch.no_grad():
        weight.copy_(w0)
        weight[63, 63] -= 2.0**-5
    assert kappa(correction(weight)) <= 2.05 * 1.0005


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_stops_being_finite_is_an_error(value):
    weight, correction = nn.Parameter(torch.randn(6, 6)), PolarCorrection()
    correction(weight)
    with torch.no_grad():
        weight[0, 0] = value
    for _ in range(2):
        with pytest.raises(ValueError, match=r"w: expected finite entries"):
            correction(weight)
    with pytest.raises(ValueError, match=r"w: expected finite entries"):
        PolarCorrection()(weight)


def test_a_norm_beyond_the_dtype_is_an_error():
    with pytest.raises(ValueError, match=r"expected finite entries with a finite norm, got σ_max that is not finite"):
        PolarCorrection()(torch.full((50, 50), 3e38))


def test_all_heads_of_a_weight_are_remembered_together():
    torch.manual_seed(0)
    model = nn.MultiheadAttention(24, 3)
    with torch.no_grad():
        model.in_proj_weight *= torch.logspace(0, -3, 8).repeat(9)[:, None]  # κ near 1000 in every head
    correction = PolarCorrection()
    condition(model, correction, scope="head")
    assert correction.refreshes == 3  # Q, K and V, tried before anything was changed
    w = model.parametrizations.in_proj_weight.original
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for _ in range(40):
        with torch.no_grad():
            w += 0.002 * torch.randn(w.shape, generator=generator)
            worst = max(worst, *(kappa(head) for head in model.in_proj_weight.unflatten(0, (9, 8))))
    assert 2.0 < worst <= 2.05 + 1e-4
    assert 3 < correction.refreshes < 60  # of 123 calls
    assert correction.looks > 0
    with torch.no_grad():
        w[:8] = 3 * torch.randn(8, 24, generator=generator)  # one head of Q alone
    before = correction.refreshes
    heads = model.in_proj_weight.unflatten(0, (9, 8))
    assert correction.refreshes == before + 1
    assert max(kappa(head) for head in heads) <= 2.05 + 1e-4
