"""Images to classify: the embedded digits, CIFAR's binary files, or any folder of classes such as ImageNet's."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spectral_core.data import load_digits
from spectral_core.experiments.task import Batch, epoch_indices, generator_of, random_state

__all__ = ["CIFAR", "ImageFolder", "Images", "cifar", "digits", "image_folder"]

CIFAR = "cifar-10-batches-bin"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
HELD = 64  # images in a held-out batch


@dataclass(frozen=True)
class Images:
    """Images (N, C, H, W) in memory, standardised, and labels (N,), in three parts."""

    x: dict[str, Tensor]
    y: dict[str, Tensor]
    classes: int

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and side."""
        return self.x["train"].shape[1], self.x["train"].shape[-1]

    def batch(self, seed: int, step: int, size: int) -> Batch:
        picked = epoch_indices(len(self.y["train"]), seed, step, size)
        return {"x": self.x["train"][picked], "y": self.y["train"][picked]}

    def held_out(self, part: str) -> Sequence[Batch]:
        pairs = zip(self.x[part].split(4 * HELD), self.y[part].split(4 * HELD), strict=True)
        return [{"x": x, "y": y} for x, y in pairs]


@lru_cache(maxsize=2)
def digits(source: str) -> Images:
    """The embedded "digits" (1 797, 8×8) or "mnist" (5 000, 28×28); an eighth of the training part is validation."""
    data = load_digits(source)
    held = len(data.train_y) // 8
    x = {"train": data.train_x[held:], "validation": data.train_x[:held], "test": data.test_x}
    y = {"train": data.train_y[held:], "validation": data.train_y[:held], "test": data.test_y}
    return Images(x, y, 10)


@lru_cache(maxsize=2)
def cifar(folder: Path) -> Images:
    """CIFAR-10's binary version: data_batch_1.bin … data_batch_5.bin and test_batch.bin; the fifth is validation.

    Raises:
        FileNotFoundError: a file is missing; ValueError: its size is not that of whole records.
    """
    parts = {"train": [f"data_batch_{i}.bin" for i in (1, 2, 3, 4)], "validation": ["data_batch_5.bin"],
             "test": ["test_batch.bin"]}  # fmt: skip
    x, y = {}, {}
    for part, names in parts.items():
        rows = torch.cat([_records(folder / name) for name in names])
        y[part], x[part] = rows[:, 0].long(), rows[:, 1:].reshape(-1, 3, 32, 32).float() / 255
    mean, std = x["train"].mean((0, 2, 3), keepdim=True), x["train"].std((0, 2, 3), keepdim=True)
    return Images({part: (one - mean) / std for part, one in x.items()}, y, 10)


def _records(path: Path) -> Tensor:
    if not path.is_file():
        raise FileNotFoundError(f"expected CIFAR-10's binary version, got no {path.name} in {path.parent}")
    raw = np.fromfile(path, dtype=np.uint8)
    if not len(raw) or len(raw) % 3073:
        raise ValueError(f"{path}: expected records of 3073 bytes (a label, 32 × 32 × 3 pixels), got {len(raw)} bytes")
    rows = torch.from_numpy(raw.reshape(-1, 3073))
    if int(rows[:, 0].max()) > 9:
        raise ValueError(f"{path}: expected labels 0 to 9, got {int(rows[:, 0].max())}; is it CIFAR-100?")
    return rows


@dataclass(frozen=True)
class ImageFolder:
    """Images read from files when they are needed, (C, side, side); training ones cropped and flipped at random."""

    files: dict[str, tuple[Path, ...]]
    y: dict[str, Tensor]
    classes: int
    side: int

    @property
    def shape(self) -> tuple[int, int]:
        return 3, self.side

    def batch(self, seed: int, step: int, size: int) -> Batch:
        picked = epoch_indices(len(self.y["train"]), seed, step, size).tolist()
        with random_state(seed, step):
            crops = [(float(torch.rand(1)), *torch.rand(2).tolist(), bool(torch.rand(1) < 0.5)) for _ in picked]
        return {"x": self._read([self.files["train"][i] for i in picked], crops), "y": self.y["train"][picked]}

    def held_out(self, part: str) -> Sequence[Batch]:
        return _Lazy(self, part)

    def _read(self, files: Sequence[Path], crops: Sequence[tuple | None]) -> Tensor:
        with ThreadPoolExecutor(8) as pool:  # decoding releases the interpreter
            return torch.stack(list(pool.map(self._image, files, crops)))

    def _image(self, path: Path, crop: tuple | None) -> Tensor:
        from PIL import Image

        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path}: expected an image, got {error}") from error
        w, h = image.size
        if crop is None:  # the central square, as evaluation on ImageNet is done
            cut = 0.875 * min(w, h)
            left, top = (w - cut) / 2, (h - cut) / 2
        else:
            cut = min(w, h) * (0.35 + 0.65 * crop[0]) ** 0.5
            left, top = (w - cut) * crop[1], (h - cut) * crop[2]
        image = image.resize((self.side, self.side), Image.Resampling.BICUBIC, box=(left, top, left + cut, top + cut))
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32).copy()).permute(2, 0, 1) / 255
        pixels = (pixels - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
            :, None, None
        ]
        return pixels.flip(-1) if crop is not None and crop[3] else pixels


@dataclass(frozen=True)
class _Lazy(Sequence[Batch]):
    """Held-out batches that are read when they are asked for."""

    folder: ImageFolder
    part: str

    def __len__(self) -> int:
        return -(-len(self.folder.y[self.part]) // HELD)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(index)
        at = slice(index * HELD, (index + 1) * HELD)
        files = self.folder.files[self.part][at]
        return {"x": self.folder._read(files, [None] * len(files)), "y": self.folder.y[self.part][at]}


@lru_cache(maxsize=2)
def image_folder(folder: Path, side: int) -> ImageFolder:
    """folder/train/CLASS/* and folder/val/CLASS/*, ImageNet's way; a twentieth of train is validation.

    Raises:
        FileNotFoundError: a part is missing; ValueError: no images, or classes that differ between the parts.
    """
    found, names = {}, {}
    for part in ("train", "val"):
        if not (folder / part).is_dir():
            raise FileNotFoundError(
                f"expected {folder / part}/CLASS/*.jpg (an image folder), or CIFAR-10's binary files in a folder "
                f"{CIFAR}, got neither in {folder}"
            )
        names[part] = sorted(p.name for p in (folder / part).iterdir() if p.is_dir())
        found[part] = [
            (path, i) for i, name in enumerate(names[part])
            for path in sorted((folder / part / name).iterdir()) if path.suffix.lower() in SUFFIXES
        ]  # fmt: skip
        if not found[part]:
            raise ValueError(f"{folder / part}: expected images {', '.join(SUFFIXES)} in folders of classes, got none")
    if names["train"] != names["val"]:
        odd = sorted(set(names["train"]) ^ set(names["val"]))
        raise ValueError(
            f"{folder}: expected the same classes in train and val, got {len(names['train'])} and {len(names['val'])}; "
            f"only in one of them: {', '.join(odd[:5])}"
        )
    order = torch.randperm(len(found["train"]), generator=generator_of(0)).tolist()
    held = max(1, len(order) // 20)
    parts = {
        "validation": [found["train"][i] for i in order[:held]], "train": [found["train"][i] for i in order[held:]],
        "test": found["val"],
    }
    files = {part: tuple(path for path, _ in pairs) for part, pairs in parts.items()}
    labels = {part: torch.tensor([i for _, i in pairs]) for part, pairs in parts.items()}
    return ImageFolder(files, labels, len(names["train"]), side)
