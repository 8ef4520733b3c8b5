"""A conditioned model stays as usable as before: checkpoints, copies, averages, optimizers, ties."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from families import TRANSFORMERS, Asymmetric, asymmetric
from safetensors.torch import load_file, save_file, save_model
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import AlbertConfig, AlbertModel

from spectral_core import (
    IdentityCorrection,
    PolarCorrection,
    condition,
    find_projections,
    fold,
    plain_state_dict,
    unfold,
)

FAMILY = {family.name: family for family in TRANSFORMERS}
CHOSEN = [FAMILY[name] for name in ("BERT", "GPT-2", "Falcon, key-value groups", "Llama")]


class Attention(nn.Module):
    """Packed and split attention, a fused layer of a stated layout, and a buffer, in an awkward order."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.split = nn.MultiheadAttention(6, 2, kdim=4, vdim=3, batch_first=True)
        self.register_buffer("scale", torch.tensor(2.0))
        self.packed = nn.MultiheadAttention(6, 3, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        y = self.split(x, x[..., :4], x[..., :3])[0]
        return self.head(self.packed(y, y, y)[0]) * self.scale


X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(5))


def conditioned():
    model = Attention()
    condition(model, Asymmetric())
    return model


def shapes(state):
    return [(key, tuple(value.shape)) for key, value in state.items()]


@pytest.mark.parametrize("family", CHOSEN, ids=str)
def test_plain_keys_load_before_and_after_and_are_written(family):
    source = family.model()
    with torch.no_grad():
        for p in source.parameters():
            p.add_(0.1 * torch.randn_like(p))
    checkpoint = source.state_dict()
    before, after = family.model(), family.model()
    before.load_state_dict(checkpoint)
    condition(before, Asymmetric())
    condition(after, Asymmetric())
    given = dict(checkpoint)
    assert not any(after.load_state_dict(given))  # nothing missing, nothing unexpected
    assert list(given) == list(checkpoint)  # the caller's dict is left alone
    torch.testing.assert_close(family.run(after), family.run(before), rtol=0, atol=0)
    written = plain_state_dict(after)
    assert shapes(written) == shapes(checkpoint)
    assert all(torch.equal(written[key], checkpoint[key]) for key in written)
    native = after.state_dict()
    other = family.model()
    condition(other, Asymmetric())
    other.load_state_dict(native)  # its own keys load too
    torch.testing.assert_close(family.run(other), family.run(before), rtol=0, atol=0)


def test_what_is_missing_or_wrong_in_a_plain_checkpoint_is_still_said():
    model, state = conditioned(), Attention().state_dict()
    del state["packed.in_proj_weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*packed.parametrizations.in_proj_weight.original"):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"packed.other"'):
        model.load_state_dict({**Attention().state_dict(), "packed.other": torch.ones(1)})
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict({**Attention().state_dict(), "packed.in_proj_weight": torch.ones(6, 6)})


def test_the_keys_keep_their_order():
    plain, model = Attention(), conditioned()
    assert shapes(plain_state_dict(model)) == shapes(plain.state_dict())
    assert shapes(plain_state_dict(plain)) == shapes(plain.state_dict())
    gathered = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(1)
    gathered["packed.parametrizations.in_proj_weight.original"] = torch.randn(18, 6)
    written = plain_state_dict(model, gathered)
    assert torch.equal(written["packed.in_proj_weight"], gathered["packed.parametrizations.in_proj_weight.original"])


def test_a_folded_checkpoint_is_that_of_the_folded_model():
    model = conditioned()
    written = plain_state_dict(model, folded=True)
    assert all(value.is_contiguous() for value in written.values())
    plain = Attention()
    plain.load_state_dict(written)
    torch.testing.assert_close(plain(X), model(X))
    fold(model)
    assert shapes(model.state_dict()) == shapes(written)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, written[key])


