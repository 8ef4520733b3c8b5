"""Runs of the evidence: every task, every arm, being killed, several processes, and what can go wrong."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from spectral_core import find_projections
from spectral_core.experiments import ARMS, TASKS, Run, Setting, Sweep, checkpoint, make_runs, store, train
from spectral_core.experiments import run as run_module
from spectral_core.experiments.arms import find_arm
from spectral_core.experiments.images import cifar, image_folder
from spectral_core.experiments.sweep import choose_rate
from spectral_core.experiments.task import epoch_indices, generator_of, random_state

ROOT = Path(__file__).parent.parent
NEEDED = {"plain", "xavier", "orthogonal", "identity-init", "conditioned-init", "rotation", "paper", "paper-head",
          "paper-packed", "calibrated", "polar", "target", "q-only", "k-only", "v-only",
          "qk-norm", "sigma-reparam"}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(monkeypatch, task):
    """Fewer held-out batches, so that a smoke run is one."""
    data = TASKS[task].data

    class Few:
        def __init__(self, examples):
            self.examples = examples

        def __getattr__(self, name):
            return getattr(self.examples, name)

        def held_out(self, part):
            return [self.examples.held_out(part)[0]]

    changed = run_module.find_task(task)
    monkeypatch.setitem(TASKS, task, type(changed)(**{**changed.__dict__, "data": lambda s: Few(data(s))}))


@pytest.mark.parametrize("task", list(TASKS))
def test_every_task_trains_and_is_measured(task):
    batch = min(4, TASKS[task].batch_size)
    record = train(Run(task, "identity", 0, 1e-3, steps=2, batch_size=batch))
    assert record["diverged"] is None
    assert all(math.isfinite(v) for _, v in record["curve"])
    assert record["validation"] is not None
    assert record["test"] is not None
    for when in ("start", "end"):
        assert record["probes"][when]["kappa_w"] < 100  # λ = 1 is on
    json.dumps(record, allow_nan=False)


def test_every_arm_of_the_issue_is_there():
    assert set(ARMS) >= NEEDED
    assert {"plain", "control", "paper", "correction", "rival"} == {arm.kind for arm in ARMS.values()}


@pytest.mark.parametrize("arm", list(ARMS))
def test_every_arm_trains_on_digits(arm):
    record = train(Run("digits", arm, 0, 1e-3, steps=3, batch_size=8))
    assert record["diverged"] is None
    assert record["test"] is not None


def weights(arm, seed=3):
    task = TASKS["digits"]
    examples = task.data(Setting())
    model = task.model(Setting(), examples, seed)
    plain = {p.label + p.role: p.weight.detach().clone() for p in find_projections(model)}
    ARMS[arm].prepare(model, task.inputs(examples.batch(seed, 0, 8)), seed)
    return plain, {p.label + p.role: p.weight.detach() for p in find_projections(model)}


def test_the_paper_adds_ten_to_the_diagonal_of_each_role():
    plain, now = weights("paper")
    for key, w in plain.items():
        np.testing.assert_allclose(now[key], w + 10 * np.eye(64), rtol=1e-6)


def test_the_packed_scope_corrects_the_queries_alone_and_is_another_arm_where_it_differs():
    plain, now = weights("paper-packed")
    for key, w in plain.items():
        np.testing.assert_allclose(now[key], w + 10 * np.eye(64) * key.endswith("q"), rtol=1e-6)


def test_rotations_have_the_norm_of_the_identity_and_differ():
    plain, now = weights("rotation")
    found = [(now[key] - w).double().numpy() for key, w in plain.items()]
    for c in found:
        np.testing.assert_allclose(np.linalg.svd(c, compute_uv=False), 1.0, atol=1e-5)
    assert all(np.abs(a - b).max() > 0.1 for i, a in enumerate(found) for b in found[:i])


def test_an_arm_that_builds_on_another_names_it():
    assert all(set(arm.against) <= set(ARMS) for arm in ARMS.values())
    assert set(ARMS["muon-calibrated"].against) == {"muon", "muon-xavier"}


def test_one_role_alone_leaves_the_others():
    for role in "qkv":
        plain, now = weights(f"{role}-only")
        moved = {key[-1] for key, w in plain.items() if not torch.equal(now[key], w)}
        assert moved == {role}


def test_identity_at_the_start_and_identity_for_good_begin_alike():
    _, start = weights("identity-init")
    _, kept = weights("identity")
    for key, w in start.items():
        np.testing.assert_allclose(kept[key], w, atol=1e-6)


def test_qk_norm_makes_queries_of_unit_mean_square():
    task = TASKS["digits"]
    examples = task.data(Setting())
    model = task.model(Setting(), examples, 0)
    ARMS["qk-norm"].prepare(model, None, 0)
    attention = model.blocks[0].attn
    q = attention.q_norm(torch.randn(2, 4, 17, 16) * 30)
    np.testing.assert_allclose(q.detach().square().mean(-1), 1.0, rtol=1e-4)


def test_qk_norm_is_refused_where_there_is_no_place_for_it():
    model = TASKS["gpt2"].model(Setting(), TASKS["gpt2"].data(Setting()), 0)
    with pytest.raises(ValueError, match="qk-norm: expected attention with q_norm and k_norm"):
        ARMS["qk-norm"].prepare(model, None, 0)


def test_sigma_reparam_has_spectral_norm_gamma():
    model = nn.Sequential(nn.Linear(12, 9), nn.Linear(9, 5))
    ARMS["sigma-reparam"].prepare(model, None, 0)
    model.train()
    for _ in range(60):
        _ = model[0].weight  # power iteration goes on at each use
    model[0].parametrizations.weight[1].gain.data.fill_(2.5)
    np.testing.assert_allclose(np.linalg.norm(model[0].weight.detach().numpy(), 2), 2.5, rtol=1e-3)


def test_the_output_layers_are_conditioned_too():
    task = TASKS["digits"]
    examples = task.data(Setting())
    model = task.model(Setting(), examples, 0)
    before = [block.attn.proj.weight.detach().clone() for block in model.blocks]
    ARMS["calibrated-output"].prepare(model, task.inputs(examples.batch(0, 0, 8)), 0)
    for block, w in zip(model.blocks, before, strict=True):
        np.testing.assert_allclose(block.attn.proj.weight.detach(), w + np.eye(64), atol=1e-6)


def test_lambda_on_the_output_has_xavier_on_the_output_as_its_control():
    task = TASKS["digits"]
    examples = task.data(Setting())
    control, fixed = (task.model(Setting(), examples, 0) for _ in range(2))
    for arm, model in (("xavier-output", control), ("xavier-v1-output", fixed)):
        ARMS[arm].prepare(model, None, 3)
    assert ARMS["xavier-output"].kind == "control"
    limit = np.sqrt(6 / (64 + 64))
    for a, b in zip(control.blocks, fixed.blocks, strict=True):
        w = a.attn.proj.weight.detach().numpy()
        assert 0.95 * limit < np.abs(w).max() <= limit
        np.testing.assert_allclose(b.attn.proj.weight.detach(), w + np.eye(64), atol=1e-6)
        q, k, v = a.attn.qkv.weight.detach().numpy().reshape(3, 64, 64)
        np.testing.assert_allclose(
            b.attn.qkv.weight.detach().reshape(3, 64, 64), np.stack([q, k, v + np.eye(64)]), atol=1e-6
        )
    first, second = (block.attn.proj.weight for block in control.blocks[:2])
    assert not torch.equal(first, second)


# ---- a run is a function of its settings, killed or not ---------------------------------------------------------


def same(a, b):
    for key in ("curve", "validation", "test", "final_loss"):
        assert a[key] == b[key], key
    for when in ("start", "middle", "end"):
        assert a["probes"][when] == b["probes"][when]


@pytest.mark.parametrize("arm", ["plain", "polar", "calibrated", "muon"])
def test_a_killed_run_goes_on_with_the_same_numbers(arm, tmp_path, monkeypatch):
    run = Run("digits", arm, 1, 3e-3, steps=12, batch_size=8)
    whole = train(run, checkpoints=tmp_path / "a")
    advance, made = run_module._Loop.advance, []

    def dies(self, steps):
        made.append(self.step)
        if self.step == 8:
            raise KeyboardInterrupt
        return advance(self, steps)

    monkeypatch.setattr(run_module._Loop, "advance", dies)
    with pytest.raises(KeyboardInterrupt):
        train(run, checkpoints=tmp_path / "b")
    made.clear()
    monkeypatch.setattr(run_module._Loop, "advance", lambda self, n: (made.append(self.step), advance(self, n))[1])
    resumed = train(run, checkpoints=tmp_path / "b")
    assert made[0] > 0  # not from the start
    same(whole, resumed)
    assert not list((tmp_path / "b").glob("*"))  # the checkpoint of a finished run is removed


def test_a_checkpoint_that_was_cut_off_starts_from_the_beginning(tmp_path, monkeypatch):
    run = Run("digits", "plain", 1, 3e-3, steps=8, batch_size=8)
    path = tmp_path / f"{run_module._slug(run)}.pt"
    path.write_bytes(b"PK\x03\x04 cut off")
    same(train(run, checkpoints=tmp_path), train(run))


def test_a_full_disk_keeps_the_old_checkpoint_and_the_run_goes_on(tmp_path, monkeypatch):
    run = Run("digits", "plain", 0, 3e-3, steps=8, batch_size=8)
    path, kept = tmp_path / f"{run_module._slug(run)}.pt", []
    real, calls = torch.save, []

    def full(state, file):
        calls.append(state["step"])
        if len(calls) == 1:
            return real(state, file)
        Path(file).write_bytes(b"half of it")
        kept.append(torch.load(path, weights_only=True)["step"])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    record = train(run, checkpoints=tmp_path)
    assert kept[0] == calls[0]  # the first checkpoint was still whole while the second failed
    assert f"step {calls[1]}: expected to write" in record["notes"][0]
    assert "No space left on device; the one before it is kept, and the run goes on" in record["notes"][0]
    assert not list(tmp_path.glob("*.part"))
    assert record["test"] is not None


def test_a_run_that_diverges_is_recorded_with_its_step(monkeypatch):
    task = TASKS["digits"]
    count = iter(range(100))

    def loss(model, batch):
        value = task.loss(model, batch)
        return value * math.nan if next(count) == 5 else value

    monkeypatch.setitem(TASKS, "digits", type(task)(**{**task.__dict__, "loss": loss}))
    record = train(Run("digits", "plain", 0, 1e-3, steps=50, batch_size=8))
    assert record["diverged"] == 5
    assert record["final_loss"] is record["validation"] is record["test"] is None
    assert [step for step, _ in record["curve"]] == [1, 2, 3, 4, 5]
    json.dumps(record, allow_nan=False)


def test_weights_that_overflow_count_as_divergence():
    record = train(Run("digits", "polar", 0, 1e30, steps=20, batch_size=8))
    assert record["diverged"] is not None
    assert record["test"] is None


def test_the_same_seed_sees_the_same_batches_whatever_the_arm():
    examples = TASKS["digits"].data(Setting())
    assert torch.equal(examples.batch(4, 7, 16)["x"], examples.batch(4, 7, 16)["x"])
    assert not torch.equal(examples.batch(4, 7, 16)["y"], examples.batch(5, 7, 16)["y"])


def test_an_epoch_holds_every_example_once():
    steps = [epoch_indices(20, 3, step, 6) for step in range(6)]
    for epoch in (steps[:3], steps[3:]):
        seen = torch.cat(epoch).tolist()
        assert len(set(seen)) == 18
    assert not torch.equal(steps[0], steps[3])
    with pytest.raises(ValueError, match="batch_size: expected at most the 20 training examples, got 21"):
        epoch_indices(20, 0, 0, 21)


def test_generators_depend_on_every_number_and_global_state_is_left_alone():
    draws = {tuple(torch.randint(0, 10**9, (2,), generator=generator_of(*n)).tolist())
             for n in ((0, 1), (1, 0), (0, 0), (1, 1), (0,), (1,))}  # fmt: skip
    assert len(draws) == 6
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with random_state(1, 2):
        torch.rand(3)
    assert torch.equal(torch.rand(1), expected)


# ---- several processes ------------------------------------------------------------------------------------------


def launch(arguments, folder, processes=1, **more):
    command = [sys.executable, "-m", "spectral_core", "train", *arguments, "--out", str(folder / "runs.jsonl")]
    if processes > 1:
        # accelerate launch needs MPI for several processes on CPUs; torchrun sets the same variables
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
                   *command[1:]]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1"} | more
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=env, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return store.read(folder / "runs.jsonl")[-1]


COMMON = ["digits", "--arm", "identity", "--lr", "0.0003", "--steps", "8", "--batch-size", "8"]


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, {"ACCELERATE_USE_FSDP": "true"}], ids=["DDP", "FSDP2"])
def test_two_processes_have_the_losses_of_one(environment, tmp_path):
    one = train(Run("digits", "identity", 0, 3e-4, steps=8, batch_size=8))
    two = launch(COMMON, tmp_path, 2, **environment)
    assert two["processes"] == 2
    assert ("sharded" in str(two["probes"]["end"]["kappa_j_of"])) == bool(environment)
    got, expected = ([v for _, v in record["curve"]] for record in (two, one))
    np.testing.assert_allclose(got[:2], expected[:2], rtol=1e-5)
    # AdamW divides rounding errors by themselves where a gradient is zero, so the difference grows
    np.testing.assert_allclose(got, expected, rtol=2e-3)
    assert abs(two["test"] - one["test"]) < 0.03


KILLED_AT_4 = """
import sys
from pathlib import Path
from spectral_core.experiments import Run, train
from spectral_core.experiments import run as module
advance = module._Loop.advance
def dies(self, steps):
    if self.step >= 4:
        sys.exit(7)
    return advance(self, steps)
