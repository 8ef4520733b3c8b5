"""The small transformers that the course and the demo train."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_core._checks import check_choice
from spectral_core.attention import SpectralConditionedAttention

__all__ = ["Block", "SequenceTransformer", "Transformer", "VisionTransformer", "course_vit"]

INITS = ("trunc-normal", "xavier", "orthogonal")


class Block(nn.Module):
    """Pre-LayerNorm transformer block: attention, then a two-layer GELU perceptron, both with a skip."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = SpectralConditionedAttention(dim, num_heads, qk_norm=qk_norm)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))

    def forward(self, x: Tensor, *, is_causal: bool = False) -> Tensor:
        """(batch, n, D) -> (batch, n, D)."""
        options = {"is_causal": True} if is_causal else {}  # an attention of one's own need not know of it
        x = x + self.attention(self.norm1(x), **options)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """What the small transformers share: blocks behind `tokens`, and how they start."""

    blocks: nn.ModuleList
    is_causal = False

    def tokens(self, inputs: Tensor) -> Tensor:
        """Embedded inputs with positions, (batch, n, D)."""
        raise NotImplementedError

    def features(self, inputs: Tensor) -> Tensor:
        """Inputs -> (batch, n, D) after all blocks."""
        x = self.tokens(inputs)
        for block in self.blocks:
            x = block(x, is_causal=self.is_causal)
        return x

    def block(self, layer: int) -> Block:
        """Block `layer`, counted from 0."""
        block = self.blocks[layer]
        assert isinstance(block, Block)
        return block

    def attention_input(self, inputs: Tensor, layer: int = 0) -> Tensor:
        """What the attention of block `layer` sees, X = LayerNorm(tokens): (batch, n, D)."""
        x = self.tokens(inputs)
        for block in self.blocks[:layer]:
            x = block(x, is_causal=self.is_causal)
        return self.block(layer).norm1(x)

    def _add_blocks(
        self, dim: int, depth: int, num_heads: int, mlp_ratio: int, num_classes: int, qk_norm: bool
    ) -> None:
        """Everything behind the tokens."""
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio, qk_norm=qk_norm) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def _initialize(self, init: str, generator: torch.Generator) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith(("query.weight", "key.weight", "value.weight")):
                if init == "trunc-normal":
                    nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
                elif init == "xavier":
                    nn.init.xavier_uniform_(parameter, generator=generator)
                else:
                    nn.init.orthogonal_(parameter, generator=generator)
            elif name == "position":
                nn.init.normal_(parameter, std=0.3, generator=generator)  # 0.02 leaves X nearly rank deficient
            elif parameter.ndim == 2:
                nn.init.xavier_uniform_(parameter, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)


