"""SpectralMonitor against NumPy's singular values of the weights in use, head by head."""

import json
import os
import sqlite3
import subprocess
import sys
import time
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from families import TIMM, TRANSFORMERS, Asymmetric, asymmetric
from torch import nn
from torch.nn.utils import parametrize

from spectral_core import (
    AttentionJacobian,
    IdentityCorrection,
    Layout,
    PolarCorrection,
    SpectralConditionedAttention,
    SpectralMonitor,
    condition,
)
from spectral_core.models import VisionTransformer

FAMILY = {family.name: family for family in TIMM + TRANSFORMERS}


@pytest.mark.parametrize("name", ["GPT-2", "GPT-NeoX", "Falcon, key-value groups", "Llama", "timm ViT"])
@pytest.mark.parametrize("is_conditioned", [False, True])
def test_values_are_those_of_the_heads(name, is_conditioned):
    family = FAMILY[name]
    model = family.model()
    if is_conditioned:
        condition(model, Asymmetric())
    values = SpectralMonitor(model).step(0)
    heads = {"q": family.heads, "k": family.kv_heads or family.heads, "v": family.kv_heads or family.heads}
    expected, layers = {}, []
    for key, parameter, rows in family.parameters(family.model()):
        owner = key.removesuffix(".weight").rpartition(".")[0]
        layers += [owner] if owner not in layers else []
        for role, index in rows.items():
            w = parameter.detach().double().numpy()
            w = (w.T if family.columns else w)[index]
            w = w + asymmetric(*w.shape) * is_conditioned
            s = np.linalg.svd(np.stack(np.split(w, heads[role])), compute_uv=False)
            place = f"spectral/layer{layers.index(owner):02d}/{role}"
            expected |= {f"{place}/kappa": (s[:, 0] / s[:, -1]).max(), f"{place}/sigma_max": s[:, 0].max()}
    assert values == pytest.approx(expected, rel=1e-4)
    assert list(values) == sorted(values)


def test_every_so_many_steps_and_history():
    monitor = SpectralMonitor(SpectralConditionedAttention(8, 2), every=3)
    assert [monitor.step(i) is None for i in range(7)] == [False, True, True, False, True, True, False]
    assert [record["step"] for record in monitor.history] == [0, 3, 6]
    assert monitor.names == [""]


def test_a_batch_adds_the_jacobian():
    model = VisionTransformer(dim=8, depth=2)
    batch = torch.randn(1, 1, 8, 8)
    values = SpectralMonitor(model, batch=batch).step(0)
    assert values["spectral/layer01/kappa_j"] >= 1
    assert 0 < values["spectral/layer00/saturation"] <= 1


def test_no_bar_appears_in_a_training_loop(monkeypatch):
    from spectral_core import head_jacobians

    shown = []

    def bar(title, total, *, shown_=shown, **options):
        shown_.append(options["shown"])
        return progress_bar(title, total, **options)

    progress_bar = head_jacobians.progress_bar
    monkeypatch.setattr(head_jacobians, "progress_bar", bar)
    SpectralMonitor(VisionTransformer(dim=8, depth=2), batch=torch.randn(1, 1, 8, 8)).step(0)
    assert shown == [False]


def test_a_rank_deficient_head_is_infinite():
    model = SpectralConditionedAttention(8, 2)
    with torch.no_grad():
        model.query.weight[0] = 0
    assert SpectralMonitor(model).step(0)["spectral/layer00/q/kappa"] == float("inf")


@pytest.mark.parametrize("every", [0, -1, 2.0, True, None])
def test_every_must_be_a_positive_integer(every):
    with pytest.raises(ValueError, match="every: expected a positive integer, got"):
        SpectralMonitor(SpectralConditionedAttention(8, 2), every=every)


def test_a_model_without_attention_is_refused():
    with pytest.raises(ValueError, match="expected a model with query, key and value weights"):
        SpectralMonitor(nn.Linear(2, 2))


