"""The story in six clicks: what each says is true of its head and of its stored race, and it can be run again."""

import json
import tomllib
from pathlib import Path
from urllib.parse import parse_qsl

import pytest

from spectral_core import calibrate
from spectral_core.demo import presets
from spectral_core.demo.head import head_view
from spectral_core.demo.history import METRICS, History
from spectral_core.demo.presets import FOLDER, PRESETS, lesson_address, read_history
from spectral_core.demo.race import Race
from spectral_core.demo.settings import ROLES, Settings, parse_settings, to_query
from spectral_core.demo.tasks import load_task, new_model

ROOT = Path(__file__).parent.parent


def view(name):
    return head_view(PRESETS[name].settings)


def at(name, arm, step, metric="loss"):
    history = read_history(name)
    return history.arms[arm][metric][history.step.index(step)]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_whole(name):
    preset = PRESETS[name]
    settings, notices = parse_settings(dict(parse_qsl(preset.query)))
    assert (preset.settings, notices) == (settings, [])
    assert parse_settings(dict(parse_qsl(to_query(settings))))[0] == settings
    assert (ROOT / "notebooks" / f"{preset.lesson}.ipynb").is_file()
    assert lesson_address(preset.lesson).endswith(f"/blob/main/notebooks/{preset.lesson}.ipynb")
    assert "plain" in settings.arms
    assert len(preset.story) < 130
    assert preset.title[0] == str(1 + list(PRESETS).index(name))


def test_lessons_are_read_where_the_package_lives():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["urls"]["Repository"] == presets.REPOSITORY


def test_every_stored_race_belongs_to_a_preset():
    assert {path.stem for path in FOLDER.glob("*")} == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_stored_race_is_whole_and_of_these_settings(name):
    stored = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert stored["about"]["query"] == PRESETS[name].query
    assert stored["about"]["made_by"] == "python app.py --presets"
    history = read_history(name)
    assert history.step == list(range(0, 601, 5))
    assert list(history.arms) == list(PRESETS[name].settings.arms)
    assert (history.marks, history.diverged) == ([], {})
    for curves in history.arms.values():
        assert all(v is not None for metric in METRICS for v in curves[metric])


@pytest.mark.parametrize("name", PRESETS)
def test_a_stored_race_begins_as_a_fresh_one(name):
    race, stored = Race(PRESETS[name].settings), read_history(name)
    fresh = History()
    fresh.append(race.frame())
    for _ in range(2):
        fresh.append(race.advance())
    for arm, curves in fresh.arms.items():
        for metric in METRICS:
            assert curves[metric] == pytest.approx(stored.arms[arm][metric][:3], rel=2e-3), (arm, metric)


@pytest.mark.parametrize("name", PRESETS)
def test_the_first_frame_is_the_head_of_the_first_tab(name):
    before = view(name).before
    assert 10 ** at(name, "plain", 0, "log_kappa") == pytest.approx(before.kappa_j, rel=1e-3)
    assert at(name, "plain", 0, "saturation") == pytest.approx(before.saturation, rel=1e-3)
    follower = {"small-lambda": "identity", "saturation": "identity", "over-conditioned": "shaped"}.get(name)
    if follower:
        after = view(name).after
        assert 10 ** at(name, follower, 0, "log_kappa") == pytest.approx(after.kappa_j, rel=1e-3)
        assert at(name, follower, 0, "saturation") == pytest.approx(after.saturation, rel=1e-3)


def test_healthy():
    """κ(J) is sixty times smaller than with small weights, and training is fast."""
    healthy, small = view("healthy"), head_view(Settings())
    assert 50 < small.before.kappa_j / healthy.before.kappa_j < 70
    assert healthy.after.kappa_j == pytest.approx(healthy.before.kappa_j)  # nothing is corrected
    assert at("healthy", "plain", 100) < 0.6 * at("ill-conditioned", "plain", 100)
    assert at("healthy", "plain", 600, "accuracy") > 0.95


def test_ill_conditioned():
    """κ(J) is near a million; training starts slowly."""
    ill = view("ill-conditioned")
    assert 7e5 < ill.before.kappa_j < 1.3e6
    assert ill.after.kappa_j == pytest.approx(ill.before.kappa_j)
    assert at("ill-conditioned", "xavier", 100) < 0.6 * at("ill-conditioned", "plain", 100)