module._Loop.advance = dies
train(Run("digits", "identity", 0, 3e-4, steps=8, batch_size=8), checkpoints=Path(".runs-checkpoints"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "environment"),
    [(2, 1, {}), (1, 2, {}), (2, 1, {"ACCELERATE_USE_FSDP": "true"})], ids=["2 to 1", "1 to 2", "2 sharded to 1"],
)  # fmt: skip
def test_another_number_of_processes_goes_on(first, second, environment, tmp_path):
    (tmp_path / "killed.py").write_text(KILLED_AT_4)
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(first)]
    start = [sys.executable, *several * (first > 1)]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run([*start, "killed.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200,
                          check=False)  # fmt: skip
    kept = list((tmp_path / ".runs-checkpoints").glob("*.pt"))
    assert len(kept) == 1, done.stderr[-2000:]
    assert torch.load(kept[0], weights_only=True)["step"] == 4
    record = launch(COMMON, tmp_path, second)
    assert record["processes"] == second
    assert [step for step, _ in record["curve"]] == list(range(1, 9))  # the first half comes from the checkpoint
    whole = train(Run("digits", "identity", 0, 3e-4, steps=8, batch_size=8))
    np.testing.assert_allclose([v for _, v in record["curve"]], [v for _, v in whole["curve"]], rtol=2e-3)


def test_processes_that_do_not_divide_the_batch_are_refused():
    from spectral_core.experiments.place import Place

    place = Place("cpu")
    place.processes = 3
    with pytest.raises(ValueError, match="batch_size: expected a multiple of the 3 processes, got 8"):
        place.share({"x": torch.zeros(8)}, 8)
    place.index = 2
    assert place.share({"x": torch.arange(9)}, 9)["x"].tolist() == [6, 7, 8]


@pytest.mark.slow
def test_bfloat16_and_compile_stay_near_float32(monkeypatch):
    # the default backend needs a C++ compiler, and a path without spaces
    monkeypatch.setattr(run_module.torch, "compile", partial(torch.compile, backend="aot_eager"))
    base = train(Run("digits", "identity", 0, 1e-3, steps=6, batch_size=8))
    half = train(Run("digits", "identity", 0, 1e-3, steps=6, batch_size=8, dtype="bfloat16"))
    compiled = train(Run("digits", "identity", 0, 1e-3, steps=6, batch_size=8, compiled=True))
    np.testing.assert_allclose([v for _, v in compiled["curve"]], [v for _, v in base["curve"]], rtol=1e-4)
    np.testing.assert_allclose([v for _, v in half["curve"]], [v for _, v in base["curve"]], rtol=3e-2)
    assert half["curve"] != base["curve"]


# ---- many runs --------------------------------------------------------------------------------------------------


def test_a_sweep_tunes_then_compares_and_repeats_nothing(tmp_path):
    path = tmp_path / "runs.jsonl"
    sweep = Sweep(("digits",), ("plain", "xavier"), seeds=2, steps=2, batch_size=4)
    states = list(make_runs(sweep, path))
    records = store.read(path)
    assert states[-1][0] == states[-1][1] == len(records) == 2 * (3 + 2)
    for arm in sweep.arms:
        tuned = [r for r in records if r["arm"] == arm and r["purpose"] == "tune"]
        final = [r for r in records if r["arm"] == arm and r["purpose"] == "final"]
        assert [r["seed"] for r in final] == [0, 1]
        assert {r["seed"] for r in tuned} == {1000}
        assert all(r["test"] is None for r in tuned)  # the test part is looked at by final runs alone
        assert all(r["lr"] == choose_rate("digits", tuned) for r in final)
    assert [s[2] for s in make_runs(sweep, path)] == [None]  # all is there
    assert store.read(path) == records


def test_the_best_validation_value_chooses_and_divergence_rules_out():
    runs = [{"lr": 1.0, "validation": 0.9}, {"lr": 1.0, "validation": None}, {"lr": 0.1, "validation": 0.5},
            {"lr": 0.1, "validation": 0.6}]  # fmt: skip
    assert choose_rate("digits", runs) == 0.1
    assert choose_rate("bert", [{"lr": 1.0, "validation": 2.0}, {"lr": 0.1, "validation": 1.9}]) == 0.1


def test_an_arm_without_meaning_is_a_record_and_its_final_runs_are_not_made(tmp_path):
    path = tmp_path / "runs.jsonl"
    list(make_runs(Sweep(("gpt2",), ("qk-norm",), seeds=2, steps=2, batch_size=4), path))
    records = store.read(path)
    assert len(records) == 3
    assert all("qk-norm: expected attention" in r["refused"] for r in records)


def test_no_new_run_is_begun_after_the_minutes(tmp_path):
    list(make_runs(Sweep(("digits",), ("plain",), steps=2, batch_size=4), tmp_path / "r.jsonl", minutes=0))
    assert not (tmp_path / "r.jsonl").exists()


def test_a_line_cut_off_at_the_end_is_left_out_and_the_next_run_is_whole(tmp_path):
    path = tmp_path / "runs.jsonl"
    store.append(path, {"task": "digits", "n": 1})
    with path.open("a") as file:
        file.write('{"task": "digi')
    assert [r["n"] for r in store.read(path)] == [1]
    store.append(path, {"task": "digits", "n": 2})
    path.write_text(path.read_text() + '{"task": "x"}\n')
    with pytest.raises(ValueError, match=r"runs.jsonl, line 2: expected a run as JSON, got '\{\"task\": \"digi'"):
        store.read(path)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "runs.jsonl"
    store.append(path, {"task": "digits", "n": 1})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(OSError, match=r"expected to add a run to .*, got No space left on device; it is unchanged"):
        store.append(path, {"task": "digits", "n": 2})
    assert [r["n"] for r in store.read(path)] == [1]


# ---- what can be wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "imagenet"}, r"task: expected one of \('digits', 'vit'.*, got 'imagenet'"),
        ({"arm": "magic"}, r"arm: expected one of \('plain', 'xavier'.*, got 'magic'"),
        ({"lr": 0.0}, "lr: expected a number > 0, got 0"),
        ({"seed": -1}, "seed: expected a number >= 0, got -1"),
        ({"steps": 1.5}, "steps: expected a whole number, got 1.5"),
        ({"dtype": "float16"}, "dtype: expected one of"),
        ({"purpose": "test"}, "purpose: expected one of"),
    ],
)
def test_settings_that_are_none(change, message):
    with pytest.raises(ValueError, match=message):
        Run(**{"task": "digits", "arm": "plain", "seed": 0, "lr": 1e-3, **change})


