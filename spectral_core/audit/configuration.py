"""What a `config.json` says about the heads and widths of a layer, and where the shapes contradict it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from spectral_core.projections import HEAD_COUNTS, Projection

__all__ = ["config_of", "contradictions", "heads_of", "odd_values"]

COUNTS = (
    "num_attention_heads", "num_heads", "n_head", "n_heads", "num_key_value_heads", "num_kv_heads", "head_dim",
    "hidden_size", "n_embd", "d_model",
)
HIDDEN = ("hidden_size", "n_embd", "n_embed", "d_model", "dim")
SIDES = {"language": "text", "visual": "vision"}
LANGUAGE = re.compile(r"(?:model\.)?(?:layers|h|decoder\.layers|transformer\.h)\.")
SIDE = re.compile(r"(?:model\.)?(?:encoder|decoder)\.")
STAGE = re.compile(r"(?:^|\.)(?:levels|layers|stages|blocks|block)\.([0-9]{1,4})\.")


def config_of(name: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that is about a module; empty where several parts could be meant.

    "vision_model.…" reads vision_config, "qformer.…" qformer_config; what is no part's own ("model.layers.…") reads
    text_config where there is one.
    """
    inner = {key.removesuffix("_config"): value for key, value in config.items() if _is_part(key, value)}
    if not inner:
        return config
    for part in name.split("."):
        stem = part.partition("_")[0]
        for key in (part, stem, SIDES.get(stem, "")):
            if key in inner:
                return inner[key]
    if LANGUAGE.match(name):
        return inner.get("text", config)
    return config if SIDE.match(name) else {}


def _is_part(key: str, value: object) -> bool:
    """Whether it is the configuration of a model; there are others, of quantisation for instance."""
    named = key.endswith("_config") or key in ("encoder", "decoder")
    return named and isinstance(value, dict) and any(key in value for key in ("model_type", *HEAD_COUNTS))


def heads_of(name: str, config: Mapping[str, Any]) -> int | None:
    """Query heads of a module, by the part of the configuration that is about it."""
    side = next((s for s in ("encoder", "decoder") if s in name.split(".")), "")
    # encoder and decoder may differ (Whisper, BART, ViT-MAE, ProphetNet)
    own = (f"{side}_attention_heads", f"{side}_num_attention_heads", f"num_{side}_attention_heads") if side else ()
    last = ("attention_heads", "encoder_attention_heads", "decoder_attention_heads")
    for value in (config.get(key) for key in (*own, *HEAD_COUNTS, *last)):
        if isinstance(value, list) and (stage := STAGE.search(name)):  # one number a stage (Swin)
            value = value[int(stage[1])] if int(stage[1]) < len(value) else None
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            ratio = config.get("head_ratio", 1)  # ConvBERT has convolutions for the other heads
            return value // ratio if isinstance(ratio, int) and 0 < ratio <= value else value
    return None


def odd_values(config: Mapping[str, Any]) -> list[str]:
    """Counts and widths in a configuration that are none."""
    out = []
    parts = [(f"{key}.", value) for key, value in config.items() if isinstance(value, dict)]
    for prefix, part in [("", config), *parts]:
        for key in COUNTS:
            value = part.get(key)
            each = value if isinstance(value, list) and value else [value]  # one a stage
            unstated = value is None or (key == "head_dim" and value == 0 and not isinstance(value, bool))
            if not unstated and not all(map(_is_count, each)):
                out.append(f"config.json: {prefix}{key}: expected a positive integer, got {repr(value)[:60]}")
    return out


def contradictions(projections: Iterable[Projection], config: Mapping[str, Any]) -> list[str]:
    """What the configuration says about heads and widths and the shapes do not bear out, one sentence for each."""
    said: dict[str, None] = {}
    rows: dict[str, dict[str, tuple[int, int]]] = {}
    for p in projections:
        sizes = p.layout.section_sizes(p.stored.shape, p.label)
        count = sizes[p.layout.roles.index(p.role)] * p.layout.groups
        rows.setdefault(p.attention, {})[p.role] = count, p.layout.matrix(p.stored).shape[-1]
    widths = {width for by_role in rows.values() for _, width in by_role.values()}
    for name, by_role in rows.items():
        own = config_of(name, config)
        heads, (q_rows, width) = heads_of(name, own), by_role.get("q", (0, 0))
        if not heads or not q_rows:
            continue
        if q_rows % heads:
            said[f"{heads} heads, but the queries have {q_rows} rows"] = None
            continue
        size, rest = divmod(by_role.get("k", (q_rows, 0))[0], q_rows // heads)
        # models with layers of several kinds state one number for each ("swa_num_key_value_heads")
        kv, head_dim = own.get("num_key_value_heads"), own.get("head_dim")
        is_other = _is_count(kv) and size not in _stated(own, "key_value_heads") and "decoder" not in name
        if rest or is_other:
            said[f"{kv or heads} key-value heads, but the keys have {size} times the width of a head"] = None
        if _is_count(head_dim) and q_rows // heads not in _stated(own, "head_dim"):
            said[f"{heads} heads of {head_dim}, but the queries have {q_rows} rows"] = None
        hidden = next((own[key] for key in HIDDEN if _is_count(own.get(key))), None)
        # some have several widths (Swin, MobileBERT, ViT-MAE): the one that is stated is then one of them
        others = _stated(own, "hidden|dim|width|embd|embed|d_model")
        if hidden and hidden not in widths and width not in others:
            said[f"a width of {hidden}, but the queries read {width}"] = None
    return [f"config.json contradicts the weights: it says {what}" for what in said]


def _stated(config: Mapping[str, Any], pattern: str) -> list[int]:
    return [value for key, value in config.items() if re.search(pattern, key) and _is_count(value)]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