def test_it_neither_draws_random_numbers_nor_changes_the_model():
    model = FAMILY["Llama"].model().train()
    condition(model, IdentityCorrection(0.5))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    SpectralMonitor(model).step(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training


def test_every_head_equals_numpy_in_float64():
    torch.manual_seed(0)
    model = SpectralConditionedAttention(48, 3)
    values = SpectralMonitor(model).step(0)
    for role, layer in zip("qkv", (model.query, model.key, model.value), strict=True):
        s = np.linalg.svd(layer.weight.detach().double().numpy().reshape(3, 16, 48), compute_uv=False)
        assert values[f"spectral/layer00/{role}/kappa"] == pytest.approx((s[:, 0] / s[:, -1]).max(), rel=1e-6)


def test_a_compiled_model_is_looked_at_as_itself():
    model = VisionTransformer(dim=8, depth=1)
    batch = torch.randn(1, 1, 8, 8)
    plain = SpectralMonitor(model, batch=batch)
    compiled = SpectralMonitor(torch.compile(model, backend="eager"), batch=batch)
    assert compiled.names == plain.names == ["blocks.0.attention"]
    assert compiled.step(0) == plain.step(0)


def test_a_compiled_part_is_one_layer():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = SpectralConditionedAttention(8, 2)
            self.c = torch.compile(SpectralConditionedAttention(8, 2), backend="eager")

        def forward(self, x):
            return self.c(self.b(x))

    torch.manual_seed(0)
    model = Two()
    monitor = SpectralMonitor(model, batch=torch.randn(1, 5, 8))
    values = monitor.step(0)
    assert monitor.names == ["b", "c"]
    assert values["spectral/layer01/kappa_j"] >= 1


def test_parts_that_are_compiled_later_keep_their_names():
    model = VisionTransformer(dim=8, depth=2)
    monitor = SpectralMonitor(model, every=1)
    before = monitor.step(0)
    model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
    assert monitor.step(1) == before


def test_a_look_moves_no_state_and_takes_parametrizations_of_others():
    model = SpectralConditionedAttention(8, 2).train()
    torch.nn.utils.parametrizations.spectral_norm(model.query)
    torch.nn.utils.parametrizations.weight_norm(model.key)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    values = SpectralMonitor(model).step(0)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    for role, layer in (("q", model.query.eval()), ("k", model.key)):
        s = np.linalg.svd(layer.weight.detach().double().numpy().reshape(2, 4, 8), compute_uv=False)
        assert values[f"spectral/layer00/{role}/kappa"] == pytest.approx((s[:, 0] / s[:, -1]).max(), rel=1e-5)


def test_diverged_weights_under_a_correction_are_nan_too():
    model = SpectralConditionedAttention(8, 2)
    condition(model, PolarCorrection())
    with torch.no_grad():
        model.value.parametrizations.weight.original[0, 0] = torch.nan
    values = SpectralMonitor(model).step(0)
    assert {key for key, value in values.items() if np.isnan(value)} == {
        "spectral/layer00/v/kappa", "spectral/layer00/v/sigma_max"
    }  # fmt: skip


def test_a_look_inside_parametrize_cached_leaves_the_graph():
    model = VisionTransformer(dim=8, depth=1)
    condition(model, IdentityCorrection(0.5))
    batch = torch.randn(1, 1, 8, 8)
    with parametrize.cached():
        SpectralMonitor(model, batch=batch).step(0)
        model(batch).sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "original" in name)


def test_diverged_weights_are_nan_and_end_nothing():
    model = VisionTransformer(dim=8, depth=2)
    with torch.no_grad():
        model.block(1).attention.key.weight[0, 0] = torch.nan
    with pytest.warns(UserWarning, match="blocks.1.attention: weight of its k layer: expected finite entries"):
        values = SpectralMonitor(model, batch=torch.randn(1, 1, 8, 8)).step(0)
    bad = {key for key, value in values.items() if np.isnan(value)}
    assert bad == {"spectral/layer01/k/kappa", "spectral/layer01/k/sigma_max"}
    assert "spectral/layer00/kappa_j" in values


