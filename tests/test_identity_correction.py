"""λ that follows a schedule or is learned, and the equivalence of a fixed correction with an initialisation."""

import copy

import pytest
import torch
from torch import nn

from spectral_core import IdentityCorrection, SpectralConditionedAttention, advance, condition, fold, initialize
from spectral_core.data import load_digits
from spectral_core.models import VisionTransformer
from spectral_core.training import fit


def test_a_schedule_sets_lambda_by_the_step():
    correction = IdentityCorrection(schedule=lambda step: 2.0 / (1 + step))
    zero = torch.zeros(2, 3)
    assert correction(zero)[0, 0] == 2.0
    correction.advance()
    assert correction(zero)[0, 0] == 1.0
    correction.advance(9)
    assert correction(zero)[0, 0] == pytest.approx(0.2)
    correction.update(relative=True)  # a change of settings does not turn the time back
    assert (correction.step, float(correction.lam)) == (9, pytest.approx(0.2))
    again = copy.deepcopy(correction)
    again.advance()
    assert correction.step == 9


def test_advance_reaches_every_correction_of_a_model_and_fit_calls_it():
    seen = []
    correction = IdentityCorrection(schedule=lambda step: seen.append(step) or 0.1 * step)
    model = VisionTransformer()
    condition(model, {"q": correction, "v": IdentityCorrection(0.5)})
    advance(model, 3)
    assert correction.step == 3
    advance(model)
    assert correction.step == 4
    list(fit(model, load_digits("digits"), steps=4, batch_size=8))
    assert seen[-4:] == [0, 1, 2, 3]  # once a step, however many weights share it
    assert float(correction.lam) == pytest.approx(0.3)


def test_a_bad_value_of_the_schedule_is_an_error_when_it_comes():
    correction = IdentityCorrection(schedule=lambda step: 1.0 if step < 2 else "soon")
    correction.advance()
    with pytest.raises(ValueError, match=r"schedule\(2\): expected a real number, got 'soon'"):
        correction.advance()


def test_a_refused_schedule_changes_nothing():
    first = IdentityCorrection(schedule=lambda step: 1.0)
    first.advance(5)
    with pytest.raises(ValueError, match=r"schedule\(5\): expected a finite number, got nan"):
        first.update(schedule=lambda step: float("nan") if step > 3 else 2.0)
    first.advance(6)
    assert first.settings()["lam"] == 1.0


def test_a_relative_lambda_of_a_weight_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"w: expected finite entries, got 1 inf or nan of 4"):
        IdentityCorrection(1.0, relative=True)(nn.Parameter(torch.tensor([[1.0, 2.0], [torch.inf, 1.0]])))


def test_a_learnable_lambda_has_the_gradient_of_its_identity():
    correction = IdentityCorrection(0.5, learnable=True)
    w, t = torch.randn(4, 3), torch.randn(4, 3)
    (correction(w) * t).sum().backward()
    assert float(correction.lam.grad) == pytest.approx(float(t.diagonal().sum()), rel=1e-6)
    relative = IdentityCorrection(0.5, True, learnable=True)
    (relative(w) * t).sum().backward()
    expected = float(t.diagonal().sum() * torch.linalg.matrix_norm(w, 2))
    assert float(relative.lam.grad) == pytest.approx(expected, rel=1e-5)


def test_a_learnable_lambda_is_trained_saved_and_folded():
    torch.manual_seed(0)
    model = SpectralConditionedAttention(8, 2)
    keys = list(model.state_dict())
    correction = IdentityCorrection(0.5, learnable=True)
    condition(model, correction)
    assert sum(p is correction.lam for p in model.parameters()) == 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(3, 8)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    learned = correction.settings()["lam"]
    assert learned != 0.5
    assert any(key.endswith(".lam") for key in model.state_dict())
    correction.update(lam=0.75)
    assert next(p for p in model.parameters() if p is correction.lam).item() == 0.75
    with pytest.raises(ValueError, match=r"learnable: expected True as at the start, make a new correction instead"):
        correction.update(learnable=False)
    out = model(x)
    fold(model)
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(x), out)


def test_a_small_identity_made_in_inference_mode_serves_in_training():
    correction = IdentityCorrection(0.5, learnable=True)
    with torch.inference_mode():
        correction(torch.zeros(7, 11))
    correction(torch.zeros(7, 11)).sum().backward()
    assert float(correction.lam.grad) == 7


class Toy(nn.Module):
    """One attention layer in float64, so that rounding is far below any real difference."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = SpectralConditionedAttention(6, 2).double()

    def forward(self, x):
        return self.attention(x)


OPTIMIZERS = {
    "SGD": lambda parameters, decay: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.0),
    "AdamW": lambda parameters, decay: torch.optim.AdamW(parameters, lr=0.01, weight_decay=decay),
}


def trajectory(model, optimizer, steps=30):
    g = torch.Generator().manual_seed(1)
    out = []
    for _ in range(steps):
        x = torch.randn(5, 6, dtype=torch.float64, generator=g)
        optimizer.zero_grad()
        (model(x) - x.flip(-1)).square().mean().backward()
        optimizer.step()
        weights = [getattr(model.attention, name).weight.detach().clone() for name in ("query", "key", "value", "out")]
        out.append(torch.stack(weights))
    return torch.stack(out)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_weight_decay_a_fixed_correction_is_an_initialisation(name):
    corrected, shifted = Toy(), Toy()
    condition(corrected, IdentityCorrection(0.7))
    initialize(shifted, "identity-shift", lam=0.7)
    ours, theirs = (trajectory(m, OPTIMIZERS[name](m.parameters(), 0.0)) for m in (corrected, shifted))
    assert float((ours[0] - ours[-1]).abs().max()) > 1e-2  # it has trained
    # Adam divides by √v + ε: rounding of W + C against W₀ + C is all that is left
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_with_decoupled_weight_decay_they_part():
    corrected, shifted = Toy(), Toy()
    condition(corrected, IdentityCorrection(0.7))
    initialize(shifted, "identity-shift", lam=0.7)
    ours, theirs = (trajectory(m, OPTIMIZERS["AdamW"](m.parameters(), 0.1)) for m in (corrected, shifted))
    gap = (ours - theirs).abs().amax((1, 2, 3))
    assert float(gap[0]) > 1e-4  # 0.7 · lr · decay after one step
    assert float(gap[0]) == pytest.approx(0.7 * 0.01 * 0.1, rel=1e-6)
    assert float(gap[-1]) > 5 * float(gap[0])


@pytest.mark.parametrize("shape", [(300, 260), (260, 300), (2, 300, 260)])
@pytest.mark.parametrize("options", [(), ("relative",), ("learnable",), ("relative", "learnable")])
def test_large_weights_and_the_gradient_of_lambda(shape, options):
    """They take another way than small ones, for which an identity matrix is kept."""
    torch.manual_seed(0)
    w = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    correction = IdentityCorrection(0.5, **dict.fromkeys(options, True))
    out = correction(w)
    scale = torch.linalg.matrix_norm(w.detach(), 2)[..., None, None] if "relative" in options else 1.0
    torch.testing.assert_close(out, w + 0.5 * scale * torch.eye(*shape[-2:], dtype=torch.float64), rtol=1e-7, atol=1e-7)
    probe = torch.randn(shape, dtype=torch.float64)
    (out * probe).sum().backward()
    torch.testing.assert_close(w.grad, probe)
    if "learnable" in options:
        trace = (probe * scale).diagonal(dim1=-2, dim2=-1).sum()
        assert float(correction.lam.grad) == pytest.approx(float(trace), rel=1e-5)
