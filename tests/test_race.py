"""The demo's tasks, the models that race on them, and the race: paired, steered, turned back to the bit."""

import copy
import json
import math
import re
from dataclasses import replace

import pytest
import torch

from spectral_core import attention_jacobians, calibrate, condition, initialize, listops, text
from spectral_core.data import load_digits
from spectral_core.demo import arms as arms_module
from spectral_core.demo.arms import build_arm
from spectral_core.demo.race import EVERY, STEPS, Race
from spectral_core.demo.settings import ARMS, INITS, ROLES, SOURCES, Settings, to_query
from spectral_core.demo.tasks import TOKENS, load_task, new_model
from spectral_core.models import VisionTransformer
from spectral_core.probe import probe_head
from spectral_core.training import Trainer, fit

QKV = ("query.weight", "key.weight", "value.weight")
TWO = Settings(arms=("plain", "shaped"), kind="identity", lam=dict.fromkeys(ROLES, 1.0))
ZERO = replace(TWO, lam=dict.fromkeys(ROLES, 0.0))


# ---- tasks


def test_the_label_of_an_expression_is_its_value():
    data = load_task("listops")
    assert data.train_x.shape == (3000, 16)
    assert data.test_x.shape == (300, 16)
    for x, y in ((data.train_x, data.train_y), (data.test_x, data.test_y)):
        for row, label in zip(x.tolist(), y.tolist(), strict=True):
            names = [listops.TOKENS[i] for i in row]
            expression = [name for name in names[1:] if name != "[PAD]"]
            assert names[0] == "[CLS]"
            assert names == ["[CLS]", *expression] + ["[PAD]"] * (15 - len(expression))
            assert 4 <= len(expression) <= 15
            assert listops.evaluate(expression) == label


def test_no_held_out_expression_is_learned_from():
    data = load_task("listops")
    rows = [tuple(row) for row in torch.cat([data.train_x, data.test_x]).tolist()]
    assert len(set(rows)) == len(rows) == 3300


def test_the_labels_of_text_are_the_next_characters():
    data, whole = load_task("text"), text.load_text()
    assert data.train_x.shape == data.train_y.shape == (6000, 16)
    assert data.test_x.shape == data.test_y.shape == (300, 16)
    for part, x, y in ((whole.train, data.train_x, data.train_y), (whole.test, data.test_x, data.test_y)):
        assert torch.equal(x[:, 1:], y[:, :-1])
        read = text.decode(part)
        for i in range(0, len(x), 97):
            assert text.decode(torch.cat([x[i], y[i, -1:]])) in read


@pytest.mark.parametrize("source", SOURCES)
def test_every_task_has_sixteen_tokens_and_a_model(source):
    data, model = load_task(source), new_model("xavier", source, 0)
    assert load_task(source) is data
    x = model.attention_input(data.test_x[:2])
    assert x.shape == (2, TOKENS, 32)
    logits = model(data.test_x[:2])
    assert logits.shape[:-1] == data.test_y[:2].shape
    assert 0 <= int(data.train_y.min()) <= int(data.train_y.max()) < logits.shape[-1]
    assert (len(model.blocks), model.block(0).attention.num_heads) == (2, 2)
    assert model.is_causal == (source == "text")


def test_the_digits_model_is_the_plain_vision_transformer():
    for init in ("trunc-normal", "xavier", "orthogonal"):
        ours, reference = new_model(init, "digits", 4).state_dict(), VisionTransformer(init=init, seed=4).state_dict()
        assert all(torch.equal(value, ours[name]) for name, value in reference.items())
    digits = load_digits("digits")
    assert torch.equal(load_task("digits").test_x, digits.test_x)


@pytest.mark.parametrize("init", INITS)
def test_initialisations_differ_in_q_k_and_v_alone(init):
    plain, other, again = (new_model(i, "listops", 3).state_dict() for i in ("trunc-normal", init, init))
    for name, value in plain.items():
        assert torch.equal(again[name], other[name])
        same = not name.endswith(QKV) or init in ("trunc-normal", "minilm")
        assert torch.equal(value, other[name]) == same
    weight = other["blocks.1.attention.key.weight"]
    if init == "gaussian":
        assert float(weight.std()) == pytest.approx(1 / math.sqrt(32), rel=0.1)
    if init == "collapsed":
        s = torch.linalg.svdvals(weight)
        assert s[2] < 0.01 * s[1]


# ---- arms


def parameters(model):
    return {name.replace("parametrizations.weight.original", "weight"): value for name, value
            in model.named_parameters()}


