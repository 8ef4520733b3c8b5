"""Pathfinder by the rules of Linsley et al. 2018, as in the Long Range Arena: are two dots on one dashed contour?

An image holds two long contours and several short ones. Every contour is a row of dashes that turns slowly; no two come
closer than a margin wider than the gaps between dashes. Two dots sit on the ends of one long contour (label 1), or each
on an end of another (label 0). So both classes have the same contours, and only following one tells them apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["generate"]

Array = NDArray[np.float64]

DASH, GAP = 1.4, 1.0  # pixels
MARGIN = 3.4  # least distance of two middle lines, and of two parts of one line that are no neighbours
DOT, THICK = 1.35, 0.5  # radius of a dot, half the thickness of a dash
BORDER = 0.5  # pixels that stay free
TURN = 0.45  # most radians from one dash to the next
CANDIDATES, ROUNDS = 16, 400  # drawn at once for each image; restarts of what was not filled


def generate(
    count: int, *, size: int = 32, contour_length: int = 14, distractors: int = 3, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draw `count` images, half of them (rounded down) with label 1.

    Args:
        size: height and width in pixels.
        contour_length: dashes of a long contour, 6, 9 or 14 in the Arena; the short ones have a third.
        distractors: number of short contours.

    Returns:
        images (count, 1, size, size) from 0 to 1, and labels (count,).

    Raises:
        ValueError: a number below its least, or contours that do not fit the image.

    >>> images, labels = generate(4, size=16, contour_length=5, distractors=1)
    >>> images.shape, int(labels.sum())
    ((4, 1, 16, 16), 2)
    """
    least = {"count": (count, 1), "size": (size, 8), "contour_length": (contour_length, 2), "seed": (seed, 0)}
    for name, (value, low) in {**least, "distractors": (distractors, 0)}.items():
        if value < low:
            raise ValueError(f"{name}: expected at least {low}, got {value}")
    rng = np.random.default_rng(seed)
    lengths = [contour_length] * 2 + [max(1, contour_length // 3)] * distractors
    starts, ends = _fill(rng, count, lengths, size)
    labels = rng.permutation(np.arange(count) % 2)
    dots = _dots(rng, labels, starts, ends, contour_length)
    return _render(starts, ends, dots, size)[:, None], labels.astype(np.int64)


def _contours(
    rng: np.random.Generator, shape: tuple[int, ...], length: int, size: int
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Free contours somewhere in the image: starts and ends (…, length, 2) of the dashes, and which ones fit (…)."""
    turns = rng.uniform(-TURN, TURN, (*shape, length))
    bend = rng.uniform(-TURN, TURN, (*shape, 1))  # a contour prefers one side, so that long ones curl up
    angles = rng.uniform(0, 2 * np.pi, (*shape, 1)) + np.cumsum((turns + bend) / 2, -1)
    along = np.stack([np.cos(angles), np.sin(angles)], -1)
    starts = np.cumsum((DASH + GAP) * along, -2) - (DASH + GAP) * along
    ends = starts + DASH * along
    points = np.concatenate([starts, ends], -2)
    low, high = points.min(-2, keepdims=True), points.max(-2, keepdims=True)
    room = size - 1 - 2 * BORDER - (high - low)
    shift = BORDER - low + rng.uniform(size=low.shape) * np.maximum(room, 0)
    middles = (starts + ends) / 2 + shift
    far = np.abs(np.subtract.outer(np.arange(length), np.arange(length))) > 2
    touches = ((_distances2(middles, middles) < MARGIN**2) & far).any((-1, -2))
    return starts + shift, ends + shift, (room >= 0).all((-1, -2)) & ~touches


def _fill(rng: np.random.Generator, count: int, lengths: list[int], size: int) -> tuple[Array, Array]:
    """Starts and ends (count, all dashes, 2) of contours that keep apart, image by image begun anew if one is stuck."""
    total = sum(lengths)
    starts, ends = np.empty((count, total, 2)), np.empty((count, total, 2))
    tip = np.zeros(total)
    tip[[0, lengths[0] - 1, lengths[0], 2 * lengths[0] - 1]] = DOT - THICK  # a dot, which may lie there, is wider
    todo = np.arange(count)
    for _ in range(ROUNDS):
        place = 0
        kept = todo
        for length in lengths:
            first, last, good = _contours(rng, (len(kept), CANDIDATES), length, size)
            if place:
                before = _points(starts[kept, :place], ends[kept, :place])
                near = _distances2(_points(first, last), before[:, None])
                mine, others = (np.tile(tip[part], 3) for part in (slice(place, place + length), slice(place)))
                least = MARGIN + np.maximum.outer(mine, others)
                good = good & (near >= least**2).all((-1, -2))
            chosen, some = good.argmax(1), good.any(1)
            row = np.arange(len(kept))
            starts[kept, place : place + length] = first[row, chosen]
            ends[kept, place : place + length] = last[row, chosen]
            kept, place = kept[some], place + length
        todo = np.setdiff1d(todo, kept)
        if not len(todo):
            return starts, ends
    raise ValueError(
        f"expected room for contours of {lengths} dashes in {size} × {size} pixels, found none in {ROUNDS} rounds; "
        "take a larger size, or fewer or shorter contours"
    )


def _points(starts: Array, ends: Array) -> Array:
    """Both ends and the middle of every dash, (…, 3 · dashes, 2)."""
    return np.concatenate([starts, (starts + ends) / 2, ends], -2)


def _distances2(a: Array, b: Array) -> Array:
    """Squared distances, (…, m, 2) and (…, n, 2) -> (…, m, n)."""
    return ((a[..., :, None, 0] - b[..., None, :, 0]) ** 2) + (a[..., :, None, 1] - b[..., None, :, 1]) ** 2


def _dots(rng: np.random.Generator, labels: NDArray, starts: Array, ends: Array, length: int) -> Array:
    """Centres (N, 2 dots, 2): both ends of one of the two long contours, or one end of each."""
    tips = np.stack([starts[:, [0, length]], ends[:, [length - 1, 2 * length - 1]]], 2)  # (N, contour, tip, 2)
    row, which, tip, other = np.arange(len(labels)), *rng.integers(0, 2, (3, len(labels)))
    second = np.where(labels == 1, which, 1 - which)
    return np.stack([tips[row, which, tip], tips[row, second, np.where(labels == 1, 1 - tip, other)]], 1)


def _render(starts: Array, ends: Array, dots: Array, size: int) -> NDArray[np.float32]:
    """Images (N, size, size), each dash and dot with edges one pixel soft."""
    grid = np.arange(size, dtype=np.float32)
    pixel = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 1, 2)
    a, along = starts[:, None].astype(np.float32), (ends - starts)[:, None].astype(np.float32)
    t = (((pixel - a) * along).sum(-1) / np.float32(DASH**2)).clip(0, 1)[..., None]  # (N, pixels, dashes, 1)
    far = np.sqrt(((pixel - a - t * along) ** 2).sum(-1)).min(-1)
    near = np.sqrt(((pixel - dots[:, None].astype(np.float32)) ** 2).sum(-1)).min(-1)
    shade = np.maximum((THICK + 0.5 - far).clip(0, 1), (DOT + 0.5 - near).clip(0, 1))
    return shade.reshape(-1, size, size).astype(np.float32)