def test_full_size_needs_a_folder():
    with pytest.raises(ValueError, match="size 'full': expected --folder FOLDER with the full-size data, got none"):
        Setting("full")
    with pytest.raises(ValueError, match="size: expected one of"):
        Setting("huge")


def pictures(folder, parts=("train", "val"), classes=("cat", "dog"), count=3, side=40):
    from PIL import Image

    rng = np.random.default_rng(0)
    for part in parts:
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 255, (side, side + 9, 3), dtype=np.uint8)).save(
                    folder / part / name / f"{i}.png")  # fmt: skip
    return folder


def test_an_image_folder_trains(tmp_path):
    setting = Setting("small", pictures(tmp_path / "a", count=12))
    record = train(Run("vit", "identity", 0, 1e-3, steps=2, batch_size=4, setting=setting))
    assert record["test"] is not None
    examples = image_folder(tmp_path / "a", 32)
    assert examples.classes == 2
    assert examples.batch(0, 0, 4)["x"].shape == (4, 3, 32, 32)
    assert torch.equal(examples.batch(0, 3, 4)["x"], examples.batch(0, 3, 4)["x"])


def test_image_folders_that_do_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected .*train/CLASS/\*.jpg \(an image folder\), or CIFAR-10's"):
        image_folder(tmp_path, 32)
    folder = pictures(tmp_path / "b")
    pictures(folder, parts=("val",), classes=("bird",))
    with pytest.raises(ValueError, match="same classes in train and val, got 2 and 3; only in one of them: bird"):
        image_folder(folder, 32)
    (tmp_path / "c" / "train" / "x").mkdir(parents=True)
    (tmp_path / "c" / "val").mkdir()
    with pytest.raises(ValueError, match=r"expected images .png, .jpg.* in folders of classes, got none"):
        image_folder(tmp_path / "c", 32)
    broken = pictures(tmp_path / "d", count=12)
    for path in (broken / "train").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="expected an image, got"):
        image_folder(broken, 32).batch(0, 0, 4)


