"""The two drawings of an audit's page, as inline SVG: a heat map of layers and heads, and small spectra."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from spectral_core.svg import format_number

__all__ = ["STYLE", "heat_map", "spectra"]

CELL, NARROW, WIDE, ROW, MARGIN = 28, 11, 68, 20, 30
NUMBERED = 16  # columns up to which every cell carries its number
SPAN = 0.5  # decades that the colours cover at least: small differences must not look large
DECADES = 6  # of a small spectrum's axis, at most

STYLE = """
figure { margin: 0; min-width: 0; } figcaption { font-size: .875rem; font-weight: 600; }
svg { display: block; max-width: 100%; height: auto; } svg text { font: 10px system-ui, sans-serif; fill: var(--ink); }
.map rect { fill: var(--heat); stroke: var(--faint); stroke-width: .5; }
.map .hole { fill: none; stroke-dasharray: 2 2; }
.map .value { text-anchor: middle; paint-order: stroke; stroke: var(--page); stroke-width: 2.5px; }
.map .row { text-anchor: end; } .map .column { text-anchor: middle; }
.spectrum path { fill: none; stroke-width: 1.6; } .spectrum .axis { stroke: var(--faint); stroke-width: 1; }
.spectrum .q { stroke: var(--q); } .spectrum .k { stroke: var(--k); stroke-dasharray: 5 3; }
.spectrum .v { stroke: var(--v); stroke-dasharray: 1.5 2.5; }
"""


def heat_map(
    title: str, values: Mapping[tuple[int, int], tuple[float, float, str]], *, span: Sequence[float], log: bool = True,
    names: Sequence[str] = (),
) -> str:
    """Cells {(layer, column): (value, what its colour shows, where in words)}; `span` holds what shares the colours.

    Columns are heads unless they have `names`. Infinite values have the strongest colour, absent ones are dashed holes.
    """
    rows = sorted({i for i, _ in values})
    columns = list(range(max(j for _, j in values) + 1)) if not names else list(range(len(names)))
    numbered = len(columns) <= NUMBERED
    scale, cell = _scale(span, log), WIDE if names else CELL if numbered else NARROW
    width, height = MARGIN + cell * len(columns) + 1, ROW * (len(rows) + 1) + 1
    body = []
    for place, i in enumerate(rows):
        y = ROW * place
        body.append(f'<text class="row" x="{MARGIN - 5}" y="{y + 14}">{i}</text>')
        for j in columns:
            x = MARGIN + cell * j
            box = f'x="{x}" y="{y}" width="{cell}" height="{ROW}"'
            if (i, j) not in values:
                body.append(f'<rect class="hole" {box}/>')
                continue
            value, colour, where = values[i, j]
            tip = escape(f"{where}: {format_number(value)}")
            body.append(f'<rect {box} fill-opacity="{scale(colour):.2f}"><title>{tip}</title></rect>')
            if numbered:
                body.append(f'<text class="value" x="{x + cell / 2}" y="{y + 14}">{_short(value, bool(names))}</text>')
    for j in columns[:: 1 if numbered else 8]:
        at = f'x="{MARGIN + cell * (j + 0.5)}" y="{ROW * len(rows) + 13}"'
        body.append(f'<text class="column" {at}>{escape(names[j]) if names else j}</text>')
    body.append(f'<text x="0" y="{ROW * len(rows) + 13}">{"" if names else "head"}</text>')
    finite = [v for v, _, _ in values.values() if math.isfinite(v)]
    extent = f"from {format_number(min(finite))} to {format_number(max(finite))}" if finite else "no finite value"
    label = escape(f"{title}: {len(rows)} layers by {len(columns)} columns, {extent}", quote=True)
    fixed = "" if numbered else ' style="max-width: none"'  # it scrolls rather than shrinks its labels
    return (
        f'<figure class="map"><figcaption>{escape(title)}, {extent}</figcaption><div class="scroll" tabindex="0" '
        f'role="region" aria-label="{label}"><svg viewBox="0 0 {width} {height}" width="{width}"{fixed} '
        f'role="img" aria-label="{label}">{"".join(body)}</svg></div></figure>'
    )


def spectra(title: str, name: str, lines: Mapping[str, Sequence[float]]) -> str:
    """Singular values of Q, K and V of one layer over their largest, in a small logarithmic chart."""
    lowest = min((min(s) / max(s) for s in lines.values() if max(s) > 0), default=1.0)
    decades = min(DECADES, max(1, math.ceil(-math.log10(max(lowest, 1e-30)))))
    width, height, left, top = 150, 96, 26, 6

    def path(values: Sequence[float]) -> str:
        largest, count = max(values) or 1.0, len(values)
        kept = sorted({round(i * (count - 1) / min(count - 1 or 1, 60)) for i in range(min(count, 61))})
        points = []
        for i in kept:
            depth = min(decades, -math.log10(max(values[i] / largest, 10.0**-decades)))
            x = left + (width - left - 4) * (i / (count - 1 or 1))
            points.append(f"{x:.1f} {top + (height - top - 14) * depth / decades:.1f}")
        return "M" + "L".join(points)

    body = [f'<path class="axis" d="M{left} {top}V{height - 14}H{width - 4}"/>']
    body += [f'<text x="0" y="{top + 6}">1</text><text x="0" y="{height - 14}">10{_power(-decades)}</text>']
    body += [f'<path class="{role}" d="{path(values)}"/>' for role, values in lines.items()]
    kappas = ", ".join(
        f"{role.upper()} {format_number(s[0] / s[-1] if s[-1] else math.inf)}" for role, s in lines.items()
    )
    label = escape(f"{title}, {name}: σ_max over σ_min {kappas}", quote=True)
    return (
        f'<figure class="spectrum"><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{label}"><title>{label}</title>{"".join(body)}</svg></figure>'
    )


def _scale(span: Sequence[float], log: bool):
    """A function from a value to an opacity between 0.05 and 1."""
    finite = [math.log10(max(v, 1e-300)) if log else v for v in span if math.isfinite(v)] or [0.0]
    low, high = min(finite), max(finite)
    high = max(high, low + SPAN) if log else high

    def opacity(value: float) -> float:
        if not math.isfinite(value):
            return 1.0
        at = math.log10(max(value, 1e-300)) if log else value
        return 0.05 + 0.95 * min(1.0, max(0.0, (at - low) / ((high - low) or 1.0)))

    return opacity


def _short(value: float, wide: bool) -> str:
    """For a cell: 2.4, 38, 5e3, ∞."""
    if wide or not math.isfinite(value):
        return format_number(value)
    if value >= 1e3:
        return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def _power(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
