"""What an audit found, as data: rows, what is missing, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from spectral_core.audit.measure import MatrixAudit
from spectral_core.projections import Unmatched

__all__ = ["Audit", "HeadAudit", "Summary"]


@dataclass(frozen=True)
class HeadAudit:
    """One attention head at real or random inputs, in one call of its layer (shared layers are called several times).

    Attributes:
        layer, index, head: as in `MatrixAudit`; call: of its layer in one pass, from 1.
        kappa_j: the largest κ(J) over the examples; lower_bound: whether it is only known to be at least that.
        rank: of J at that example.
        saturation: mean over rows and examples of the largest attention weight.
        norm_q, norm_k, norm_v: Frobenius norms of J's blocks, medians over the examples.
    """

    layer: str
    index: int
    head: int
    call: int
    kappa_j: float
    lower_bound: bool
    rank: int
    saturation: float
    norm_q: float
    norm_k: float
    norm_v: float


@dataclass(frozen=True)
class Summary:
    """κ of several matrices of one shape."""

    count: int
    shape: tuple[int, int]
    low: float
    median: float
    worst: MatrixAudit
    random: float

    @property
    def ratio(self) -> float:
        """Worst κ in units of a Gaussian matrix's."""
        return self.worst.kappa / self.random


@dataclass(frozen=True)
class Audit:
    """The result of `audit_checkpoint`.

    Attributes:
        target: what was audited.
        matrices: whole matrices and heads, in layer order; also those without a number, with a note.
        heads: κ(J), saturation and block norms, with data; else empty.
        data: what the data were, in words; advice: what `calibrate` says about them.
        unmatched: attention-like modules that were not understood.
        problems: what makes the audit incomplete, one sentence each.
        notes: what to know about it.
        seconds: it took.
    """

    target: str
    matrices: tuple[MatrixAudit, ...]
    heads: tuple[HeadAudit, ...] = ()
    data: str = ""
    advice: str = ""
    unmatched: tuple[Unmatched, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def layers(self) -> dict[int, str]:
        """{number: name} of the attention modules that were looked at."""
        return {m.index: m.layer for m in self.matrices}

    @property
    def is_complete(self) -> bool:
        """Whether everything that was asked for has a number."""
        return not self.gaps

    @property
    def gaps(self) -> list[str]:
        """Everything that has no number, one sentence each."""
        unread = [f"{m.tensor} ({m.role.upper()}): {m.note}" for m in self.matrices if not m.is_measured]
        left = [f"{u.name or '(root)'} ({u.kind}): {u.reason}" for u in self.unmatched]
        return [*self.problems, *unread, *left]

    def measured(self, *, heads: bool) -> list[MatrixAudit]:
        """Rows with a number: of heads, or of whole matrices."""
        return [m for m in self.matrices if m.is_measured and (m.head is not None) == heads]

    def worst(self, count: int = 10) -> list[MatrixAudit]:
        """The worst matrices, by κ in units of a Gaussian matrix's; heads where there are some."""
        rows = self.measured(heads=True) or self.measured(heads=False)
        return sorted(rows, key=lambda m: -m.kappa / m.random)[:count]

    def worst_calls(self) -> dict[tuple[int, int], HeadAudit]:
        """{(layer's number, head): the call with the largest κ(J)}."""
        return {(h.index, h.head): h for h in sorted(self.heads, key=lambda h: h.kappa_j)}

    def above(self, kappa: float) -> list[MatrixAudit]:
        """Rows with a κ above a threshold, worst first."""
        return sorted((m for m in self.matrices if m.kappa > kappa), key=lambda m: -m.kappa)

    def summaries(self, *, heads: bool) -> list[Summary]:
        """One for each shape, the most frequent first."""
        by_shape: dict[tuple[int, int], list[MatrixAudit]] = {}
        for m in self.measured(heads=heads):
            by_shape.setdefault(m.shape, []).append(m)
        groups = sorted(by_shape.items(), key=lambda item: -len(item[1]))
        return [_summarize(shape, rows) for shape, rows in groups]

    def to_json(self) -> str:
        """Everything, as strict JSON: numbers that are not finite are null, and "note" says why."""
        data = {
            "target": self.target, "seconds": round(self.seconds, 3), "complete": self.is_complete,
            "gaps": self.gaps, "notes": list(self.notes), "data": self.data, "advice": self.advice,
            "matrices": [_plain(m) for m in self.matrices], "heads": [_plain(h) for h in self.heads],
        }
        return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)

    def to_csv(self) -> str:
        """One line for each matrix, without the single singular values; κ(J) and saturation where they are known."""
        joined = self.worst_calls()
        names = [f.name for f in fields(MatrixAudit) if f.name not in ("singular_values", "shape")]
        out = io.StringIO()
        write = csv.writer(out, lineterminator="\n").writerow
        write([*names[:7], "rows", "columns", *names[7:-1], "random_kappa", "kappa_j", "saturation", "note"])
        for m in self.matrices:
            h = joined.get((m.index, -1 if m.head is None else m.head))
            cells: list[Any] = [getattr(m, name) for name in names[:-1]]
            seen = [h.kappa_j, h.saturation] if h else ["", ""]
            write(map(_cell, [*cells[:7], *m.shape, *cells[7:], m.random, *seen, m.note]))
        return out.getvalue()


def _summarize(shape: tuple[int, int], rows: Iterable[MatrixAudit]) -> Summary:
    rows = sorted(rows, key=lambda m: m.kappa)
    median = statistics.median_low(m.kappa for m in rows)
    return Summary(len(rows), shape, rows[0].kappa, median, rows[-1], rows[-1].random)


def _plain(row: MatrixAudit | HeadAudit) -> dict[str, Any]:
    data = asdict(row)
    if isinstance(row, MatrixAudit):
        data |= {"random_kappa": row.random, "shape": list(row.shape)}
        data["singular_values"] = [float(f"{s:.9g}") if math.isfinite(s) else None for s in row.singular_values]
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in data.items()}


def _cell(value: Any) -> Any:
    """A spreadsheet must not take a name for a formula; nan is empty."""
    if isinstance(value, str) and value[:1] in tuple("=+-@\t\r"):
        return f"'{value}"
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def rows_of(matrices: Iterable[MatrixAudit]) -> Iterator[tuple[list[MatrixAudit], list[MatrixAudit]]]:
    """(whole, heads) for each layer and role, in order."""
    groups: dict[tuple[int, str], tuple[list[MatrixAudit], list[MatrixAudit]]] = {}
    for m in matrices:
        groups.setdefault((m.index, m.role), ([], []))[m.head is not None].append(m)
    yield from groups.values()
