"""The Long Range Arena's own files, as the Arena releases them, read into tables of ids.

A file lies in the folder, or up to two folders below it. Nothing is unpickled: metadata are lines of text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spectral_core import listops
from spectral_core.experiments.long_range_data import Table, byte_ids

__all__ = ["LENGTHS", "READERS"]

LENGTHS = {"listops": 2048, "text": 4096, "retrieval": 4096, "image": 1024, "pathfinder": 1024}
PARTS = {"train": "train", "validation": "val", "test": "test"}
ROW = 1 + 3 * 1024  # bytes of an image in CIFAR-10's binary version
GREY = (0.2989, 0.587, 0.114)  # of red, green and blue, as in the Arena
PATHS = "curv_contour_length_14"  # the Arena's hard version
VALIDATION = 10  # of text one file in ten


def _find(folder: Path, name: str, what: str) -> Path:
    """The file or folder `name`, wherever it lies in `folder`."""
    for pattern in (name, f"*/{name}", f"*/*/{name}"):
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise FileNotFoundError(f"{folder}: expected {name} ({what}) there or up to two folders below, found none")


def _labels(values: Sequence[int], classes: int, where: Path) -> Tensor:
    wrong = [value for value in values if not 0 <= value < classes]
    if wrong:
        raise ValueError(f"{where}: expected labels 0 to {classes - 1}, got {wrong[0]}")
    return torch.tensor(values, dtype=torch.int64)


def _number(text: str, where: str) -> int:
    """A label, "1" or "1.0"."""
    try:
        value = float(text)
    except ValueError:
        value = 0.5
    if value != int(value):
        raise ValueError(f"{where}: expected a whole number as label, got {text!r}")
    return int(value)


def _rows(path: Path, columns: int, names: str) -> Iterator[list[str]]:
    """The fields of each line of a tab-separated file."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.rstrip("\n").split("\t")
            if len(fields) != columns:
                raise ValueError(f"{path}:{number}: expected {columns} columns ({names}), got {len(fields)}")
            yield fields


def _listops(folder: Path) -> Table:
    """basic_train.tsv, basic_val.tsv and basic_test.tsv; the parentheses of a binary tree in Source are left out."""
    parts = {}
    for part, short in PARTS.items():
        path = _find(folder, f"basic_{short}.tsv", "ListOps with columns Source and Target")
        rows = _rows(path, 2, "Source, Target")
        if (header := next(rows, [])) != ["Source", "Target"]:
            raise ValueError(f"{path}: expected a first line with Source and Target, got {header}")
        ids, targets = [], []
        for number, (source, target) in enumerate(rows, 2):
            tokens = [token for token in source.split() if token not in "()"]
            try:
                ids.append(listops.encode([tokens], LENGTHS["listops"]).to(torch.uint8))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error
            targets.append(_number(target, f"{path}:{number}"))
        labels = _labels(targets, 10, path)
        parts[part] = {"input_ids": _stack(ids, path), "labels": labels}
    return Table(parts)


def _stack(ids: Sequence[Tensor], path: Path) -> Tensor:
    if not ids:
        raise ValueError(f"{path}: expected at least one example, got none")
    return torch.cat(list(ids))


def _text(folder: Path) -> Table:
    """aclImdb/train and aclImdb/test with pos/*.txt and neg/*.txt; every tenth file of train is for validation."""
    root = _find(folder, "aclImdb", "the film reviews, with train/pos, train/neg, test/pos and test/neg")
    found: dict[str, list[tuple[Path, int]]] = {"train": [], "validation": [], "test": []}
    for part in ("train", "test"):
        for label, name in enumerate(("neg", "pos")):
            files = sorted((root / part / name).glob("*.txt"))
            if not files:
                raise FileNotFoundError(f"{root / part / name}: expected reviews *.txt, found none")
            for place, path in enumerate(files):
                held = part == "train" and place % VALIDATION == VALIDATION - 1
                found["validation" if held else part].append((path, label))
    return Table({part: _reviews(files) for part, files in found.items()})


def _reviews(files: list[tuple[Path, int]]) -> dict[str, Tensor]:
    ids = byte_ids([path.read_bytes() for path, _ in files], LENGTHS["text"])
    return {"input_ids": ids, "labels": torch.tensor([label for _, label in files], dtype=torch.int64)}