@pytest.mark.parametrize("source", ["digits", "text"])
@pytest.mark.parametrize("name", ARMS)
def test_an_arm_differs_from_the_plain_one_in_q_k_and_v_alone(name, source):
    settings = Settings(kind="identity", source=source, seed=2)
    arm, plain = parameters(build_arm(name, settings).model), parameters(build_arm("plain", settings).model)
    reference = new_model("trunc-normal", source, 2).state_dict()
    assert all(torch.equal(value, reference[key]) for key, value in plain.items())
    moved = set()
    for key, value in plain.items():
        if not torch.equal(arm[key], value):
            moved.add(key)
    extra = {key for key in arm if key not in plain}
    assert all(key.endswith(QKV) for key in moved)
    assert bool(moved) == (name in ("conditioned", "xavier"))  # the others keep W and add C
    assert all("norm_" in key or key.endswith("lam") for key in extra)
    assert bool(extra) == (name == "qk-norm")


def weights_of(model, block=0):
    attention = model.block(block).attention
    return {r: getattr(attention, n).weight.detach() for r, n in zip(ROLES, ("query", "key", "value"), strict=True)}


def test_arms_are_made_by_the_librarys_own_functions():
    settings = Settings(kind="targets", lam=dict.fromkeys(ROLES, 1.5), scope="head", preserve="spectral", seed=2)
    plain = new_model("trunc-normal", "digits", 2)
    conditioned = initialize(new_model("trunc-normal", "digits", 2), "conditioned", seed=2)
    assert all(torch.equal(w, weights_of(conditioned)[r])
               for r, w in weights_of(build_arm("conditioned", settings).model).items())
    xavier = weights_of(new_model("xavier", "digits", 2))
    assert all(torch.equal(w, xavier[r]) for r, w in weights_of(build_arm("xavier", settings).model).items())
    calibrated = new_model("trunc-normal", "digits", 2)
    found = calibrate(calibrated, load_task("digits").test_x[:1], progress=False)
    condition(calibrated, found.choice)
    assert found.choice
    for block in (0, 1):
        got = weights_of(build_arm("calibrated", settings).model, block)
        assert all(torch.equal(got[r], w) for r, w in weights_of(calibrated, block).items())
        got = weights_of(build_arm("identity", settings).model, block)  # whole matrix, no norm kept
        for role, w in weights_of(plain, block).items():
            torch.testing.assert_close(got[role], w + 1.5 * torch.eye(32))
        got = weights_of(build_arm("polar", settings).model, block)
        for role, w in weights_of(plain, block).items():
            u, s, vh = torch.linalg.svd(w)
            torch.testing.assert_close(got[role], w + s[0] * u @ vh, rtol=1e-3, atol=1e-4)
        got = weights_of(build_arm("shaped", settings).model, block)
        assert float(torch.linalg.matrix_norm(got["q"][:16], 2)) == pytest.approx(
            float(torch.linalg.matrix_norm(weights_of(plain, block)["q"][:16], 2)), rel=1e-4
        )


def test_only_arms_that_follow_sliders_take_new_settings():
    later = Settings(kind="identity", lam=dict.fromkeys(ROLES, 3.0))
    for name in ARMS:
        arm = build_arm(name, Settings(kind="identity"))
        before = weights_of(arm.model)
        arm.update(later)
        changed = any(not torch.equal(w, before[r]) for r, w in weights_of(arm.model).items())
        assert changed == (name in ("shaped", "identity"))


# ---- the race


def run(race, count):
    frames = [race.advance() for _ in range(count)]
    return {name: [frame["arms"][name] for frame in frames] for name in frames[0]["arms"]}


def test_arms_without_a_correction_are_equal_to_the_bit():
    """Same seed, same batches: λ = 0 is the plain model."""
    for settings in (ZERO, replace(TWO, roles=""), replace(ZERO, source="text", seed=3)):
        race = Race(settings)
        curves = run(race, 3)
        assert curves["plain"] == curves["shaped"]


@pytest.mark.parametrize("source", ["digits", "text"])
def test_a_race_is_the_training_loop_of_the_library(source):
    settings = replace(ZERO, source=source, seed=1, log_lr=-2.5)
    records = fit(new_model("trunc-normal", source, 1), load_task(source), steps=10, every=5, lr=10**-2.5, seed=1)
    race = Race(settings)
    frames = [race.frame(), race.advance(), race.advance()]
    for frame, record in zip(frames, records, strict=True):
        assert frame["step"] == record.step
        for name in ("loss", "accuracy", "saturation"):
            assert frame["arms"]["plain"][name] == float(f"{getattr(record, name):.5g}")
        log_kappa = math.log10(record.kappa_j) if math.isfinite(record.kappa_j) else None
        assert frame["arms"]["plain"]["log_kappa"] == (log_kappa and pytest.approx(log_kappa, rel=1e-4))


