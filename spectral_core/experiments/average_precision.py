"""COCO's average precision of a detector, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spectral_core.experiments.coco import quiet_coco
from spectral_core.experiments.shapes import coco_annotations, encode_mask
from spectral_core.experiments.task import Batch

__all__ = ["average_precision", "score"]


def average_precision(model: nn.Module, batches: Sequence[Batch], kind: str) -> float:
    """COCO's AP, the mean over overlaps 0.50, 0.55, ..., 0.95, in [0, 1].

    Args:
        kind: "bbox" or "segm", whose overlaps count.

    Raises:
        ValueError: no object in any of the batches.
    """
    device = next(model.parameters()).device
    results: list[dict[str, Any]] = []

    def detect() -> Iterator[dict[str, Tensor]]:
        image = 0
        for batch in batches:
            with torch.no_grad():
                outputs = model([pixels.to(device) for pixels in batch["images"]])
            for output, target in zip(outputs, batch["targets"], strict=True):
                image += 1
                results.extend(_as_results(output, image, kind))
                yield target

    was_training = model.training
    model.eval()
    try:
        # one target at a time, encoded at once: all masks of val2017 would need 10 GB
        annotations = coco_annotations(detect(), names=())
    finally:
        model.train(was_training)
    return score(annotations, results, kind)


def _as_results(output: dict[str, Tensor], image: int, kind: str) -> list[dict[str, Any]]:
    """COCO's results for one image, from boxes (n, 4), labels (n,), scores (n,) and masks (n, 1, h, w) in [0, 1]."""
    labels, scores = output["labels"].tolist(), output["scores"].tolist()
    found: list[dict[str, Any]] = [
        {"image_id": image, "category_id": label, "score": s} for label, s in zip(labels, scores, strict=True)
    ]
    for place, result in enumerate(found):
        if kind == "segm":
            result["segmentation"] = encode_mask(output["masks"][place, 0] > 0.5)
        else:
            x1, y1, x2, y2 = output["boxes"][place].tolist()
            result["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    return found


def score(annotations: dict[str, Any], results: list[dict[str, Any]], kind: str) -> float:
    """COCO's AP in [0, 1] of a list of results, `annotations` as made by `coco_annotations`.

    Raises:
        ValueError: annotations without an object.
    """
    from pycocotools.cocoeval import COCOeval

    if not annotations["annotations"]:
        raise ValueError("batches: expected at least one object, got none; AP is not defined without one")
    if not results:
        return 0.0
    numbers = sorted({annotation["category_id"] for annotation in annotations["annotations"]})
    truth = quiet_coco({**annotations, "categories": [{"id": number, "name": str(number)} for number in numbers]})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return max(0.0, float(evaluation.stats[0]))
