"""Singular values, κ, κ⁺ and ranks against NumPy's float64 SVD and prescribed spectra."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectral_core import condition_number, singular_values, spectrum
from spectral_core.spectrum import default_rtol

SHAPES = [(5, 5), (7, 3), (3, 7), (1, 4), (4, 1), (1, 1), (9, 9), (13, 6)]
EPS64, EPS32 = np.finfo(np.float64).eps, np.finfo(np.float32).eps


def orthonormal(rng, m, k):
    return np.linalg.qr(rng.standard_normal((m, k)))[0]


def prescribed(values, m, n, seed=0):
    """U diag(values) Vᵀ, (m, n), float64."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(orthonormal(rng, m, len(values)) * values @ orthonormal(rng, n, len(values)).T)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_values_are_those_of_numpy_in_float64(shape, dtype):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    reference = np.linalg.svd(w.double().numpy(), compute_uv=False)
    out = singular_values(w)
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    rtol = 1e-13 if dtype == torch.float64 else EPS32
    np.testing.assert_allclose(out.double().numpy(), reference, rtol=rtol)
    np.testing.assert_allclose(float(condition_number(w)), reference[0] / reference[-1], rtol=10 * rtol)


@pytest.mark.parametrize("exponent", [0, 2, 4, 8, 12])
@pytest.mark.parametrize(("m", "n"), [(8, 8), (12, 5), (5, 12)])
def test_prescribed_kappa_is_found(m, n, exponent):
    values = np.logspace(0, -exponent, min(m, n))
    # rounding of the entries moves each value by about eps·σ_max: the relative error of κ is eps·κ
    rtol = 20 * EPS64 * 10.0**exponent
    assert float(condition_number(prescribed(values, m, n))) == pytest.approx(10.0**exponent, rel=rtol)


@pytest.mark.parametrize("shape", [(6, 6), (8, 5), (5, 8)])
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rank_deficient(shape, rank, dtype):
    w = prescribed(np.array([8.0, 4.0, 2.0])[:rank], *shape).to(dtype)
    out = spectrum(w)
    assert out.rank.item() == rank
    assert out.condition_number.item() == math.inf
    assert out.effective_condition_number.item() == pytest.approx([1, 2, 4][rank - 1], rel=1e-5)
    assert out.stable_rank.item() == pytest.approx([1, 1.25, 84 / 64][rank - 1], rel=1e-5)


def test_zero_matrix():
    out = spectrum(torch.zeros(3, 2))
    assert (out.rank.item(), out.condition_number.item(), out.stable_rank.item()) == (0, math.inf, 0.0)
    assert math.isnan(out.effective_condition_number.item())


@pytest.mark.parametrize(("scale", "dtype"), [
    (1e-300, torch.float64), (1e-200, torch.float64), (1e300, torch.float64), (1e-30, torch.float32),
    (1e30, torch.float32), (2.0**-14, torch.float16), (1e-30, torch.bfloat16),
])
def test_extreme_scales(scale, dtype):
    out = spectrum(scale * torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=dtype)))
    assert out.condition_number.item() == pytest.approx(4)
    assert out.stable_rank.item() == pytest.approx(21 / 16)
    assert out.rank.item() == 3


def test_rtol_decides_the_rank_and_is_reported():
    w = torch.diag(torch.tensor([1.0, 1e-3, 1e-6], dtype=torch.float64))
    for rtol, rank, effective in [(0.0, 3, 1e6), (1e-7, 3, 1e6), (1e-5, 2, 1e3), (1e-3, 1, 1), (1e-2, 1, 1)]:
        out = spectrum(w, rtol=rtol)
        assert (out.rank.item(), out.rtol) == (rank, rtol)
        assert out.effective_condition_number.item() == pytest.approx(effective)
        assert condition_number(w, rtol=rtol).item() == pytest.approx(1e6 if rank == 3 else math.inf)


