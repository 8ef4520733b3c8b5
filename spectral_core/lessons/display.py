"""Results that show themselves: a block of HTML for notebooks, the same in plain text for terminals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor

from spectral_core.svg import format_number

__all__ = ["Shown", "Table", "describe", "table"]


class Shown:
    """Base of all results: subclasses write `text` and `html`."""

    def text(self) -> str:
        """The result in plain text."""
        raise NotImplementedError

    def html(self) -> str:
        """The result as an HTML fragment, without script or style sheet."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return self.html()


@dataclass(frozen=True, repr=False)
class Table(Shown):
    """Rows under headers; numbers are written as people write them."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        """Columns padded with spaces."""
        widths = [max(map(len, column)) for column in zip(self.headers, *self.rows, strict=True)]
        lines = [self.headers, tuple("─" * width for width in widths), *self.rows]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)

    def html(self) -> str:
        """A plain table, the first cell of each row its header."""
        head = "".join(f'<th scope="col">{escape(h)}</th>' for h in self.headers)
        body = "".join(
            f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
            for first, *rest in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table of strings, numbers (three digits) and lists of numbers (joined by commas).

    Raises:
        ValueError: a row whose length is not that of the headers.
    """
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"expected rows of {len(headers)} cells, as the headers, got {len(row)}: {row!r}")
    return Table(tuple(headers), tuple(tuple(describe(cell, digits=3) for cell in row) for row in rows))


def describe(value: object, *, digits: int = 4) -> str:
    """A value in a few words: numbers with `digits` digits, small tensors row by row, large ones by their shape."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return ", ".join(describe(item, digits=digits) for item in value)
    if isinstance(value, Tensor) and value.ndim and value.numel() > 12:
        return f"a tensor {tuple(value.shape)} of norm {format_number(float(torch.linalg.vector_norm(value.double())))}"
    if isinstance(value, Tensor) and value.ndim:
        return f"[{describe(list(value), digits=digits)}]"
    if isinstance(value, Tensor):
        value = value.item()
    if isinstance(value, int):  # bool too
        return str(value)
    try:
        return format_number(float(value), digits)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return f"{type(value).__name__} {value!r:.60}"
