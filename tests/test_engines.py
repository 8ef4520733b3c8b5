"""Conditioned models under every engine that trains them, against training that is written out by hand."""

import copy
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from by_hand import LR, mean_square, same_training, train
from families import TIMM, TRANSFORMERS, Asymmetric
from torch import nn

from spectral_core import (
    IdentityCorrection,
    PolarCorrection,
    SpectralConditionedAttention,
    condition,
    fold,
    plain_state_dict,
)

FAMILY = {family.name: family for family in TIMM + TRANSFORMERS}
CHOSEN = [FAMILY[name] for name in ("timm ViT", "GPT-2", "Falcon, key-value groups", "Llama")]
HERE = Path(__file__).parent


def conditioned(family):
    model = family.model()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    condition(model, Asymmetric())
    return model.train(), start


def descend(model, run, steps=3, context=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for _ in range(steps):
        optimizer.zero_grad()
        with context() if context else torch.enable_grad():
            loss = run()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("family", CHOSEN, ids=str)
def test_eager_training(family):
    model, start = conditioned(family)
    descend(model, lambda: mean_square(family.run(model)))
    assert same_training(plain_state_dict(model), train(family), start)


@pytest.mark.parametrize("family", CHOSEN, ids=str)
def test_compiled_training_without_a_graph_break(family):
    model, start = conditioned(family)
    call = functools.partial(model, **family.batch) if isinstance(family.batch, dict) else lambda: model(family.batch)
    explained = torch._dynamo.explain(call)()
    assert explained.graph_break_count == 0, explained.break_reasons
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    descend(model, lambda: mean_square(family.run(compiled)))
    torch._dynamo.reset()
    assert same_training(plain_state_dict(model), train(family), start)


CORRECTIONS = [
    IdentityCorrection(0.5), IdentityCorrection(0.5, relative=True, preserve="spectral"), PolarCorrection(),
    IdentityCorrection(0.5, learnable=True), IdentityCorrection(schedule=lambda step: 0.5), Asymmetric(),
]  # fmt: skip


@pytest.mark.parametrize("correction", CORRECTIONS, ids=repr)
@pytest.mark.parametrize("make", [
    lambda: SpectralConditionedAttention(8, 2),
    lambda: nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True),
    FAMILY["GPT-NeoX"].model,
], ids=["own", "encoder", "GPT-NeoX"])  # fmt: skip
def test_no_correction_breaks_the_graph(make, correction):
    torch.manual_seed(0)
    model = make()
    condition(model, copy.deepcopy(correction))
    x = FAMILY["GPT-NeoX"].batch["input_ids"] if hasattr(model, "embed_in") else torch.randn(2, 3, 8)
    explained = torch._dynamo.explain(model)(x)
    assert (explained.graph_break_count, explained.graph_count) == (0, 1), explained.break_reasons
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", CHOSEN, ids=str)
def test_autocast(family, dtype):
    def context():
        return torch.autocast("cpu", dtype=dtype)

    model, start = conditioned(family)
    descend(model, lambda: mean_square(family.run(model)), context=context)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    # both round in the same places; with a C added in bfloat16 these four end 6e-3 to 2e-2 apart
    assert same_training(plain_state_dict(model), train(family, context=context), start, 2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision(dtype):
    family = FAMILY["Llama"]
    model = family.model().to(dtype)
    condition(model, Asymmetric())
    out = family.run(model)
    fold(model)
    assert out.dtype == dtype
    torch.testing.assert_close(family.run(model), out)


@pytest.mark.parametrize("family", [FAMILY["timm ViT"], FAMILY["GPT-2"], FAMILY["Llama"]], ids=str)
def test_gradient_checkpointing(family):
    model, start = conditioned(family)
    if family.name.startswith("timm"):
        model.set_grad_checkpointing()
    else:
        model.gradient_checkpointing_enable()
    descend(model, lambda: mean_square(family.run(model)))
    assert same_training(plain_state_dict(model), train(family), start)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What two gloo processes wrote, {file name: content}; one pair for all tests, since importing takes longest."""
    folder = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(HERE / "two_processes.py"), str(folder)]
    processes = [
        subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(errors)
    return folder


@pytest.mark.parametrize("engine", ["ddp", "ddp-compiled", "fsdp"])
@pytest.mark.parametrize("name", ["GPT-2", "Falcon, key-value groups", "timm ViT"])
def test_two_processes(two_processes, engine, name):
    family = FAMILY[name]
    start = {key: p.detach() for key, p in family.model().named_parameters()}
    got = torch.load(two_processes / f"{engine} {name}.pt", weights_only=True)
    expected = train(family)  # on both examples, one of which each process had
    assert same_training(got["weights"], expected, start)
    for key, value in got["folded"].items():
        if key in (added := family.added(family.model())):
            torch.testing.assert_close(value, expected[key] + added[key], rtol=1e-4, atol=1e-5)
    values = [json.loads((two_processes / f"{engine} {name} {rank}.json").read_text()) for rank in (0, 1)]
    assert values[1] is None  # the first process alone has them
    assert ("spectral/layer01/kappa_j" in values[0]) == (name == "timm ViT" and engine != "fsdp")
    key, role = next(family.parameters(family.model()))[::2]
    w = expected[key] + family.added(family.model())[key]
    w = (w.mT if family.columns else w)[role["q"]].unflatten(0, (family.heads, -1))
    assert values[0]["spectral/layer00/q/kappa"] == pytest.approx(float(torch.linalg.cond(w).max()), rel=1e-3)


def test_ddp_and_fsdp_refuse_to_be_conditioned_or_folded_late(two_processes):
    said = json.loads((two_processes / "refusals.json").read_text())
    assert "a DTensor that is already sharded; condition the model first" in said["condition"]
    for name in ("fold", "unfold"):
        assert said[name].startswith(f"{name}: ")
        assert "expected a weight that is not sharded, got a DTensor; gather a checkpoint" in said[name]
    assert "expected a weight that is not sharded, got a DTensor; gather the state_dict first" in said["folded"]
    assert said["batch"] == "batch: expected None for a model in shards, whose heads no process has as a whole"


def test_polar_under_two_processes_is_the_factor_of_the_whole_weight(two_processes):
    got = torch.load(two_processes / "polar.pt", weights_only=True)
    family = FAMILY["GPT-2"]
    for name, _, rows in family.parameters(family.model()):
        for index in rows.values():
            w = got[name].mT[index]
            assert torch.linalg.cond(w.double()) <= 2.05


def classify(run):
    return F.cross_entropy(run(FAMILY["timm ViT"].batch), torch.tensor([1, 3]))


def test_accelerate():
    from accelerate import Accelerator

    from spectral_core.callbacks import for_accelerate

    family = FAMILY["timm ViT"]
    model, start = conditioned(family)
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(family.batch, torch.tensor([1, 3])), 2)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    watch = for_accelerate(accelerator, prepared, every=2)
    for step in range(1, 4):
        for images, labels in loader:
            optimizer.zero_grad()
            accelerator.backward(F.cross_entropy(prepared(images), labels))
            optimizer.step()
        assert (watch(step) is None) == (step != 2)
    assert [record["step"] for record in watch.monitor.history] == [2]
    weights = plain_state_dict(model, accelerator.get_state_dict(prepared))
    assert same_training(weights, train(family, run=classify), start)
    accelerator.free_memory()


def test_lightning(tmp_path):
    import lightning.pytorch as lightning

    from spectral_core.callbacks import for_lightning

    family = FAMILY["timm ViT"]
    model, start = conditioned(family)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, _):
            images, labels = batch
            return F.cross_entropy(self.model(images), labels)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=LR)

    callback = for_lightning(every=2)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(family.batch, torch.tensor([1, 3])), 2)
    trainer = lightning.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[callback], default_root_dir=tmp_path, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(Module(), loader)
    assert same_training(plain_state_dict(model), train(family, run=classify), start)
    (record,) = callback.monitor.history
    assert record["step"] == 2
    assert trainer.logged_metrics["spectral/layer01/v/kappa"] == pytest.approx(record["spectral/layer01/v/kappa"], 1e-5)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert torch.load(checkpoint, weights_only=False)["global_step"] == 3


def test_lightning_counts_optimizer_steps_where_gradients_are_accumulated(tmp_path):
    import lightning.pytorch as lightning

    from spectral_core.callbacks import for_lightning

    correction = IdentityCorrection(schedule=float)
    model = SpectralConditionedAttention(8, 2, correction=correction)
    seen = []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, _):
            seen.append(correction.lam)
            return self.model(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=LR)

    callback = for_lightning(every=1)
    trainer = lightning.Trainer(
        max_steps=2, accumulate_grad_batches=3, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[callback], default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.randn(6, 3, 8), 1))
    assert seen == [0, 0, 0, 1, 1, 1]
    assert [record["step"] for record in callback.monitor.history] == [1, 2]


def test_the_trainer_of_transformers(tmp_path):
    import transformers
    from families import NO_DROPOUT, TEXT, TOKENS, Family, thirds

    from spectral_core.callbacks import for_transformers

    config = transformers.GPT2Config(vocab_size=40, n_embd=24, n_layer=2, n_head=3, n_positions=16, **NO_DROPOUT)
    build = functools.partial(transformers.GPT2LMHeadModel, config)
    family = Family("GPT-2 LM", build, TEXT, {r".*attn\.c_attn\.weight": thirds}, columns=True)
    model, start = conditioned(family)
    callback = for_transformers(every=2)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=2, optim="sgd", learning_rate=LR,
        lr_scheduler_type="constant", max_grad_norm=0.0, report_to=[], use_cpu=True, disable_tqdm=True, save_steps=3,
        logging_steps=1,
    )  # fmt: skip
    labels = TOKENS.clone()
    labels[:, 0] = -100  # never predicted; the Trainer divides by the number of labels that there are
    data = [{"input_ids": row, "labels": label} for row, label in zip(TOKENS, labels, strict=True)]
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback])
    trainer.train()
    expected = train(family, run=lambda model: model(input_ids=TOKENS, labels=labels).loss)
    got = plain_state_dict(model)
    assert same_training(got, expected, start)
    assert [record["step"] for record in callback.monitor.history] == [2]
    logged = [record for record in trainer.state.log_history if "spectral/layer00/q/kappa" in record]
    assert [record["step"] for record in logged] == [2]
    resumed, _ = conditioned(family)
    transformers.Trainer(resumed, arguments, train_dataset=data)._load_from_checkpoint(str(tmp_path / "checkpoint-3"))
    torch.testing.assert_close(family.run(resumed.eval()), family.run(model.eval()))


def test_schedules_move_on_with_the_callback():
    from spectral_core.callbacks import for_transformers

    model = FAMILY["BERT"].model()
    correction = IdentityCorrection(schedule=lambda step: 1.0 + step)
    condition(model, correction)
    callback = for_transformers()
    state = type("State", (), {"global_step": 7, "log_history": []})
    callback.on_train_begin(None, state, None, model=model)
    assert correction.lam == 8.0  # resumed at step 7
    correction.update(schedule=lambda step: 2.0 + step)
    callback.on_step_end(None, state, None, model=model)
    assert correction.lam == 9.0


@pytest.mark.parametrize(("name", "extra", "call"), [
    ("transformers", "models", "for_transformers()"),
    ("lightning", "train", "for_lightning()"),
    ("accelerate", "train", "for_accelerate(None, None)"),
])
def test_a_missing_package_is_named_with_its_extra(name, extra, call):
    code = f"""
import sys
sys.modules[{name!r}] = sys.modules["pytorch_lightning"] = None
from spectral_core.callbacks import *
try:
    {call}
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"expected {name} to be installed, got none; pip install 'spectral-core[{extra}]'"
