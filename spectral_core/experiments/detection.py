"""Detection and segmentation: torchvision's Mask R-CNN on a pyramid of XCiT features, scored as COCO scores.

At the small size scenes of shapes are drawn without end. At the full size (XCiT-S/8, 800 pixels) the folder is COCO's:

    annotations/instances_train2017.json   annotations/instances_val2017.json   train2017/*.jpg   val2017/*.jpg

Every fifth image of val2017 is for choosing the learning rate, the other four are the test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectral_core.experiments.average_precision import average_precision
from spectral_core.experiments.coco import CocoExamples, gather
from spectral_core.experiments.detection_operators import install
from spectral_core.experiments.shapes import SHAPES, draw_scene
from spectral_core.experiments.task import Batch, Examples, Setting, Task, random_state

__all__ = ["ShapeExamples", "XcitPyramid", "tasks"]

HELD_OUT = {"validation": (1_000_000_001, 24), "test": (1_000_000_002, 48)}  # seeds that no run has, and scenes
HELD_OUT_BATCH = 8
SMALL = {
    "min_size": 64, "max_size": 128, "image_mean": [0.5] * 3, "image_std": [0.25] * 3,
    "rpn_pre_nms_top_n_train": 100, "rpn_pre_nms_top_n_test": 100,
    "rpn_post_nms_top_n_train": 50, "rpn_post_nms_top_n_test": 50,
    "rpn_fg_iou_thresh": 0.6, "rpn_batch_size_per_image": 64,
    "box_batch_size_per_image": 32, "box_positive_fraction": 0.5, "box_detections_per_img": 20,
}  # fmt: skip


class XcitPyramid(nn.Module):
    """XCiT as a backbone: outputs of some blocks, all at one stride, brought to several strides and merged top-down.

    Args:
        xcit: timm's `Xcit` of patch size 8; loses its classification head.
        layers: the blocks to take, one for each of `strides`, each 4 or a multiple of 8.
        channels: of every output.
        coarser: whether to add one more, pooled, level.
    """

    def __init__(self, xcit: Any, layers: Sequence[int], strides: Sequence[int], channels: int, coarser: bool) -> None:
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

        super().__init__()
        width, self.layers, self.out_channels = xcit.embed_dim, list(layers), channels
        xcit.prune_intermediate_layers(self.layers, prune_norm=True)
        self.xcit = xcit
        self.scales = nn.ModuleList()
        for stride in strides:
            finer = nn.Sequential(nn.ConvTranspose2d(width, width, 2, stride=2), nn.GroupNorm(1, width), nn.GELU())
            self.scales.append(finer if stride == 4 else nn.MaxPool2d(stride // 8))
        extra = LastLevelMaxPool() if coarser else None
        self.merge = FeaturePyramidNetwork([width] * len(strides), channels, extra)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(n, 3, h, w), h and w multiples of the largest stride -> {"0": (n, channels, h / stride, w / stride), ...}"""
        features = self.xcit.forward_intermediates(images, indices=self.layers, intermediates_only=True)
        scaled = zip(self.scales, features, strict=True)
        return self.merge({str(level): scale(feature) for level, (scale, feature) in enumerate(scaled)})


class ShapeExamples:
    """New scenes of shapes for every training step."""

    names: Sequence[str] = SHAPES

    def batch(self, seed: int, step: int, size: int) -> Batch:
        return gather([draw_scene(seed, step * size + place) for place in range(size)])

    def held_out(self, part: str) -> Sequence[Batch]:
        seed, count = HELD_OUT[part]
        scenes = [draw_scene(seed, index) for index in range(count)]
        return [gather(scenes[start : start + HELD_OUT_BATCH]) for start in range(0, count, HELD_OUT_BATCH)]


def _data(setting: Setting) -> Examples:
    return ShapeExamples() if setting.folder is None else CocoExamples(Path(setting.folder))


def _model(setting: Setting, examples: Any, seed: int) -> nn.Module:
    install()
    import timm
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.ops import MultiScaleRoIAlign

    classes = len(examples.names) + 1
    with random_state(seed):
        if setting.size == "full":
            xcit = timm.create_model("xcit_small_12_p8_224", num_classes=0)
            pyramid = XcitPyramid(xcit, (3, 5, 7, 11), (4, 8, 16, 32), channels=256, coarser=True)
            return MaskRCNN(pyramid, num_classes=classes)
        xcit = timm.models.Xcit(patch_size=8, embed_dim=64, depth=3, num_heads=4, mlp_ratio=2.0, num_classes=0)
        levels = ["0", "1"]
        return MaskRCNN(
            XcitPyramid(xcit, (1, 2), (4, 8), channels=48, coarser=False),
            rpn_anchor_generator=AnchorGenerator(((10, 15), (21, 29)), ((1.0,), (1.0,))),
            box_roi_pool=MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
            box_head=TwoMLPHead(48 * 49, 128),
            box_predictor=FastRCNNPredictor(128, classes),
            mask_roi_pool=MultiScaleRoIAlign(levels, output_size=10, sampling_ratio=2),
            mask_head=MaskRCNNHeads(48, (48, 48), 1),
            mask_predictor=MaskRCNNPredictor(48, 48, classes),
            **SMALL,
        )


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    targets = [{key: target[key] for key in ("boxes", "labels", "masks")} for target in batch["targets"]]
    losses = model(batch["images"], targets)
    return torch.stack([*losses.values()]).sum()


def _inputs(batch: Batch) -> Any:
    return ([batch["images"][0]],)


def tasks() -> list[Task]:
    """Box AP and mask AP of one and the same model."""
    detection = Task(
        name="detection",
        title="Object detection (XCiT, Mask R-CNN)",
        group="detection",
        model=_model,
        data=_data,
        loss=_loss,
        evaluate=partial(average_precision, kind="bbox"),
        inputs=_inputs,
        metric="box AP",
        steps=300,
        batch_size=4,
        full_steps=90_000,
        full_batch_size=16,
        rates=(1e-3, 3e-3, 1e-2),
        fresh=True,
        paper=("XCiT-S Mask R-CNN, COCO AP box", 44.9, 45.6),
    )
    segmentation = replace(
        detection,
        name="segmentation",
        title="Instance segmentation (XCiT, Mask R-CNN)",
        evaluate=partial(average_precision, kind="segm"),
        metric="mask AP",
        paper=("XCiT-S Mask R-CNN, COCO AP mask", 40.1, 40.5),
    )
    return [detection, segmentation]