def test_safetensors_round_trip(tmp_path):
    model = conditioned()
    expected = model(X)
    save_file(plain_state_dict(model), tmp_path / "plain.safetensors")
    save_file(plain_state_dict(model, folded=True), tmp_path / "folded.safetensors")
    other = conditioned()
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(load_file(tmp_path / "plain.safetensors"))
    torch.testing.assert_close(other(X), expected, rtol=0, atol=0)
    plain = Attention()
    plain.load_state_dict(load_file(tmp_path / "folded.safetensors"))
    torch.testing.assert_close(plain(X), expected)
    save_model(fold(model), str(tmp_path / "model.safetensors"))
    assert list(load_file(tmp_path / "model.safetensors")) == sorted(Attention().state_dict())


def test_gpt2_folds_to_contiguous_weights_that_safetensors_takes(tmp_path):
    family = FAMILY["GPT-2"]
    model = family.model()
    condition(model, Asymmetric())
    expected = family.run(model)
    fold(model)
    assert all(value.is_contiguous() for value in model.state_dict().values())
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(family.run(type(model).from_pretrained(tmp_path).eval()), expected)


def test_a_learned_lambda_survives_a_plain_checkpoint():
    model = Attention()
    condition(model, IdentityCorrection(0.7, learnable=True))
    assert any(key.endswith("lam") for key in model.state_dict())
    state = plain_state_dict(model)
    assert shapes(state) == shapes(Attention().state_dict())
    expected = model(X)
    model.load_state_dict(state)
    torch.testing.assert_close(model(X), expected, rtol=0, atol=0)


def test_a_copy_is_independent_in_every_way():
    model, correction = Attention(), IdentityCorrection(1.0)
    condition(model, correction)
    expected = model(X)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(X), expected, rtol=0, atol=0)
    fold(twin)  # torch keeps one class for both, and fold must not take the original's properties away
    torch.testing.assert_close(twin(X), expected)
    torch.testing.assert_close(model(X), expected, rtol=0, atol=0)
    again = copy.deepcopy(model)
    unfold(model)
    torch.testing.assert_close(again(X), expected, rtol=0, atol=0)
    torch.testing.assert_close(model(X), Attention()(X), rtol=0, atol=0)
    again.load_state_dict(Attention().state_dict())  # the copy takes plain keys too
    torch.testing.assert_close(again(X), expected, rtol=0, atol=0)


def test_an_average_of_conditioned_models_is_the_conditioned_average():
    model = conditioned()
    plain = Attention()
    averages = [AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.5)) for m in (model, plain)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        steps = [0.1 * torch.randn(p.shape, generator=generator) for p in plain.parameters()]
        by_name = {name: step for (name, _), step in zip(plain.named_parameters(), steps, strict=True)}
        for m in (model, plain):
            with torch.no_grad():
                for name, p in m.named_parameters():
                    p += by_name[name.replace("parametrizations.", "").replace(".original", "")]
        averages[0].update_parameters(model)
        averages[1].update_parameters(plain)
    condition(averages[1].module, Asymmetric())
    torch.testing.assert_close(averages[0](X), averages[1](X))
    fold(averages[0].module)
    torch.testing.assert_close(averages[0](X), averages[1](X))


def step(model, optimizer):
    optimizer.zero_grad()
    model(X).square().mean().backward()
    optimizer.step()


def test_an_optimizer_keeps_its_state_across_condition_and_fold():
    """Against Adam written out in NumPy on the same parameters."""
    model = Attention()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    step(model, optimizer)
    weight = model.packed.in_proj_weight
    first, second = (optimizer.state[weight][key].clone().numpy() for key in ("exp_avg", "exp_avg_sq"))
    condition(model, Asymmetric())
    before = weight.detach().clone().numpy()
    step(model, optimizer)
    g = weight.grad.numpy()
    first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
    moved = before - 0.01 * (first / (1 - 0.9**2)) / (np.sqrt(second / (1 - 0.999**2)) + 1e-8)
    np.testing.assert_allclose(weight.detach().numpy(), moved, rtol=1e-5, atol=1e-7)
    fold(model)
    assert model.packed.in_proj_weight is weight
    (group,) = optimizer.param_groups
    assert [id(p) for p in model.parameters()] == [id(p) for p in group["params"]]
    step(model, optimizer)


