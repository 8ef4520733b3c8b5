"""The derivative of SpectrumTarget against finite differences and autograd, also at repeated and tiny values."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import prescribed
from torch import nn
from torch.nn.utils import parametrize

from spectral_core import SpectrumTarget

TARGETS = [
    SpectrumTarget(sigma_min=0.7), SpectrumTarget(sigma_max=1.6), SpectrumTarget(kappa=3),
    SpectrumTarget(0.7, 1.6), SpectrumTarget(0.2, 1.6, 4), SpectrumTarget(sigma_max=1.6, kappa=3),
]  # fmt: skip
SPECTRA = {
    "apart": [3.0, 2.0, 1.1, 0.5], "repeated": [3.0, 1.2, 1.2, 0.3], "all equal": [1.2, 1.2, 1.2, 1.2],
    "repeated outside": [3.0, 3.0, 0.3, 0.3], "tiny": [2.0, 1.0, 0.5, 1e-4],
}  # fmt: skip


@pytest.mark.parametrize(("m", "n"), [(4, 4), (7, 4), (4, 6)])
@pytest.mark.parametrize("target", TARGETS, ids=repr)
@pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA)
def test_the_gradient_is_the_derivative(target, values, m, n):
    if values[0] == values[1] and target.kappa is not None:
        pytest.skip("σ_1 that is repeated has no derivative: the floor σ_1/κ follows whichever is larger")
    w = prescribed(values, m, n)[0].requires_grad_()
    torch.autograd.gradcheck(target, w, eps=1e-7, atol=2e-4 * max(1, 0.7 / values[-1]), rtol=1e-3)


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), m=st.integers(1, 6), n=st.integers(1, 6))
def test_it_equals_autograd_through_an_svd_where_that_exists(seed, m, n):
    g = torch.Generator().manual_seed(seed)
    w, t = (torch.randn(m, n, dtype=torch.float64, generator=g) for _ in range(2))
    for target in TARGETS:
        ours, theirs = (w.clone().requires_grad_() for _ in range(2))
        (target(ours) * t).sum().backward()
        u, s, vh = torch.linalg.svd(theirs, full_matrices=False)
        ((u * target.target(s)) @ vh * t).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-8)


def test_the_chain_rule_reaches_the_parameter_and_training_follows():
    torch.manual_seed(0)
    layer = nn.Linear(6, 5, bias=False)
    parametrize.register_parametrization(layer, "weight", SpectrumTarget(0.5, 1.0))
    x, goal = torch.randn(64, 6), torch.randn(64, 5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        loss = (layer(x) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    values = np.linalg.svd(layer.weight.detach().numpy(), compute_uv=False)
    assert values[0] <= 1 + 1e-5
    assert values[-1] >= 0.5 - 1e-5


def test_the_pull_on_tiny_directions_grows_as_the_docstring_says():
    for small in (1e-1, 1e-3):
        w = torch.diag(torch.tensor([1.0, small], dtype=torch.float64)).requires_grad_()
        turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
        (SpectrumTarget(sigma_min=0.5)(w) * turn).sum().backward()
        assert float(w.grad[0, 1]) == pytest.approx((1 + 0.5) / (1 + small), rel=1e-9)
    w = (small * torch.eye(2, dtype=torch.float64)).requires_grad_()
    (SpectrumTarget(sigma_min=0.5)(w) * turn).sum().backward()
    assert float(w.grad[0, 1]) == pytest.approx(0.5 / small, rel=1e-9)  # α/σ


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_batch_and_autocast(dtype):
    g = torch.Generator().manual_seed(0)
    w = torch.randn(2, 3, 6, 4, generator=g).to(dtype).requires_grad_()
    target = SpectrumTarget(0.5, 1.5, preserve="frobenius")
    with torch.autocast("cpu", torch.bfloat16):
        out = target(w)
    out.float().square().sum().backward()
    assert out.dtype == w.grad.dtype == dtype
    one = w.detach()[1, 2].clone().requires_grad_()
    target(one).float().square().sum().backward()
    torch.testing.assert_close(w.grad[1, 2], one.grad)


@pytest.mark.parametrize(("target", "message"), [
    (SpectrumTarget(sigma_min=0.5), r"SpectrumTarget\(sigma_min=0.5\): expected W of full rank 3, got rank 2: a zero"),
    (SpectrumTarget(kappa=4), r"SpectrumTarget\(kappa=4\): expected W of full rank 3, got rank 2: .* PolarCorrection"),
    (SpectrumTarget(0.1, 2.0, 4), r"SpectrumTarget\(sigma_min=0.1, kappa=4\): expected W of full rank 3, got rank 2"),
])
def test_a_target_above_what_the_rank_allows_is_refused(target, message):
    w = prescribed([2.0, 1.0], 4, 3)[0]
    with pytest.raises(ValueError, match=message):
        target(w)
    straight = SpectrumTarget(**{**target.settings(), "gradient": "straight-through"})
    assert np.linalg.svd(straight(w).numpy(), compute_uv=False)[-1] > 0.09
    below = SpectrumTarget(sigma_max=1.5)(w)  # nothing has to be raised
    np.testing.assert_allclose(np.linalg.svd(below.numpy(), compute_uv=False), [1.5, 1.0, 0.0], atol=1e-12)


def test_in_inference_mode_and_without_gradients():
    w = nn.Parameter(prescribed([3.0, 2.0, 1.1, 0.5], 5, 4)[0])
    expected = SpectrumTarget(kappa=2)(w).detach()
    for context in (torch.inference_mode, torch.no_grad):
        with context():
            torch.testing.assert_close(SpectrumTarget(kappa=2)(w), expected)


@pytest.mark.parametrize("gradient", ["exact", "straight-through"])
def test_a_parameter_that_is_not_finite_is_refused(gradient):
    with pytest.raises(ValueError, match=r"w: expected finite entries, got 12 inf or nan of 12"):
        SpectrumTarget(kappa=2, gradient=gradient)(nn.Parameter(torch.full((3, 4), torch.nan)))


def test_of_a_zero_matrix():
    zero = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    SpectrumTarget(sigma_max=1.0)(zero).sum().backward()
    assert torch.isfinite(zero.grad).all()
    with pytest.raises(ValueError, match=r"expected W of full rank 2, got rank 0"):
        SpectrumTarget(sigma_min=1.0)(zero)
