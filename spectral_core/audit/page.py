"""An audit as one self-contained HTML page: no script, no network, light and dark, from a phone's width up.

Every string that comes from a file goes through `escape`; the page's own policy forbids scripts and loading as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from spectral_core import __version__
from spectral_core.audit.charts import STYLE as CHART_STYLE
from spectral_core.audit.charts import heat_map, spectra
from spectral_core.audit.measure import MatrixAudit
from spectral_core.audit.result import Audit, rows_of
from spectral_core.audit.words import overview, suggestions
from spectral_core.svg import format_number

__all__ = ["DARK", "LIGHT", "RULES", "audit_body", "audit_page"]

LISTED = 2000  # heads, beyond which the page leaves them to --csv

LIGHT = """--page: #fff; --ink: #1d2126; --soft: #5b6470; --faint: #d9dde2; --card: #f5f7f9;
  --heat: #084c7d; --bad: #a8320a; --q: #0072b2; --k: #b34700; --v: #00734f;"""
DARK = """--page: #14171b; --ink: #e6e9ed; --soft: #a3adb8; --faint: #3a424c;
  --card: #1d2228; --heat: #8ecbf5; --bad: #ff9a70; --q: #56b4e9; --k: #f0a060; --v: #4fd0a0;"""
STYLE = f"""
:root {{ color-scheme: light dark; {LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 70rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--page); overflow-wrap: anywhere; }}
"""
#: of what `audit_body` gives
RULES = """
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.soft, caption { color: var(--soft); font-size: .875rem; text-align: left; }
.bad { color: var(--bad); font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem; padding: 0; }
.tiles li { list-style: none; background: var(--card); border-radius: .5rem; padding: .6rem .8rem; }
.tiles b { display: block; font-size: 1.35rem; }
.scroll { overflow-x: auto; } .scroll:focus-visible, summary:focus-visible { outline: 3px solid var(--q); }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .25rem .5rem; text-align: right; border-bottom: 1px solid var(--faint); white-space: nowrap; }
th { vertical-align: bottom; } .name { text-align: left; white-space: normal; min-width: 9rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
.small { grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .5rem; }
summary { cursor: pointer; font-weight: 600; padding: .4rem 0; } li { margin: .25rem 0; }
"""

LIMITS = (
    "κ is σ_max/σ_min, computed in float64 from the weights as stored; it is infinite where singular values are below "
    "the rank tolerance: max(rows, columns) times the precision of float64, or the precision of float32 for weights "
    "stored in that type or a shorter one, whichever is larger.",
    "“× typical” divides κ by what a Gaussian matrix of that shape has, (√a + √b)/(√a − √(b − 1)). Square Gaussian "
    "matrices spread widely: one in twenty exceeds that tenfold, so that the worst of many says little.",
    "Per head and whole are different questions: a head's Jacobian sees the rows of that head alone. With rotary "
    "positions or norms of queries and keys, the softmax sees other matrices than W_Q and W_K.",
    "κ(W_Q) and κ(W_K) change under W_Q M, W_K M⁻ᵀ, which leaves attention as it is; κ(J) at real inputs is what "
    "governs learning, and means nothing without the saturation beside it.",
)


def audit_page(audit: Audit) -> str:
    """The page, as text in UTF-8."""
    name = escape(audit.target)
    head = (
        f"<h1>Attention audit: {name}</h1>"
        f'<p class="soft">spectral_core {escape(__version__)}, {audit.seconds:.1f} s, float64</p>'
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>Attention audit: {name}</title><style>{STYLE}{RULES}{CHART_STYLE}</style></head>\n"
        f"<body><main>{head}{audit_body(audit)}</main></body></html>\n"
    )