def test_a_saved_optimizer_resumes_in_one_made_before_conditioning():
    model = Attention()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    condition(model, Asymmetric())
    step(model, optimizer)
    saved = copy.deepcopy((plain_state_dict(model), optimizer.state_dict()))
    resumed = Attention()
    fresh = torch.optim.Adam(resumed.parameters(), lr=0.01)
    resumed.load_state_dict(saved[0])
    fresh.load_state_dict(saved[1])
    condition(resumed, Asymmetric())
    for _ in range(2):
        step(model, optimizer)
        step(resumed, fresh)
    torch.testing.assert_close(resumed(X), model(X), rtol=0, atol=0)


def test_pickling_whole_says_what_to_do_instead():
    message = r"be pickled whole.* plain_state_dict\(model\), .* or fold\(model\) first; copy.deepcopy works"
    model = conditioned()
    with pytest.raises(RuntimeError, match=message):
        torch.save(model, io.BytesIO())
    with pytest.raises(RuntimeError, match=message):
        pickle.dumps(model)
    buffer = io.BytesIO()
    torch.save(fold(model), buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.load(buffer, weights_only=False)(X), model(X))


def test_assignment_says_what_to_do_instead():
    model = conditioned()
    with pytest.raises(NotImplementedError, match=r"cannot be assigned to, since W or W \+ C could be meant: write to"):
        model.packed.in_proj_weight = torch.zeros(18, 6)


def test_shared_layers_are_corrected_once():
    sizes = {"vocab_size": 40, "embedding_size": 8, "hidden_size": 24, "intermediate_size": 20}
    config = AlbertConfig(**sizes, num_hidden_layers=3, num_attention_heads=3)
    torch.manual_seed(0)
    model = AlbertModel(config, add_pooling_layer=False).eval()
    expected, tokens = copy.deepcopy(model), FAMILY["BERT"].batch
    for name, p in expected.named_parameters():
        if any(f".{role}.weight" in name for role in ("query", "key", "value")):
            p.data += torch.from_numpy(asymmetric(*p.shape)).float()
    report = condition(model, Asymmetric())
    assert len(report) == 3
    torch.testing.assert_close(model(**tokens)[0], expected(**tokens)[0])


