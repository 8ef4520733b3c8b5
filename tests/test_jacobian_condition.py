"""κ(J) by every way against a dense float64 SVD of autodiff's J, and what is said where float64 ends."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exact import exact_values
from hypothesis import given, settings
from hypothesis import strategies as st
from test_jacobian import jacrev, near_duplicate, numpy_values, problem

from spectral_core import AttentionJacobian, _checks, jacobian_operator
from spectral_core import jacobian_condition as jc

WAYS = ("auto", "gram", "cholesky", "svd")


@st.composite
def heads(draw, largest=9):
    """A head of random shape, mask, scale, dtype and difficulty, with its keyword arguments."""
    n, dim = draw(st.integers(2, largest)), draw(st.integers(2, largest + 3))
    d_k, d_v = draw(st.integers(1, largest // 2 + 1)), draw(st.integers(1, largest // 2 + 1))
    exponent = draw(st.floats(0, 7))
    seed = draw(st.integers(0, 10**6))
    x, *weights = near_duplicate(exponent, n, dim, d_k, d_v, seed=seed)
    dtype = draw(st.sampled_from([torch.float64, torch.float64, torch.float32, torch.bfloat16]))
    factor = 10.0 ** draw(st.floats(-12, 12)) if dtype != torch.bfloat16 else 1.0
    arguments = {"scale": draw(st.sampled_from([None, 1.0, 0.05, -0.4]))}
    kind = draw(st.sampled_from(["none", "causal", "random"]))
    if kind == "causal":
        arguments["is_causal"] = True
    elif kind == "random":
        mask = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)) > 0.4
        arguments["mask"] = mask | torch.eye(n, dtype=torch.bool)
    weights[2] = weights[2] * factor
    return [t.to(dtype) for t in (x, *weights)], arguments


ROLES = st.sampled_from(["qkv", "qkv", "kv", "q", "k", "v"])


def check(result, method, true, slack):
    """κ as found against the true one: exact as promised, or an admitted lower bound."""
    if math.isinf(float(result)):
        assert true > 1e11
        return
    if not result.converged:
        assert true > (1e6 if method in ("gram", "cholesky") else 1e9)
        assert float(result) <= true * (1 + slack)
        assert result.bound.item() == math.inf
        assert "lower bound" in result.note
        return
    error = abs(float(result) / true - 1)
    assert error <= result.bound.item() + slack
    if true <= 1e6:
        assert error <= 1e-8
    elif true <= 1e9:
        assert error <= 1e-4


@settings(max_examples=300)
@given(head=heads(largest=3), wrt=ROLES, method=st.sampled_from(WAYS))
def test_every_way_against_60_digits(head, wrt, method):
    (x, *weights), arguments = head
    allowed = arguments.get("mask")
    if arguments.get("is_causal"):
        allowed = torch.ones(len(x), len(x)).tril() > 0
    values = exact_values(x, *weights, wrt=wrt, scale=arguments["scale"], allowed=allowed)
    true = values[0] / values[-1] if values[-1] > 1e-25 * values[0] else math.inf
    result = AttentionJacobian(x, *weights, **arguments).condition_number(wrt, method=method)
    check(result, method, true, 0)


@settings(max_examples=400)
@given(head=heads(), wrt=ROLES, method=st.sampled_from(WAYS))
def test_every_way_against_a_dense_svd(head, wrt, method):
    (x, *weights), arguments = head
    jac = AttentionJacobian(x, *weights, **arguments)
    values, eps = numpy_values(jac.dense(wrt)), np.finfo(float).eps
    noise = max(jac.dense(wrt).shape) * eps * values[0]
    result = jac.condition_number(wrt, method=method)
    if values[-1] <= 10 * noise:  # the reference is rounding alone
        assert not result.converged or float(result) > 1e11
        return
    true = values[0] / values[-1]
    check(result, method, true, result.bound.item() if result.converged else 8 * eps * true)  # the SVD rounds too
    if result.converged and math.isfinite(float(result)):
        assert result.sigma_max.item() == pytest.approx(values[0], rel=1e-8)
        assert result.sigma_min.item() == pytest.approx(values[-1], rel=max(1e-8, 1e-13 * true))
        assert result.rank.item() == len(values)
        assert float(result.effective_value) == pytest.approx(float(result), rel=1e-12)


@pytest.mark.parametrize("exponent", [2, 3, 5])
@pytest.mark.parametrize("factor", [1e4, 1e12])
def test_nearly_equal_tokens_lose_fewer_digits_than_autodiff(exponent, factor):
    x, w_q, w_k, w_v = near_duplicate(exponent, 2, 2, 1, 1, seed=3)
    head = (x, w_q, w_k, factor * w_v)
    true, other = exact_values(*head), numpy_values(jacrev(*head))
    true, other = true[0] / true[-1], other[0] / other[-1]
    result = AttentionJacobian(*head).condition_number()
    error = abs(float(result) / true - 1)
    assert error <= result.bound.item()
    assert error < 1e-9 or error < 0.01 * abs(other / true - 1)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 0.9])
def test_many_rows_by_cholesky(exponent):
    head = near_duplicate(exponent, 24, 40, 6, 24, seed=3)  # 576 rows: auto leaves gram
    values = numpy_values(jacrev(*head))
    for method in ("auto", "gram", "cholesky", "svd"):
        result = AttentionJacobian(*head).condition_number(method=method)
        assert float(result) == pytest.approx(values[0] / values[-1], rel=1e-8), method
        assert result.method == ("cholesky" if method == "auto" else method)
        assert result.residual.item() <= 1e-6
        assert result.rank.item() == 576
        assert result.note == ""


@pytest.mark.parametrize("exponent", [1.6, 2.4])
def test_beyond_a_gram_auto_goes_on_to_the_svd(exponent):
    head = near_duplicate(exponent, 24, 40, 6, 24, seed=3)
    values = numpy_values(jacrev(*head))
    true = values[0] / values[-1]
    assert true > 5e6
    jac = AttentionJacobian(*head)
    auto = jac.condition_number()
    assert (auto.method, bool(auto.converged), auto.note) == ("svd", True, "")
    assert float(auto) == pytest.approx(true, rel=1e-4)
    for method in ("gram", "cholesky"):
        result = jac.condition_number(method=method)
        assert not result.converged
        assert 1e6 < float(result) <= true
        assert result.sigma_min.item() >= values[-1] * (1 - 1e-6)
        assert f"resolves by '{method}': value is a lower bound; method=\"svd\" resolves more" in result.note
    assert jac.condition_number(method="cholesky").rank.item() == -1
    assert math.isnan(jac.condition_number(method="cholesky").effective_value.item())


def test_auto_does_not_start_an_svd_that_takes_minutes(monkeypatch):
    jac = AttentionJacobian(*near_duplicate(6.0))
    assert jac.condition_number().method == "svd"
    monkeypatch.setattr(jc, "SVD_FLOPS", 10.0)
    result = jac.condition_number()
    assert (result.method, bool(result.converged)) == ("gram", False)
    assert float(result) <= float(jac.condition_number(method="svd"))


def test_only_the_hard_members_of_a_batch_get_an_svd(monkeypatch):
    batch = [near_duplicate(e, seed=1) for e in (0.0, 6.0, 1.0, 7.0)]
    stacked = [torch.stack(t).unflatten(0, (2, 2)) for t in zip(*batch, strict=True)]
    seen = []
    plain = jc.by_svd
    monkeypatch.setattr(jc, "by_svd", lambda op, *rest: seen.append(op.unit.numel()) or plain(op, *rest))
    result = AttentionJacobian(*stacked).condition_number()
    assert seen == [1, 1]
    assert result.method == "gram+svd"
    assert result.converged.all()
    assert result.note == ""
    for kappa, head in zip(result.value.flatten().tolist(), batch, strict=True):
        values = numpy_values(jacrev(*head))
        assert kappa == pytest.approx(values[0] / values[-1], rel=1e-6)


def test_columns_that_vanish_make_kappa_infinite_without_arithmetic():
    head = problem(4, 9, 1, 3)  # 12 rows; W_Q has 9 columns of J, of which X reaches 4
    for method in WAYS:
        result = AttentionJacobian(*head).condition_number("q", method=method)
        assert float(result) == math.inf, method
        assert result.sigma_min.item() == 0


def test_the_gauge_is_named_where_it_bites():
    jac = AttentionJacobian(*problem(24, 4, 2, 2))
    note = jac.condition_number().note
    assert "gauge: W_Q → W_Q M, W_K → W_K M⁻ᵀ leaves attention unchanged" in note
    assert "rank is at most 20" in note  # 2·8 + 8 − 4
    assert jac.condition_number().rank.item() == 20
    assert jac.condition_number("qv").note == ""
    assert AttentionJacobian(*problem(4, 7, 2, 3)).condition_number().note == ""


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("sizes", [(6, 10, 3, 4), (20, 3, 1, 4), (5, 24, 4, 16)])
def test_extremes_are_both_ends_of_the_spectrum(sizes, k):
    wrt = "qkv" if sizes[0] < sizes[1] else "q"
    head = problem(*sizes, seed=2) if wrt == "q" else near_duplicate(0.0, *sizes)
    if wrt == "q":
        k = min(k, 3)
    values = numpy_values(jacrev(*head, wrt))
    found = AttentionJacobian(*head).extremes(k, wrt)
    np.testing.assert_allclose(found.largest.numpy(), values[:k], rtol=1e-9)
    np.testing.assert_allclose(found.smallest.numpy(), values[::-1][:k], rtol=1e-8)
    assert found.converged
    assert (found.largest_residual <= 1e-8).all()
    assert (found.smallest_residual <= 1e-8).all()


def test_extremes_of_a_batch_and_of_a_deficient_head():
    head = problem(4, 8, 2, 3, lead=((2, 1), (3,), (3,), (3,)))
    found = AttentionJacobian(*head).extremes(2)
    assert found.largest.shape == found.smallest.shape == (2, 3, 2)
    values = AttentionJacobian(*head).singular_values()
    torch.testing.assert_close(found.largest, values[..., :2], rtol=1e-9, atol=0)
    torch.testing.assert_close(found.smallest, values[..., -2:].flip(-1), rtol=1e-7, atol=0)
    x, *weights = problem(5, 8, 3, 4)
    x[3] = x[1]
    assert not AttentionJacobian(x, *weights).extremes().converged
    vanished = AttentionJacobian(*problem(4, 9, 1, 3)).extremes(2, "q")  # 9 values, 4 columns that X reaches
    assert vanished.smallest.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("k", [0, -1, 13, 1.5, True, None])
def test_bad_k_is_refused(k):
    with pytest.raises(ValueError, match=r"k: expected an integer between 1 and 12, got"):
        AttentionJacobian(*problem(4, 7, 2, 3)).extremes(k)


@pytest.mark.parametrize("method", WAYS)
@pytest.mark.parametrize("power", [-60, -20, 20, 60])
def test_extreme_scales_change_nothing_but_the_singular_values(method, power):
    x, w_q, w_k, w_v = near_duplicate(1.0)
    plain = AttentionJacobian(x, w_q, w_k, w_v).condition_number("qk", method=method)
    scaled = AttentionJacobian(x, w_q, w_k, 10.0**power * w_v).condition_number("qk", method=method)
    assert float(scaled) == pytest.approx(float(plain), rel=1e-9)
    assert scaled.sigma_min.item() == pytest.approx(10.0**power * plain.sigma_min.item(), rel=1e-8)
    assert scaled.converged


def test_max_bytes_is_kept_or_refused_with_the_number_needed():
    jac = AttentionJacobian(*problem(4, 7, 2, 3))
    needed = jac.bytes_needed(method="gram")
    assert jac.condition_number(method="gram", max_bytes=needed).converged
    with pytest.raises(ValueError, match=rf"max_bytes: expected at least {needed} for method='gram' at 12 rows, got 5"):
        jac.condition_number(method="gram", max_bytes=5)
    with pytest.raises(ValueError, match=r"method: expected one of"):
        jac.bytes_needed(method="dense")


def test_auto_leaves_out_an_svd_that_does_not_fit(monkeypatch):
    jac = AttentionJacobian(*near_duplicate(6.0))
    plain = jacobian_operator.bytes_needed
    monkeypatch.setattr(jc, "bytes_needed", lambda op, method: plain(op, method) + (10**12 if method == "svd" else 0))
    result = jac.condition_number(max_bytes=10**11)
    assert (result.method, bool(result.converged)) == ("gram", False)
    assert jac.condition_number().method == "svd"


@pytest.mark.parametrize("method", ["gram", "cholesky", "svd"])
def test_the_estimate_of_memory_covers_the_matrices(method):
    rows = {}
    for n in (16, 64):
        jac = AttentionJacobian(*problem(n, 64, 16, 16))
        rows[n] = jac.bytes_needed(method=method)
        size, columns = n * 16, n * 48  # what cannot be done without: the Gram matrix, or the compressed J
        assert rows[n] >= 8 * (size * columns if method == "svd" else size**2)
    batch = AttentionJacobian(*problem(64, 64, 16, 16, lead=((), (3,), (3,), (3,)))).bytes_needed(method=method)
    assert rows[16] < rows[64] < batch < 3 * rows[64]


def test_mps_is_computed_on_the_cpu_and_that_is_said_once():
    _checks._say_once.cache_clear()
    value = SimpleNamespace(device=torch.device("mps"), cpu=lambda: torch.ones(2))
    with pytest.warns(UserWarning, match="mps has no float64: spectra are computed on the CPU"):
        assert _checks.to_float64(value).dtype == torch.float64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _checks.to_float64(value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", WAYS)
def test_cuda_agrees_with_the_cpu(method):
    head = near_duplicate(1.0, 24, 40, 6, 24)
    cpu = AttentionJacobian(*head).condition_number(method=method)
    gpu = AttentionJacobian(*(t.cuda() for t in head)).condition_number(method=method)
    assert gpu.value.device.type == "cuda"
    assert float(gpu) == pytest.approx(float(cpu), rel=1e-8)
