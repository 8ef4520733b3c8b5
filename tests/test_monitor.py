"""SpectralMonitor against NumPy's singular values of the weights in use, head by head."""

import numpy as np
import pytest
import torch
from families import TIMM, TRANSFORMERS, Asymmetric, asymmetric
from torch import nn

from spectral_core import IdentityCorrection, SpectralConditionedAttention, SpectralMonitor, condition
from spectral_core.models import VisionTransformer

FAMILY = {family.name: family for family in TIMM + TRANSFORMERS}


@pytest.mark.parametrize("name", ["GPT-2", "GPT-NeoX", "Falcon, key-value groups", "Llama", "timm ViT"])
@pytest.mark.parametrize("is_conditioned", [False, True])
def test_values_are_those_of_the_heads(name, is_conditioned):
    family = FAMILY[name]
    model = family.model()
    if is_conditioned:
        condition(model, Asymmetric())
    values = SpectralMonitor(model).step(0)
    heads = {"q": family.heads, "k": family.kv_heads or family.heads, "v": family.kv_heads or family.heads}
    expected, layers = {}, []
    for key, parameter, rows in family.parameters(family.model()):
        owner = key.removesuffix(".weight").rpartition(".")[0]
        layers += [owner] if owner not in layers else []
        for role, index in rows.items():
            w = parameter.detach().double().numpy()
            w = (w.T if family.columns else w)[index]
            w = w + asymmetric(*w.shape) * is_conditioned
            s = np.linalg.svd(np.stack(np.split(w, heads[role])), compute_uv=False)
            place = f"spectral/layer{layers.index(owner):02d}/{role}"
            expected |= {f"{place}/kappa": (s[:, 0] / s[:, -1]).max(), f"{place}/sigma_max": s[:, 0].max()}
    assert values == pytest.approx(expected, rel=1e-4)
    assert list(values) == sorted(values)


def test_every_so_many_steps_and_history():
    monitor = SpectralMonitor(SpectralConditionedAttention(8, 2), every=3)
    assert [monitor.step(i) is None for i in range(7)] == [False, True, True, False, True, True, False]
    assert [record["step"] for record in monitor.history] == [0, 3, 6]
    assert monitor.names == [""]


def test_a_batch_adds_the_jacobian():
    model = VisionTransformer(dim=8, depth=2)
    batch = torch.randn(1, 1, 8, 8)
    values = SpectralMonitor(model, batch=batch).step(0)
    assert values["spectral/layer01/kappa_j"] >= 1
    assert 0 < values["spectral/layer00/saturation"] <= 1


def test_a_rank_deficient_head_is_infinite():
    model = SpectralConditionedAttention(8, 2)
    with torch.no_grad():
        model.query.weight[0] = 0
    assert SpectralMonitor(model).step(0)["spectral/layer00/q/kappa"] == float("inf")


@pytest.mark.parametrize("every", [0, -1, 2.0, True, None])
def test_every_must_be_a_positive_integer(every):
    with pytest.raises(ValueError, match="every: expected a positive integer, got"):
        SpectralMonitor(SpectralConditionedAttention(8, 2), every=every)


def test_a_batch_for_fused_layers_is_refused_at_once():
    family = FAMILY["timm ViT"]
    with pytest.raises(ValueError, match=r"blocks.0.attn.qkv: expected separate nn.Linear layers"):
        SpectralMonitor(family.model(), batch=family.batch)


def test_a_model_without_attention_is_refused():
    with pytest.raises(ValueError, match="expected a model with query, key and value weights"):
        SpectralMonitor(nn.Linear(2, 2))


def test_it_neither_draws_random_numbers_nor_changes_the_model():
    model = FAMILY["Llama"].model().train()
    condition(model, IdentityCorrection(0.5))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    SpectralMonitor(model).step(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
