"""An audit as a table in the terminal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from spectral_core.audit.measure import MatrixAudit
from spectral_core.audit.result import Audit, rows_of
from spectral_core.audit.words import FAR, overview, suggestions

__all__ = ["audit_table"]

WIDE = 120  # columns from which the whole table fits


def audit_table(audit: Audit, width: int = 140) -> RenderableType:
    """Overview, one line for each layer and role, gaps, and what to try, for a terminal of so many columns."""
    parts: list[RenderableType] = [Text(f"Audit of {audit.target}", style="bold")]
    parts += [Text(sentence) for sentence in overview(audit)]
    parts.append(_matrices(audit, width < WIDE))
    if audit.heads:
        parts.append(_heads(audit))
    parts += _list("Gaps", audit.gaps, "red") + _list("Notes", audit.notes, "") + _list("Try", suggestions(audit), "")
    return Group(*parts)


def _matrices(audit: Audit, is_narrow: bool) -> Table:
    caption = "× typical: in units of the typical κ of a Gaussian matrix of that shape"
    table = Table(caption=caption, caption_justify="left")
    left = ["layer", "role"] + ["shape"] * (not is_narrow)
    right = ["κ whole", "× typical", "κ worst head", "head", "× typical"] + ["median", "σ_max"] * (not is_narrow)
    noted = any(m.note for m in audit.matrices)
    for name in left:
        # in a narrow terminal names are folded; what a row is about stays
        table.add_column(name, overflow="fold", min_width=12 if name == "layer" else 4, no_wrap=name != "layer")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    if noted:
        table.add_column("note", overflow="fold", min_width=8)
    last = -1
    for whole, heads in rows_of(audit.matrices):
        first = (whole or heads)[0]
        worst = max(heads, key=lambda m: m.kappa, default=None)
        kappa, ratio = _kappa(worst)
        name = f"{first.index} {first.layer}" if first.index != last else ""
        cells: list[str | Text] = [Text(name), first.role.upper()]
        cells += [_shape(first, heads)] * (not is_narrow)
        cells += [*_kappa(whole[0] if whole else None), kappa, "" if worst is None else str(worst.head), ratio]
        if not is_narrow:
            largest = max((m.sigma_max for m in [*whole, *heads] if m.is_measured), default=math.nan)
            cells += [f"{statistics.median_low(m.kappa for m in heads):.4g}" if heads else "", f"{largest:.3g}"]
        cells += [Text("; ".join(_notes([*whole, *heads])), style="red")] * noted
        table.add_row(*cells, end_section=first.role == "v")
        last = first.index
    return table


def _heads(audit: Audit) -> Table:
    table = Table(
        title=Text(f"Jacobians on {audit.data}"), title_justify="left", caption_justify="left",
        caption="Medians of norms over heads; where J is rank deficient, κ is over its rank",
    )
    table.add_column("layer", overflow="fold")
    for name in ("κ(J) worst", "head", "κ(J) median", "saturation, most", "mean", "‖J_Q‖", "‖J_K‖", "‖J_V‖"):
        table.add_column(name, justify="right", no_wrap=True)
    for index, name in audit.layers.items():
        heads = [h for h in audit.heads if h.index == index]
        if heads:
            worst = max(heads, key=lambda h: h.kappa_j)
            norms = (statistics.median(getattr(h, f"norm_{role}") for h in heads) for role in "qkv")
            table.add_row(
                Text(f"{index} {name}"), "≥ " * worst.lower_bound + f"{worst.kappa_j:.4g}", str(worst.head),
                f"{statistics.median(h.kappa_j for h in heads):.4g}", f"{max(h.saturation for h in heads):.2f}",
                f"{statistics.fmean(h.saturation for h in heads):.2f}", *(f"{n:.3g}" for n in norms),
            )
    return table


def _shape(first: MatrixAudit, heads: list[MatrixAudit]) -> str:
    """Of the whole matrix, or "12 of 32×384" where heads alone were measured."""
    text = "×".join(map(str, first.shape))
    return text if first.head is None else f"{len(heads)} of {text}"


def _kappa(m: MatrixAudit | None) -> tuple[str | Text, str | Text]:
    if m is None or not m.is_measured:
        return "–", ""
    ratio = m.kappa / m.random
    style = "bold red" if ratio > FAR else ""
    return Text(f"{m.kappa:.7g}", style=style), Text(f"{ratio:.3g}", style=style)


def _notes(rows: list[MatrixAudit]) -> Iterator[str]:
    noted = [m for m in rows if m.note]
    for m in noted[:3]:
        yield m.note if m.head is None else f"head {m.head}: {m.note}"
    if len(noted) > 3:
        yield f"and {len(noted) - 3} more"


def _list(title: str, lines: list[str] | tuple[str, ...], style: str) -> list[RenderableType]:
    if not lines:
        return []
    shown = [*lines[:12], *([f"and {len(lines) - 12} more (--json lists all)"] if len(lines) > 12 else [])]
    return [Text(title, style=f"bold {style}".strip()), *(Padding(Text(f"• {line}"), (0, 0, 0, 2)) for line in shown)]