def test_default_rtol_knows_how_the_entries_were_stored():
    values = np.array([1.0, 1e-2, 1e-9])
    w = prescribed(values, 6, 3)
    assert float(condition_number(w)) == pytest.approx(1e9, rel=1e-5)
    assert float(condition_number(w.float())) == math.inf  # σ_min is below the rounding of the entries
    assert default_rtol(3, 6, torch.float64) == 6 * EPS64
    assert default_rtol(3, 6, torch.float32) == default_rtol(3, 6, torch.bfloat16) == EPS32


def test_batch_is_its_slices():
    w = torch.randn(2, 3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    w[0, 1], w[1, 2, :, 3] = 0.0, 0.0
    out = spectrum(w)
    assert out.singular_values.shape == (2, 3, 4)
    for index in np.ndindex(2, 3):
        single = spectrum(w[index])
        for field in fields(single)[:-1]:  # the last is rtol, a number
            batched = getattr(out, field.name)[index]
            torch.testing.assert_close(batched, getattr(single, field.name), equal_nan=True)


def test_gradient_of_the_nuclear_norm_is_the_polar_factor():
    w = prescribed(np.array([5.0, 3.0, 0.5]), 6, 3).requires_grad_()
    singular_values(w).sum().backward()
    u, _, vh = np.linalg.svd(w.detach().numpy(), full_matrices=False)
    np.testing.assert_allclose(w.grad.numpy(), u @ vh, atol=1e-12)


@given(seed=st.integers(0, 10**6), m=st.integers(1, 8), n=st.integers(1, 8), log_scale=st.floats(-100, 100))
def test_kappa_is_invariant_under_scale_transpose_and_rotation(seed, m, n, log_scale):
    rng = np.random.default_rng(seed)
    values = np.sort(rng.uniform(0.01, 1, min(m, n)))[::-1]
    w = prescribed(values, m, n, seed)
    left, right = (torch.from_numpy(orthonormal(rng, k, k)) for k in (m, n))
    kappa = values[0] / values[-1]
    for other in (w, w.mT, w * 10.0**log_scale, -w, left @ w, w @ right, left @ w @ right):
        assert float(condition_number(other)) == pytest.approx(kappa, rel=1e-11)


def test_input_is_left_alone_and_the_result_is_frozen():
    w = torch.randn(4, 3)
    before = w.clone()
    out = spectrum(w)
    assert torch.equal(w, before)
    with pytest.raises(AttributeError):
        out.rank = 1


@pytest.mark.parametrize("function", [singular_values, condition_number, spectrum])
@pytest.mark.parametrize(("w", "message"), [
    ([[1.0]], r"w: expected a torch.Tensor, got list"),
    (np.eye(2), r"w: expected a torch.Tensor, got ndarray"),
    (torch.eye(2).long(), r"w: expected a real floating-point tensor, got dtype torch.int64; .*double"),
    (torch.eye(2) * 1j, r"w: expected a real floating-point tensor, got dtype torch.complex64"),
    (torch.ones(3), r"w: expected at least 2 dimensions, got shape \(3,\)"),
    (torch.ones(0, 3), r"w: expected a non-empty tensor, got shape \(0, 3\)"),
    (torch.tensor([[1.0, math.nan], [math.inf, 2.0]]), r"w: expected finite entries, got 2 inf or nan of 4"),
])
def test_bad_matrices_are_refused(function, w, message):
    with pytest.raises(ValueError, match=message):
        function(w)


@pytest.mark.parametrize(("rtol", "message"), [
    (-1e-3, r"rtol: expected a number >= 0, got -0.001"), (1.5, r"rtol: expected a number <= 1, got 1.5"),
    (math.nan, r"rtol: expected a finite number, got nan"), (True, r"rtol: expected a real number, got True"),
    ("small", r"rtol: expected a real number, got 'small'"),
])
@pytest.mark.parametrize("function", [condition_number, spectrum])
def test_bad_rtol_is_refused(function, rtol, message):
    with pytest.raises(ValueError, match=message):
        function(torch.eye(2), rtol=rtol)