def test_frames_are_ready_for_json_and_say_what_they_are():
    race = Race(TWO, steps=12)
    frames = [race.frame()]
    while not race.is_over:
        frames.append(race.advance())
    assert [frame["step"] for frame in frames] == [0, 5, 10, 12]
    for frame in frames:
        assert json.loads(json.dumps(frame, allow_nan=False)) == frame
        assert set(frame) == {"step", "changed", "query", "arms", "diverged"}
        assert list(frame["arms"]) == ["plain", "shaped"]
        assert all(set(values) == {"loss", "accuracy", "log_kappa", "saturation"} for values in frame["arms"].values())
    with pytest.raises(ValueError, match="expected a race with steps left, got one at its last step, 12"):
        race.advance()
    assert (EVERY, STEPS) == (5, 600)


def test_frames_on_the_way_show_the_arms_that_are_done():
    race = Race(replace(TWO, arms=("plain", "shaped", "xavier")))
    frames = list(race.go())
    assert [frame["step"] for frame in frames] == [5, 5, 5]
    for done, frame in enumerate(frames, 1):
        for place, values in enumerate(frame["arms"].values()):
            assert all((v is not None) == (place < done) for v in values.values())
    for frame in frames[:-1]:
        for name, values in frame["arms"].items():
            assert values["loss"] in (None, frames[-1]["arms"][name]["loss"])
    assert frames[-1] == race.frame()


