"""What a visitor takes along: the CSV read back, a picture that is not empty, and code that comes to the same race."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import warnings
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pytest
import torch
from PIL import Image

from spectral_core import __version__
from spectral_core.demo.export import to_code, to_csv, to_png
from spectral_core.demo.history import METRICS, History
from spectral_core.demo.race import Race
from spectral_core.demo.race_view import COLOURS
from spectral_core.demo.settings import ARMS, Settings, parse_settings, to_query


def make_history(*names: str, frames: int = 20, diverged: str = "") -> History:
    history = History()
    for i in range(frames):
        arms = {name: {"loss": 2.0 / (i + k + 1), "accuracy": 0.04 * i, "log_kappa": None if i == 3 else 4.0 + k,
                       "saturation": 0.125} for k, name in enumerate(names)}  # fmt: skip
        if diverged and i > 10:
            arms[diverged] = dict.fromkeys(METRICS)
        history.append({"step": 5 * i, "changed": i == 7, "arms": arms,
                        "diverged": {diverged: 51} if diverged and i > 10 else {}})
    return history


def test_csv_reads_back() -> None:
    settings = Settings(kind="identity", seed=17, arms=("plain", "qk-norm"))
    text = to_csv(make_history("plain", "qk-norm", diverged="qk-norm"), settings)
    about = [line for line in text.splitlines() if line.startswith("# ")]
    assert about == text.splitlines()[: len(about)]
    said = "\n".join(about)
    assert f"spectral_core {__version__}, torch {torch.__version__}; one seed: 17" in said
    assert "# ?kind=identity&seed=17&arms=plain,qk-norm" in about
    assert parse_settings(dict(parse_qsl(about[1][3:]))) == (settings, [])
    assert "# sliders moved at steps: 30" in about
    rows = list(csv.DictReader(io.StringIO("\n".join(text.splitlines()[len(about) :]))))
    assert list(rows[0]) == ["step", "arm", "loss", "accuracy", "log10_kappa_j", "saturation"]
    assert len(rows) == 40
    assert rows[7] == {"step": "15", "arm": "qk-norm", "loss": "0.4", "accuracy": "0.12", "log10_kappa_j": "",
                       "saturation": "0.125"}
    assert set(list(rows[39].values())[2:]) == {""}


def test_csv_of_nothing_is_a_header() -> None:
    *about, header = to_csv(History(), Settings()).splitlines()
    assert header.startswith("step,arm,")
    assert about[-1] == "# sliders moved at steps: none"


@pytest.mark.parametrize("names", [(), ("plain",), tuple(ARMS)[:4], tuple(ARMS)[4:]])
def test_png_draws_every_arm(names) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = to_png(make_history(*names, diverged=names[-1] if len(names) > 1 else ""))
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    assert pixels.shape == (770, 1210, 3)
    for name in names:
        wanted = [int(COLOURS[name][0][i : i + 2], 16) for i in (1, 3, 5)]
        for part in (pixels[:385, :605], pixels[:385, 605:], pixels[385:740, :605], pixels[385:740, 605:]):
            assert (abs(part - wanted).max(-1) < 12).sum() > 20, name


def test_png_leaves_no_pyplot_behind() -> None:
    code = ("import sys; from spectral_core.demo.export import to_png; from spectral_core.demo.history import History; "
            "assert 'matplotlib' not in sys.modules; to_png(History()); assert 'matplotlib.pyplot' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def run(script: str, tmp_path: Path, *arguments: str) -> dict:
    path = tmp_path / "race.py"
    path.write_text(script, encoding="utf-8")
    done = subprocess.run([sys.executable, str(path), *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return eval(done.stdout)


START = Settings(kind="identity", lam={"q": 0.0, "k": 0.0, "v": 2.0}, seed=3, arms=("plain", "shaped"))
LATER = Settings(kind="identity", lam={"q": 12.0, "k": 12.0, "v": 2.0}, seed=3, arms=("plain", "shaped"))


@pytest.mark.parametrize("changes", [[], [(0, LATER)], [(5, LATER), (10, START)]], ids=["none", "at once", "two"])
def test_the_code_comes_to_the_same_race(changes, tmp_path: Path) -> None:
    script = to_code(START, [(step, to_query(settings)) for step, settings in changes])
    got = run(script, tmp_path, "15")
    race = Race(START)
    for step in (0, 5, 10):
        for at, settings in changes:
            if at == step:
                race.update(settings)
        race.advance()
    assert got == race.frame()
    assert got["step"] == 15
    if changes:
        unmoved = Race(START)
        while unmoved.step < 15:
            unmoved.advance()
        assert got["arms"]["shaped"] != unmoved.frame()["arms"]["shaped"]
        assert got["arms"]["plain"] == unmoved.frame()["arms"]["plain"]


def test_the_code_of_no_steps_is_the_start(tmp_path: Path) -> None:
    assert run(to_code(START), tmp_path, "0") == Race(START).frame()


def test_whatever_stands_in_an_address_stays_a_string() -> None:
    bad = "'; import os; os.abort() #\n\"\"\"{start}"
    lines = to_code(Settings(), [(5, bad)]).splitlines()
    (line,) = (text for text in lines if text.startswith("changes = "))
    assert eval(line.removeprefix("changes = ").partition("  # (step")[0]) == [(5, bad)]
    compile("\n".join(lines), "race.py", "exec")
