"""Image classification with the five vision models of the paper, from timm, small or at their full size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_core.experiments.images import CIFAR, cifar, digits, image_folder
from spectral_core.experiments.task import Batch, Setting, Task, random_state

__all__ = ["tasks"]

FULL = {  # the paper's models, by timm's names
    "vit": "vit_base_patch16_224", "deit": "deit_base_distilled_patch16_224", "swin": "swin_base_patch4_window7_224",
    "xcit": "xcit_medium_24_p16_224", "davit": "davit_base",
}  # fmt: skip


def small_model(kind: str, channels: int, side: int, classes: int) -> nn.Module:
    """Width 64 (Swin and DaViT begin at 32), patches that give about 49 tokens, no dropout.

    Raises:
        ValueError: images that the patches do not divide.
    """
    from spectral_core.torchvision_schemas import declare_missing

    declare_missing()
    from timm.models.davit import DaVit
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.xcit import Xcit

    patch = {8: 2, 28: 4, 32: 4}.get(side, 0)
    if not patch:
        raise ValueError(f"small models: expected images of side 8, 28 or 32, got {side}")
    common: dict[str, Any] = {"num_classes": classes, "in_chans": channels}
    if kind in ("vit", "deit"):
        plain = VisionTransformer if kind == "vit" else VisionTransformerDistilled
        return plain(img_size=side, patch_size=patch, embed_dim=64, depth=4, num_heads=4, mlp_ratio=2.0, **common)
    if kind == "swin":
        window = 7 if side == 28 else 4
        return SwinTransformer(
            img_size=side, patch_size=2, embed_dim=32, depths=(2, 2), num_heads=(2, 4), window_size=window,
            mlp_ratio=2.0, drop_path_rate=0.0, **common,
        )  # fmt: skip
    if kind == "xcit":
        whole = 32 if side == 28 else side  # its convolutional stem halves the side three times
        return _Padded(Xcit(img_size=whole, patch_size=8, embed_dim=64, depth=3, num_heads=4, mlp_ratio=2.0,
                            cls_attn_layers=1, eta=1.0, **common), whole - side)  # fmt: skip
    return _Padded(DaVit(embed_dims=(32, 64), depths=(1, 2), num_heads=(2, 4), window_size=4, mlp_ratio=2.0,
                         drop_path_rate=0.0, **common), 32 - side)  # fmt: skip


class _Padded(nn.Module):
    """Zeros around images whose side a model cannot divide: 28 becomes 32, as in LeNet."""

    def __init__(self, model: nn.Module, more: int) -> None:
        super().__init__()
        self.model, self.more = model, more

    def forward(self, x: Tensor) -> Tensor:
        half = self.more // 2
        return self.model(F.pad(x, (half, self.more - half, half, self.more - half)))


def build(kind: str, setting: Setting, examples: Any, seed: int) -> nn.Module:
    """A model at timm's own initialisation."""
    with random_state(seed):
        if setting.size == "full":
            from spectral_core.torchvision_schemas import declare_missing

            declare_missing()
            import timm

            return timm.create_model(FULL[kind], num_classes=examples.classes)
        channels, side = examples.shape
        return small_model(kind, channels, side, examples.classes)


def read(source: str, setting: Setting) -> Any:
    """The embedded images, or those of the folder: at 224 pixels for full models, 32 for small ones."""
    if setting.folder is None:
        return digits(source)
    nested = setting.folder / CIFAR if setting.folder.name != CIFAR else setting.folder
    if nested.is_dir():
        if setting.size == "full":
            raise ValueError(f"size 'full': expected images of 224 pixels in train/ and val/, got CIFAR in {nested}")
        return cifar(nested)
    return image_folder(setting.folder, 224 if setting.size == "full" else 32)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy in nats; DeiT's two heads both learn the label, since there is no teacher."""
    out = model(batch["x"])
    outs = out if isinstance(out, tuple) else (out,)
    losses = [F.cross_entropy(one.float(), batch["y"]) for one in outs]
    return torch.stack(losses).mean()


def accuracy(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Share of the images that are classified rightly."""
    hits = [(model(batch["x"]).argmax(-1) == batch["y"]).double() for batch in batches]
    return float(torch.cat(hits).mean())


def inputs(batch: Batch) -> Tensor:
    return batch["x"][:1]


def tasks() -> list[Task]:
    """ViT on the 8×8 digits (seconds), and the five models on MNIST."""
    reported = {
        "vit": ("ViT-B, ImageNet-1k top-1", 80.7, 81.7), "deit": ("DeiT-B, ImageNet-1k top-1", 81.6, 82.6),
        "swin": ("Swin-B, ImageNet-1k top-1", 83.4, 84.1), "xcit": ("XCiT-M, ImageNet-1k top-1", 82.6, 83.5),
        "davit": ("DaViT-B, ImageNet-1k top-1", 84.3, 84.9),
    }  # fmt: skip
    titles = {"vit": "ViT", "deit": "DeiT", "swin": "Swin", "xcit": "XCiT", "davit": "DaViT"}
    epochs = {"vit": 300, "deit": 300, "swin": 400, "xcit": 400, "davit": 300}

    def one(name: str, title: str, kind: str, source: str, **more: Any) -> Task:
        model: Callable[..., nn.Module] = partial(build, kind)
        return Task(
            name, title, "image classification", model=model, data=partial(read, source), loss=loss,
            evaluate=accuracy, inputs=inputs, full_batch_size=1024, full_steps=epochs[kind] * 1251, **more,
        )  # fmt: skip

    return [
        one("digits", "ViT, 8×8 digits", "vit", "digits", steps=300),
        *(one(kind, f"{titles[kind]}, MNIST", kind, "mnist", steps=400, paper=reported[kind]) for kind in titles),
    ]
