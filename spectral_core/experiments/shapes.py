"""Scenes of circles, squares and triangles with boxes and masks: data for detection that needs no download.

A scene is a function of (seed, index) alone. One to four shapes of about 10 to 32 pixels lie on a noisy background of
another colour; a later shape may hide at most a third of an earlier one. `coco_annotations` writes scenes as COCO does.

    targets = [draw_scene(seed=0, index=i)["target"] for i in range(24)]
    annotations = coco_annotations(targets)      # what instances_val2017.json holds
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_core.experiments.task import generator_of

__all__ = ["SHAPES", "coco_annotations", "draw_scene", "encode_mask", "tight_boxes"]

SHAPES = ("circle", "square", "triangle")  # labels 1, 2, 3; 0 is the background
RADII = (6.0, 16.0)
MOST_SHAPES = 4
LEAST_VISIBLE = 2 / 3
TRIES = 20


def _outline(shape: int, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Mask (h, w) of a shape about the origin of coordinates x, y (h, w)."""
    if shape == 0:
        return x.square() + y.square() <= radius**2
    if shape == 1:
        return torch.maximum(x.abs(), y.abs()) <= radius * 0.8
    sides = [math.cos(angle) * x + math.sin(angle) * y for angle in (math.pi / 2, -math.pi / 6, -5 * math.pi / 6)]
    return torch.stack(sides).amax(0) <= radius * 0.5


def tight_boxes(masks: Tensor) -> Tensor:
    """Corners x1, y1, x2, y2 of the smallest boxes about boolean masks (n, h, w) -> (n, 4); none may be empty."""
    height, width = masks.shape[1:]
    x, y = masks.any(1), masks.any(2)
    first = [row.int().argmax(1) for row in (x, y)]
    last = [width - x.flip(1).int().argmax(1), height - y.flip(1).int().argmax(1)]
    return torch.stack([*first, *last], dim=1).float()


def _place(masks: list[Tensor], full: list[int], mask: Tensor) -> list[Tensor] | None:
    """Visible masks with `mask` on top, or None where too little of one would be seen."""
    seen = [earlier & ~mask for earlier in masks]
    if any(int(part.sum()) < LEAST_VISIBLE * area for part, area in zip(seen, full, strict=True)):
        return None
    return [*seen, mask]


def draw_scene(seed: int, index: int, size: int = 64) -> dict[str, Any]:
    """The scene of that number: {"image": (3, size, size) float, "target": boxes (n, 4), labels (n,), masks (n, ., .)}.

    Raises:
        ValueError: an image too small for the shapes.
    """
    if size < 2 * RADII[1]:
        raise ValueError(f"size: expected at least {2 * RADII[1]:.0f} pixels, got {size}; shapes are as wide as that")
    g = generator_of(seed, index)
    background = torch.rand(3, generator=g)
    image = background[:, None, None].expand(3, size, size).clone()
    rows, columns = torch.meshgrid(*[torch.arange(size) + 0.5] * 2, indexing="ij")
    masks: list[Tensor] = []
    areas: list[int] = []
    labels: list[int] = []
    for _shape in range(int(torch.randint(1, MOST_SHAPES + 1, (), generator=g))):
        for _ in range(TRIES):
            u = torch.rand(7, generator=g)
            shape = min(int(u[0] * len(SHAPES)), len(SHAPES) - 1)
            radius = RADII[0] + float(u[1]) * (RADII[1] - RADII[0])
            x, y = (c - radius - float(v) * (size - 2 * radius) for c, v in ((columns, u[2]), (rows, u[3])))
            turn = (float(u[4]) - 0.5) * math.pi / 6
            mask = _outline(
                shape, math.cos(turn) * x + math.sin(turn) * y, math.cos(turn) * y - math.sin(turn) * x, radius
            )
            placed = _place(masks, areas, mask)
            if placed is not None:
                masks = placed
                areas.append(int(mask.sum()))
                labels.append(shape + 1)
                # on the circle of values, so that every channel differs from the background by at least 0.35
                colour = (background + 0.35 + 0.3 * torch.rand(3, generator=g)) % 1
                image = torch.where(mask, colour[:, None, None], image)
                break
    image = (image + 0.05 * torch.randn(image.shape, generator=g)).clamp(0, 1)
    stacked = torch.stack(masks)
    target = {"boxes": tight_boxes(stacked), "labels": torch.tensor(labels), "masks": stacked.to(torch.uint8)}
    return {"image": image, "target": target}


def encode_mask(mask: Tensor) -> dict[str, Any]:
    """COCO's run-length encoding of a mask (h, w), with text in place of bytes so that it can be written as JSON."""
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(mask.cpu().to(torch.uint8).numpy().astype("uint8", order="F"))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def coco_annotations(targets: Iterable[dict[str, Tensor]], names: Sequence[str] = SHAPES) -> dict[str, Any]:
    """What the JSON file of a COCO instances data set holds, for one target an image; image and label numbers from 1.

    Args:
        targets: boxes (n, 4) as corners, labels (n,), masks (n, h, w), and optionally iscrowd (n,), an image each.
        names: of the labels 1, 2, ...
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image, target in enumerate(targets, start=1):
        height, width = target["masks"].shape[-2:]
        images.append({"id": image, "height": height, "width": width, "file_name": f"{image:012d}.png"})
        crowds = target.get("iscrowd", torch.zeros_like(target["labels"]))
        for box, label, mask, crowd in zip(target["boxes"], target["labels"], target["masks"], crowds, strict=True):
            x1, y1, x2, y2 = box.tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "segmentation": encode_mask(mask),
                    "area": int((mask > 0).sum()),
                    "iscrowd": int(crowd),
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}
