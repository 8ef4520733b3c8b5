"""The polar factor, σ_max and clamped spectra against NumPy's SVD, on prescribed spectra, dtypes and awkward shapes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import prescribed, svd_forbidden

from spectral_core import polar, polar_factor, spectral_clip
from spectral_core.polar import largest_singular_value, polar_with_norm

SHAPES = [(1, 1), (1, 5), (5, 1), (6, 6), (9, 4), (4, 9), (70, 66), (66, 70), (97, 37), (130, 131)]


def orthogonality(q):
    q = q.double().numpy()
    gram = q @ q.T if q.shape[0] < q.shape[1] else q.T @ q
    return np.linalg.norm(gram - np.eye(len(gram)))


@pytest.fixture
def no_svd(monkeypatch):
    with svd_forbidden(monkeypatch):
        yield


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("kappa", [1.0, 30.0, 1e6])
def test_polar_is_the_product_of_the_singular_vectors(m, n, kappa, no_svd):
    w, u, v = prescribed(np.geomspace(1, 1 / kappa, min(m, n)), m, n)
    np.testing.assert_allclose(polar_factor(w).numpy(), u @ v.T, atol=1e-9)
    assert orthogonality(polar_factor(w)) < 1e-12
    single = polar_factor(w.float())
    assert orthogonality(single) < 2e-5
    np.testing.assert_allclose(single.double().numpy(), u @ v.T, atol=1e-6 * kappa)  # eps κ, as for any method


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30, 1e-300])
def test_scale_and_dtype(dtype, scale, no_svd):
    if scale != 1 and torch.finfo(dtype).tiny > abs(scale) ** 1.2:
        pytest.skip("not representable")
    base = prescribed(np.geomspace(1, 0.02, 40), 60, 40)[0].to(dtype)
    w = (base.double() * scale).to(dtype)
    if not torch.isfinite(w).all():
        pytest.skip("not representable")
    before = w.clone()
    q = polar_factor(w)
    assert q.dtype == dtype
    assert torch.equal(w, before)
    assert orthogonality(q) < 50 * torch.finfo(dtype).eps
    torch.testing.assert_close(q, polar_factor(base), atol=200 * torch.finfo(dtype).eps, rtol=0)


def test_subnormal_entries_are_scaled_first(no_svd):
    w = prescribed(np.geomspace(1, 0.1, 66), 66, 66)[0].float()
    tiny = w * 1e-41
    assert 0 < float(tiny.abs().max()) < torch.finfo(torch.float32).tiny
    assert orthogonality(polar_factor(tiny)) < 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("m", "n", "rank"), [(6, 6, 3), (9, 4, 2), (4, 9, 1), (80, 70, 10), (70, 100, 69), (5, 5, 0)])
def test_zero_singular_values_get_directions_and_the_others_keep_theirs(m, n, rank, dtype, no_svd):
    w, u, v = prescribed(np.linspace(2, 1, max(rank, 1)), m, n)
    w = (w if rank else 0 * w).to(dtype)
    q = polar_factor(w)
    assert torch.equal(q, polar_factor(w))
    assert orthogonality(q) < 100 * torch.finfo(dtype).eps * min(m, n) ** 0.5
    if rank:  # Q V = U on the range
        np.testing.assert_allclose(q.double().numpy() @ v, u, atol=1e-4 if dtype == torch.float32 else 1e-12)


def test_an_exact_zero_column_and_row():
    w = torch.zeros(80, 70)
    w[1:, 1:] = torch.randn(79, 69, generator=torch.Generator().manual_seed(0))
    assert orthogonality(polar_factor(w)) < 2e-5


def test_batch_is_its_slices():
    g = torch.Generator().manual_seed(0)
    w = torch.randn(2, 3, 8, 5, generator=g, dtype=torch.float64) * torch.tensor([1.0, 1e-9, 1e9])[:, None, None]
    w[1, 1] = 0
    q, norm = polar_with_norm(w)
    assert norm.shape == (2, 3)
    for i in np.ndindex(2, 3):
        if i != (1, 1):
            torch.testing.assert_close(q[i], polar_factor(w[i]), rtol=0, atol=1e-12)
        assert float(norm[i]) == pytest.approx(np.linalg.norm(w[i].numpy(), 2), rel=1e-12)
        assert orthogonality(q[i]) < 1e-12


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), m=st.integers(1, 9), n=st.integers(1, 9), power=st.floats(0, 9))
def test_equivariance(seed, m, n, power):
    rng = np.random.default_rng(seed)
    w = prescribed(np.geomspace(1, 10**-power, min(m, n)), m, n, seed)[0]
    left, right = (torch.from_numpy(np.linalg.qr(rng.standard_normal((k, k)))[0]) for k in (m, n))
    close = {"rtol": 0, "atol": 1e-12 * 10**power}
    torch.testing.assert_close(polar_factor(left @ w @ right), left @ polar_factor(w) @ right, **close)
    torch.testing.assert_close(polar_factor(w.mT), polar_factor(w).mT, **close)
    torch.testing.assert_close(polar_factor(-3 * w), -polar_factor(w), **close)


def test_the_factor_of_a_weight_is_symmetric_positive_against_it():
    w = torch.randn(96, 80, generator=torch.Generator().manual_seed(0))
    h = (polar_factor(w).mT @ w).double().numpy()
    assert np.abs(h - h.T).max() < 1e-5 * np.abs(h).max()
    assert np.linalg.eigvalsh((h + h.T) / 2)[0] > -1e-5
    assert np.trace(h) == pytest.approx(np.linalg.norm(w.double().numpy(), "nuc"), rel=1e-6)  # the dual objective


def test_more_steps_come_nearer_and_none_is_wasted(monkeypatch):
    w = prescribed(np.geomspace(1, 1e-3, 80), 80, 80)[0]
    left = [orthogonality(polar_factor(w, steps=steps)) for steps in (2, 4, 6, 8)]
    assert left == sorted(left, reverse=True)
    assert left[-1] < 1e-8
    products = []
    real = torch.baddbmm
    monkeypatch.setattr(torch, "baddbmm", lambda *a, **k: products.append(1) or real(*a, **k))
    counts = {}
    for kappa in (1.0, 2.0, 1e3, 1e6, 1e12):
        products.clear()
        polar_factor(prescribed(np.geomspace(1, 1 / kappa, 80), 80, 80)[0])
        counts[kappa] = (len(products) + 1) // 2
    # the lower bound at hand decides, not a table: 4 polynomials or fewer where κ is 2, about 2.1 more a decade
    assert counts[1.0] <= counts[2.0] <= 5
    assert counts[1e3] <= 10
    assert counts[1e6] <= 16
    assert counts[1e12] <= 32


def test_bfloat16_arithmetic_is_rough_and_says_so():
    w = torch.randn(128, 96, generator=torch.Generator().manual_seed(0))
    q = polar_factor(w, dtype=torch.bfloat16)
    assert q.dtype == torch.float32
    assert np.abs(np.linalg.svd(q.numpy(), compute_uv=False) - 1).max() < 0.02
    exact = polar_factor(w.double())
    assert float((polar_factor(w, dtype=torch.float64).double() - exact).abs().max()) < 1e-7  # W's dtype comes back


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_singular_value(m, n, dtype, no_svd):
    w = torch.randn(m, n, generator=torch.Generator().manual_seed(1), dtype=dtype)
    rel = 1e-5 if dtype == torch.float32 else 1e-12
    assert float(largest_singular_value(w)) == pytest.approx(np.linalg.norm(w.double().numpy(), 2), rel=rel)


@pytest.mark.parametrize("gap", [0.0, 1e-7, 1e-4, 1e-2])
def test_the_largest_singular_value_with_a_rival_next_to_it(gap):
    values = np.concatenate([[1.0, 1.0 - gap, 1.0 - 2 * gap], np.linspace(0.9, 0.1, 97)])
    w = prescribed(values, 100, 100)[0]
    assert float(largest_singular_value(w.float())) == pytest.approx(1, rel=5e-4)
    assert float(largest_singular_value(w)) == pytest.approx(1, rel=1e-8)


@pytest.mark.parametrize(("m", "n"), [(6, 6), (9, 4), (4, 9), (80, 70), (70, 80)])
@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (0.0, 1.0), (0.3, np.inf), (1.0, 1.0), (5.0, 6.0), (0.0, 0.001)])
def test_clip_moves_the_singular_values_and_keeps_the_vectors(m, n, low, high, no_svd):
    values = np.geomspace(4, 1e-5, min(m, n))
    w, u, v = prescribed(values, m, n)
    expected = u * np.clip(values, low, high) @ v.T
    np.testing.assert_allclose(spectral_clip(w, low, high).numpy(), expected, atol=1e-8)
    before = w.float()
    single = spectral_clip(before, low, high)
    assert torch.equal(before, w.float())
    found = np.linalg.svd(single.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(found, np.clip(values, low, high), atol=2e-5 * max(values[0], low))


def test_clip_of_values_at_a_limit_and_of_tiny_ones():
    values = np.array([2.0, 2.0, 1.0, 1.0, 0.5, 0.5, 1e-7, 0.0])
    w = prescribed(values, 12, 8)[0]
    found = np.linalg.svd(spectral_clip(w, 0.5, 2.0).numpy(), compute_uv=False)
    np.testing.assert_allclose(found, np.clip(values, 0.5, 2.0), atol=1e-10)
    assert np.linalg.cond(spectral_clip(w, 0.5, 2.0).numpy()) == pytest.approx(4, rel=1e-9)
    zero = spectral_clip(torch.zeros(3, 5), 0.25, 1.0)
    np.testing.assert_allclose(np.linalg.svd(zero.numpy(), compute_uv=False), 0.25, rtol=1e-5)


def test_clip_batch_and_half_types():
    w = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = spectral_clip(w, 0.5, 1.5)
    for i in np.ndindex(2, 3):
        torch.testing.assert_close(out[i], spectral_clip(w[i], 0.5, 1.5), rtol=0, atol=1e-11)
    half = spectral_clip(w.bfloat16(), 0.5, 1.5)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), out, rtol=0, atol=0.05)


def test_results_carry_no_gradient_and_autocast_changes_nothing():
    w = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    plain, clipped = polar_factor(w), spectral_clip(w, 0.5, 1.0)
    assert not plain.requires_grad
    assert not clipped.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(polar_factor(w), plain)
        assert torch.equal(spectral_clip(w, 0.5, 1.0), clipped)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: polar_factor([[1.0]]), r"w: expected a torch.Tensor, got list"),
    (lambda: polar_factor(torch.eye(2).long()), r"w: expected a real floating-point tensor, got dtype torch.int64"),
    (lambda: polar_factor(torch.ones(3)), r"w: expected at least 2 dimensions, got shape \(3,\)"),
    (lambda: polar_factor(torch.ones(3, 0)), r"w: expected a non-empty tensor, got shape \(3, 0\)"),
    (lambda: polar_factor(torch.tensor([[1.0, torch.nan]])), r"w: expected finite entries, got 1 inf or nan of 2"),
    (lambda: polar_factor(torch.eye(2), steps=0), r"steps: expected a positive integer or None, got 0"),
    (lambda: polar_factor(torch.eye(2), steps=2.0), r"steps: expected a positive integer or None, got 2.0"),
    (lambda: polar_factor(torch.eye(2), dtype=torch.float16), r"dtype: expected one of .* got torch.float16"),
    (lambda: spectral_clip(torch.eye(2), -1.0, 1.0), r"sigma_min: expected a number >= 0, got -1"),
    (lambda: spectral_clip(torch.eye(2), 0.0, 0.0), r"sigma_max: expected a number > 0, got 0"),
    (lambda: spectral_clip(torch.eye(2), 2.0, 1.0), r"expected sigma_min <= sigma_max, got 2 > 1"),
    (lambda: spectral_clip(torch.eye(2), np.nan, 1.0), r"sigma_min: expected a finite number, got nan"),
    (lambda: spectral_clip(torch.eye(2), 0.0, "1"), r"sigma_max: expected a real number, got '1'"),
    (lambda: spectral_clip(torch.eye(2) / 0, 0.0, 1.0), r"w: expected finite entries, got 4 inf or nan of 4"),
    (lambda: spectral_clip(torch.full((50, 50), 3e38), 0.0, 1.0), r"w: .* range of torch.float32, got σ_max that"),
    (lambda: largest_singular_value(torch.ones(2)), r"w: expected at least 2 dimensions, got shape \(2,\)"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_convergence_is_an_error_and_no_result(monkeypatch):
    monkeypatch.setattr(polar, "MAX_STEPS", 7)
    with pytest.raises(ArithmeticError, match=r"no convergence in 7 steps, at ‖XᵀX − I‖ = "):
        polar_factor(prescribed(np.geomspace(1, 1e-9, 80), 80, 80)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(64, 64), (768, 64), (300, 500)])
def test_on_a_gpu_it_is_the_same(shape):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(polar_factor(w.cuda()).cpu(), polar_factor(w), rtol=0, atol=1e-3)
    assert orthogonality(polar_factor(w.cuda()).cpu()) < 1e-4
