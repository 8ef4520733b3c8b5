"""What the README shows works: its example runs, its links lead somewhere, its commands exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spectral_core.cli import app

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.S)
PRINTED = ("κ before", "refused: attention saturates", "tensor([[17., ", "q|k|v", "spectral/layer00/k/kappa",
           "layer 0, Q, head 2 []", "Spectra of 1 layers over 3 looks", "spectral/layer00/k/kappa")  # fmt: skip


def test_every_example_is_tested() -> None:
    assert len(EXAMPLES) == len(PRINTED)


@pytest.mark.filterwarnings("ignore:the correction made")
@pytest.mark.parametrize(("code", "printed"), zip(EXAMPLES, PRINTED, strict=False))
def test_an_example_runs_and_has_ten_lines(code: str, printed: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # loggers write into the folder that they are in
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    exec(compile(code, "README.md", "exec"), {})
    assert printed in capsys.readouterr().out


AUDITS = re.findall(r"^spectral-core (audit .*?)(?:  +#.*)?$", TEXT, re.M)


@pytest.mark.parametrize("command", [a for a in AUDITS if not a.endswith("--data")])
def test_the_audits_that_it_shows_run(command: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, command.split()).exit_code == 0


def test_some_audits_are_shown() -> None:
    assert len(AUDITS) == 3


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)\)", TEXT))
def test_links_lead_to_files(target: str) -> None:
    assert (ROOT / target).exists()


def test_commands_are_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make ([a-z-]+)", TEXT):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_every_direct_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + [d for extra in project["optional-dependencies"].values() for d in extra]
    names = {re.match(r"[A-Za-z0-9_-]+", d)[0].lower() for d in wanted}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))
    assert names <= set(pinned)
    assert pinned["torch"] == "2.13.0"