@pytest.mark.parametrize("arms", [
    ("plain", "shaped", "identity", "polar"), ("calibrated", "conditioned", "qk-norm", "xavier"),
])
@pytest.mark.parametrize("back", [0, 5])
def test_a_race_turned_back_runs_again_to_the_bit(arms, back):
    settings = replace(TWO, kind="targets", arms=arms)
    race = Race(settings)
    first = [race.frame(), *(race.advance() for _ in range(4))]
    assert race.rewind(back) == first[back // 5]
    assert (race.step, race.frame()) == (back, first[back // 5])
    again = [race.advance() for _ in range(20 // 5 - back // 5)]
    assert [frame["arms"] for frame in again] == [frame["arms"] for frame in first[back // 5 + 1 :]]
    assert again[0]["changed"]  # sliders may stand elsewhere by now
    assert not any(frame["changed"] for frame in again[1:])


def test_a_calibrated_arm_with_a_polar_factor_is_turned_back_to_the_bit_too():
    race = Race(Settings(source="listops", arms=("calibrated",)))  # here `calibrate` chooses one for V
    first = [race.advance()["arms"] for _ in range(4)]
    for back in (10, 0):
        race.rewind(back)
        assert [race.advance()["arms"] for _ in range(4 - back // 5)] == first[back // 5 :]
        states = [value.clone() for value in race._trainers["calibrated"].model.state_dict().values()]
        race.rewind(back)
        for _ in range(4 - back // 5):
            race.advance()
        again = race._trainers["calibrated"].model.state_dict().values()
        assert all(torch.equal(a, b) for a, b in zip(states, again, strict=True))


def test_turned_back_and_steered_elsewhere_then_back_again():
    race = Race(TWO)
    first = [race.advance() for _ in range(3)]
    race.rewind(5)
    race.update(replace(TWO, kind="polar"))
    other = race.advance()
    assert other["arms"]["plain"] == first[1]["arms"]["plain"]
    assert other["arms"]["shaped"] != first[1]["arms"]["shaped"]
    with pytest.raises(ValueError, match="expected a step with a frame, 0 to 10 by 5, got 15"):
        race.rewind(15)  # what was there is forgotten
    race.rewind(5)
    race.update(TWO)
    assert [race.advance()["arms"] for _ in range(2)] == [frame["arms"] for frame in first[1:]]


@pytest.mark.parametrize("step", [3, -5, 20, 2.5, "5", None])
def test_there_is_no_going_back_to_a_step_without_a_frame(step):
    race = Race(TWO)
    race.advance()
    with pytest.raises(ValueError, match=re.escape(f"expected a step with a frame, 0 to 5 by 5, got {step!r}")):
        race.rewind(step)
    assert race.step == 5


def test_sliders_reach_the_arms_that_follow_them_from_the_next_step_on():
    settings = replace(ZERO, arms=("plain", "shaped", "identity", "polar"))
    moved = replace(TWO, arms=settings.arms, lam=dict.fromkeys(ROLES, 2.0))
    race, still = Race(settings), Race(settings)
    race.advance()
    still.advance()
    race.update(moved)
    frame, reference = race.advance(), still.advance()
    for name in settings.arms:
        assert (frame["arms"][name] == reference["arms"][name]) == (name in ("plain", "polar"))
    assert frame["arms"]["shaped"] == frame["arms"]["identity"]
    assert (frame["changed"], frame["query"]) == (True, to_query(moved))
    frame = race.advance()
    assert (frame["changed"], frame["query"]) == (False, "")
    race.update(replace(moved, seed=99, init="xavier", log_lr=-2.0))  # what only a start takes up
    assert not race.advance()["changed"]
    race.update(replace(moved, kind="drawn", drawn={"q": (2.0, 1.0), "k": (1.0,), "v": ()}))
    assert race.advance()["changed"]


@pytest.mark.parametrize("error", [FloatingPointError("the weights stopped being finite"), ValueError("w: inf")])
def test_an_arm_that_diverges_does_not_end_the_others(monkeypatch, error):
    settings = replace(ZERO, arms=("plain", "shaped", "xavier"))
    race, alone = Race(settings), Race(replace(settings, arms=("plain", "xavier")))
    race.advance()
    alone.advance()
    real, broken = Trainer.advance, race._trainers["shaped"]

    def advance(self, steps=1):
        if self is broken and self.step + steps > 7:
            real(self, 7 - self.step)
            self.model.head.weight.data.fill_(math.nan)
            raise error
        real(self, steps)

    monkeypatch.setattr(Trainer, "advance", advance)
    frames = [race.advance() for _ in range(2)]
    for frame in frames:
        assert frame["diverged"] == {"shaped": 7}
        assert set(frame["arms"]["shaped"].values()) == {None}
        others = alone.advance()
        assert {name: frame["arms"][name] for name in ("plain", "xavier")} == others["arms"]
    monkeypatch.setattr(Trainer, "advance", real)
    frame = race.rewind(5)  # before it happened
    assert frame["diverged"] == {}
    frame = race.advance()
    assert frame["diverged"] == {}
    assert frame["arms"]["shaped"] == frame["arms"]["plain"]


def test_an_arm_of_infinite_kappa_has_none_in_its_frame(monkeypatch):
    from spectral_core.demo import race as race_module

    race = Race(ZERO)
    record = race._trainers["plain"].record()
    for kappa in (math.inf, math.nan, 0.0):
        values = race_module._read(type("T", (), {"record": lambda self, k=kappa: replace(record, kappa_j=k)})())
        assert values["log_kappa"] is None
        assert values["loss"] is not None


def test_steps_that_are_far_too_long_end_one_arm_only():
    race = Race(ZERO)
    race._trainers["plain"]._lr = 1e30
    frame = race.advance()
    assert list(frame["diverged"]) == ["plain"]
    assert frame["arms"]["shaped"]["loss"] is not None
    assert race.advance()["arms"]["plain"]["loss"] is None


def test_every_source_and_start_races():
    for source, init in (("mnist", "gaussian"), ("listops", "collapsed"), ("text", "minilm")):
        race = Race(replace(TWO, source=source, init=init), every=1)
        frame = race.advance()
        assert all(values["loss"] is not None for values in frame["arms"].values())


def test_the_frame_is_the_probe_of_head_one_at_the_first_held_out_example():
    race = Race(replace(TWO, arms=("qk-norm", "identity")))
    frame = race.advance()
    for name, values in frame["arms"].items():
        model = race._trainers[name].model
        probe = probe_head(model, load_task("digits").test_x[0])
        assert values["saturation"] == pytest.approx(probe.saturation, rel=1e-4)
        assert values["log_kappa"] == pytest.approx(math.log10(probe.kappa_j), rel=1e-4)
    model = copy.deepcopy(race._trainers["identity"].model)
    [record] = attention_jacobians(model, load_task("digits").test_x[:1], layers=[0], heads=[0], progress=False)
    assert frame["arms"]["identity"]["log_kappa"] == pytest.approx(
        math.log10(float(record.condition_number)), rel=1e-4
    )


def test_a_model_without_a_choice_to_make_is_left_plain(monkeypatch):
    found = type("Found", (), {"choice": {}})()
    monkeypatch.setattr(arms_module, "calibrate", lambda *_, **__: found)
    arm, plain = build_arm("calibrated", Settings()).model, build_arm("plain", Settings()).model
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in arm.state_dict().items())