def _retrieval(folder: Path) -> Table:
    """new_aan_pairs.train.tsv, .eval.tsv and .test.tsv: label, id1, id2, text1, text2."""
    parts = {}
    for part, short in {**PARTS, "validation": "eval"}.items():
        path = _find(folder, f"new_aan_pairs.{short}.tsv", "pairs of articles: label, id1, id2, text1, text2")
        left, right, labels = [], [], []
        for number, (label, _, _, first, second) in enumerate(_rows(path, 5, "label, id1, id2, text1, text2"), 1):
            labels.append(_number(label, f"{path}:{number}"))
            left.append(byte_ids([first.encode()], LENGTHS["retrieval"]))
            right.append(byte_ids([second.encode()], LENGTHS["retrieval"]))
        columns = {"input_ids": _stack(left, path), "other_ids": _stack(right, path)}
        parts[part] = {**columns, "labels": _labels(labels, 2, path)}
    return Table(parts)


def _image(folder: Path) -> Table:
    """CIFAR-10's binary version in grey: of data_batch_1.bin to 5 the last tenth is for validation; test_batch.bin."""
    what = "CIFAR-10, binary version"
    train = [_cifar(_find(folder, f"cifar-10-batches-bin/data_batch_{i}.bin", what)) for i in range(1, 6)]
    test_ids, test_labels = _cifar(_find(folder, "cifar-10-batches-bin/test_batch.bin", what))
    ids, labels = (torch.cat(column) for column in zip(*train, strict=True))
    cut = len(ids) - len(ids) // 10
    return Table({
        "train": {"input_ids": ids[:cut], "labels": labels[:cut]},
        "validation": {"input_ids": ids[cut:], "labels": labels[cut:]},
        "test": {"input_ids": test_ids, "labels": test_labels},
    })  # fmt: skip


def _cifar(path: Path) -> tuple[Tensor, Tensor]:
    """Grey levels (N, 1024) in uint8, and labels."""
    flat = np.fromfile(path, dtype=np.uint8)
    if not len(flat) or len(flat) % ROW:
        raise ValueError(f"{path}: expected rows of {ROW} bytes (a label and 3 × 1024 pixels), got {len(flat)} bytes")
    rows = flat.reshape(-1, ROW)
    grey = np.tensordot(rows[:, 1:].reshape(-1, 3, 1024).astype(np.float32), np.array(GREY, np.float32), (1, 0))
    pixels = torch.from_numpy(grey.round().clip(0, 255).astype(np.uint8))
    return pixels, _labels(rows[:, 0].tolist(), 10, path)


def _pathfinder(folder: Path) -> Table:
    """pathfinder32: metadata/*.npy are lines "folder image number label …"; in order 80 %, 10 % and 10 % of the images.

    Raises:
        ImportError: Pillow is missing.
    """
    root = _find(folder, f"pathfinder32/{PATHS}", "images and metadata of Pathfinder")
    files = sorted((root / "metadata").glob("*.npy"), key=lambda path: (len(path.stem), path.stem))
    if not files:
        raise FileNotFoundError(f"{root / 'metadata'}: expected text files *.npy, found none")
    pixels, labels = [], []
    for path in files:
        try:
            lines = path.read_text("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected lines of text, got binary data; it is not unpickled") from error
        for number, line in enumerate(filter(None, lines), 1):
            fields = line.split()
            if len(fields) < 4:
                raise ValueError(f"{path}:{number}: expected 'folder image number label …', got {line!r}")
            pixels.append(_grey(root / fields[0] / fields[1]))
            labels.append(_number(fields[3], f"{path}:{number}"))
    ids, targets = _stack(pixels, root), _labels(labels, 2, root)
    a, b = len(ids) * 8 // 10, len(ids) * 9 // 10
    cuts = {"train": slice(a), "validation": slice(a, b), "test": slice(b, None)}
    return Table({part: {"input_ids": ids[cut], "labels": targets[cut]} for part, cut in cuts.items()})


def _grey(path: Path) -> Tensor:
    """One image as (1, 1024) in uint8."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("pathfinder's images need Pillow: pip install 'spectral-core[train]'") from error
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected an image of pathfinder, as its metadata say, found none")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    if pixels.shape != (32, 32):
        raise ValueError(f"{path}: expected 32 × 32 pixels, got {' × '.join(map(str, pixels.shape))}")
    return torch.from_numpy(pixels.copy()).reshape(1, -1)


def _cached(read: Callable[[Path], Table]) -> Callable[[Path], Table]:
    return lru_cache(maxsize=1)(read)


READERS = {
    "listops": _cached(_listops), "text": _cached(_text), "retrieval": _cached(_retrieval), "image": _cached(_image),
    "pathfinder": _cached(_pathfinder),
}  # fmt: skip
