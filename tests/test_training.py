"""The training loop against a loop scripted here, paired batches, live updates, and divergence."""

import copy
import math
import re
from dataclasses import asdict, dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from spectral_core import IdentityCorrection, PolarCorrection, condition
from spectral_core.data import ImageData, load_digits
from spectral_core.demo.live import Live
from spectral_core.demo.settings import Settings
from spectral_core.models import SequenceTransformer, VisionTransformer
from spectral_core.training import Trainer, fit, probe_head


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


# ---- a trainer by itself


def weights(trainer):
    return copy.deepcopy(trainer.model.state_dict())


def equal(a, b):
    return list(a) == list(b) and all(torch.equal(value, b[name]) for name, value in a.items())


def with_live(settings):
    m = model(init="xavier")
    for block in m.blocks:
        Live(block.attention, settings)
    return m


def with_learnable():
    m = model()
    condition(m, IdentityCorrection(0.5, learnable=True))
    return m


MODELS = {
    "plain": model, "qk-norm": lambda: model(qk_norm=True), "learnable": with_learnable,
    "shaped": lambda: with_live(Settings(kind="targets")), "polar": lambda: with_live(Settings(kind="polar")),
    "packed": lambda: with_live(Settings(kind="drawn", scope="packed", drawn={"q": (2.0, 0.5), "k": (), "v": ()})),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("start", [0, 1, 3])
def test_a_state_given_back_is_the_same_to_the_bit(data, kind, start):
    trainer = Trainer(MODELS[kind](), data)
    trainer.advance(start)
    record, state = trainer.record(), trainer.state()
    assert trainer.step == start
    before = weights(trainer)
    trainer.advance(3)  # past the end of an epoch: two batches each
    first, moved = trainer.record(), weights(trainer)
    assert not equal(before, moved)
    for _ in range(2):
        trainer.restore(state)
        assert trainer.step == start
        assert equal(weights(trainer), before)
        assert same(trainer.record(), record)
        trainer.advance(3)
        assert equal(weights(trainer), moved)
        assert same(trainer.record(), first)


def test_a_state_is_a_copy_and_keeps_the_losses_that_no_record_has_shown(data):
    trainer = Trainer(model(), data)
    trainer.advance(2)
    state = trainer.state()
    expected = copy.deepcopy(state)
    trainer.advance(2)
    trainer.record()
    assert equal({"flat": state["flat"]}, {"flat": expected["flat"]})
    trainer.restore(state)
    untouched = Trainer(model(), data)
    untouched.advance(2)
    assert same(trainer.record(), untouched.record())


def test_states_can_be_taken_in_any_order(data):
    trainer, states, kept = Trainer(model(), data), [], []
    for _ in range(4):
        states.append(trainer.state())
        kept.append(weights(trainer))
        trainer.advance(1)
    for place in (2, 0, 3, 1, 0):
        trainer.restore(states[place])
        assert equal(weights(trainer), kept[place])
        trainer.advance(1)
        if place < 3:
            assert equal(weights(trainer), kept[place + 1])


def with_polar(**settings):
    m = model()
    condition(m, PolarCorrection(**settings))
    return m


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("settings", [{}, {"every": 4}, {"every": 3, "preserve": "frobenius"}], ids=str)
@pytest.mark.parametrize("start", [0, 6, 21])
def test_factors_that_are_used_again_are_part_of_the_state(data, settings, start, record):
    trainer = Trainer(with_polar(**settings), data)
    trainer.advance(start)
    if record:
        trainer.record()
    state, [correction] = trainer.state(), {m for m in trainer.model.modules() if isinstance(m, PolarCorrection)}
    made, calls = correction.refreshes, correction.calls
    trainer.advance(25)
    made, calls, moved = correction.refreshes - made, correction.calls - calls, weights(trainer)
    assert 0 < made < calls
    for _ in range(2):
        trainer.restore(state)
        before = correction.refreshes
        trainer.advance(25)
        assert correction.refreshes - before == made
        assert equal(weights(trainer), moved)


def test_a_scheduled_lambda_goes_back_with_the_step(data):
    m, correction = model(), IdentityCorrection(schedule=lambda step: 0.1 * (step + 1))
    condition(m, correction)
    trainer = Trainer(m, data)
    for start in (0, 3):
        trainer.advance(start)
        lam, record, state = correction.lam, trainer.record(), trainer.state()
        trainer.advance(4)
        assert correction.lam > lam
        trainer.restore(state)
        assert correction.lam == lam
        assert same(trainer.record(), record)


def test_a_state_of_a_later_step_needs_a_first_step(data):
    trainer = Trainer(model(), data)
    trainer.advance(2)
    late = trainer.state()
    for fresh in (Trainer(model(), data), trainer):
        if fresh is trainer:
            trainer.restore(Trainer(model(), data).state())  # of step 0: the optimizer has forgotten all
        with pytest.raises(ValueError, match=r"expected a state of step 0 before the first step, got one of step 2"):
            fresh.restore(late)
        assert fresh.step == 0  # nothing is changed


def test_a_trainer_is_the_loop_written_out(data):
    trainer, twin = Trainer(model(), data, lr=3e-3, warmup=2, batch_size=32, seed=7), model()
    scripted(twin, data, 9, lr=3e-3, warmup=2, batch=32, seed=7)
    for steps in (1, 5, 0, 3):
        trainer.advance(steps)
    assert trainer.step == 9
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], value, rtol=1e-5, atol=1e-7)


def test_a_record_asked_for_twice_is_the_same(data):
    trainer = Trainer(model(), data)
    assert same(trainer.record(), trainer.record())
    trainer.advance(2)
    assert same(trainer.record(), trainer.record())


@dataclass
class Places:
    train_x: torch.Tensor
    train_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor


def test_a_label_at_every_place_is_learned_at_every_place():
    rows = torch.randint(0, 7, (40, 6), generator=torch.Generator().manual_seed(0))
    places = Places(rows[:30, :-1], rows[:30, 1:], rows[30:, :-1], rows[30:, 1:])
    m = SequenceTransformer(7, 5, num_classes=7, dim=8, depth=1, is_causal=True)
    trainer = Trainer(m, places, batch_size=10)
    with torch.no_grad():
        logits = m(places.train_x[:10])
        p = logits.double().log_softmax(-1)
        by_hand = -np.mean([float(p[i, j, places.train_y[i, j]]) for i in range(10) for j in range(5)])
        correct = (m(places.test_x).argmax(-1) == places.test_y).double().mean()
    record = trainer.record()
    assert record.loss == pytest.approx(by_hand, rel=1e-6)
    assert record.accuracy == pytest.approx(float(correct), rel=1e-6)
    assert logits.shape == (10, 5, 7)
    trainer.advance(40)
    assert trainer.record().loss < record.loss


@pytest.mark.parametrize(("settings", "message"), [
    ({"batch_size": 2.5}, r"batch_size: expected a whole number, got 2.5"),
    ({"batch_size": 151}, r"batch_size: expected a number <= 150, got 151"),
    ({"lr": -1.0}, r"lr: expected a number > 0, got -1"),
    ({"weight_decay": math.inf}, r"weight_decay: expected a finite number, got inf"),
    ({"warmup": -1}, r"warmup: expected a number >= 0, got -1"),
])
def test_a_trainer_refuses_bad_settings(data, settings, message):
    with pytest.raises(ValueError, match=message):
        Trainer(model(), data, **settings)
