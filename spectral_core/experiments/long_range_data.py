"""Small versions of the Long Range Arena's data: drawn anew at every step, or read from what Python itself brings.

Byte sequences are [CLS], then one id a byte, then [PAD]; pixels are one id a grey level.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from spectral_core import listops
from spectral_core.experiments.pathfinder import generate as draw_paths
from spectral_core.experiments.task import Batch, epoch_indices, generator_of

__all__ = [
    "CLS", "PAD", "Stream", "Table", "byte_ids", "digits", "documents", "listops_batch", "listops_stream",
    "pairs", "passages", "pathfinder_stream",
]  # fmt: skip

PAD, CLS = 0, 1  # no text has these bytes, so ids fit in one byte
HELD_OUT = {"validation": 256, "test": 512}
HELD_OUT_BATCH = 128
LENGTH = {"listops": 64, "text": 128, "retrieval": 64}  # of the small tasks
GREY = 17  # levels of the UCI digits


@dataclass(frozen=True)
class Table:
    """Fixed examples: for each part, tensors with one row an example. Ids may be stored narrow; batches are int64."""

    parts: dict[str, dict[str, Tensor]]

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Batch `step` of the pass through a permutation that `seed` gives."""
        train = self.parts["train"]
        return _rows(train, epoch_indices(len(train["labels"]), seed, step, size))

    def held_out(self, part: str) -> Sequence[Batch]:
        """All of "validation" or "test", in order."""
        rows = self.parts[part]
        return [_rows(rows, places) for places in torch.arange(len(rows["labels"])).split(HELD_OUT_BATCH)]


def _rows(columns: dict[str, Tensor], places: Tensor) -> Batch:
    return {name: column[places].long() for name, column in columns.items()}


@dataclass(frozen=True)
class Stream:
    """Endless examples: `draw(count, seed)` gives a batch. Held-out seeds are never those of training."""

    draw: Callable[[int, int], Batch]

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """New examples for each (seed, step)."""
        return self.draw(size, generator_of(0, seed, step).initial_seed())

    def held_out(self, part: str) -> Sequence[Batch]:
        """The same examples at every call, `HELD_OUT` of them."""
        kind = 1 + list(HELD_OUT).index(part)
        count = HELD_OUT[part] // HELD_OUT_BATCH
        return [self.draw(HELD_OUT_BATCH, generator_of(kind, 0, step).initial_seed()) for step in range(count)]


def listops_batch(count: int, seed: int) -> Batch:
    """Expressions of 8 to 63 tokens, of depth 3 and 5 arguments at most."""
    found = listops.generate(count, min_length=7, max_length=LENGTH["listops"], max_depth=3, max_args=5, seed=seed)
    labels = torch.tensor([listops.evaluate(tokens) for tokens in found])
    return {"input_ids": listops.encode(found, LENGTH["listops"]), "labels": labels}


def _paths(count: int, seed: int) -> Batch:
    images, labels = draw_paths(count, size=16, contour_length=4, distractors=1, seed=seed)
    pixels = torch.from_numpy(images).flatten(1).mul(255).round().long()
    return {"input_ids": pixels, "labels": torch.from_numpy(labels)}


@lru_cache(maxsize=1)
def listops_stream() -> Stream:
    """Short ListOps expressions and their values."""
    return Stream(listops_batch)


@lru_cache(maxsize=1)
def pathfinder_stream() -> Stream:
    """Images of 16×16 pixels, 256 ids each, with contours of four dashes."""
    return Stream(_paths)