def test_small_lambda():
    """κ(J) falls twenty-thousandfold; λ·I and Xavier are both ahead of plain at first."""
    small = view("small-lambda")
    assert 2e4 < small.before.kappa_j / small.after.kappa_j < 2.5e4
    assert small.after.saturation < 0.6
    for step in (50, 100, 200):
        plain = at("small-lambda", "plain", step)
        assert at("small-lambda", "identity", step) < plain
        assert at("small-lambda", "xavier", step) < plain
    assert at("small-lambda", "identity", 100) < 0.7 * at("small-lambda", "plain", 100)


def test_saturation():
    """κ(J) is smallest of all presets and arms, attention is switched off, and training is worst."""
    saturated = view("saturation")
    assert saturated.after.saturation > 0.99
    assert saturated.after.kappa_j == min(
        state.kappa_j for name in PRESETS for state in (view(name).before, view(name).after)
    )
    last = {arm: at("saturation", arm, 600) for arm in PRESETS["saturation"].settings.arms}
    assert last["identity"] > 5 * max(last["plain"], last["xavier"])
    everywhere = {(name, arm): at(name, arm, 600) for name in PRESETS for arm in read_history(name).arms}
    assert max(everywhere, key=lambda key: everywhere[key]) == ("saturation", "identity")
    for step in (0, 300, 600):
        kappas = {(name, arm): at(name, arm, step, "log_kappa") for name, arm in everywhere}
        assert min(kappas, key=lambda key: kappas[key]) == ("saturation", "identity")
        assert at("saturation", "identity", step, "saturation") > 0.99


def test_calibrated():
    """The λ are what `calibrate` chooses; in this run Xavier starts faster and ends level."""
    settings = PRESETS["calibrated"].settings
    model = new_model(settings.init, settings.source, settings.seed)
    found = calibrate(model, load_task(settings.source).test_x[:1], progress=False)
    assert {role: fix.settings()["lam"] for role, fix in found.choice.items()} == {
        role: settings.lam[role] for role in settings.roles
    }
    assert {type(fix).__name__ for fix in found.choice.values()} == {"IdentityCorrection"}
    assert settings.roles == "qk"
    calibrated = view("calibrated")
    assert calibrated.after.kappa_j < 1e-3 * calibrated.before.kappa_j
    assert 10 ** at("calibrated", "calibrated", 0, "log_kappa") == pytest.approx(calibrated.after.kappa_j, rel=1e-3)
    assert calibrated.after.saturation < 0.25
    assert at("calibrated", "xavier", 100) < at("calibrated", "calibrated", 100) < at("calibrated", "plain", 100)
    assert abs(at("calibrated", "xavier", 600) - at("calibrated", "calibrated", 600)) < 0.01


def test_over_conditioned():
    """All κ(W) are 1, and κ(J) is a thousand times that of plain Xavier."""
    over = view("over-conditioned")
    for role in ROLES:
        assert over.after.kappa_w[role] == pytest.approx(1, abs=1e-3)
        assert over.after.spectra[role] == pytest.approx([3.0] * 32, rel=1e-4)
    assert over.before.kappa_j == pytest.approx(view("healthy").before.kappa_j)
    assert 1000 < over.after.kappa_j / over.before.kappa_j < 2000
    assert at("over-conditioned", "shaped", 600) > 2 * at("over-conditioned", "plain", 600)


def test_a_race_that_was_never_computed_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(presets, "FOLDER", tmp_path)
    read = read_history.__wrapped__
    with pytest.raises(FileNotFoundError):
        read("healthy")
    (tmp_path / "healthy.json").write_text('{"history": {"step": []}}')
    with pytest.raises(ValueError, match="history: expected step, arms, marks and diverged"):
        read("healthy")


def quick_frame(race, counts={}):  # noqa: B006
    counts[id(race)] = counts.get(id(race), 0) + race.every
    return {**race.frame(), "step": counts[id(race)]}


def test_writing_races_gives_what_reading_takes(monkeypatch, tmp_path):
    one = presets.Preset("1 One", "", "arms=plain&kind=identity", "01_condition_numbers", "")
    monkeypatch.setattr(presets, "FOLDER", tmp_path / "races")
    monkeypatch.setattr(presets, "PRESETS", {"one": one})
    monkeypatch.setattr(Race, "advance", quick_frame)
    presets.write_histories()
    history = read_history.__wrapped__("one")
    assert history.step == list(range(0, 601, 5))
    assert list(history.arms) == ["plain"]