def records_of(folder, labels=(0, 9), extra=b""):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        rows = rng.integers(0, 255, (20, 3073), dtype=np.uint8)
        rows[:, 0] = rng.integers(labels[0], labels[1] + 1, 20)
        (folder / name).write_bytes(rows.tobytes() + extra)
    return folder


def test_cifar_is_read_and_checked(tmp_path):
    folder = records_of(tmp_path / "cifar-10-batches-bin")
    raw = np.fromfile(folder / "test_batch.bin", dtype=np.uint8).reshape(-1, 3073)
    examples = cifar(folder)
    assert examples.y["test"].tolist() == raw[:, 0].tolist()
    train_pixels = np.concatenate([np.fromfile(folder / f"data_batch_{i}.bin", dtype=np.uint8).reshape(-1, 3073)[:, 1:]
                                   for i in (1, 2, 3, 4)]).reshape(-1, 3, 32, 32) / 255  # fmt: skip
    mean, std = train_pixels.mean((0, 2, 3), keepdims=True), train_pixels.std((0, 2, 3), keepdims=True, ddof=1)
    expected = (raw[:, 1:].reshape(-1, 3, 32, 32) / 255 - mean) / std
    np.testing.assert_allclose(examples.x["test"], expected, rtol=1e-3, atol=1e-4)
    record = train(Run("vit", "plain", 0, 1e-3, steps=1, batch_size=4, setting=Setting("small", tmp_path)))
    assert record["test"] is not None
    with pytest.raises(ValueError, match="expected records of 3073 bytes"):
        cifar(records_of(tmp_path / "e", extra=b"x"))
    with pytest.raises(ValueError, match=r"expected labels 0 to 9, got \d+; is it CIFAR-100\?"):
        cifar(records_of(tmp_path / "f", labels=(10, 99)))
    (tmp_path / "g").mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected CIFAR-10's binary version, got no data_batch_1.bin"):
        cifar(tmp_path / "g")
    with pytest.raises(ValueError, match="size 'full': expected images of 224 pixels"):
        TASKS["vit"].data(Setting("full", tmp_path))


