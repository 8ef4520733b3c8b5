"""calibrate against κ(J), saturation and logits of weights edited by hand; its limits, its search, its errors."""

import copy
import time

import numpy as np
import pytest
import torch
from torch import nn

from spectral_core import (
    FixedCorrection,
    IdentityCorrection,
    PolarCorrection,
    SpectralConditionedAttention,
    SpectrumTarget,
    attention_jacobians,
    calibrate,
    condition,
    find_projections,
)
from spectral_core.calibration import LAMBDAS
from spectral_core.data import load_digits
from spectral_core.models import VisionTransformer, course_vit

IMAGE = load_digits("mnist").test_x[:1]


def small(init="xavier", seed=0):
    return VisionTransformer(8, 2, dim=16, depth=2, num_heads=2, init=init, seed=seed)


DIGIT = load_digits("digits").test_x[:2]


def by_hand(model, lam, roles="qkv"):
    """A copy with λ I written into the weights."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for p in find_projections(model):
            if p.role in roles:
                p.weight.diagonal().add_(lam)
    return model


def geometric_mean(model, batch):
    records = attention_jacobians(model, batch, method="svd", progress=False)
    return float(np.exp(np.mean(np.log(np.concatenate([r.condition_number.numpy() for r in records])))))


@pytest.mark.parametrize("lam", [0.1, 1.0])
def test_scores_are_those_of_weights_edited_by_hand(lam):
    model = small()
    result = calibrate(model, DIGIT, candidates={"mine": IdentityCorrection(lam)}, progress=False)
    row = next(c for c in result.table if c.name == "mine")
    edited = by_hand(model, lam)
    records = attention_jacobians(edited, DIGIT, method="svd", progress=False)
    assert row.kappa == pytest.approx(geometric_mean(edited, DIGIT), rel=1e-5)
    assert row.kappa_worst == pytest.approx(max(float(r.condition_number.max()) for r in records), rel=1e-5)
    assert not row.lower_bound
    for layer in range(2):
        name = f"blocks.{layer}.attention"
        mine = [float(r.saturation.mean()) for r in records if r.layer == name]
        assert row.saturation[name] == pytest.approx(np.mean(mine), rel=1e-9)
        with torch.no_grad():
            x = edited.attention_input(DIGIT, layer).double()
            attention = edited.block(layer).attention
            q, k = (x @ w.weight.double().T for w in (attention.query, attention.key))
            q, k = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (q, k))
            logits = (q @ k.mT / 8**0.5).numpy()
        assert row.logit_scale[name] == pytest.approx(np.sqrt(np.mean(logits.std(-1) ** 2)), rel=1e-6)


@pytest.mark.parametrize("init", ["xavier", "trunc-normal"])
def test_the_course_vit_in_time_and_no_fixed_lambda_within_the_limit_is_better(init):
    model = course_vit(init)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    began = time.process_time()
    result = calibrate(model, IMAGE, progress=False)
    assert time.process_time() - began < 60  # 10 s on two quiet cores; here only that it is no matter of minutes
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    best = result.table[0]
    assert result.choice == best.corrections
    assert max(best.saturation.values()) <= 0.5
    fixed = {lam: next(c for c in result.table if c.name == f"λ = {lam:g} on Q, K and V") for lam in LAMBDAS}
    for row in fixed.values():
        if max(row.saturation.values()) <= 0.5:
            assert best.kappa <= row.kappa
    assert "attention saturates" in fixed[10.0].refused
    assert fixed[10.0].mean_saturation > 0.98
    assert "λ = 10 on Q, K and V: attention saturates, mean of the largest weight" in result.reason
    assert "\n" not in result.reason
    conditioned = copy.deepcopy(model)
    condition(conditioned, result.choice)
    assert geometric_mean_by_gram(conditioned) == pytest.approx(best.kappa, rel=1e-3)


def geometric_mean_by_gram(model):
    records = attention_jacobians(model, IMAGE, method="gram", progress=False)
    return float(np.exp(np.mean(np.log([float(r.condition_number) for r in records]))))


def test_ten_alone_is_refused_and_the_model_left_alone():
    result = calibrate(small(), DIGIT, candidates=[IdentityCorrection(10.0)], progress=False)
    assert result.choice == {}
    assert [c.name for c in result.table] == ["plain", "λ = 10 on Q, K and V"]
    assert result.reason.startswith("Chosen: no correction.")
    assert "Every token then attends to one token alone" in result.reason
    assert "the closed-form limit for λ on both is about 0.99 here" in result.reason  # (log 16 / √8)^½
    # the same λ on W_V alone saturates nothing
    allowed = calibrate(small(), DIGIT, roles="v", candidates=[IdentityCorrection(10.0)], progress=False)
    assert not any(c.refused for c in allowed.table)


def test_limits_are_held_and_said():
    model = small("trunc-normal")
    strict = calibrate(model, DIGIT, candidates=[IdentityCorrection(1.0)], max_saturation=0.07, progress=False)
    assert strict.table[1].refused.startswith("attention saturates, mean of the largest weight")
    assert "> 0.07 in blocks." in strict.table[1].refused
    growth = calibrate(model, DIGIT, candidates=[IdentityCorrection(3.0)], max_saturation=1.0, progress=False)
    assert growth.table[1].refused.startswith("logits grow from")
    assert growth.table[1].refused.endswith("over 4 times")
    weak = [SpectrumTarget(sigma_max=0.01)]
    shrunk = calibrate(small(), DIGIT, candidates=weak, max_saturation=1.0, max_logit_change=3, progress=False)
    assert shrunk.table[1].refused.startswith("logits shrink from")
    # a model that saturates by itself sets its own limit
    loud = by_hand(small(), 10.0, roles="qk")
    own = calibrate(loud, DIGIT, candidates=[IdentityCorrection(0.01)], progress=False)
    assert own.table[0].mean_saturation > 0.9
    assert not any(c.refused for c in own.table)


def test_roles_names_and_search():
    result = calibrate(small(), DIGIT, roles="v", progress=False)
    assert set(result.choice) <= {"v"}
    assert all(set(c.corrections) <= {"v"} for c in result.table)
    names = [c.name for c in result.table]
    assert len(set(names)) == len(names)
    assert {"plain", "λ = 3 on V", "polar on V", "polar, ‖W‖_F kept on V"} <= set(names)
    mixed = calibrate(
        small(), DIGIT, progress=False,
        candidates=[{"q": IdentityCorrection(0.3), "k": IdentityCorrection(0.3), "v": PolarCorrection()},
                    {"v": SpectrumTarget(kappa=2, gradient="straight-through")}, PolarCorrection(0.5)],
    )  # fmt: skip
    assert {c.name for c in mixed.table} == {
        "plain", "λ = 0.3 on Q and K; polar on V", "target κ = 2 on V", "PolarCorrection(strength=0.5) on Q, K and V",
    }
    admissible = [c.kappa for c in result.table if not c.refused]
    assert admissible == sorted(admissible)


@pytest.mark.parametrize(("bias", "rank"), [(False, 80), (True, 84)])
def test_more_rows_than_the_rank_is_read_over_the_rank_that_there_is(bias, rank):
    # n = 40 tokens, D = 8, d = 4: J has 96 columns, of which gauge freedom takes 16, or 12 with a bias of the queries
    torch.manual_seed(0)
    model = SpectralConditionedAttention(8, 2, bias=bias)
    x = torch.randn(1, 40, 8)
    result = calibrate(model, x, candidates=[IdentityCorrection(0.2)], progress=False)
    plain = next(c for c in result.table if c.name == "plain")
    records = attention_jacobians(model, x, method="svd", progress=False)
    assert all(int(r.rank) == rank for r in records)
    expected = np.exp(np.mean(np.log([float(r.effective_condition_number) for r in records])))
    assert plain.kappa == pytest.approx(expected, rel=1e-6)


def test_layer_normed_tokens_of_full_count_are_resolved():
    model = VisionTransformer(8, 1, dim=8, depth=1, num_heads=2)  # 64 tokens of rank 7
    result = calibrate(model, DIGIT[:1], candidates=[IdentityCorrection(0.2)], progress=False)
    assert not any(c.lower_bound for c in result.table)
    assert "at least" not in result.reason


def test_candidates_that_look_alike_are_all_kept_and_learnable_ones_work():
    c = torch.eye(16)
    result = calibrate(small(), DIGIT, candidates=[FixedCorrection(c), FixedCorrection(2 * c)], progress=False)
    assert sorted(row.name for row in result.table)[:2] == [
        "FixedCorrection() on Q, K and V", "FixedCorrection() on Q, K and V (2)",
    ]  # fmt: skip
    learned = calibrate(small(), DIGIT, candidates=[IdentityCorrection(10.0, learnable=True)], progress=False)
    assert "learnable" in learned.reason
    learned.plot()


def test_table_and_picture(tmp_path):
    result = calibrate(small(), DIGIT, progress=False)
    lines = str(result).splitlines()
    assert len(lines) == 1 + len(result.table)
    assert lines[0].split() == ["candidate", "κ(J),", "mean", "worst", "saturation", "logits"]
    assert lines[-1].count("refused: ") == 1
    figure = result.plot()
    assert f"Chosen: {result.table[0].name}" in figure.alt
    assert "lambda 10: " in figure.alt
    figure.savefig(tmp_path / "calibration.png")


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = SpectralConditionedAttention(4, 2)

    def forward(self, x):
        return self.attention(x)


REFUSED = [
    ({"batch": torch.randn(1, 3, 5)}, r"batch: expected what the model can be called with, got RuntimeError: mat1"),
    ({"batch": (torch.randn(1, 3, 4), 7)}, r"batch: expected what the model can be called with, got TypeError"),
    ({"batch": {"y": torch.randn(1, 3, 4)}}, r"batch: expected what .* unexpected keyword argument 'y'"),
    ({"batch": None}, r"batch: expected what the model can be called with, got TypeError"),
    ({"roles": "x"}, r'roles: expected a non-empty subset of "qkv", got \'x\''),
    ({"roles": ""}, r"roles: expected a non-empty subset"),
    ({"candidates": []}, r"candidates: expected at least one, got none"),
    ({"candidates": PolarCorrection()}, r"candidates: expected a list or a mapping by name, got PolarCorrection"),
    ({"candidates": [1.0]}, r"candidates: expected corrections, or dicts of them by roles among 'qkv', got 1.0"),
    ({"candidates": [{"v": 1.0}]}, r"candidates: expected corrections, or dicts .* got \{'v': 1.0\}"),
    ({"candidates": [{"q": PolarCorrection()}], "roles": "v"}, r"candidates: .* by roles among 'v', got \{'q'"),
    ({"max_saturation": 0}, r"max_saturation: expected a number > 0, got 0"),
    ({"max_saturation": 1.5}, r"max_saturation: expected a number <= 1, got 1.5"),
    ({"max_logit_change": 0.5}, r"max_logit_change: expected a number >= 1, got 0.5"),
    ({"layers": [3]}, r"layers: expected positions below 1"),
    ({"heads": [5]}, r"heads: expected indices from 0 to 1"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_bad_input_is_refused_and_changes_nothing(arguments, message):
    model = Failing().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        calibrate(model, **{"batch": torch.randn(1, 3, 4), "progress": False, **arguments})
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_models_that_are_conditioned_or_carry_a_correction_that_fails():
    model = Failing()
    condition(model, IdentityCorrection(3.0))
    with pytest.raises(ValueError, match=r"attention.query: expected a plain weight, .* fold\(model\) first"):
        calibrate(model, torch.randn(1, 3, 4))
    plain = Failing()
    plain.attention.value.weight.data.zero_()
    keys = list(plain.state_dict())
    with pytest.raises(ValueError, match=r"expected W of full rank 4, got rank 0"):
        calibrate(plain, torch.randn(1, 3, 4), candidates=[SpectrumTarget(sigma_min=0.5)], progress=False)
    assert list(plain.state_dict()) == keys


def test_exact_takes_an_svd_where_a_gram_matrix_has_no_answer():
    model = VisionTransformer(init="trunc-normal", depth=1, seed=0)
    with torch.no_grad():
        model.position.mul_(1e-3)  # nearly equal tokens
    x = load_digits().train_x[:1]
    loose = calibrate(model, x, candidates=[IdentityCorrection(0.3)], progress=False)
    tight = calibrate(model, x, candidates=[IdentityCorrection(0.3)], exact=True, progress=False)
    before, after = (next(c for c in found.table if not c.corrections) for found in (loose, tight))
    assert before.lower_bound
    assert not after.lower_bound
    heads = attention_jacobians(model, x, method="svd", progress=False)
    logs = [float(head.effective_condition_number.log()) for head in heads]
    np.testing.assert_allclose(after.kappa, np.exp(np.mean(logs)), rtol=1e-6)
    assert before.kappa < after.kappa
