"""A folder of COCO 2017 as examples for detection and segmentation, one image at a time."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from spectral_core.experiments.task import Batch, epoch_indices, generator_of

__all__ = ["CocoExamples", "gather", "quiet_coco"]


class CocoExamples:
    """COCO's instances from a folder; training images without a box are left out, half of the rest are mirrored.

    Raises:
        FileNotFoundError: a file or folder that is not there; ValueError: a file that is no COCO instances file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parts = {split: _read_coco(folder, split) for split in ("train2017", "val2017")}
        train = self._parts["train2017"]
        self._categories = sorted(train.getCatIds())
        self.names = [category["name"] for category in train.loadCats(self._categories)]
        boxed = {a["image_id"] for a in train.dataset["annotations"] if _is_object(a)}
        self._train = sorted(boxed)

    def batch(self, seed: int, step: int, size: int) -> Batch:
        chosen = epoch_indices(len(self._train), seed, step, size).tolist()
        mirrored = (torch.rand(size, generator=generator_of(seed, step)) < 0.5).tolist()
        return gather([self._load("train2017", self._train[i], m) for i, m in zip(chosen, mirrored, strict=True)])

    def held_out(self, part: str) -> Sequence[Batch]:
        images = enumerate(sorted(self._parts["val2017"].getImgIds()))
        chosen = [image for place, image in images if (place % 5 == 0) == (part == "validation")]
        return _Lazy(chosen, lambda image: gather([self._load("val2017", image, crowds=True)]))

    def _load(self, split: str, image: int, mirrored: bool = False, crowds: bool = False) -> dict[str, Any]:
        import numpy as np
        from PIL import Image

        coco = self._parts[split]
        path = self.folder / split / coco.imgs[image]["file_name"]
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected an image named in instances_{split}.json, got no such file")
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float() / 255
        found = [a for a in coco.imgToAnns[image] if _is_object(a) or crowds]
        masks = [torch.from_numpy(coco.annToMask(a)) for a in found]
        boxes = torch.tensor([a["bbox"] for a in found], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        stacked = torch.stack(masks) if masks else torch.zeros(0, *pixels.shape[1:], dtype=torch.uint8)
        if mirrored:
            pixels, stacked, width = pixels.flip(2), stacked.flip(2), pixels.shape[2]
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        labels = torch.tensor([self._categories.index(a["category_id"]) + 1 for a in found], dtype=torch.long)
        crowd = torch.tensor([a.get("iscrowd", 0) for a in found], dtype=torch.long)
        return {"image": pixels, "target": {"boxes": boxes, "labels": labels, "masks": stacked, "iscrowd": crowd}}


class _Lazy(Sequence[Batch]):
    """Batches of one image each, read when they are asked for."""

    def __init__(self, images: Sequence[int], load: Callable[[int], Batch]) -> None:
        self._images, self._load = images, load

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        chosen = self._images[index]
        return self._load(chosen) if isinstance(chosen, int) else _Lazy(chosen, self._load)


def gather(scenes: Sequence[dict[str, Any]]) -> Batch:
    """Scenes of an image and a target each as a batch."""
    return {"images": [s["image"] for s in scenes], "targets": [s["target"] for s in scenes]}


def _is_object(annotation: dict[str, Any]) -> bool:
    return not annotation.get("iscrowd", 0) and min(annotation["bbox"][2:]) >= 1


def quiet_coco(dataset: dict[str, Any]) -> Any:
    """pycocotools' index of a dataset, without its prints."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _read_coco(folder: Path, split: str) -> Any:
    path = folder / "annotations" / f"instances_{split}.json"
    for needed in (path, folder / split):
        if not needed.exists():
            raise FileNotFoundError(
                f"{needed}: expected COCO 2017 as annotations/instances_{split}.json and {split}/*.jpg in {folder}, "
                "got no such file or folder; unpack COCO's archives there, or use size 'small' without a folder"
            )
    try:
        dataset = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}; download the file again") from error
    missing = [key for key in ("images", "annotations", "categories") if key not in dataset]
    if missing or any("bbox" not in a or "segmentation" not in a for a in dataset["annotations"]):
        raise ValueError(
            f"{path}: expected a COCO instances file with images, categories and annotations with bbox and "
            f"segmentation, got one without {', '.join(missing) or 'bbox or segmentation'}; take the instances_ file"
        )
    return quiet_coco(dataset)