def cli(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "spectral_core", *arguments], capture_output=True, text=True, timeout=200, check=False,
        cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "140"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "digit"], "error: task: expected one of ('digits', 'vit'"),
        (["train", "digits", "--arm", "magic"], "error: arm: expected one of ('plain', 'xavier'"),
        (["train", "digits", "--correction", "polar"], "error: --correction: expected --arm with TASK"),
        (["train", "--arm", "polar"], "error: --arm, --folder: expected them with a TASK"),
        (["train", "vit", "--folder", "nowhere"], "error: expected nowhere/train/CLASS/*.jpg (an image folder)"),
        (["train", "vit", "--size", "full"], "error: size 'full': expected --folder FOLDER"),
        (["evidence", "--tasks", "digits,unknown"], "error: task: expected one of ('digits'"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, message, tmp_path):
    done = cli(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_run_on_the_command_line_is_recorded_and_not_repeated(tmp_path):
    first = cli("train", "digits", "--arm", "xavier", "--steps", "4", "--batch-size", "8", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "accuracy: validation" in first.stdout
    again = cli("train", "digits", "--arm", "xavier", "--steps", "4", "--batch-size", "8", cwd=tmp_path)
    assert "already in runs.jsonl" in again.stderr
    assert again.stdout == first.stdout
    (record,) = store.read(tmp_path / "runs.jsonl")
    assert record["command"].startswith("spectral-core train digits --arm xavier")
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["machine"]["device"] == "cpu"


def test_unknown_names_in_python():
    with pytest.raises(ValueError, match="arm: expected one of"):
        find_arm("none")
    with pytest.raises(ValueError, match="task: expected one of"):
        Sweep(("none",), ("plain",))


