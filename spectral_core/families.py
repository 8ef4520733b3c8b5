"""Attention modules of other libraries whose fused weights are known, by the full name of their class.

A name is not a layout: `c_attn` is an `nn.Linear` in one model and a Conv1D in the next, and `query_key_value` is
interleaved per head here and per key-value group there. Every entry was read in the class's `forward`, and is checked
in `tests/test_families.py` against the queries, keys and values that the class itself makes of them. No library is
imported for it. A new one is one line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from spectral_core.layouts import Layout

__all__ = ["configured_layouts", "known_layouts"]

Rule = Callable[[Any], dict[str, Layout]]  # attention module -> {path of a parameter in it: its layout}


def _sectioned(path: str = "qkv.weight") -> Rule:
    return lambda module: {path: Layout("qkv")}


def _multihead(module: Any) -> dict[str, Layout]:
    if module._qkv_same_embed_dim:
        return {"in_proj_weight": Layout("qkv")}
    return {f"{role}_proj_weight": Layout(role) for role in "qkv"}


def _gpt2(module: Any) -> dict[str, Layout]:
    if module.is_cross_attention:
        return {"q_attn.weight": Layout("q", transposed=True), "c_attn.weight": Layout("kv", transposed=True)}
    return {"c_attn.weight": Layout("qkv", transposed=True)}


def _falcon(module: Any) -> dict[str, Layout]:
    heads, width = module.num_heads, module.head_dim
    if module.new_decoder_architecture:
        groups = module.num_kv_heads
        layout = Layout("qkv", (heads // groups * width, width, width), groups, heads=heads, kv_heads=groups)
    elif module.multi_query:
        layout = Layout("qkv", (heads * width, width, width), heads=heads, kv_heads=1)
    else:
        layout = Layout("qkv", groups=heads, heads=heads, kv_heads=heads)
    return {"query_key_value.weight": layout}


def _gpt_bigcode(module: Any) -> dict[str, Layout]:
    if module.is_cross_attention:
        return {}  # its forward splits keys and values by the width of one head, whatever there are
    if module.multi_query:
        return {"c_attn.weight": Layout("qkv", (module.embed_dim, module.kv_dim, module.kv_dim))}
    return {"c_attn.weight": Layout("qkv", groups=module.num_heads)}


def _phi3(module: Any) -> dict[str, Layout]:
    rows, kv_rows = module.config.num_attention_heads * module.head_dim, module.num_key_value_heads * module.head_dim
    return {"qkv_proj.weight": Layout("qkv", (rows, kv_rows, kv_rows))}


def _maxvit(module: Any) -> dict[str, Layout]:
    return {"qkv.weight": Layout("qkv", groups=module.num_heads if module.head_first else 1)}


def _pool(module: Any) -> dict[str, Layout]:
    heads = module.num_heads
    queries = {"q.weight": Layout("q", heads=heads)} if isinstance(module.q, nn.Linear) else {}  # or the latent itself
    return {**queries, "kv.weight": Layout("kv", heads=heads)}


KNOWN: dict[str, Rule] = {
    "torch.nn.modules.activation.MultiheadAttention": _multihead,
    # timm: ViT, DeiT and most others share one class, which has lived in two places
    "timm.layers.attention.Attention": _sectioned(),
    "timm.models.vision_transformer.Attention": _sectioned(),
    "timm.layers.attention.AttentionRope": lambda m: {"qkv.weight": Layout("qkv")} if m.qkv is not None else {},
    "timm.layers.attention_pool.AttentionPoolLatent": _pool,
    "timm.models.beit.Attention": _sectioned(),
    "timm.models.eva.EvaAttention": lambda m: {"qkv.weight": Layout("qkv")} if m.qkv is not None else {},
    "timm.models.swin_transformer.WindowAttention": _sectioned(),
    "timm.models.swin_transformer_v2.WindowAttention": _sectioned(),
    "timm.models.xcit.XCA": _sectioned(),
    "timm.models.davit.WindowAttention": _sectioned(),
    "timm.models.davit.ChannelAttention": _sectioned(),
    "timm.models.davit.ChannelAttentionV2": _sectioned(),
    "timm.models.maxxvit.AttentionCl": _maxvit,
    # transformers; what has three nn.Linear layers (BERT, Llama, T5, Whisper, …) needs no entry
    "transformers.models.gpt2.modeling_gpt2.GPT2Attention": _gpt2,
    "transformers.models.gpt_neox.modeling_gpt_neox.GPTNeoXAttention":
        lambda m: {"query_key_value.weight": Layout("qkv", groups=m.config.num_attention_heads)},
    "transformers.models.falcon.modeling_falcon.FalconAttention": _falcon,
    "transformers.models.bloom.modeling_bloom.BloomAttention":
        lambda m: {"query_key_value.weight": Layout("qkv", groups=m.num_heads)},
    "transformers.models.gpt_bigcode.modeling_gpt_bigcode.GPTBigCodeAttention": _gpt_bigcode,
    "transformers.models.phi3.modeling_phi3.Phi3Attention": _phi3,
    "transformers.models.modernbert.modeling_modernbert.ModernBertAttention": _sectioned("Wqkv.weight"),
    "transformers.models.codegen.modeling_codegen.CodeGenAttention":
        lambda m: {"qkv_proj.weight": Layout("qvk", groups=4)},
}  # fmt: skip

#: a configuration's "model_type" -> its class with fused weights, for checkpoints of which no model is built
MODEL_TYPES = {
    kind: f"transformers.models.{kind}.modeling_{kind}.{name}"
    for kind, name in {
        "gpt2": "GPT2Attention", "gpt_neox": "GPTNeoXAttention", "falcon": "FalconAttention",
        "bloom": "BloomAttention", "gpt_bigcode": "GPTBigCodeAttention", "phi3": "Phi3Attention",
        "modernbert": "ModernBertAttention", "codegen": "CodeGenAttention",
    }.items()
}  # fmt: skip


def known_layouts(module: nn.Module) -> dict[str, Layout]:
    """{path of a parameter in the module: its layout} if its class is known; else empty.

    A subclass counts as its parent only as long as it has the parent's `forward`.
    """
    own: Any = parametrize.type_before_parametrizations(module)
    for cls in own.__mro__:
        rule = KNOWN.get(f"{cls.__module__}.{cls.__qualname__}")
        if rule is not None:
            return rule(module) if own.forward is cls.forward else {}
    return {}



def configured_layouts(config: Mapping[str, Any], heads: int | None, children: set[str]) -> dict[str, Layout]:
    """`known_layouts` of an attention module that is not there: by its configuration and the names of its children."""
    rule = KNOWN.get(MODEL_TYPES.get(str(config.get("model_type")), ""))

    def count(*keys: str) -> int:
        values = (config.get(key) for key in keys)
        return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), 0)

    hidden = count("hidden_size", "n_embd", "n_embed")
    if rule is None or not hidden or not heads:
        return {}
    width = count("head_dim") or hidden // heads
    new, multi_query = config.get("new_decoder_architecture", False), config.get("multi_query", True)
    kv_heads = count("num_key_value_heads") or (count("num_kv_heads") if new else 0) or heads
    layouts = rule(SimpleNamespace(
        config=SimpleNamespace(num_attention_heads=heads), num_heads=heads, head_dim=width, embed_dim=hidden,
        num_key_value_heads=kv_heads, num_kv_heads=kv_heads, kv_dim=width, multi_query=multi_query,
        new_decoder_architecture=new, is_cross_attention="q_attn" in children,
    ))  # fmt: skip
    return layouts if all(path.partition(".")[0] in children for path in layouts) else {}