class Pair(nn.Module):
    """Two attention modules with packed weights, and two with separate ones, tied."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = (nn.MultiheadAttention(6, 2, batch_first=True) for _ in range(2))
        self.b.in_proj_weight = self.a.in_proj_weight
        self.first, self.second = (nn.ModuleDict({r: nn.Linear(6, 4) for r in "qkv"}) for _ in range(2))
        self.second["k"].weight = self.first["k"].weight
        self.first["q"] = self.first["v"]  # one layer in two roles

    def forward(self, x):
        x = self.b(*[self.a(x, x, x)[0]] * 3)[0]
        return sum((m["q"](x) @ m["k"](x).mT).softmax(-1) @ m["v"](x) for m in (self.first, self.second))


def test_tied_weights_are_registered_once_and_stay_tied():
    model = Pair()
    expected = copy.deepcopy(model)
    unique = {id(p): p for name, p in expected.named_parameters() if p.ndim == 2 and "out_proj" not in name}
    for w in unique.values():
        third = len(w) // 3 if len(w) == 18 else len(w)
        for at in range(0, len(w), third):
            w.data[at : at + third] += torch.from_numpy(asymmetric(third, 6)).float()
    keys, count = list(model.state_dict()), len(list(model.parameters()))
    report = condition(model, Asymmetric())
    assert [(p.name, p.role) for p in report] == [
        *[("a.in_proj_weight", role) for role in "qkv"],
        ("first.q", "q"), ("first.k", "k"), ("second.q", "q"), ("second.v", "v"),
    ]
    assert report.projections[0].tied == ("b.in_proj_weight",)
    assert report.projections[4].tied == ("second.k",)
    assert "tied with second.k" in str(report)
    torch.testing.assert_close(model(X), expected(X))
    assert len(list(model.parameters())) == count
    with torch.no_grad():
        model.a.parametrizations.in_proj_weight.original.mul_(2)
    torch.testing.assert_close(model.a.in_proj_weight, model.b.in_proj_weight, rtol=0, atol=0)
    before = model(X)
    fold(model)
    assert model.a.in_proj_weight is model.b.in_proj_weight
    assert model.first["k"].weight is model.second["k"].weight
    torch.testing.assert_close(model(X), before)
    assert list(model.state_dict()) == keys


def test_the_polar_factor_of_a_part_is_remembered():
    family = FAMILY["GPT-2"]
    model, correction = family.model(), PolarCorrection()
    condition(model, correction)
    family.run(model)
    made = correction.refreshes
    for _ in range(3):
        family.run(model)
    assert correction.refreshes == made == 6
    assert len(correction._memory) == 2  # parameters, with three parts each
    for p in find_projections(model):
        assert np.linalg.cond(p.weight.detach().numpy()) < 2.001
    with torch.no_grad():
        p.module.parametrizations.weight.original[:, :24].normal_()  # Q alone
    family.run(model)
    assert correction.refreshes == made + 1


def test_conditioning_in_two_calls_keeps_the_order_of_the_parameters():
    model = Attention()
    keys = list(model.state_dict())
    condition(model, Asymmetric(), projections="k", include="split")
    condition(model, Asymmetric(), projections="qv", include="split")
    assert list(plain_state_dict(model)) == keys
    fold(model)
    assert list(model.state_dict()) == keys


def test_weights_of_others_in_the_same_module_are_left_alone():
    model = Attention()
    parametrize.register_parametrization(model.split, "k_proj_weight", nn.Identity())
    with pytest.raises(ValueError, match=r"split.k_proj_weight: .* already parametrized"):
        condition(model, Asymmetric())
    condition(model, Asymmetric(), exclude=["split.k_proj_weight"])
    out = model(X)
    fold(model)
    torch.testing.assert_close(model(X), out)
    assert list(model.split.parametrizations) == ["k_proj_weight"]
    parametrize.remove_parametrizations(model.split, "k_proj_weight")
    assert type(model.split) is nn.MultiheadAttention


def test_a_fold_that_fails_on_the_way_adds_nothing_twice():
    model = nn.ModuleList([nn.ModuleDict({r: nn.Linear(6, 4) for r in "qkv"}) for _ in range(2)])
    condition(model, PolarCorrection())
    expected = model[0]["q"].weight.detach().clone()
    w = model[1]["k"].parametrizations.weight.original
    kept = w.detach().clone()
    with torch.no_grad():
        w[0, 0] = torch.nan
    with pytest.raises(ValueError, match="expected finite entries"):
        fold(model)
    torch.testing.assert_close(model[0]["q"].weight, expected)
    with torch.no_grad():
        w.copy_(kept)
    fold(model)
    torch.testing.assert_close(model[0]["q"].weight, expected)


def test_conditioning_a_copy_further_leaves_the_original_alone():
    model = nn.MultiheadAttention(8, 2, kdim=6, vdim=6)
    condition(model, Asymmetric(), projections="q")
    x, y = torch.randn(3, 1, 8), torch.randn(3, 1, 6)
    expected = model(x, y, y)[0]
    twin = copy.deepcopy(model)
    condition(twin, Asymmetric(), projections="k")
    torch.testing.assert_close(model(x, y, y)[0], expected)
    fold(model)
    assert parametrize.is_parametrized(twin, "k_proj_weight")


def test_a_state_dict_of_something_else_is_refused():
    model = conditioned()
    with pytest.raises(ValueError, match=r"expected the keys of this model, got others, such as 'split.parametriz"):
        plain_state_dict(nn.Sequential(model), model.state_dict())