def test_layers_whose_jacobian_is_another_one_are_said_once():
    family = FAMILY["Llama"]
    monitor = SpectralMonitor(family.model(), batch=family.batch, every=1)
    with pytest.warns(UserWarning, match="no κ\\(J\\) of 2 layers: layers.0.self_attn: expected queries straight"):
        assert "spectral/layer00/q/kappa" in monitor.step(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.step(1)


def test_stated_layouts_with_a_batch():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.vqk, self.num_heads = nn.Linear(8, 24, bias=False), 2

        def forward(self, x):
            v, q, k = (t.unflatten(-1, (2, 4)).transpose(-3, -2) for t in self.vqk(x).chunk(3, -1))
            return nn.functional.scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2)

    torch.manual_seed(0)
    model, x = nn.Sequential(Own()), torch.randn(1, 5, 8)
    value = SpectralMonitor(model, layouts={"*.vqk": Layout("vqk")}, batch=x).step(0)["spectral/layer00/kappa_j"]
    v, q, k = (w.unflatten(0, (2, 4)).mT for w in model[0].vqk.weight.detach().chunk(3))
    kappas = [float(AttentionJacobian(x[0], q[h], k[h], v[h]).condition_number().value) for h in range(2)]
    assert value == pytest.approx(max(kappas), rel=1e-6)


def watched(**settings):
    monitor = SpectralMonitor(VisionTransformer(dim=8, depth=2), every=10, **settings)
    for i in range(21):
        monitor.step(i)
    return monitor


def test_history_is_a_table():
    table = pd.DataFrame(watched().history).set_index("step")
    assert list(table.index) == [0, 10, 20]
    assert list(table.columns) == sorted(
        f"spectral/layer0{i}/{r}/{what}" for i in (0, 1) for r in "qkv" for what in ("kappa", "sigma_max")
    )
    assert (table > 0).all(axis=None)


def test_plot_has_a_panel_for_each_quantity_and_a_line_for_each_layer():
    monitor = watched(batch=torch.randn(1, 1, 8, 8))
    figure = monitor.plot()
    assert [ax.get_title() for ax in figure.axes] == [
        "κ of W_Q, worst head", "κ of W_K, worst head", "κ of W_V, worst head", "κ(J), worst head",
        "saturation: mean of max p",
    ]
    line = figure.axes[1].lines[1]
    assert list(line.get_xdata()) == [0, 10, 20]
    assert list(line.get_ydata()) == [record["spectral/layer01/k/kappa"] for record in monitor.history]
    assert "Spectra of 2 layers over 3 looks; at step 20: κ of W_Q, worst head: " in figure.alt
    assert len(watched().plot().axes) == 3


def test_a_plot_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"history: expected at least one record, got none; call step\(0\) first"):
        SpectralMonitor(SpectralConditionedAttention(8, 2)).plot()


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    monitor = SpectralMonitor(SpectralConditionedAttention(8, 2), every=2)
    writer = SummaryWriter(tmp_path)
    for i in range(3):
        for key, value in (monitor.step(i) or {}).items():
            writer.add_scalar(key, value, i)
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == [key for key in monitor.history[0] if key != "step"]
    seen = [(e.step, e.value) for e in events.Scalars("spectral/layer00/q/kappa")]
    expected = [(r["step"], pytest.approx(r["spectral/layer00/q/kappa"])) for r in monitor.history]
    assert seen == expected


def test_wandb_offline(tmp_path):
    import wandb

    monitor = SpectralMonitor(SpectralConditionedAttention(8, 2), every=2)
    with wandb.init(project="spectral", mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True)) as run:
        for i in range(3):
            if (values := monitor.step(i)) is not None:
                run.log(values, step=i)
        assert run.summary["spectral/layer00/v/sigma_max"] == monitor.history[-1]["spectral/layer00/v/sigma_max"]
    (record,) = tmp_path.glob("**/*.wandb")
    for _ in range(200):  # a process of its own writes it
        if b"spectral/layer00/q/kappa" in record.read_bytes():
            return
        time.sleep(0.1)
    raise AssertionError("nothing was written")


TRACKIO = """
import trackio
from spectral_core import SpectralConditionedAttention, SpectralMonitor
monitor = SpectralMonitor(SpectralConditionedAttention(8, 2), every=2)
run = trackio.init(project="spectral", auto_log_cpu=False)
for i in range(3):
    if (values := monitor.step(i)) is not None:
        run.log(values, step=i)
run.finish()
"""


def test_trackio_offline(tmp_path):
    # a process of its own, since trackio fixes its folder when it is imported
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", TRACKIO], env=environment, check=True, timeout=120, capture_output=True)
    with sqlite3.connect(tmp_path / "spectral.db") as database:
        rows = database.execute("select step, metrics from metrics order by step").fetchall()
    assert [step for step, _ in rows] == [0, 2]
    assert all(json.loads(metrics)["spectral/layer00/q/kappa"] >= 1 for _, metrics in rows)
