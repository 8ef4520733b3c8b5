"""English to learn from: Python's help texts as characters, or a folder of text with a tokenizer, and GLUE's files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectral_core import text
from spectral_core.experiments.task import Batch, epoch_indices, generator_of

__all__ = ["IGNORED", "Corpus", "Labelled", "embedded", "folder_corpus", "glue", "hide", "topics"]

IGNORED = text.IGNORED
HELD = 256
# task: columns of the sentences and of the label, by the names in the header (CoLA has none)
GLUE: dict[str, tuple[tuple[Any, ...], Any]] = {
    "CoLA": ((3,), 1), "SST-2": (("sentence",), "label"), "MRPC": (("#1 String", "#2 String"), "Quality"),
    "RTE": (("sentence1", "sentence2"), "label"), "QNLI": (("question", "sentence"), "label"),
    "QQP": (("question1", "question2"), "is_duplicate"), "MNLI": (("sentence1", "sentence2"), "gold_label"),
}  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """Rows of ids (n,) in three parts; batches are stretches of `length` from random places.

    Attributes:
        ids: part -> (n,) int64; vocabulary: number of ids; mask: the id of [MASK]; share: of places that are hidden,
            0 for a causal model.
    """

    ids: dict[str, Tensor]
    vocabulary: int
    mask: int
    length: int
    share: float

    def batch(self, seed: int, step: int, size: int) -> Batch:
        return self._draw("train", size, generator_of(seed, step))

    def held_out(self, part: str) -> Sequence[Batch]:
        generator = generator_of(*(ord(c) for c in part))
        return [self._draw(part, HELD // 4, generator) for _ in range(4)]

    def _draw(self, part: str, size: int, generator: torch.Generator) -> Batch:
        if not self.share:
            rows = text.windows(self.ids[part], self.length + 1, size, generator)
            return {"x": rows[:, :-1], "y": rows[:, 1:]}
        rows = text.windows(self.ids[part], self.length, size, generator)
        x, y = hide(rows, self.share, self.mask, self.vocabulary, generator)
        return {"x": x, "y": y}


def hide(
    ids: Tensor, share: float, mask: int, vocabulary: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """BERT's inputs and labels (N, n), with the same number of hidden places in every row.

    So the mean over a batch is the mean of the means over its parts, and processes that share a batch agree. Of the
    places 80 % show [MASK], 10 % a random id, 10 % their own.
    """
    count = max(1, round(share * ids.shape[1]))
    places = torch.rand(ids.shape, generator=generator).argsort(1)[:, :count]
    chosen = torch.zeros(ids.shape, dtype=torch.bool).scatter_(1, places, True)
    how = torch.rand(ids.shape, generator=generator)
    other = torch.randint(0, vocabulary, ids.shape, generator=generator)
    shown = torch.where(how < 0.8, mask, torch.where(how < 0.9, other, ids))
    return torch.where(chosen, shown, ids), torch.where(chosen, ids, IGNORED)


@lru_cache(maxsize=4)
def embedded(length: int, share: float) -> Corpus:
    """Python's help texts: the last tenth is test, the tenth before it validation."""
    data = text.load_text(test_share=0.2)
    half = len(data.test) // 2
    ids = {"train": data.train, "validation": data.test[:half], "test": data.test[half:]}
    return Corpus(ids, text.VOCABULARY, text.MASK, length, share)


@lru_cache(maxsize=2)
def folder_corpus(folder: Path, length: int, share: float) -> Corpus:
    """folder/tokenizer.json and folder/corpus/*.txt; the last two hundredths of the ids are held out.

    Raises:
        FileNotFoundError: a part is missing; ValueError: too little text, or a tokenizer without [MASK].
    """
    tokenizer = _tokenizer(folder)
    files = sorted((folder / "corpus").glob("*.txt"))
    if not files:
        raise FileNotFoundError(f"expected text in {folder / 'corpus'}/*.txt, got none")
    mask = tokenizer.token_to_id("[MASK]") if share else 0
    if mask is None:
        raise ValueError(f"{folder / 'tokenizer.json'}: expected a token [MASK], got none")
    pieces = []
    for path in files:
        encoded = tokenizer.encode_batch(path.read_text(encoding="utf-8").split("\n\n"), add_special_tokens=False)
        pieces.append(torch.tensor([i for one in encoded for i in one.ids], dtype=torch.int64))
    ids = torch.cat(pieces)
    held = len(ids) // 100
    if held <= length:
        raise ValueError(f"{folder / 'corpus'}: expected over {100 * length} tokens of text, got {len(ids)}")
    parts = {"train": ids[: -2 * held], "validation": ids[-2 * held : -held], "test": ids[-held:]}
    return Corpus(parts, tokenizer.get_vocab_size(), mask, length, share)


