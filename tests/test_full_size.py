"""The paper's five vision models at full size: λI and an asymmetric C against weights edited by hand, and fold."""

import copy

import pytest
import torch
from families import QKV, Asymmetric, Family, asymmetric, timm, triple
from matrices import svd_forbidden
from torch import nn

from spectral_core import IdentityCorrection, condition, fold

FACTOR = 0.003  # of a C of norm 0.05 √(m n), which would switch attention off
NAMES = (
    "vit_base_patch16_224", "deit_base_distilled_patch16_224", "swin_base_patch4_window7_224",
    "xcit_medium_24_p16_224", "davit_base",
)  # fmt: skip
LAYERS = dict(zip(NAMES, (12, 12, 24, 26, 24), strict=True))


class Both(Asymmetric):
    """λI and an asymmetric matrix."""

    def correct(self, w):
        return super().correct(w) + torch.eye(*w.shape)


def build(name):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    for key, parameter in model.named_parameters():
        if "gamma" in key or parameter.abs().max() < 1e-4:
            nn.init.constant_(parameter, 0.1)  # layer scales of 1e-5 would hide what attention does
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_full_size_models_equal_weights_edited_by_hand(name, monkeypatch):
    stored = {**QKV, **triple("attn.q", "attn.k", "attn.v")}
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    family = Family(name, lambda: build(name), image, stored)
    model = build(name)
    before = [(key, tuple(value.shape)) for key, value in model.state_dict().items()]
    plain = model(image)
    by_hand = family.by_hand(
        copy.deepcopy(model), lambda _, w: w + torch.eye(*w.shape).numpy() + FACTOR * asymmetric(*w.shape)
    )
    expected = by_hand(image)
    del by_hand
    with svd_forbidden(monkeypatch):  # κ is for those who look at the report
        report = condition(model, Both(FACTOR))
    assert len({p.name for p in report}) == LAYERS[name] + 4 * ("xcit" in name)
    assert not report.unmatched
    out = model(image)
    assert float((out - expected).norm()) <= 1e-5 * float(expected.norm())
    assert float((expected - plain).norm()) > 1e-2 * float(plain.norm())
    fold(model)
    assert float((model(image) - expected).norm()) <= 1e-5 * float(expected.norm())
    assert [(key, tuple(value.shape)) for key, value in model.state_dict().items()] == before


@pytest.mark.slow
def test_lambda_on_a_full_size_vit_stores_nothing():
    model = timm.create_model("vit_base_patch16_224")
    held = [(p.data_ptr(), p.numel()) for p in model.parameters()]
    report = condition(model, IdentityCorrection(1.0))
    tensors = [*model.parameters(), *model.buffers()]
    assert sorted((p.data_ptr(), p.numel()) for p in tensors) == sorted(held)
    assert "_kappas" not in vars(report.projections[0])
    assert report.projections[0].kappa_after > 1