def audit_body(audit: Audit) -> str:
    """What was found, as a fragment for any page whose style has `RULES`, `charts.STYLE` and the colours."""
    per_head = audit.measured(heads=True)
    whole = audit.measured(heads=False)
    body = [
        _tiles(audit),
        "<h2>In words</h2>" + _list(overview(audit)),
        "<h2>What to try</h2>" + _list(suggestions(audit)),
    ]
    if audit.gaps:
        body.append('<h2 class="bad">Gaps</h2>' + _list(audit.gaps[:100]))
    if audit.notes:
        body.append("<h2>Notes</h2>" + _list(audit.notes))
    if per_head:
        body.append("<h2>κ of every head</h2>" + _head_maps(per_head))
    if whole:
        body.append("<h2>κ of whole matrices</h2>" + _whole_map(whole))
    if audit.heads:
        body.append(_jacobians(audit))
    if whole or per_head:
        body.append(
            '<h2>Spectra</h2><p class="soft">Singular values over the largest, by index, logarithmic. '
            f'{"Whole matrices" if whole else "The worst head of each role"}: Q solid, K dashed, V dotted.</p>'
            f'<div class="grid small">{"".join(_spectra(audit))}</div>'
        )
    body += [
        f"<h2>The worst ten</h2>{_worst(audit.worst(10))}",
        f"<h2>Every layer and role</h2>{_all(audit)}",
        _every_head(per_head),
        "<h2>What these numbers are, and are not</h2>" + _list(LIMITS),
    ]
    return "".join(body)


def _tiles(audit: Audit) -> str:
    tiles = [(str(len(audit.layers)), "attention layers")]
    for heads, what in ((True, "worst κ of a head"), (False, "worst κ of a whole matrix")):
        rows = audit.measured(heads=heads)
        if rows:
            worst = max(rows, key=lambda m: m.kappa / m.random)
            ratio = format_number(worst.kappa / worst.random)
            tiles.append((format_number(worst.kappa), f"{what}, {ratio} times the typical Gaussian one"))
    if audit.heads:
        top = max(audit.heads, key=lambda h: h.kappa_j)
        tiles.append(("≥ " * top.lower_bound + format_number(top.kappa_j), "largest κ(J) of a head"))
        tiles.append((f"{max(h.saturation for h in audit.heads):.2f}", "highest saturation of a head, of 1"))
    tiles.append((str(len(audit.gaps)), "gaps" if audit.gaps else "gaps: the audit is complete"))
    return '<ul class="tiles">' + "".join(f"<li><b>{escape(b)}</b>{escape(text)}</li>" for b, text in tiles) + "</ul>"


def _head_maps(rows: list[MatrixAudit]) -> str:
    """One heat map for each role, on one scale."""
    maps = [
        heat_map(
            f"κ of W_{role.upper()}",
            {(m.index, m.head or 0): (m.kappa, m.kappa / m.random, m.where) for m in rows if m.role == role},
            span=[m.kappa / m.random for m in rows],
        )
        for role in "qkv"
        if any(m.role == role for m in rows)
    ]
    return f'{_scale_note(rows)}<div class="grid">{"".join(maps)}</div>'


def _whole_map(rows: list[MatrixAudit]) -> str:
    values = {(m.index, "qkv".index(m.role)): (m.kappa, m.kappa / m.random, m.where) for m in rows}
    return _scale_note(rows) + heat_map("κ", values, span=[m.kappa / m.random for m in rows], names="QKV")


def _scale_note(rows: list[MatrixAudit]) -> str:
    random = list(dict.fromkeys(format_number(m.random) for m in rows))
    return (
        '<p class="soft">Layers down. The stronger the colour, the larger κ beside that of a Gaussian matrix of the '
        f"same shape (logarithmic), which is about {' or '.join(random[:3])}. All numbers are in the tables below.</p>"
    )