def _tokenizer(folder: Path):
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"expected a tokenizer of Hugging Face in {path}, got none")
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path}: expected a tokenizer of Hugging Face, got {error}") from error


@dataclass(frozen=True)
class Labelled:
    """Rows of ids (N, n) and labels (N,), in three parts."""

    x: dict[str, Tensor]
    y: dict[str, Tensor]
    classes: int

    def batch(self, seed: int, step: int, size: int) -> Batch:
        picked = epoch_indices(len(self.y["train"]), seed, step, size)
        return {"x": self.x["train"][picked], "label": self.y["train"][picked]}

    def held_out(self, part: str) -> Sequence[Batch]:
        pairs = zip(self.x[part].split(HELD), self.y[part].split(HELD), strict=True)
        return [{"x": x, "label": y} for x, y in pairs]


@lru_cache(maxsize=2)
def topics(length: int, classes: int = 8) -> Labelled:
    """From which of the longest help texts does a passage come? The last fifth of each text is test, a tenth before
    it validation."""
    from pydoc_data.topics import topics as articles

    longest = sorted(articles, key=lambda name: (-len(articles[name]), name))[:classes]
    x: dict[str, list[Tensor]] = {"train": [], "validation": [], "test": []}
    y: dict[str, list[Tensor]] = {part: [] for part in x}
    for label, name in enumerate(longest):
        ids = text.encode(text.clean(articles[name]))
        cut = (0, int(0.7 * len(ids)), int(0.8 * len(ids)), len(ids))
        for i, part in enumerate(x):
            piece = ids[cut[i] : cut[i + 1]]
            rows = piece.unfold(0, length, length // 2 if part == "train" else length)
            x[part].append(rows)
            y[part].append(torch.full((len(rows),), label))
    return Labelled({p: torch.cat(r) for p, r in x.items()}, {p: torch.cat(r) for p, r in y.items()}, classes)


@lru_cache(maxsize=2)
def glue(folder: Path, length: int) -> Labelled:
    """The one GLUE task in folder/glue/NAME, train.tsv and dev.tsv; a tenth of train is validation, dev is test.

    Raises:
        FileNotFoundError: no task, or a file of it is missing; ValueError: other columns, or labels that differ.
    """
    present = [name for name in GLUE if (folder / "glue" / name).is_dir()]
    if len(present) != 1:
        raise FileNotFoundError(f"expected one of {', '.join(GLUE)} in {folder / 'glue'}, got {present or 'none'}")
    name = present[0]
    dev = "dev_matched.tsv" if name == "MNLI" else "dev.tsv"
    raw = {part: _rows(folder / "glue" / name / file, name) for part, file in (("train", "train.tsv"), ("test", dev))}
    labels = sorted({label for _, label in raw["train"]})
    if unknown := sorted({label for _, label in raw["test"]} - set(labels)):
        raise ValueError(f"{name}/{dev}: expected labels {', '.join(labels)} as in train.tsv, got {', '.join(unknown)}")
    tokenizer = _tokenizer(folder)
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    x, y = {}, {}
    for part, rows in raw.items():
        encoded = tokenizer.encode_batch([words if len(words) > 1 else words[0] for words, _ in rows])
        x[part] = torch.tensor([one.ids for one in encoded])
        y[part] = torch.tensor([labels.index(label) for _, label in rows])
    order = torch.randperm(len(y["train"]), generator=generator_of(0))
    held = max(1, len(order) // 10)
    for part, at in (("validation", order[:held]), ("train", order[held:])):
        x[part], y[part] = x["train"][at], y["train"][at]
    return Labelled(x, y, len(labels))


def _rows(path: Path, name: str) -> list[tuple[tuple[str, ...], str]]:
    if not path.is_file():
        raise FileNotFoundError(f"expected GLUE's {name} in {path}, got no such file")
    sentences, label = GLUE[name]
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if name != "CoLA":
        header = {column: i for i, column in enumerate(lines[0])} if lines else {}
        if missing := [column for column in (*sentences, label) if column not in header]:
            raise ValueError(f"{path}: expected columns {', '.join(map(str, missing))}, got {', '.join(header)}")
        sentences, label, lines = tuple(header[s] for s in sentences), header[label], lines[1:]
    widest = max(*sentences, label)
    if bad := [i for i, line in enumerate(lines) if len(line) <= widest]:
        raise ValueError(f"{path}: expected over {widest} columns in every line, got fewer in {len(bad)}")
    return [(tuple(line[s] for s in sentences), line[label]) for line in lines]
