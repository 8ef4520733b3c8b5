"""Small models of every family, and by hand where their queries, keys and values are stored.

The rows are written out from each model's own forward, not through `Layout`; `test_families.py` proves them against the
queries, keys and values that the model makes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from spectral_core import Correction
from spectral_core.torchvision_schemas import declare_missing

declare_missing()

import timm  # noqa: E402
import transformers as hf  # noqa: E402

Rows = Callable[[int], dict[str, list[int]]]  # number of outputs -> role: their indices


def thirds(n):
    return {role: list(range(i * n // 3, (i + 1) * n // 3)) for i, role in enumerate("qkv")}


def whole(role):
    return lambda n: {role: list(range(n))}


def interleaved(heads):
    """q, k, v of head 0, then of head 1, …"""
    def rows(n):
        d = n // heads // 3
        return {r: [h * 3 * d + i * d + j for h in range(heads) for j in range(d)] for i, r in enumerate("qkv")}
    return rows


def grouped(heads, kv, d):
    """In each key-value group its query heads, then one key and one value head."""
    g = heads // kv
    def rows(n):
        def head(group, slot):
            return [(group * (g + 2) + slot) * d + j for j in range(d)]
        return {
            "q": [i for group in range(kv) for slot in range(g) for i in head(group, slot)],
            "k": [i for group in range(kv) for i in head(group, g)],
            "v": [i for group in range(kv) for i in head(group, g + 1)],
        }
    return rows


def sections(q, kv):
    return lambda n: {"q": list(range(q)), "k": list(range(q, q + kv)), "v": list(range(q + kv, q + 2 * kv))}


def codegen(n):
    """Four blocks, each of queries, values and keys."""
    d = n // 12
    return {r: [b * 3 * d + i * d + j for b in range(4) for j in range(d)] for i, r in ((0, "q"), (1, "v"), (2, "k"))}


def pool_kv(n):
    return {"k": list(range(n // 2)), "v": list(range(n // 2, n))}


def triple(*names):
    return {rf"(.*\.)?{name}\.weight": whole(role) for name, role in zip(names, "qkv", strict=True)}


@dataclass
class Family:
    """A small model, an input, and where its projections are: {regex of the parameter: rows}."""

    name: str
    build: Callable[[], nn.Module]
    batch: dict | torch.Tensor
    stored: dict[str, Rows]
    heads: int | None = None  # of every attention layer, where they are all alike
    kv_heads: int | None = None
    columns: bool = False  # stored (in, out)
    sdpa: bool = True  # what it makes can be seen in F.scaled_dot_product_attention

    def model(self):
        torch.manual_seed(0)
        model = self.build().eval()
        for parameter in model.parameters():  # layer scales of 1e-5 and heads of 0 would hide what attention does
            if parameter.ndim < 2:
                nn.init.normal_(parameter, 0.5, 0.2)
            elif parameter.std() < 0.1:
                nn.init.normal_(parameter, std=0.2)
        return model

    def run(self, model):
        out = model(**self.batch) if isinstance(self.batch, dict) else model(self.batch)
        return out if isinstance(out, torch.Tensor) else out[0]

    def parameters(self, model):
        """(full name, parameter, {role: rows}) of every stored weight."""
        for name, parameter in model.named_parameters():
            for pattern, rows in self.stored.items():
                if re.fullmatch(pattern, name):
                    yield name, parameter, rows(parameter.shape[1 if self.columns else 0])

    def by_hand(self, model, edit):
        """Edit the plain weights of `model` in place: edit(role, (out, in) array) -> array."""
        for _, parameter, rows in self.parameters(model):
            array = parameter.detach().double().numpy().copy()
            view = array.T if self.columns else array
            for role, index in rows.items():
                view[index] = edit(role, view[index])
            parameter.data.copy_(torch.from_numpy(array))
        return model

    def added(self, model, factor=1.0):
        """{name: C as stored}, for `factor` times `asymmetric` on every role."""
        plain = {name: p.detach().clone() for name, p, _ in self.parameters(model)}
        edited = self.by_hand(copy.deepcopy(model), lambda _, w: w + factor * asymmetric(*w.shape))
        return {name: p.detach() - plain[name] for name, p, _ in self.parameters(edited)}

    def __str__(self):
        return self.name


TOKENS = torch.randint(1, 40, (2, 7), generator=torch.Generator().manual_seed(1))
TEXT = {"input_ids": TOKENS}


def image(size):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def of(config_class, model_class, **settings):
    return lambda: model_class(config_class(**settings))


BERT = {"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 20, "num_attention_heads": 3}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
LLAMA = {**BERT, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}  # 32 and 16 rows of 24
VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
PIXELS = {"pixel_values": image(16)}
HF_VIT = {
    "image_size": 16, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 20,
    "num_attention_heads": 3,
}
QKV = {r".*attn\.qkv\.weight": thirds}
FALCON = {"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_hidden_size": 20}

TIMM = [
    Family("timm ViT", lambda: timm.models.VisionTransformer(**VIT), image(16), QKV, heads=3),
    Family("timm DeiT", lambda: timm.models.deit.VisionTransformerDistilled(**VIT), image(16), QKV, heads=3),
    Family(
        "timm Swin",
        lambda: timm.models.SwinTransformer(
            img_size=32, patch_size=4, window_size=4, embed_dim=12, depths=(2, 2), num_heads=(2, 3), num_classes=5
        ),
        image(32), QKV,
    ),
    Family(
        "timm XCiT",
        lambda: timm.models.Xcit(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, cls_attn_layers=1),
        image(32), {**QKV, **triple("attn.q", "attn.k", "attn.v")}, heads=3, sdpa=False,
    ),
    Family(
        "timm DaViT",
        lambda: timm.models.DaVit(depths=(1, 1), embed_dims=(12, 24), num_heads=(2, 3), window_size=4, num_classes=5),
        image(32), QKV, sdpa=False,
    ),
    Family(
        "timm DaViT, channel attention V2",
        lambda: timm.models.DaVit(
            depths=(1, 1), embed_dims=(12, 24), num_heads=(2, 3), window_size=4, num_classes=5, channel_attn_v2=True
        ),
        image(32), QKV, sdpa=False,
    ),
    Family(
        "timm Swin V2",
        lambda: timm.models.SwinTransformerV2(
            img_size=32, patch_size=4, window_size=4, embed_dim=12, depths=(2,), num_heads=(2,), num_classes=5
        ),
        image(32), QKV, heads=2, sdpa=False,
    ),
    Family("timm BEiT", lambda: timm.models.Beit(**VIT), image(16), QKV, heads=3),
    Family(
        "timm EVA", lambda: timm.models.Eva(**VIT, qkv_fused=True), image(16), QKV, heads=3,
    ),
    Family(
        "timm EVA, rotary", lambda: timm.models.Eva(**VIT, qkv_fused=True, attn_type="rope"), image(16), QKV, heads=3,
    ),
    Family(
        "timm MaxViT, roles first", lambda: timm.models.maxxvit.AttentionCl(24, dim_head=8, head_first=False),
        torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(6)), {r"qkv\.weight": thirds}, heads=3,
    ),
    Family(
        "timm MaxViT",
        lambda: timm.models.create_model(
            "maxvit_rmlp_pico_rw_256", img_size=64, depths=(1,), embed_dim=(64,), stem_width=8
        ),
        image(64), {r".*attn\.qkv\.weight": interleaved(2)}, heads=2,
    ),
    Family(
        "timm attention pooling",
        lambda: timm.models.VisionTransformer(**VIT, global_pool="map", class_token=False),
        image(16), {**QKV, r"attn_pool\.q\.weight": whole("q"), r"attn_pool\.kv\.weight": pool_kv}, heads=3,
    ),
]  # fmt: skip

TRANSFORMERS = [
    Family("BERT", of(hf.BertConfig, hf.BertModel, **BERT), TEXT, triple("query", "key", "value"), heads=3),
    Family(
        "MiniLM", of(hf.BertConfig, hf.BertModel, **{**BERT, "num_attention_heads": 12}), TEXT,
        triple("query", "key", "value"), heads=12,
    ),
    Family("RoBERTa", of(hf.RobertaConfig, hf.RobertaModel, **BERT), TEXT, triple("query", "key", "value"), heads=3),
    Family("ViT", of(hf.ViTConfig, hf.ViTModel, **HF_VIT), PIXELS, triple("q_proj", "k_proj", "v_proj"), heads=3),
    Family("DeiT", of(hf.DeiTConfig, hf.DeiTModel, **HF_VIT), PIXELS, triple("q_proj", "k_proj", "v_proj"), heads=3),
    Family(
        "Swin",
        of(hf.SwinConfig, hf.SwinModel, image_size=32, patch_size=4, embed_dim=12, depths=[2, 2], num_heads=[2, 3],
           window_size=4),
        {"pixel_values": image(32)}, triple("q_proj", "k_proj", "v_proj"),
    ),
    Family(
        "Nyströmformer",
        of(hf.NystromformerConfig, hf.NystromformerModel, **BERT, segment_means_seq_len=12, num_landmarks=4),
        {"input_ids": torch.arange(1, 25).reshape(2, 12)}, triple("query", "key", "value"), heads=3,
    ),
    Family(
        "GPT-2",
        of(hf.GPT2Config, hf.GPT2Model, vocab_size=40, n_embd=24, n_layer=2, n_head=3, n_positions=16, **NO_DROPOUT),
        TEXT,
        {r".*attn\.c_attn\.weight": thirds}, heads=3, columns=True,
    ),
    Family(
        "GPT-2, cross-attention",
        of(hf.GPT2Config, hf.GPT2Model, vocab_size=40, n_embd=24, n_layer=2, n_head=3, n_positions=16,
           add_cross_attention=True, **NO_DROPOUT),
        {**TEXT, "encoder_hidden_states": torch.randn(2, 4, 24, generator=torch.Generator().manual_seed(4))},
        {r".*\.attn\.c_attn\.weight": thirds, r".*q_attn\.weight": whole("q"),
         r".*crossattention\.c_attn\.weight": pool_kv},
        heads=3, columns=True,
    ),
    Family(
        "DeBERTa V2", of(hf.DebertaV2Config, hf.DebertaV2Model, **BERT), TEXT,
        triple("query_proj", "key_proj", "value_proj"), heads=3,
    ),
    Family(
        "GPT-NeoX", of(hf.GPTNeoXConfig, hf.GPTNeoXModel, **BERT), TEXT,
        {r".*query_key_value\.weight": interleaved(3)}, heads=3,
    ),
    Family(
        "Falcon, key-value groups",
        of(hf.FalconConfig, hf.FalconModel, **FALCON, new_decoder_architecture=True, num_kv_heads=2), TEXT,
        {r".*query_key_value\.weight": grouped(4, 2, 6)}, heads=4, kv_heads=2,
    ),
    Family(
        "Falcon, multi-query",
        of(hf.FalconConfig, hf.FalconModel, **FALCON, new_decoder_architecture=False, multi_query=True), TEXT,
        {r".*query_key_value\.weight": sections(24, 6)}, heads=4, kv_heads=1,
    ),
    Family(
        "Falcon, interleaved",
        of(hf.FalconConfig, hf.FalconModel, **FALCON, new_decoder_architecture=False, multi_query=False, bias=True),
        TEXT, {r".*query_key_value\.weight": interleaved(4)}, heads=4,
    ),
    Family(
        "Llama", of(hf.LlamaConfig, hf.LlamaModel, **LLAMA), TEXT, triple("q_proj", "k_proj", "v_proj"), heads=4,
        kv_heads=2,
    ),
    Family(
        "Qwen2", of(hf.Qwen2Config, hf.Qwen2Model, **LLAMA), TEXT, triple("q_proj", "k_proj", "v_proj"), heads=4,
        kv_heads=2,
    ),
    Family(
        "Qwen3", of(hf.Qwen3Config, hf.Qwen3Model, **LLAMA), TEXT, triple("q_proj", "k_proj", "v_proj"), heads=4,
        kv_heads=2,
    ),
    Family(
        "T5", of(hf.T5Config, hf.T5Model, vocab_size=40, d_model=24, d_kv=5, d_ff=20, num_layers=2, num_heads=3),
        {**TEXT, "decoder_input_ids": TOKENS[:, :4]}, triple("q", "k", "v"), heads=3,
    ),
    Family(
        "Whisper",
        of(hf.WhisperConfig, hf.WhisperModel, vocab_size=40, d_model=24, encoder_layers=1, decoder_layers=1,
           encoder_attention_heads=3, decoder_attention_heads=3, encoder_ffn_dim=20, decoder_ffn_dim=20,
           num_mel_bins=6, max_source_positions=8, max_target_positions=8, pad_token_id=0, bos_token_id=1,
           eos_token_id=2, decoder_start_token_id=1),
        {"input_features": torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(3)),
         "decoder_input_ids": TOKENS[:, :4]},
        triple("q_proj", "k_proj", "v_proj"), heads=3,
    ),
    Family(
        "BLOOM", of(hf.BloomConfig, hf.BloomModel, vocab_size=40, hidden_size=24, n_layer=2, n_head=3), TEXT,
        {r".*query_key_value\.weight": interleaved(3)}, heads=3, sdpa=False,
    ),
    Family(
        "Phi-3", of(hf.Phi3Config, hf.Phi3Model, **LLAMA, pad_token_id=0), TEXT,
        {r".*qkv_proj\.weight": sections(32, 16)}, heads=4, kv_heads=2,
    ),
    Family(
        "ModernBERT", of(hf.ModernBertConfig, hf.ModernBertModel, **BERT, pad_token_id=0), TEXT,
        {r".*Wqkv\.weight": thirds}, heads=3,
    ),
    Family(
        "GPT-BigCode, multi-query",
        of(hf.GPTBigCodeConfig, hf.GPTBigCodeModel, vocab_size=40, n_embd=24, n_layer=2, n_head=3, n_positions=16),
        TEXT, {r".*c_attn\.weight": sections(24, 8)}, heads=3, kv_heads=1,
    ),
    Family(
        "GPT-BigCode, interleaved",
        of(hf.GPTBigCodeConfig, hf.GPTBigCodeModel, vocab_size=40, n_embd=24, n_layer=2, n_head=3, n_positions=16,
           multi_query=False),
        TEXT, {r".*c_attn\.weight": interleaved(3)}, heads=3,
    ),
    Family(
        "CodeGen",
        of(hf.CodeGenConfig, hf.CodeGenModel, vocab_size=40, n_embd=24, n_layer=2, n_head=4, n_positions=16,
           rotary_dim=4),
        TEXT, {r".*qkv_proj\.weight": codegen}, heads=4, sdpa=False,
    ),
]  # fmt: skip


def asymmetric(m, n):
    """A C that is not symmetric, and another one for every shape, so that no transpose is hidden."""
    return 0.1 * np.sin(np.arange(m)[:, None] + 2.0 * np.arange(n) + m)


class Asymmetric(Correction):
    """Adds `asymmetric` times a factor."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def correct(self, w):
        return w + self.factor * torch.from_numpy(asymmetric(*w.shape[-2:])).to(w)