def _jacobians(audit: Audit) -> str:
    worst = audit.worst_calls()
    kappas = {at: (h.kappa_j, h.kappa_j, f"layer {h.index}, head {h.head}") for at, h in worst.items()}
    saturations = {at: (h.saturation, h.saturation, f"layer {h.index}, head {h.head}") for at, h in worst.items()}
    table = _table(
        ["layer", "head", "κ(J)", "rank", "saturation", "‖J_Q‖", "‖J_K‖", "‖J_V‖"],
        [
            [str(h.index), str(h.head), "≥ " * h.lower_bound + format_number(h.kappa_j), str(h.rank),
             f"{h.saturation:.3f}", *(format_number(n) for n in (h.norm_q, h.norm_k, h.norm_v))]
            for h in audit.heads[:LISTED]
        ],
        "Jacobian of every head",
    )  # fmt: skip
    return (
        f'<h2>Jacobians</h2><p class="soft">On {escape(audit.data)}. Where J is rank deficient, κ is over its rank.</p>'
        '<div class="grid">'
        + heat_map("κ(J)", kappas, span=[v for v, _, _ in kappas.values()])
        + heat_map("Saturation: mean of the largest attention weight", saturations, span=[0, 1], log=False)
        + f"</div><details><summary>The numbers of every head</summary>{table}</details>"
    )


def _spectra(audit: Audit) -> Iterable[str]:
    for index, name in audit.layers.items():
        lines = {}
        for whole, heads in rows_of(m for m in audit.matrices if m.index == index and m.is_measured):
            shown = whole[0] if whole else max(heads, key=lambda m: m.kappa)
            lines[shown.role] = shown.singular_values
        if lines:
            yield spectra(f"Layer {index}", name, lines)


def _worst(rows: list[MatrixAudit]) -> str:
    return _table(
        ["where", "κ", "× typical", "rank", "σ_max", "σ_min", "weight"],
        [
            [m.where, format_number(m.kappa), format_number(m.kappa / m.random), f"{m.rank} of {min(m.shape)}",
             format_number(m.sigma_max), format_number(m.sigma_min), m.tensor]
            for m in rows
        ],
        "By κ in units of the typical Gaussian one" + ("; heads" if rows and rows[0].head is not None else ""),
        names=(0, 6),
    )  # fmt: skip


def _all(audit: Audit) -> str:
    rows = []
    for whole, heads in rows_of(audit.matrices):
        first = (whole or heads)[0]
        worst = max((m for m in heads), key=lambda m: m.kappa, default=None)
        noted = [m for m in [*whole, *heads] if m.note]
        notes = [m.note if m.head is None else f"head {m.head}: {m.note}" for m in noted]
        rows.append([
            str(first.index), first.role.upper(), format_number(whole[0].kappa) if whole else "–",
            format_number(worst.kappa) if worst else "–", str(worst.head) if worst else "–",
            format_number(first.sigma_max), f"{first.stable_rank:.1f}" if first.is_measured else "–",
            " × ".join(map(str, first.shape)), first.dtype, first.layout, first.layer, "; ".join(notes),
        ])  # fmt: skip
    names = "layer, role, κ whole, κ worst head, head, σ_max, stable rank, shape, type, stored, name, note"
    return _table(names.split(", "), rows, "Layer by layer", names=(10, 11))


def _every_head(rows: list[MatrixAudit]) -> str:
    if not rows:
        return ""
    if len(rows) > LISTED:
        return f'<p class="soft">{len(rows):,} heads are too many for a page: --csv lists them.</p>'
    table = _table(
        ["layer", "role", "head", "κ", "× typical", "σ_max", "σ_min", "rank"],
        [
            [str(m.index), m.role.upper(), str(m.head), f"{m.kappa:.7g}", format_number(m.kappa / m.random),
             format_number(m.sigma_max), format_number(m.sigma_min), str(m.rank)]
            for m in rows
        ],
        "Every head",
    )  # fmt: skip
    return f"<details><summary>Every head, {len(rows)} rows</summary>{table}</details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, *, names: Sequence[int] = ()) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="name"' if i in names else "" for i in range(len(cells))]
        scope = ' scope="col"' if tag == "th" else ""
        boxes = (f"<{tag}{scope}{kind}>{escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))
        return f"<tr>{''.join(boxes)}</tr>"

    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption, quote=True)}"><table>'
        f"<caption>{escape(caption)}</caption><thead>{row(head, 'th')}</thead><tbody>"
        + "".join(row(cells, "td") for cells in rows)
        + "</tbody></table></div>"
    )


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
