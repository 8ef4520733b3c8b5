"""Small inline-SVG charts for pages that redraw many times a second.

Each function returns a string with one `<svg>`: no script, colours from CSS variables (so dark mode works), a
text alternative in `aria-label`, and a dash, a marker or a label beside every colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["STYLE", "Series", "bars", "format_number", "heat_map", "line_chart"]

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 26, 34


#: what the classes in the charts look like, light and `.dark`; the page that shows them includes it once
STYLE = """
:root { --base: #0072b2; --cond: #c24e00; --ink: #333; --faint: #ddd; }
.dark { --base: #56b4e9; --cond: #f0a060; --ink: #ddd; --faint: #444; }
.chart { margin: 0; min-width: 0; }
.chart figcaption { font-size: .85rem; font-weight: 600; color: var(--ink); }
.chart svg { width: 100%; height: auto; display: block; }
.chart text { font-size: 11px; fill: var(--ink); }
.chart .end { text-anchor: end; } .chart .mid { text-anchor: middle; }
.axis { stroke: var(--ink); fill: none; } .grid { stroke: var(--faint); stroke-width: .6; }
.mark { stroke: var(--ink); stroke-dasharray: 1 3; }
.line { fill: none; stroke-width: 2; } .line.baseline { stroke: var(--base); stroke-dasharray: 6 3; }
.line.conditioned { stroke: var(--cond); }
.bar.after { fill: var(--cond); fill-opacity: .55; }
.bar.before { fill: none; stroke: var(--base); stroke-dasharray: 4 2; stroke-width: 2; }
.map .cell { fill: var(--base); } .map .frame { fill: none; stroke: var(--ink); }
"""


@dataclass(frozen=True)
class Series:
    """One curve: `style` is a CSS class that sets its colour and dash; values that are not finite leave a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str


def format_number(value: float, digits: int = 3) -> str:
    """A number as people write it: 0.0312, 67.1, 9.06 × 10⁵, ∞."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:.0f}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "step",
    x_max: float | None = None,
    y_range: tuple[float, float] | None = None,
    log_y: bool = False,
    marks: Sequence[float] = (),
) -> str:
    """Curves over a shared x from 0, with a legend, and dotted verticals at `marks`.

    With `log_y` the axis is logarithmic; values that are not positive leave a gap.
    """
    last = "; ".join(f"{s.name}: {format_number(s.y[-1])} at {x_label} {s.x[-1]:g}" for s in series if len(s.y))
    if log_y:
        series = [Series(s.name, s.x, [math.log10(v) if v > 0 else math.nan for v in s.y], s.style) for s in series]
    points = [(x, y) for s in series for x, y in zip(s.x, s.y, strict=True) if math.isfinite(y)]
    right = x_max or max((x for x, _ in points), default=1.0) or 1.0
    low, high = y_range or _span([y for _, y in points])
    frame = _Frame(0.0, right, low, high)
    body = [frame.axes(x_label, log_y=log_y)]
    body += [f'<path class="mark" d="M{frame.x(m):.1f} {TOP}V{HEIGHT - BOTTOM}"/>' for m in marks]
    for i, s in enumerate(series):
        body.append(f'<path class="line {s.style}" data-points="{len(s.x)}" d="{frame.path(s.x, s.y)}"/>')
        at = LEFT + 8 + 118 * i
        body.append(f'<path class="line {s.style}" d="M{at} {TOP - 5}h20"/>')
        body.append(f'<text x="{at + 24}" y="{TOP - 1}">{escape(s.name)}</text>')
    return _svg(f"{title}. {last or 'no data yet'}", body, title)


def bars(title: str, before: Sequence[float], after: Sequence[float], *, y_max: float | None = None) -> str:
    """Singular values before (dashed staircase) and after (filled bars), by index."""
    top = y_max or 1.05 * max([*before, *after, 1e-12])
    frame = _Frame(0.0, float(len(before)), 0.0, top)
    body = [frame.axes("index of singular value")]
    floor = HEIGHT - BOTTOM
    filled = (
        f"M{frame.x(i + 0.12):.1f} {floor}V{frame.y(v):.1f}H{frame.x(i + 0.88):.1f}V{floor}Z"
        for i, v in enumerate(after)
    )
    stairs = (f"V{frame.y(v):.1f}H{frame.x(i + 1):.1f}" for i, v in enumerate(before))
    body.append(f'<path class="bar after" d="{"".join(filled)}"/>')
    body.append(f'<path class="bar before" d="M{frame.x(0):.1f} {floor}{"".join(stairs)}V{floor}"/>')
    text = (
        f"{title}: before, from {format_number(before[0])} to {format_number(before[-1])}; "
        f"after, from {format_number(after[0])} to {format_number(after[-1])}"
    )
    return _svg(text, body, title)


def heat_map(title: str, rows: Sequence[Sequence[float]], *, levels: int = 12) -> str:
    """A square map of values in [0, 1], more colour is larger; one path a level keeps it small."""
    n = len(rows)
    cell = 160 / n
    paths: dict[int, list[str]] = {}
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            level = round(min(1.0, max(0.0, value)) ** 0.5 * levels)  # square root: small weights stay visible
            paths.setdefault(level, []).append(f"M{j * cell:.4g} {i * cell:.4g}h{cell:.4g}v{cell:.4g}h-{cell:.4g}z")
    body = [
        f'<path class="cell" fill-opacity="{level / levels:.2f}" d="{"".join(d)}"/>'
        for level, d in sorted(paths.items())
    ]
    peak = sum(max(row) for row in rows) / n
    label = escape(f"{title}: {n} by {n} attention weights, mean of row maxima {peak:.2f}", quote=True)
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption><svg class="map" viewBox="-1 -1 162 162" '
        f'role="img" aria-label="{label}"><rect class="frame" width="160" height="160"/>{"".join(body)}</svg></figure>'
    )


class _Frame:
    """Maps data to pixels and draws the two axes."""

    def __init__(self, x0: float, x1: float, y0: float, y1: float) -> None:
        self.x0, self.x1, self.y0, self.y1 = x0, x1, y0, y1

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (min(max(value, self.y0), self.y1) - self.y0) / (self.y1 - self.y0)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def path(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        out, pen = [], "M"
        for x, y in zip(xs, ys, strict=True):
            if math.isfinite(y):
                out.append(f"{pen}{self.x(x):.1f} {self.y(y):.1f}")
                pen = "L"
            else:
                pen = "M"
        return "".join(out)

    def axes(self, x_label: str, *, log_y: bool = False) -> str:
        out = [f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>']
        for tick in _ticks(self.y0, self.y1):
            if log_y and tick != round(tick):
                continue
            out.append(f'<path class="grid" d="M{LEFT} {self.y(tick):.1f}H{WIDTH - RIGHT}"/>')
            label = 10**tick if log_y else tick
            out.append(f'<text class="end" x="{LEFT - 5}" y="{self.y(tick) + 3.5:.1f}">{label:g}</text>')
        for tick in _ticks(self.x0, self.x1):
            out.append(f'<text class="mid" x="{self.x(tick):.1f}" y="{HEIGHT - BOTTOM + 13}">{tick:g}</text>')
        out.append(f'<text class="mid" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}">{escape(x_label)}</text>')
        return "".join(out)


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers inside [low, high], about `count` of them."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    ticks: list[float] = []
    while (first + len(ticks)) * step <= high + 1e-9 * step:
        ticks.append(round((first + len(ticks)) * step, 12))
    return ticks


def _svg(label: str, body: Sequence[str], title: str) -> str:
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label, quote=True)}">{"".join(body)}</svg>'
        "</figure>"
    )
