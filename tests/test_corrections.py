"""Every correction against its closed form in NumPy float64, its gradient, dtypes, and its refusals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matrices import prescribed
from torch import nn
from torch.nn.utils import parametrize

from spectral_core import FixedCorrection, IdentityCorrection, PolarCorrection, SpectrumTarget
from spectral_core.corrections import Correction

SHAPES = [(5, 5), (7, 3), (3, 7), (1, 4), (4, 1)]
STRAIGHT = "straight-through"
ALL = [
    IdentityCorrection(0.7), IdentityCorrection(0.7, relative=True), PolarCorrection(), PolarCorrection(0.25),
    SpectrumTarget(sigma_min=0.5, gradient=STRAIGHT), SpectrumTarget(sigma_max=0.8, gradient=STRAIGHT),
    SpectrumTarget(kappa=3, gradient=STRAIGHT), SpectrumTarget(0.1, 0.8, 3, gradient=STRAIGHT),
    FixedCorrection(torch.ones(6, 4)),
]


def random(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sigma(w):
    return np.linalg.svd(w.double().numpy(), compute_uv=False)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lam", [10.0, 0.3, 0.0, -2.0])
def test_identity_adds_lambda_on_the_main_diagonal(shape, lam):
    w = random(*shape)
    expected = w.numpy().copy()
    for i in range(min(shape)):
        expected[i, i] += lam
    np.testing.assert_array_equal(IdentityCorrection(lam)(w).numpy(), expected)
    relative = w.numpy().copy()
    for i in range(min(shape)):
        relative[i, i] += lam * sigma(w)[0]
    np.testing.assert_allclose(IdentityCorrection(lam, relative=True)(w).numpy(), relative, rtol=1e-13)


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("strength", [1.0, 0.25, 3.0])
def test_polar_adds_strength_times_sigma_max_to_every_singular_value(m, n, strength):
    values = np.geomspace(4, 4e-5, min(m, n))
    w, u, v = prescribed(values, m, n)
    out = PolarCorrection(strength)(w)
    np.testing.assert_allclose(out.numpy(), u * (values + strength * 4) @ v.T, atol=1e-9)
    assert sigma(out)[0] / sigma(out)[-1] <= (1 + strength) / strength + 1e-12  # 2 at strength 1


@pytest.mark.parametrize(("settings", "expected"), [
    ({"sigma_min": 1.0}, [4, 2, 1, 1]), ({"sigma_max": 1.0}, [1, 1, 0.5, 0.001]),
    ({"kappa": 4}, [4, 2, 1, 1]), ({"sigma_min": 0.0}, [4, 2, 0.5, 0.001]),
    ({"sigma_min": 0.6, "sigma_max": 3.0}, [3, 2, 0.6, 0.6]),
    ({"sigma_max": 2.0, "kappa": 10}, [2, 2, 0.5, 0.2]),
    ({"sigma_min": 1.5, "kappa": 4}, [4, 2, 1.5, 1.5]), ({"kappa": 1}, [4, 4, 4, 4]),
    ({"sigma_min": 0.1, "sigma_max": 3.0, "kappa": 6}, [3, 2, 0.5, 0.5]),
    ({"sigma_min": 2.0, "sigma_max": 2.0}, [2, 2, 2, 2]), ({"sigma_min": 9.0}, [9, 9, 9, 9]),
])
@pytest.mark.parametrize(("m", "n"), [(4, 4), (7, 4), (4, 9)])
def test_spectrum_target_moves_the_singular_values_and_keeps_the_vectors(settings, expected, m, n):
    w, u, v = prescribed(np.array([4, 2, 0.5, 0.001]), m, n)
    out = SpectrumTarget(**settings)(w)
    np.testing.assert_allclose(out.numpy(), u * np.array(expected) @ v.T, atol=1e-11)


@pytest.mark.parametrize(("m", "n"), [(5, 5), (8, 4), (4, 8)])
@pytest.mark.parametrize(("correction", "zero_to"), [
    (SpectrumTarget(sigma_min=0.5, gradient=STRAIGHT), 0.5), (SpectrumTarget(kappa=6, gradient=STRAIGHT), 0.5),
    (PolarCorrection(), 3.0),
])
def test_rank_deficient_weights_become_full_rank(m, n, correction, zero_to):
    w, _, _ = prescribed(np.array([3.0, 1.5]), m, n)
    out = sigma(correction(w))
    assert out[-1] == pytest.approx(zero_to, abs=1e-9)
    assert np.sum(out < zero_to + 1e-9) == min(m, n) - 2


@pytest.mark.parametrize("preserve", [None, "spectral", "frobenius"])
@pytest.mark.parametrize("correction", ALL[:-1], ids=repr)
def test_zero_matrix_is_never_nan(correction, preserve):
    settings = {**correction.settings(), "preserve": preserve}
    out = type(correction)(**settings)(torch.zeros(4, 3))
    assert torch.isfinite(out).all()
    if preserve is not None:
        assert not out.any()
    elif settings.get("sigma_min"):
        np.testing.assert_allclose(sigma(out), settings["sigma_min"], rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
@pytest.mark.parametrize("kind", [IdentityCorrection, PolarCorrection])
def test_preserve_keeps_the_norm_and_the_direction(kind, scale):
    w = (scale * random(6, 4)).float()
    extra = {"relative": True} if kind is IdentityCorrection else {}
    plain = kind(2.0, **extra)(w).double()
    for preserve, order in {"spectral": 2, "frobenius": "fro"}.items():
        out = kind(2.0, **extra, preserve=preserve)(w).double()
        before, after = (np.linalg.norm(m.double().numpy(), order) for m in (w, out))
        assert after == pytest.approx(before, rel=1e-6)
        torch.testing.assert_close(out / out.norm(), plain / plain.norm(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("correction", ALL, ids=repr)
def test_the_gradient_passes_straight_through(correction):
    w, t = random(6, 4), random(6, 4, seed=1)
    if isinstance(correction, FixedCorrection):
        assert torch.equal(correction(w), w + 1)
    at = w.clone().requires_grad_()
    (correction(at).sin() * t).sum().backward()
    torch.testing.assert_close(at.grad, correction(w).cos() * t, rtol=1e-13, atol=1e-14)  # f'(W + C)


def test_preserve_is_a_constant_factor_in_the_gradient():
    w = random(6, 4).requires_grad_()
    correction = IdentityCorrection(2.0, preserve="frobenius")
    correction(w).square().sum().backward()
    plain = w.detach() + 2 * torch.eye(6, 4)
    factor = np.linalg.norm(w.detach().numpy()) / np.linalg.norm(plain.numpy())
    torch.testing.assert_close(w.grad, 2 * factor**2 * plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("correction", ALL, ids=repr)
def test_dtype_is_kept_and_only_the_result_is_rounded(correction, dtype):
    w = random(6, 4).to(dtype)
    before = w.clone()
    out = correction(w)
    assert out.dtype == dtype
    assert torch.equal(w, before)
    exact = correction(w.double()).numpy()
    np.testing.assert_allclose(out.double().numpy(), exact, rtol=torch.finfo(dtype).eps, atol=2e-6)


@pytest.mark.parametrize("preserve", [None, "spectral"])
@pytest.mark.parametrize("correction", ALL, ids=repr)
def test_autocast_changes_nothing(correction, preserve):
    correction = type(correction)(**{**correction.settings(), "preserve": preserve})
    w = random(6, 4).float()
    plain = correction(w)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(correction(w), plain)


@pytest.mark.parametrize("correction", ALL, ids=repr)
def test_batch_is_its_slices_and_no_state_is_kept(correction):
    w = random(2, 3, 6, 4)
    out = correction(w)
    for index in np.ndindex(2, 3):
        torch.testing.assert_close(out[index], correction(w[index]))
    assert not correction.state_dict()
    assert not list(correction.parameters())


@given(seed=st.integers(0, 10**6), m=st.integers(1, 6), n=st.integers(1, 6), log_scale=st.floats(-30, 30))
def test_equivariance(seed, m, n, log_scale):
    rng = np.random.default_rng(seed)
    values = np.sort(rng.uniform(0.05, 1, min(m, n)))[::-1]
    w, scale = prescribed(values, m, n, seed)[0], 10.0**log_scale
    left, right = (torch.from_numpy(np.linalg.qr(rng.standard_normal((k, k)))[0]) for k in (m, n))
    close = {"rtol": 1e-9, "atol": 1e-9}
    for correction in (PolarCorrection(), PolarCorrection(0.3, preserve="spectral"), SpectrumTarget(kappa=2)):
        torch.testing.assert_close(correction(scale * w) / scale, correction(w), **close)
        torch.testing.assert_close(correction(left @ w @ right), left @ correction(w) @ right, **close)
        torch.testing.assert_close(correction(w.mT), correction(w).mT, **close)
    relative = IdentityCorrection(0.5, relative=True)
    torch.testing.assert_close(relative(scale * w) / scale, relative(w), **close)
    torch.testing.assert_close(relative(w.mT), relative(w).mT, **close)


@given(seed=st.integers(0, 10**6), margin=st.floats(1.01, 10))
def test_identity_bounds_kappa_above_the_norm(seed, margin):
    values = np.random.default_rng(seed).uniform(0.001, 1, 5)
    w, lam = prescribed(values, 7, 5, seed)[0], margin * values.max()
    out = sigma(IdentityCorrection(lam)(w))
    assert out[0] / out[-1] <= (margin + 1) / (margin - 1) * (1 + 1e-9)


def test_a_parametrized_layer_stores_the_plain_weight_only():
    layer = nn.Linear(4, 6, bias=False)
    parametrize.register_parametrization(layer, "weight", FixedCorrection(torch.ones(6, 4)))
    assert list(layer.state_dict()) == ["parametrizations.weight.original"]


def test_settings_update_and_repr():
    correction = IdentityCorrection(1.0, preserve="spectral")
    assert correction.settings() == {
        "lam": 1.0, "relative": False, "schedule": None, "learnable": False, "preserve": "spectral",
    }
    assert repr(correction) == "IdentityCorrection(lam=1.0, relative=False, preserve='spectral')"
    correction.update(lam=2, preserve=None)
    assert torch.equal(correction(torch.zeros(2, 3)), 2 * torch.eye(2, 3))
    assert repr(correction) == "IdentityCorrection(lam=2.0, relative=False)"
    fixed = FixedCorrection(torch.zeros(2, 2))
    fixed.update(c=torch.ones(2, 2))
    assert torch.equal(fixed(torch.zeros(2, 2)), torch.ones(2, 2))


@pytest.mark.parametrize(("correction", "changes", "message"), [
    (IdentityCorrection(1.0), {"lam": 3.0, "strength": 1.0, "beta": 0},
     r"IdentityCorrection.update: expected settings among \['lam', 'learnable', 'preserve', 'relative', 'schedule'\], "
     r"got \['beta', 'strength'\]"),
    (IdentityCorrection(1.0), {"relative": True, "lam": math.nan}, r"lam: expected a finite number, got nan"),
    (PolarCorrection(), {"preserve": "frobenius", "strength": -1}, r"strength: .* number > 0, got -1"),
    (SpectrumTarget(sigma_max=2.0), {"kappa": 5, "sigma_min": 3.0}, r"sigma_min <= sigma_max, got 3 > 2"),
    (SpectrumTarget(kappa=2.0), {"kappa": None}, r"SpectrumTarget: expected at least one of .* got none"),
])
def test_a_refused_update_changes_nothing(correction, changes, message):
    before = correction.settings()
    with pytest.raises(ValueError, match=message):
        correction.update(**changes)
    assert correction.settings() == before


NOT_A_NUMBER = [
    (math.nan, "a finite number, got nan"), (math.inf, "a finite number, got inf"),
    (True, "a real number, got True"), ("1", "a real number, got '1'"),
    (1j, "a real number, got 1j"), (torch.ones(1), "a real number, got tensor"),
]


@pytest.mark.parametrize(("value", "message"), NOT_A_NUMBER)
@pytest.mark.parametrize(("kind", "name"), [
    (IdentityCorrection, "lam"), (PolarCorrection, "strength"), (SpectrumTarget, "sigma_min"),
    (SpectrumTarget, "sigma_max"), (SpectrumTarget, "kappa"),
])
def test_settings_must_be_finite_numbers(kind, name, value, message):
    with pytest.raises(ValueError, match=f"{name}: expected {message}"):
        kind(**{name: value})


@pytest.mark.parametrize(("make", "message"), [
    (lambda: PolarCorrection(-0.5), r"strength: expected a number > 0, got -0.5"),
    (lambda: PolarCorrection(0.0), r"strength: expected a number > 0, got 0"),
    (lambda: PolarCorrection(max_kappa=1.9), r"max_kappa: expected a number >= 2, got 1.9"),
    (lambda: PolarCorrection(every=0), r"every: expected an integer >= 1 or None, got 0"),
    (lambda: PolarCorrection(every=2.0), r"every: expected an integer >= 1 or None, got 2.0"),
    (lambda: PolarCorrection(every=True), r"every: expected an integer >= 1 or None, got True"),
    (lambda: SpectrumTarget(kappa=2, gradient="none"),
     r"gradient: expected one of \('exact', 'straight-through'\), got 'none'"),
    (lambda: IdentityCorrection(schedule=3.0), r"schedule: expected a callable of the step, got 3.0"),
    (lambda: IdentityCorrection(schedule=lambda step: math.nan), r"schedule\(0\): expected a finite number, got nan"),
    (lambda: IdentityCorrection(schedule=float, learnable=True), r"expected a schedule or a learnable λ, got both"),
    (lambda: IdentityCorrection().advance(-1), r"step: expected an integer >= 0 or None, got -1"),
    (lambda: IdentityCorrection().advance(1.5), r"step: expected an integer >= 0 or None, got 1.5"),
    (lambda: SpectrumTarget(), r"expected at least one of sigma_min, sigma_max and kappa, got none"),
    (lambda: SpectrumTarget(sigma_min=-1.0), r"sigma_min: expected a number >= 0, got -1"),
    (lambda: SpectrumTarget(sigma_max=0.0), r"sigma_max: expected a number > 0, got 0"),
    (lambda: SpectrumTarget(kappa=0.99), r"kappa: expected a number >= 1, got 0.99"),
    (lambda: SpectrumTarget(2.0, 1.0), r"expected sigma_min <= sigma_max, got 2 > 1"),
    (lambda: PolarCorrection(preserve="norm"), r"preserve: .* \(None, 'spectral', 'frobenius'\), got 'norm'"),
    (lambda: IdentityCorrection(preserve=True), r"preserve: expected one of .* got True"),
    (lambda: FixedCorrection([[1.0]]), r"c: expected a torch.Tensor, got list"),
    (lambda: FixedCorrection(torch.eye(2) / 0), r"c: expected finite entries, got 4 inf or nan of 4"),
    (lambda: FixedCorrection(torch.ones(2)), r"c: expected at least 2 dimensions, got shape \(2,\)"),
    (lambda: FixedCorrection(torch.ones(2, 3, 4)), r"c: expected a matrix, got shape \(2, 3, 4\)"),
    (lambda: FixedCorrection(torch.ones(3, 2))(torch.ones(2, 3)), r"c: .* shape \(2, 3\), got \(3, 2\)"),
])
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("correction", ALL, ids=repr)
@pytest.mark.parametrize(("w", "message"), [
    (np.eye(2), r"w: expected a torch.Tensor, got ndarray"),
    (torch.eye(2).int(), r"w: expected a real floating-point tensor, got dtype torch.int32"),
    (torch.ones(4), r"w: expected at least 2 dimensions, got shape \(4,\)"),
    (torch.ones(3, 0), r"w: expected a non-empty tensor, got shape \(3, 0\)"),
    (torch.full((6, 4), math.nan), r"w: expected finite entries, got 24 inf or nan of 24"),
])
def test_bad_weights_are_refused(correction, w, message):
    with pytest.raises(ValueError, match=message):
        correction(w)


def test_a_subclass_needs_correct_alone():
    class Halve(Correction):
        def __init__(self, factor=0.5, *, preserve=None):
            super().__init__(preserve=preserve)
            self.factor = factor

        def correct(self, w):
            return w * self.factor

    halve = Halve()
    assert torch.equal(halve(torch.ones(2, 2)), torch.full((2, 2), 0.5))
    halve.update(factor=0.25)
    assert torch.equal(halve(torch.ones(2, 2)), torch.full((2, 2), 0.25))
    with pytest.raises(NotImplementedError):
        Correction()(torch.ones(2, 2))


def test_autocast_is_off_inside_correct():
    class Product(Correction):
        def correct(self, w):
            return w @ torch.eye(w.shape[-1], dtype=w.dtype)

    w = random(6, 4).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert (w @ torch.eye(4)).dtype == torch.bfloat16
        assert torch.equal(Product()(w), w)