@lru_cache(maxsize=1)
def digits() -> Table:
    """The 1 797 UCI digits, 64 pixels each as ids from 0 to 16, split once at random.

    Raises:
        ImportError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits need scikit-learn: pip install 'spectral-core[train]'") from error
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=generator_of(0))
    columns = {"input_ids": torch.as_tensor(pixels).to(torch.uint8)[order], "labels": torch.as_tensor(labels)[order]}
    test, validation = HELD_OUT["test"], sum(HELD_OUT.values())
    cuts = {"test": slice(test), "validation": slice(test, validation), "train": slice(validation, None)}
    return Table({part: {name: column[cut] for name, column in columns.items()} for part, cut in cuts.items()})


@lru_cache(maxsize=1)
def documents() -> tuple[dict[str, str], dict[str, str]]:
    """Two kinds of English by name: articles of Python's help, and docstrings of standard modules.

    As they stand, but for white space. A paragraph that comes twice is kept in the first document only.

    Raises:
        FileNotFoundError: a Python without the sources of its standard library.
    """
    from pydoc_data.topics import topics

    folder = Path(sysconfig.get_path("stdlib"))
    modules = {path.stem: _docstrings(path) for path in sorted(folder.glob("*.py"))}
    if not any(modules.values()):
        raise FileNotFoundError(f"{folder}: expected the sources of Python's standard library, got none")
    seen: set[str] = set()
    articles, docstrings = ({name: _unseen(texts[name], seen) for name in sorted(texts)} for texts in (topics, modules))
    return articles, docstrings


def _docstrings(path: Path) -> str:
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # some files are there to be wrong
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return "\n\n".join(ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds))


def _unseen(text: str, seen: set[str]) -> str:
    paragraphs = dict.fromkeys(" ".join(part.split()) for part in text.split("\n\n"))
    new = [part for part in paragraphs if part and part not in seen]
    seen.update(new)
    return " ".join(new)


def byte_ids(texts: Sequence[bytes], length: int) -> Tensor:
    """[CLS] and the first bytes of each text, padded: (N, length) in uint8. The bytes 0 and 1 become spaces.

    >>> byte_ids([b"ab"], 5).tolist()
    [[1, 97, 98, 0, 0]]
    """
    ids = torch.zeros(len(texts), length, dtype=torch.uint8)
    ids[:, 0] = CLS
    table = bytes([32, 32, *range(2, 256)])
    for row, text in zip(ids, texts, strict=True):
        kept = bytearray(text[: length - 1].translate(table))
        if kept:
            row[1 : len(kept) + 1] = torch.frombuffer(kept, dtype=torch.uint8)
    return ids


def _cut(text: str, length: int) -> list[bytes]:
    """Passages of length − 1 characters that do not overlap; a shorter rest is dropped."""
    step = length - 1
    return [text[i : i + step].encode("ascii", "replace") for i in range(0, len(text) - step + 1, step)]


def _part_of(place: int) -> str:
    """Of ten documents two are for the test and one is for validation."""
    return {3: "test", 7: "test", 5: "validation"}.get(place % 10, "train")


@lru_cache(maxsize=1)
def passages() -> Table:
    """Is a passage from Python's help (1) or from a docstring (0)? As many of each; no document is in two parts."""
    found: dict[str, list[list[bytes]]] = {part: [[], []] for part in ("train", "validation", "test")}
    for label, texts in enumerate(reversed(documents())):
        for place, text in enumerate(texts.values()):
            found[_part_of(place)][label] += _cut(text, LENGTH["text"])
    parts = {}
    for part, classes in found.items():
        each = min(map(len, classes))
        each = min(each, HELD_OUT[part] // 2) if part in HELD_OUT else each
        chosen = [_some(texts, each) for texts in classes]
        labels = torch.arange(2).repeat_interleave(each)
        parts[part] = {"input_ids": byte_ids(chosen[0] + chosen[1], LENGTH["text"]), "labels": labels}
    return Table(parts)


def _some(texts: list[bytes], count: int) -> list[bytes]:
    return [texts[i] for i in torch.randperm(len(texts), generator=generator_of(count))[:count]]


@lru_cache(maxsize=1)
def pairs(train: int = 8192) -> Table:
    """Are two passages from one document (1) or from two (0)? No document is in two parts."""
    groups: dict[str, list[list[bytes]]] = {"train": [], "validation": [], "test": []}
    texts = [text for kind in documents() for text in kind.values()]
    for place, text in enumerate(texts):
        if len(found := _cut(text, LENGTH["retrieval"])) >= 8:
            groups[_part_of(place)].append(found)
    return Table({part: _pair(groups[part], {"train": train, **HELD_OUT}[part]) for part in groups})


def _pair(groups: list[list[bytes]], count: int) -> dict[str, Tensor]:
    """`count` pairs, half of them from one group; every group is as likely as another."""
    generator = generator_of(count, len(groups))

    def pick(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    left, right = [], []
    for k in range(count):
        first = pick(len(groups))
        second = first if k % 2 else (first + 1 + pick(len(groups) - 1)) % len(groups)
        i, j = pick(len(groups[first])), pick(len(groups[second]) - (k % 2))
        left.append(groups[first][i])
        right.append(groups[second][j + (1 if k % 2 and j >= i else 0)])
    ids, other = byte_ids(left, LENGTH["retrieval"]), byte_ids(right, LENGTH["retrieval"])
    return {"input_ids": ids, "other_ids": other, "labels": torch.arange(count) % 2}
