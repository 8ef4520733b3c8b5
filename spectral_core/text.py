"""Real English that needs no network: the help texts inside Python, as characters, and BERT's masked batches of them.

`pydoc_data.topics` is what `help("lambda")` shows, about 80 articles; paragraphs of prose are kept, in lower case, with
commas and full stops. The articles change a little with the version of Python, and so does all that is counted here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real

import torch
from torch import Tensor

from spectral_core._checks import check_number

__all__ = [
    "CHARACTERS", "IGNORED", "MASK", "VOCABULARY", "TextData", "clean", "decode", "encode", "load_text", "mask_tokens",
    "unigram_entropy", "windows",
]  # fmt: skip

CHARACTERS = " abcdefghijklmnopqrstuvwxyz,."
MASK = 0  # id of [MASK]; characters follow from 1
VOCABULARY = 1 + len(CHARACTERS)
IGNORED = -100  # label of a place whose loss is not counted, as in torch's cross_entropy
SHORTEST, PROSE = 80, 0.93  # characters of a paragraph; share of them that prose is made of


@dataclass(frozen=True)
class TextData:
    """One long row of ids to learn from, and one held out."""

    train: Tensor
    test: Tensor


def load_text(*, test_share: float = 0.1) -> TextData:
    """The prose of Python's help texts; the last `test_share` of it is held out.

    Raises:
        ValueError: a share outside (0, 1).

    >>> data = load_text()
    >>> len(data.train) > 8 * len(data.test) > 100_000
    True
    """
    if isinstance(test_share, bool) or not isinstance(test_share, Real) or not 0 < test_share < 1:
        raise ValueError(f"test_share: expected a number in (0, 1), got {test_share!r}")
    ids = encode(_prose())
    cut = len(ids) - int(len(ids) * test_share)
    return TextData(ids[:cut].clone(), ids[cut:].clone())


def clean(text: str) -> str:
    """Lower case; what is not in `CHARACTERS` becomes a space, and spaces do not repeat.

    >>> clean("Don't panic:  42 is\\nfine.")
    'don t panic is fine.'
    """
    return re.sub(r"\s+", " ", re.sub(r"[^a-z,.]+", " ", text.lower())).strip()


def encode(text: str) -> Tensor:
    """Ids (n,) in int64, 1 for a space, 2 for "a", …

    Raises:
        ValueError: a character that is not in `CHARACTERS`.

    >>> encode("a b.").tolist()
    [2, 1, 3, 29]
    """
    if unknown := sorted(set(text) - set(CHARACTERS)):
        raise ValueError(f"expected characters among {CHARACTERS!r}, got {''.join(unknown)!r}; clean() the text first")
    place = {character: i + 1 for i, character in enumerate(CHARACTERS)}
    return torch.tensor([place[character] for character in text], dtype=torch.int64)


def decode(ids: Tensor) -> str:
    """The opposite of `encode`; [MASK] is shown as "_".

    Raises:
        ValueError: an id that there is not.

    >>> decode(torch.tensor([2, 0, 3, 29]))
    'a_b.'
    """
    if ids.ndim != 1 or (len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < VOCABULARY):
        raise ValueError(f"expected ids (n,) from 0 to {VOCABULARY - 1}, got {ids!r}")
    return "".join("_" if i == MASK else CHARACTERS[i - 1] for i in ids.tolist())


def windows(ids: Tensor, length: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` stretches of `length` ids from random places, (count, length).

    Raises:
        ValueError: `ids` is shorter than `length`, or `length` or `count` is no whole number ≥ 1.
    """
    for name, value in {"length": length, "count": count}.items():
        if check_number(value, name, minimum=1) != int(value):
            raise ValueError(f"{name}: expected a whole number, got {value!r}")
    if ids.ndim != 1 or len(ids) < length:
        raise ValueError(f"ids: expected a row of at least {length}, got shape {tuple(ids.shape)}")
    start = torch.randint(0, len(ids) - length + 1, (count,), generator=generator)
    return ids[start[:, None] + torch.arange(length)]


def mask_tokens(ids: Tensor, generator: torch.Generator, *, share: float = 0.15) -> tuple[Tensor, Tensor]:
    """BERT's inputs and labels: of the chosen places 80 % show [MASK], 10 % a random character, 10 % their own.

    Each place of `ids` (of any shape) is chosen with probability `share`. Labels are the true id at chosen places and
    `IGNORED` elsewhere.

    >>> ids = encode("what is hidden, and what is left.")
    >>> inputs, labels = mask_tokens(ids, torch.Generator().manual_seed(0), share=0.3)
    >>> bool((labels[inputs != ids] == ids[inputs != ids]).all())
    True
    """
    check_number(share, "share", minimum=0.0, maximum=1.0)
    draw, how = (torch.rand(ids.shape, generator=generator) for _ in range(2))
    other = torch.randint(1, VOCABULARY, ids.shape, generator=generator)
    shown = torch.where(how < 0.8, MASK, torch.where(how < 0.9, other, ids))
    return torch.where(draw < share, shown, ids), torch.where(draw < share, ids, IGNORED)


def unigram_entropy(ids: Tensor) -> float:
    """−Σ p log p in nats, p the frequencies of the ids: the loss of the best guess at a masked place without context.

    >>> round(unigram_entropy(torch.tensor([3, 4, 3, 4])), 4)      # log 2
    0.6931
    """
    if not ids.numel():
        raise ValueError("ids: expected at least one, got none")
    p = torch.bincount(ids.flatten()).double() / ids.numel()
    return float(-torch.special.xlogy(p, p).sum())


@lru_cache(maxsize=1)
def _prose() -> str:
    from pydoc_data.topics import topics

    found: dict[str, None] = {}  # each paragraph once, in order
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            line = " ".join(paragraph.split())
            plain = sum(character.isalpha() or character in " ,.;:?!'" for character in line)
            if len(line) > SHORTEST and plain >= PROSE * len(line):
                found[clean(line)] = None
    return " ".join(found)
