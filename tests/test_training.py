"""The training loop against a loop scripted here, paired batches, live updates, and divergence."""

import copy
import math
import re
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from spectral_core import IdentityCorrection, PolarCorrection, condition
from spectral_core.data import ImageData, load_digits
from spectral_core.models import VisionTransformer
from spectral_core.training import fit, probe_head


@pytest.fixture(scope="module")
def data():
    """A few digits: 150 for training (two batches of 64 an epoch, 22 dropped), 50 held out."""
    d = load_digits()
    return ImageData("few", d.train_x[:150], d.train_y[:150], d.test_x[:50], d.test_y[:50])


def model(**settings):
    return VisionTransformer(dim=16, **settings)


def scripted(m, data, steps, *, lr=1e-3, weight_decay=0.05, warmup=20, seed=0, batch=64, before_step=None):
    """Plain AdamW; the loss of every step, with the model as it then is."""
    optimizer = torch.optim.AdamW(m.parameters(), lr=lr, weight_decay=weight_decay)
    generator, order, losses = torch.Generator().manual_seed(seed), [], []
    for step in range(steps):
        if before_step is not None:
            before_step(step)
        if len(order) < batch:
            order = torch.randperm(len(data.train_y), generator=generator).tolist()
        picked, order = order[:batch], order[batch:]
        optimizer.param_groups[0]["lr"] = min(lr, lr * (step + 1) / warmup) if warmup else lr
        loss = F.cross_entropy(m(data.train_x[picked]), data.train_y[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def same(a, b):
    """Two records equal in everything but their time."""
    a, b = (copy.deepcopy(asdict(r)) for r in (a, b))
    return a.pop("seconds") > 0 and b.pop("seconds") > 0 and a == b


def accuracy(m, data):
    pairs = zip(data.test_x, data.test_y, strict=True)
    with torch.no_grad():
        return sum(int(m(x[None]).argmax()) == int(y) for x, y in pairs) / len(data.test_y)


@pytest.mark.parametrize(("every", "steps", "expected"), [
    (1, 4, [0, 1, 2, 3, 4]), (3, 7, [0, 3, 6, 7]), (5, 5, [0, 5]), (10, 4, [0, 4]),
])
def test_records_equal_a_scripted_run(data, every, steps, expected):
    m, twin = model(), model()
    first_loss = F.cross_entropy(twin(data.train_x[:64]), data.train_y[:64]).item()
    first_accuracy, first_weights = accuracy(twin, data), copy.deepcopy(twin.state_dict())
    records = []
    for record in fit(m, data, steps=steps, every=every):
        if record.step == 0:  # before any update
            assert all(torch.equal(value, first_weights[name]) for name, value in m.state_dict().items())
        records.append(record)
    losses = scripted(twin, data, steps)
    assert [r.step for r in records] == expected
    assert records[0].loss == pytest.approx(first_loss, rel=1e-6)
    assert records[0].accuracy == pytest.approx(first_accuracy)
    for before, record in zip(expected, records[1:], strict=False):
        assert record.loss == pytest.approx(np.mean(losses[before : record.step]), rel=1e-5)
    assert records[-1].accuracy == pytest.approx(accuracy(twin, data))
    assert [r.seconds for r in records] == sorted(r.seconds for r in records)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(m.state_dict()[name], value, rtol=1e-5, atol=1e-7)


def test_warmup_lr_decay_and_seed_reach_the_optimiser(data):
    warm, decay = ({"warmup": 0}, {"warmup": 3, "lr": 3e-3}), ({"weight_decay": 0.0}, {"weight_decay": 1.0})
    for settings in (*warm, *decay, {"seed": 5}):
        records = list(fit(model(), data, steps=6, **settings))
        losses = scripted(model(), data, 6, **settings)
        np.testing.assert_allclose([r.loss for r in records[1:]], losses, rtol=1e-5)
        assert losses != scripted(model(), data, 6)


def test_same_seed_same_records(data):
    state = torch.get_rng_state()
    first = list(fit(model(), data, steps=5))
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not moved
    torch.manual_seed(99)
    assert all(same(a, b) for a, b in zip(first, fit(model(), data, steps=5), strict=True))
    assert [r.loss for r in first[1:]] != [r.loss for r in fit(model(), data, steps=5, seed=1)][1:]


def test_two_models_in_turn_see_the_same_batches(data):
    plain, conditioned = model(), model()
    condition(conditioned, IdentityCorrection(0.0))
    pairs = zip(fit(plain, data, steps=5), fit(conditioned, data, steps=5), strict=True)  # steps interleaved
    assert all(same(a, b) for a, b in pairs)


def test_update_between_two_yields_changes_what_follows(data):
    def run(change_at):
        m, correction = model(), IdentityCorrection(0.3)
        condition(m, correction)
        records = []
        for record in fit(m, data, steps=6):
            records.append(record)
            if record.step == change_at:
                correction.update(lam=1.2)
        return records

    plain, changed = run(None), run(3)
    assert all(same(a, b) for a, b in zip(plain[:4], changed[:4], strict=True))
    for a, b in zip(plain[4:], changed[4:], strict=True):
        assert a.loss != b.loss
        assert a.kappa_w != b.kappa_w

    twin, correction = model(), IdentityCorrection(0.3)
    condition(twin, correction)
    losses = scripted(twin, data, 6, before_step=lambda step: correction.update(lam=0.3 if step < 3 else 1.2))
    np.testing.assert_allclose([r.loss for r in changed[1:]], losses, rtol=1e-5)


@pytest.mark.parametrize("correction", [None, IdentityCorrection(0.5), PolarCorrection()])
@pytest.mark.parametrize(("layer", "head"), [(0, 0), (1, 1)])
def test_probe_of_a_head(data, correction, layer, head):
    m = model(init="xavier")
    if correction is not None:
        condition(m, correction)
    probe = probe_head(m, data.test_x[0], layer=layer, head=head)
    attention, seen = m.blocks[layer].attention, []
    attention.register_forward_pre_hook(lambda module, args: seen.append(args[0][0].detach()))
    m(data.test_x[:1])
    layers = {"q": attention.query, "k": attention.key, "v": attention.value}
    for role, layer_of_role in layers.items():
        w = layer_of_role.weight.detach().double().numpy()  # as corrected
        assert probe.kappa_w[role] == pytest.approx(np.linalg.cond(w), rel=1e-5)
    rows, x = slice(8 * head, 8 * head + 8), seen[0].double().numpy()
    w_q, w_k, w_v = (torch.tensor(m.weight.detach().double().numpy()[rows].T) for m in layers.values())
    logits = x @ w_q.numpy() @ (x @ w_k.numpy()).T / math.sqrt(8)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    np.testing.assert_allclose(probe.attention.numpy(), p, atol=1e-12)
    assert probe.saturation == pytest.approx(p.max(1).mean(), rel=1e-12)

    def output(q, k, v):
        tokens = torch.tensor(x)
        return ((tokens @ q @ (tokens @ k).T) / math.sqrt(8)).softmax(-1) @ tokens @ v

    blocks = [b.reshape(16 * 8, -1) for b in torch.func.jacrev(output, argnums=(0, 1, 2))(w_q, w_k, w_v)]
    for role, block in zip("qkv", blocks, strict=True):
        assert probe.block_norms[role] == pytest.approx(block.norm().item(), rel=1e-9)
    values = np.linalg.svd(torch.cat(blocks, 1).numpy(), compute_uv=False)
    assert probe.kappa_j == pytest.approx(values[0] / values[-1], rel=1e-6)


def test_records_carry_the_probe_of_the_first_held_out_image(data):
    m = model()
    condition(m, IdentityCorrection(0.5))
    for record in fit(m, data, steps=2):
        probe = probe_head(m, data.test_x[0])
        for name in ("kappa_w", "kappa_j", "saturation", "block_norms"):
            assert getattr(record, name) == getattr(probe, name)
    assert not probe.attention.requires_grad


def shifted(m, lam):
    """Plain training from W₀ + λ I, without the package."""
    with torch.no_grad():
        for block in m.blocks:
            for layer in (block.attention.query, block.attention.key, block.attention.value):
                layer.weight += lam * torch.eye(16)
    return m


def test_without_weight_decay_the_correction_is_an_initialisation(data):
    """d/dW f(W + C) = f'(W + C): the same trajectory to float precision; decay pulls W, not W + C, to 0."""
    conditioned = model()
    condition(conditioned, IdentityCorrection(1.0))
    losses = [r.loss for r in fit(conditioned, data, steps=20, weight_decay=0.0)]
    control = [r.loss for r in fit(shifted(model(), 1.0), data, steps=20, weight_decay=0.0)]
    np.testing.assert_allclose(losses, control, rtol=1e-4)
    plain = [r.loss for r in fit(model(), data, steps=20, weight_decay=0.0)]
    assert not np.allclose(losses, plain, rtol=1e-2)

    conditioned = model()
    condition(conditioned, IdentityCorrection(1.0))
    strong = {"lr": 1e-2, "weight_decay": 1.0, "warmup": 0}
    decayed = [r.loss for r in fit(conditioned, data, steps=20, **strong)]
    control = [r.loss for r in fit(shifted(model(), 1.0), data, steps=20, **strong)]
    assert not np.allclose(decayed, control, rtol=1e-3)


@pytest.mark.parametrize("correction", [None, IdentityCorrection(1.0), PolarCorrection(preserve="spectral")])
@pytest.mark.parametrize(("lr", "every"), [(1e3, 1), (1e3, 4), (1e10, 1), (1e10, 4), (1e30, 1), (1e30, 4)])
def test_divergence_says_so(data, correction, lr, every):
    m = model()
    if correction is not None:
        condition(m, correction)
    now = re.escape(f"(now {lr:g})")
    message = rf"(loss|weights|outputs) .* by step \d+: lower lr {now} or weaken the correction"
    with pytest.raises(FloatingPointError, match=message):
        list(fit(m, data, steps=30, lr=lr, every=every, warmup=0))


def test_a_loss_that_is_not_finite_at_the_start(data):
    m = model()
    with torch.no_grad():
        m.head.bias[0] = torch.inf
    with pytest.raises(FloatingPointError, match=r"the loss became nan by step 0: lower lr"):
        next(fit(m, data))


@pytest.mark.parametrize(("settings", "message"), [
    ({"steps": 0}, r"steps: expected a number >= 1, got 0"),
    ({"steps": 2.5}, r"steps: expected a whole number, got 2.5"),
    ({"steps": "10"}, r"steps: expected a real number, got '10'"),
    ({"batch_size": 0}, r"batch_size: expected a number >= 1, got 0"),
    ({"batch_size": 151}, r"batch_size: expected a number <= 150, got 151"),
    ({"every": 0}, r"every: expected a number >= 1, got 0"),
    ({"every": True}, r"every: expected a real number, got True"),
    ({"lr": 0.0}, r"lr: expected a number > 0, got 0"),
    ({"lr": math.nan}, r"lr: expected a finite number, got nan"),
    ({"weight_decay": -0.1}, r"weight_decay: expected a number >= 0, got -0.1"),
    ({"warmup": -1}, r"warmup: expected a number >= 0, got -1"),
])
def test_bad_settings_are_refused_at_the_call(data, settings, message):
    with pytest.raises(ValueError, match=message):
        fit(model(), data, **settings)  # no iteration


def test_whole_numbers_may_come_as_floats_from_a_slider(data):
    records = list(fit(model(), data, steps=4.0, every=2.0, batch_size=32.0))
    assert [r.step for r in records] == [0, 2, 4]


def test_the_model_learns(data):
    records = list(fit(model(init="xavier"), data, steps=60, lr=3e-3, every=60))
    assert records[0].loss > 2
    assert records[-1].accuracy > 0.5 > records[0].accuracy
