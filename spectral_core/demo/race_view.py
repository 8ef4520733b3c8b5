"""The race as HTML: four charts with a table below each, and a sentence that says what happened.

Gradio changes a page node by node, so all frames of one race have the same nodes in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from spectral_core.demo.history import History
from spectral_core.demo.settings import ARMS
from spectral_core.svg import format_number

__all__ = ["STYLE", "TITLES", "describe_race", "show_race"]

TITLES = {
    "loss": "training loss (nats, log scale)", "accuracy": "held-out accuracy", "log_kappa": "log₁₀ κ(J), head 1",
    "saturation": "saturation: mean max attention",
}  # fmt: skip
WIDTH, HEIGHT = 420, 236
LEFT, RIGHT, TOP, BOTTOM = 40, 126, 12, 32
FLOOR = HEIGHT - BOTTOM
GAP = 13  # pixels between two labels
ROWS = 50  # steps between two rows of a table
TICKS = 12  # most labels on an axis of values
COLOURS = {  # Okabe and Ito's, darkened or lightened to be read on white and on black
    "plain": ("#0072b2", "#56b4e9", ""), "shaped": ("#b34700", "#f0a060", "7 3"),
    "identity": ("#00734f", "#4fd0a0", "2 3"), "polar": ("#8a3a72", "#e0a0cc", "9 3 2 3"),
    "calibrated": ("#7a6000", "#f0e442", "12 3"), "conditioned": ("#555555", "#c0c0c0", "4 2"),
    "qk-norm": ("#a3161c", "#ff9a8f", "10 2 3 2 3 2"), "xavier": ("#222222", "#f2f2f2", "6 2 1 2"),
}  # fmt: skip

STYLE = """
.race { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, max(330px, 34%)), 1fr)); }
.race .line { fill: none; stroke-width: 2; stroke-linejoin: round; } .race .cursor { stroke: var(--ink); }
.race text.name { font-size: 12px; }
.race path.lead { stroke-width: .8; stroke-dasharray: none; opacity: .4; fill: none; }
.race details { font-size: .85rem; color: var(--ink); overflow-x: auto; } .race summary { cursor: pointer; }
.race .numbers td:last-child { font-weight: inherit; }
""" + "".join(
    f":root {{ --{name}: {light}; }} .dark {{ --{name}: {dark}; }} .race .{name} {{ stroke: var(--{name}); "
    f"stroke-dasharray: {dash or 'none'}; }} .race text.{name} {{ fill: var(--{name}); stroke: none; }} "
    f".race circle.{name} {{ fill: var(--{name}); stroke: none; }}\n"
    for name, (light, dark, dash) in COLOURS.items()
)


def show_race(history: History, *, steps: int = 600, at: int | None = None) -> str:
    """The charts and their tables, with a cursor at step `at`."""
    charts = "".join(_chart(history, metric, steps, at) for metric in TITLES)
    last = history.step[-1] if history.step else 0
    return f'<div class="race" data-frames="{len(history.step)}" data-step="{last}">{charts}</div>'


def _chart(history: History, metric: str, steps: int, at: int | None) -> str:
    curves = {name: _values(values[metric], metric) for name, values in history.arms.items()}
    low, high = _limits(curves.values(), metric)

    def x(step: float) -> float:
        return LEFT + step / steps * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return FLOOR - (min(max(value, low), high) - low) / (high - low) * (FLOOR - TOP)

    body = [f'<path class="axis" d="M{LEFT} {TOP}V{FLOOR}H{WIDTH - RIGHT}"/>', _grid(low, high, metric, y)]
    for step in range(0, steps + 1, 200):
        body.append(f'<text class="mid" x="{x(step):.0f}" y="{FLOOR + 13}">{step}</text>')
    body.append(f'<text class="mid" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}">step</text>')
    body.append('<path class="mark" d="' + "".join(f"M{x(m):.1f} {TOP}V{FLOOR}" for m in history.marks) + '"/>')
    ends = {}
    for name, values in curves.items():
        points, path, pen = [], [], "M"
        for step, value in zip(history.step, values, strict=True):
            if value is not None:
                points.append((x(step), y(value)))
                path.append(f"{pen}{points[-1][0]:.1f} {points[-1][1]:.1f}")
            pen = "M" if value is None else "L"  # a gap stays a gap
        arm, d = escape(name, quote=True), "".join(path)
        body.append(f'<path class="line {arm}" data-arm="{arm}" data-points="{len(points)}" d="{d}"/>')
        ends[name] = points[-1] if points else (float(LEFT), float(FLOOR))
    for name, label_y in _spread({name: end[1] for name, end in ends.items()}).items():
        right = WIDTH - RIGHT + 8
        a, b = ends[name]
        arm, text = escape(name, quote=True), escape(_short(name)) + (" ✕" if name in history.diverged else "")
        body.append(f'<path class="lead {arm}" d="M{a:.1f} {b:.1f}L{right - 3} {label_y:.1f}"/>')
        body.append(f'<text class="name {arm}" x="{right}" y="{label_y + 4:.1f}">{text}</text>')
    body.append(_cursor(history, curves, at, x, y))
    now = at if at is not None else history.step[-1] if history.step else 0
    gone = {name: f"diverged at step {when}" for name, when in history.gone(now).items()}
    said = "; ".join(f"{ARMS.get(n, n)} {gone.get(n) or _number(history, n, metric, at)}" for n in curves)
    label = escape(f"{TITLES[metric]}, {f'at step {now}' if history.step else 'no data yet'}: {said}", quote=True)
    return (
        f'<figure class="chart"><figcaption>{TITLES[metric]}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(body)}</svg>'
        f"{_table(history, metric, steps)}</figure>"
    )


def _values(values: Sequence[float | None], metric: str) -> list[float | None]:
    if metric != "loss":
        return list(values)
    return [math.log10(v) if v is not None and v > 0 else None for v in values]


def _limits(curves, metric: str) -> tuple[float, float]:
    if metric in ("accuracy", "saturation"):
        return 0.0, 1.0
    known = [v for values in curves for v in values if v is not None] or [0.0, 1.0]
    step = 0.25 if metric == "loss" else 1.0  # the axis must not move at every frame
    low, high = math.floor(min(known) / step) * step, math.ceil(max(known) / step) * step
    return low, high if high > low else low + step


def _grid(low: float, high: float, metric: str, y) -> str:
    if metric == "loss":
        leads = (1, 1.5, 2, 3, 4, 5, 7) if high - low <= 0.5 else (1, 2, 5) if high - low <= 3 else (1,)
        every = math.ceil((high - low) / (TICKS - 2))
        powers = (e for e in range(math.floor(low), math.ceil(high) + 1) if e % every == 0)
        wanted = [m * 10.0**e for e in powers for m in leads]
        ticks = [(math.log10(v), f"{v:g}") for v in wanted if low - 1e-9 <= math.log10(v) <= high + 1e-9]
    else:
        step = 0.25 if high <= 1 and low == 0 else max(1, math.ceil((high - low) / 6))
        ticks = [(low + i * step, f"{low + i * step:g}") for i in range(int((high - low) / step + 1e-9) + 1)]
    lines = "".join(f"M{LEFT} {y(v):.1f}H{WIDTH - RIGHT}" for v, _ in ticks)
    texts = [f'<text class="end" x="{LEFT - 5}" y="{y(v) + 4:.1f}" visibility="inherit">{t}</text>' for v, t in ticks]
    spare = f'<text class="end" x="{LEFT - 5}" y="{FLOOR}" visibility="hidden">0</text>'
    return f'<path class="grid" d="{lines}"/><g>{"".join(texts)}{spare * (TICKS - len(texts))}</g>'


def _spread(wanted: dict[str, float]) -> dict[str, float]:
    """Heights of labels near the wanted ones, at least GAP apart and inside the chart."""
    order = sorted(wanted, key=lambda name: wanted[name])
    placed: dict[str, float] = {}
    lowest = TOP - 4.0
    for i, name in enumerate(order):
        room = FLOOR - GAP * (len(order) - 1 - i)
        placed[name] = lowest = max(lowest, min(wanted[name], room))
        lowest += GAP
    return {name: placed[name] for name in wanted}  # in the arms' own order: the same nodes at every frame


def _cursor(history: History, curves: dict[str, list[float | None]], at: int | None, x, y) -> str:
    shown = "visible" if at is not None and history.step else "hidden"
    place = at if at is not None else 0
    dots = []
    for name, values in curves.items():
        value = next((v for s, v in zip(history.step, values, strict=True) if s == place), None)
        seen = "inherit" if value is not None else "hidden"
        arm = escape(name, quote=True)
        dots.append(f'<circle class="{arm}" r="4" cx="{x(place):.1f}" cy="{y(value or 0):.1f}" visibility="{seen}"/>')
    line = f'<path class="cursor" d="M{x(place):.1f} {TOP}V{FLOOR}"/>'
    return f'<g visibility="{shown}">{line}{"".join(dots)}</g>'


def _short(name: str) -> str:
    return {"conditioned": "Conditioned Init.", "xavier": "Xavier"}.get(name, ARMS.get(name, name))


def _number(history: History, name: str, metric: str, at: int | None = None) -> str:
    value = history.last(name, metric, at)
    return "–" if value is None else format_number(value)


def _table(history: History, metric: str, steps: int) -> str:
    """A row every ROWS steps and one for the last step; rows of steps to come are there, and hidden."""
    head = "".join(f'<th scope="col">{escape(ARMS.get(name, name))}</th>' for name in history.arms)
    index = {step: i for i, step in enumerate(history.step)}
    regular = range(0, steps + 1, ROWS)
    last = history.step[-1] if history.step else 0
    rows = []
    for step, is_shown in [*((s, s in index) for s in regular), (last, last not in regular)]:
        values = [curves[metric][index[step]] if step in index else None for curves in history.arms.values()]
        cells = "".join(f"<td>{'–' if v is None else format_number(v)}</td>" for v in values)
        hidden = "" if is_shown else ' hidden=""'
        rows.append(f'<tr{hidden}><th scope="row">{step}</th>{cells}</tr>')
    return (
        f'<details><summary>as a table</summary><table class="numbers"><thead><tr><th scope="col">step</th>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></details>"
    )


def describe_race(history: History, state: str, *, steps: int = 600, at: int | None = None) -> str:
    """What happened, in words: how far, who leads by how much, who was there first, who has switched off."""
    if not history.step:
        return f'<p class="sentence"><span aria-live="polite">{escape(state)}</span> <strong></strong> </p>'
    step = history.step[-1] if at is None else at
    gone = history.gone(step)
    alive = [name for name in history.arms if name not in gone]
    losses = {name: loss for name in alive if (loss := history.last(name, "loss", at)) is not None}
    parts = [f"Step {step} of {steps}."]
    if losses:
        order = sorted(losses, key=lambda name: losses[name])
        parts.append("Training loss: " + ", ".join(f"{_name(n)} {format_number(losses[n])}" for n in order) + ".")
        parts += _compare(history, order, losses, step)
    off = [name for name in alive if (history.last(name, "saturation", at) or 0) > 0.9]
    warnings = []
    if off:
        warnings.append(f"Attention is switched off in {_and(off)}: each token looks at one token only.")
    warnings += [f"Diverged: {_name(name)} at step {when}." for name, when in gone.items()]
    return (  # the same nodes whatever is said
        f'<p class="sentence"><span aria-live="polite">{escape(state)}</span> {" ".join(parts)} '
        f"<strong>{' '.join(warnings)}</strong> "
        f"{'One seed is one seed: small differences are noise.' if len(history.arms) > 1 else ''}</p>"
    )


def _compare(history: History, order: list[str], losses: dict[str, float], step: int) -> list[str]:
    """Who leads by how much, and when the others had the loss that the plain model, or the last one, has now."""
    if len(order) < 2:
        return []
    leader, second, slowest = order[0], order[1], order[-1]
    if losses[slowest] <= 1.02 * losses[leader]:
        return ["All are level, within 2 %."]
    if losses[second] <= 1.02 * losses[leader]:
        said = [f"Lowest: {_name(leader)} and {_name(second)}, within 2 %."]
    else:
        said = [f"Lowest: {_name(leader)}, {format_number(losses[second] - losses[leader], 2)} below {_name(second)}."]
    behind = "plain" if "plain" in losses and leader != "plain" else slowest
    reached = []
    for name in order:
        if name != behind and (leader != "plain" or name == "plain"):
            pairs = zip(history.step, history.arms[name]["loss"], strict=True)
            when = next((s for s, v in pairs if v is not None and v <= losses[behind] and s <= step), None)
            reached.append(f"{_name(name)} {'not yet' if when is None else f'at step {when}'}")
    first = f"The loss of {_name(behind)} now, {format_number(losses[behind])}, was first reached by "
    return [*said, first + ", ".join(reached) + "."]


def _name(name: str) -> str:
    return "Xavier" if name == "xavier" else escape(ARMS.get(name, name))  # "Xavier, plain" would read as two


def _and(names: Sequence[str]) -> str:
    return " and ".join(_name(name) for name in names)
