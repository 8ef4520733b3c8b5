"""The two drawings of the first tab that are its own: a spectrum to drag, and the λ_sat law with the current point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from spectral_core.demo.head import GRID, HeadState, Law
from spectral_core.demo.settings import LARGEST
from spectral_core.svg import format_number

__all__ = ["STYLE", "draggable_bars", "law_chart"]

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 12, 30
FLOOR = HEIGHT - BOTTOM
TOPS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 40.0)  # ends of the axis: it must not move often

STYLE = """
.spectrum { touch-action: none; } .spectrum .hit { fill: transparent; cursor: ns-resize; }
.spectrum .hit:hover { fill: var(--faint); fill-opacity: .5; }
.spectrum .hit:focus-visible { outline: none; stroke: var(--ink); stroke-width: 2; }
.spectrum .bar { pointer-events: none; }
.law .measured { fill: none; stroke: var(--cond); stroke-width: 2; }
.law .predicted { fill: none; stroke: var(--base); stroke-width: 2; stroke-dasharray: 6 3; }
.law .limit { stroke: var(--ink); stroke-dasharray: 1 3; }
.law .point { fill: var(--ink); stroke: var(--background-fill-primary, #fff); stroke-width: 1.5; }
.law .start { fill: none; stroke: var(--ink); stroke-width: 1.5; }
"""


def draggable_bars(role: str, before: Sequence[float], after: Sequence[float], title: str) -> str:
    """Singular values before (dashed staircase) and after (filled bars), each a slider for mouse, finger and keys.

    The page's script moves `.bar` while a bar is dragged and writes the values where the server reads them; one bar of
    a chart is a stop of the tabulator, arrow keys go from bar to bar.
    """
    top = next((t for t in TOPS if t >= 1.2 * max(*before, *after)), 1.2 * max(*before, *after))
    step = (WIDTH - LEFT - RIGHT) / len(after)

    def y(value: float) -> float:
        return FLOOR - min(value, top) / top * (FLOOR - TOP)

    axis = [f'<path class="axis" d="M{LEFT} {TOP}V{FLOOR}H{WIDTH - RIGHT}"/>']
    for share in (0, 0.5, 1):
        at = y(share * top)
        axis.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        axis.append(f'<text class="end" x="{LEFT - 5}" y="{at + 4:.1f}">{share * top:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    axis.append(f'<text class="mid" x="{middle}" y="{HEIGHT - 8}">index, 1 to {len(after)}</text>')
    filled, hits = [], []
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        x = LEFT + i * step
        filled.append(
            f'<rect class="bar after" x="{x + 0.12 * step:.2f}" width="{0.76 * step:.2f}" y="{y(new):.2f}" '
            f'height="{FLOOR - y(new):.2f}"/>'
        )
        text = f"{format_number(new)}, before {format_number(old)}"
        hits.append(
            f'<rect class="hit" x="{x:.2f}" width="{step:.2f}" y="{TOP}" height="{FLOOR - TOP}" role="slider" '
            f'tabindex="{-1 if i else 0}" data-i="{i}" data-value="{new:.6g}" '
            f'aria-label="σ {i + 1} of W_{role.upper()}" '
            f'aria-orientation="vertical" aria-valuemin="0" aria-valuemax="{LARGEST:g}" '
            f'aria-valuenow="{min(new, LARGEST):.4g}" aria-valuetext="{text}"/>'
        )
    stairs = "".join(f"V{y(v):.1f}H{LEFT + (i + 1) * step:.1f}" for i, v in enumerate(before))
    label = (
        f"{title}: before, from {format_number(before[0])} to {format_number(before[-1])}; "
        f"after, from {format_number(after[0])} to {format_number(after[-1])}"
    )
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption><svg class="spectrum" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="{escape(label, quote=True)}" data-role="{role}" '
        f'data-top="{top:g}" data-largest="{LARGEST:g}" data-floor="{FLOOR}" data-ceiling="{TOP}">{"".join(axis)}'
        f'{"".join(filled)}<path class="bar before" d="M{LEFT} {FLOOR}{stairs}V{FLOOR}"/>{"".join(hits)}</svg></figure>'
    )


def law_chart(law: Law, before: HeadState, after: HeadState) -> str:
    """Saturation against λ on Q and K: this head as measured, the law of λ_sat, and where the head is now."""
    low, high = math.log10(GRID[0]), math.log10(GRID[-1])

    def x(lam: float) -> float:
        return LEFT + (math.log10(min(max(lam, GRID[0]), GRID[-1])) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return FLOOR - value * (FLOOR - TOP)

    def curve(values: Sequence[float]) -> str:
        return "M" + "L".join(f"{x(lam):.1f} {y(v):.1f}" for lam, v in zip(GRID, values, strict=True))

    def place(state: HeadState) -> str:
        beyond = "≤ 0.1" if state.lam <= GRID[0] else "≥ 12" if state.lam >= GRID[-1] else f"{state.lam:.2g}"
        return f"λ {beyond}, saturation {state.saturation:.2f}"

    body = [f'<path class="axis" d="M{LEFT} {TOP}V{FLOOR}H{WIDTH - RIGHT}"/>']
    for value in (0.0, 0.5, 1.0):
        body.append(f'<path class="grid" d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}"/>')
        body.append(f'<text class="end" x="{LEFT - 5}" y="{y(value) + 4:.1f}">{value:g}</text>')
    for lam in (0.1, 0.3, 1, 3, 10):
        body.append(f'<text class="mid" x="{x(lam):.1f}" y="{FLOOR + 13}">{lam:g}</text>')
    body.append(f'<text class="mid" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}">λ on W_Q and W_K</text>')
    at = x(law.limit)
    body.append(f'<path class="limit" d="M{at:.1f} {TOP}V{FLOOR}"/>')
    body.append(f'<text x="{at + 4:.1f}" y="{FLOOR - 6}">λ_sat = {law.limit:.2f}</text>')
    body.append(f'<path class="predicted" d="{curve(law.predicted)}"/>')
    body.append(f'<path class="measured" d="{curve(law.measured)}"/>')
    body.append(f'<circle class="start" r="5" cx="{x(before.lam):.1f}" cy="{y(before.saturation):.1f}"/>')
    body.append(f'<circle class="point" r="5" cx="{x(after.lam):.1f}" cy="{y(after.saturation):.1f}"/>')
    title = "saturation, and the λ that switches attention off"
    label = f"{title}: λ_sat is {law.limit:.2f}; before, {place(before)}; after, {place(after)}"
    return (
        f'<figure class="chart"><figcaption>{title}</figcaption><svg class="law" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-label="{label}">{"".join(body)}</svg></figure>'
    )