class VisionTransformer(Transformer):
    """A ViT that trains on digits in seconds: patches, learned positions, blocks, pooling, linear head.

    Args:
        image_size: height and width in pixels, a multiple of `patch_size`.
        patch_size: side of a patch; the tokens are (image_size / patch_size)².
        dim, depth, num_heads, mlp_ratio: width, blocks, heads per block, hidden width / dim.
        channels, num_classes: of the images and labels.
        class_token: one token more, which the head reads; without, it reads the mean over tokens.
        init: how W_Q, W_K and W_V start: "trunc-normal" (std 0.02, as in timm), "xavier" or "orthogonal". All
            other matrices are Xavier, so that arms differ in Q, K and V alone.
        seed: of the initialisation; the global generator is neither read nor moved.
        qk_norm: as in `SpectralConditionedAttention`.

    Raises:
        ValueError: sizes that do not divide, or an unknown `init`.
    """

    def __init__(
        self,
        image_size: int = 8,
        patch_size: int = 2,
        *,
        dim: int = 32,
        depth: int = 2,
        num_heads: int = 2,
        mlp_ratio: int = 2,
        channels: int = 1,
        num_classes: int = 10,
        class_token: bool = False,
        init: str = "trunc-normal",
        seed: int = 0,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        if patch_size < 1 or image_size < 1 or image_size % patch_size:
            raise ValueError(
                f"expected image_size to be a positive multiple of patch_size, got {image_size} and {patch_size}"
            )
        check_choice(init, "init", INITS)
        self.image_size, self.patch_size, self.channels = image_size, patch_size, channels
        tokens = (image_size // patch_size) ** 2
        with torch.random.fork_rng(devices=[]):  # the layers' own initialisation draws from the global generator
            self.embed = nn.Linear(channels * patch_size**2, dim)
            self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
            self.position = nn.Parameter(torch.zeros(1, tokens + class_token, dim))
            self._add_blocks(dim, depth, num_heads, mlp_ratio, num_classes, qk_norm)
        self._initialize(init, torch.Generator().manual_seed(seed))

    def forward(self, images: Tensor) -> Tensor:
        """images (batch, channels, H, W) -> logits (batch, num_classes)."""
        x = self.norm(self.features(images))
        return self.head(x.mean(1) if self.class_token is None else x[:, 0])

    def tokens(self, images: Tensor) -> Tensor:
        """Embedded patches with positions: (batch, channels, H, W) -> (batch, n, D).

        Raises:
            ValueError: images of another shape.
        """
        expected = (self.channels, self.image_size, self.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            shape = f"(batch, {', '.join(map(str, expected))})"
            raise ValueError(f"images: expected shape {shape}, got {tuple(images.shape)}")
        x = self.embed(F.unfold(images, self.patch_size, stride=self.patch_size).mT)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        return x + self.position


class SequenceTransformer(Transformer):
    """A transformer for short rows of ids: embeddings, learned positions, blocks, linear head.

    Args:
        vocabulary: number of ids; length: ids in a row.
        num_classes: of the labels.
        dim, depth, num_heads, mlp_ratio, init, seed, qk_norm: as in `VisionTransformer`.
        is_causal: tokens attend backwards only, and every place has logits of its own, (batch, n, num_classes); else
            one row of logits from the mean over places, (batch, num_classes).

    Raises:
        ValueError: an unknown `init`; in use, ids of another length or type.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        *,
        num_classes: int,
        dim: int = 32,
        depth: int = 2,
        num_heads: int = 2,
        mlp_ratio: int = 2,
        is_causal: bool = False,
        init: str = "trunc-normal",
        seed: int = 0,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        check_choice(init, "init", INITS)
        self.vocabulary, self.length, self.is_causal = vocabulary, length, is_causal
        with torch.random.fork_rng(devices=[]):
            self.embed = nn.Embedding(vocabulary, dim)
            self.position = nn.Parameter(torch.zeros(1, length, dim))
            self._add_blocks(dim, depth, num_heads, mlp_ratio, num_classes, qk_norm)
        self._initialize(init, torch.Generator().manual_seed(seed))

    def forward(self, ids: Tensor) -> Tensor:
        """ids (batch, length) -> logits, (batch, length, num_classes) if causal, else (batch, num_classes)."""
        x = self.norm(self.features(ids))
        return self.head(x if self.is_causal else x.mean(1))

    def tokens(self, ids: Tensor) -> Tensor:
        """Embedded ids with positions: (batch, length) -> (batch, length, D).

        Raises:
            ValueError: ids of another length or type.
        """
        if ids.ndim != 2 or ids.shape[1] != self.length or ids.dtype != torch.int64:
            raise ValueError(f"ids: expected int64 of shape (batch, {self.length}), got {ids.dtype} {tuple(ids.shape)}")
        return self.embed(ids) + self.position


def course_vit(init: str = "xavier", seed: int = 0) -> VisionTransformer:
    """The ViT of the course, for 28×28 digits: 4 blocks of width 64, 4 heads of 16, 49 patches and a class token."""
    return VisionTransformer(28, 4, dim=64, depth=4, num_heads=4, class_token=True, init=init, seed=seed)
