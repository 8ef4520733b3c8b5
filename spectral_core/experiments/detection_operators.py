"""torchvision's `nms` and `roi_align` in plain PyTorch, for an installation whose compiled operators do not load.

    from spectral_core.experiments.detection_operators import install
    install()      # before a detection model of torchvision is run; does nothing where the compiled operators work

torchvision has a fallback of its own for `roi_align`, but it goes through torch.compile, which needs a C++ compiler
and minutes; for `nms` it has none. Bilinear sampling is separable, so `roi_align` here is two small matrix products an
image, with a backward pass that is matrix products too: deterministic, and without a feature map copied for every box.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from spectral_core.torchvision_schemas import declare_missing

__all__ = ["install", "nms", "roi_align"]

ROI_ALIGN = (
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor"
)
BLOCK = 1024  # rows of the overlap matrix held at once: 80 MB in float64 for 10,000 boxes

_library: torch.library.Library | None = None  # the registrations live as long as this


def _overlaps(rows: Tensor, columns: Tensor) -> Tensor:
    """Intersection over union, (n, 4) and (m, 4) -> (n, m); NaN for two boxes without area."""
    corner = torch.maximum(rows[:, None, :2], columns[None, :, :2])
    extent = (torch.minimum(rows[:, None, 2:], columns[None, :, 2:]) - corner).clamp(min=0)
    shared = extent[..., 0] * extent[..., 1]
    row_areas, column_areas = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (rows, columns))
    return shared / (row_areas[:, None] + column_areas[None, :] - shared)


def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that no higher-scoring kept box overlaps by more than the threshold, best score first.

    Of equal scores the earlier box goes first, as in torchvision's CPU kernel.

    Args:
        dets: (n, 4) corners x1, y1, x2, y2.
        scores: (n,).

    Raises:
        ValueError: shapes that do not fit.
    """
    if dets.ndim != 2 or dets.shape[1] != 4 or scores.shape != dets.shape[:1]:
        raise ValueError(
            f"dets, scores: expected (n, 4) and (n,), got {tuple(dets.shape)} and {tuple(scores.shape)}; "
            "give one score a box"
        )
    order = scores.argsort(descending=True, stable=True)
    boxes = dets[order]
    kept = torch.ones(len(boxes), dtype=torch.bool, device=dets.device)
    for start in range(0, len(boxes), BLOCK):
        # in float64, since a threshold such as 0.3 lies between two float32 numbers
        suppresses = _overlaps(boxes[start : start + BLOCK], boxes[start:]).double() > iou_threshold
        for row in range(len(suppresses)):
            if kept[start + row]:
                kept[start + row + 1 :] &= ~suppresses[row, row + 1 :]
    return order[kept]


def _sampling_weights(start: Tensor, extent: Tensor, bins: int, length: int, ratio: int) -> Tensor:
    """Share of each of `length` pixels in each bin along one axis: (k,) starts and extents -> (k, bins, length)."""
    width = extent / bins
    samples = torch.full_like(width, ratio) if ratio > 0 else width.ceil()
    most = ratio if ratio > 0 else int(samples.max().clamp(min=1))
    steps = torch.arange(most, device=start.device, dtype=start.dtype)
    places = (steps + 0.5) / samples.clamp(min=1)[:, None]
    bin_starts = start[:, None] + width[:, None] * torch.arange(bins, device=start.device, dtype=start.dtype)
    at = bin_starts[:, :, None] + width[:, None, None] * places[:, None, :]
    counted = (at >= -1) & (at <= length) & (steps < samples[:, None])[:, None, :]
    pixels = torch.arange(length, device=start.device, dtype=start.dtype)
    hats = (1 - (at.clamp(0, length - 1)[..., None] - pixels).abs()).clamp(min=0)
    return (hats * counted[..., None]).sum(2) / samples.clamp(min=1)[:, None, None]


def roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Means of bilinear samples in each bin of each box; differentiable by `input`, not by `rois`, as torchvision's.

    Args:
        input: (n, c, h, w).
        rois: (k, 5), the number of the image and the corners x1, y1, x2, y2.
        sampling_ratio: samples a bin along each axis; 0 or less for as many as the bin is pixels wide.
        aligned: whether pixel centres lie at half-integers; else boxes are at least one pixel wide.

    Returns:
        (k, c, pooled_height, pooled_width)
    """
    if len(rois) == 0:
        return input.new_zeros(0, input.shape[1], pooled_height, pooled_width) + 0 * input.sum()
    dtype = torch.promote_types(input.dtype, torch.float32)
    with torch.autocast(input.device.type, enabled=False):
        corners = rois[:, 1:].detach().to(dtype) * spatial_scale - (0.5 if aligned else 0.0)
        extents = corners[:, 2:] - corners[:, :2]
        if not aligned:
            extents = extents.clamp(min=1)
        height, width = input.shape[2:]
        down = _sampling_weights(corners[:, 1], extents[:, 1], pooled_height, height, sampling_ratio)
        across = _sampling_weights(corners[:, 0], extents[:, 0], pooled_width, width, sampling_ratio)
        images = rois[:, 0].long()
        features, pooled, places = input.to(dtype), [], []
        for image in images.unique().tolist():
            mine = (images == image).nonzero()[:, 0]
            narrow = torch.einsum("cyx,kqx->kcyq", features[image], across[mine])
            pooled.append(torch.einsum("kpy,kcyq->kcpq", down[mine], narrow))
            places.append(mine)
        return torch.cat(pooled)[torch.cat(places).argsort()].to(input.dtype)


def install() -> list[str]:
    """Give torchvision the two operators where its compiled ones are absent. May be called any number of times.

    Returns:
        The names of the operators that this call registered.

    Raises:
        ImportError: torchvision is not installed.
    """
    global _library
    declare_missing()
    try:
        import torchvision
    except ImportError as error:
        raise ImportError("expected torchvision, got none; pip install torchvision") from error
    if _library is not None or torchvision.extension._has_ops():
        return []
    _library = torch.library.Library("torchvision", "FRAGMENT")
    _library.define(ROI_ALIGN)
    _library.impl("roi_align", roi_align, "CompositeImplicitAutograd")
    _library.impl("nms", nms, "CompositeExplicitAutograd")
    # these two modules alone, so that other missing operators still say so; `torchvision.ops.roi_align` is a function
    for name in ("torchvision.ops.boxes", "torchvision.ops.roi_align"):
        vars(sys.modules[name]).update(_has_ops=lambda: True, _assert_has_ops=lambda: None)
    return ["nms", "roi_align"]
