"""The first tab's panel as HTML: a sentence, numbers, maps, spectra to drag, the λ_sat law, the bound's factors."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from spectral_core.demo.head import HeadState, HeadView, head_view
from spectral_core.demo.settings import ROLES, Settings, to_query
from spectral_core.demo.shape_charts import STYLE as CHARTS
from spectral_core.demo.shape_charts import draggable_bars, law_chart
from spectral_core.svg import STYLE as SVG
from spectral_core.svg import format_number, heat_map

__all__ = ["STYLE", "describe_view", "show_view"]

STYLE = SVG + CHARTS + """
.charts { display: grid; gap: .75rem; }
.charts.three { grid-template-columns: repeat(auto-fit, minmax(min(100%, 210px), 1fr)); }
.split { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 1rem;
  align-items: start; margin: .5rem 0; }
.maps { display: flex; gap: .75rem; flex-wrap: wrap; } .maps .chart { flex: 1 1 120px; max-width: 190px; }
.numbers { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; color: var(--ink);
  font-size: .92rem; }
.numbers caption { font-size: .8rem; text-align: left; caption-side: bottom; padding-top: .3rem; }
.numbers th, .numbers td { padding: .12rem .5rem; border: 0 !important; text-align: right; color: var(--ink);
  border-bottom: 1px solid var(--faint) !important; } .numbers td { white-space: nowrap; }
.numbers th[scope=row] { text-align: left; font-weight: 500; } .numbers td:last-child { font-weight: 700; }
.sentence { font-size: 1.02rem; color: var(--ink); margin: .3rem 0; min-height: 2.6em; }
.notice { border-left: 4px solid var(--cond); padding: .2rem .6rem; margin: .2rem 0; color: var(--ink); }
.key { font-size: .85rem; color: var(--ink); }
.swatch { display: inline-block; width: 12px; height: 12px; vertical-align: -1px; }
.swatch.full { background: var(--cond); opacity: .55; } .swatch.hollow { border: 1.5px dashed var(--base); }
.more { overflow-x: auto; } .more summary { cursor: pointer; font-weight: 600; color: var(--ink); padding: .3rem 0; }
"""

FACTORS = {
    "kappa_x": "κ⁺(X)", "kappa_lambda": "κ⁺(Λ), Λ the softmax's derivative", "kappa_wq": "κ⁺(W_Q), this head",
    "kappa_wk": "κ⁺(W_K), this head", "kappa_wv": "κ⁺(W_V), this head", "kappa_softmax": "κ⁺(P)",
    "right": "the bound, κ⁺(X)³ κ⁺(Λ) κ⁺(W_V) (κ⁺(W_Q) + κ⁺(W_K)) + κ⁺(X) κ⁺(P)",
}  # fmt: skip
SHAPED = {"matrix": "the layer's whole matrices", "head": "head 1 alone", "packed": "Q, K and V as one matrix"}


def show_view(settings: Settings, notices: Sequence[str] = ()) -> str:
    """The panel, as HTML; `data-query` carries the address of these settings.

    Raises:
        AuditError: the settings ask for MiniLM, whose package is not installed.
    """
    view = head_view(settings)
    warnings = "".join(f'<p class="notice" role="alert">{escape(n)}</p>' for n in notices)
    spectra = "".join(
        draggable_bars(r, view.before.spectra[r], view.after.spectra[r], f"singular values of {_matrix(settings, r)}")
        for r in ROLES
    )
    maps = heat_map("attention before", view.before.attention) + heat_map("attention after", view.after.attention)
    return (
        f'<div class="view" data-kind="{settings.kind}" data-query="{escape(to_query(settings), quote=True)}">'
        f'<div class="notices">{warnings}</div>'
        f'<p class="sentence" id="said">{describe_view(view)}</p>'
        f'<div class="charts three">{spectra}</div>'
        '<p class="key"><span class="swatch hollow"></span> before (dashed line) '
        '<span class="swatch full"></span> after (filled). <strong>Drag the bars</strong>, or choose one with Tab and '
        "use ↑ ↓ for its height and ← → for its neighbours.</p>"
        f'<div class="split">{_table(view, settings)}<div>{law_chart(view.law, view.before, view.after)}'
        '<p class="key">Solid: this head with λI on Q and K. Dashed: the law, for orthogonal LayerNormed tokens and no '
        "W. Ring: before. Dot: now, at the λ that gives the same tr(W_Q W_Kᵀ).</p>"
        f'<div class="maps">{maps}</div><p class="key">A row is a token, more colour is more weight.</p></div></div>'
        f"{_bound(view)}{_spectra_table(view)}</div>"
    )


def describe_view(view: HeadView) -> str:
    """One or two sentences on what the correction did to the head, and the caution that it needs."""
    before, after, n = view.before, view.after, view.shape[0]
    numbers = f"{_kappa_j(before)} → {_kappa_j(after)}"
    change = f"κ(J) {_went(before.kappa_j, after.kappa_j)} {numbers}."
    qk = max(after.block_norms["q"], after.block_norms["k"])
    if after.saturation > 0.9:
        return (
            f"{change} <strong>But attention has switched off</strong>: on average a token gives "
            f"{after.saturation:.0%} of its weight to one token, and the Q and K blocks of J are at "
            f"{format_number(qk)}. A small κ(J) bought that way is no gain."
        )
    if after.saturation > 0.5:
        return f"{change} Attention is getting saturated ({after.saturation:.0%} of a token's weight on one token)."
    if after.kappa_j > before.kappa_j * 1.01:
        return f"{change} This correction makes the head worse: a smaller κ(W) does not promise a smaller κ(J)."
    return f"{change} Attention stays spread out (mean max {after.saturation:.2f}, uniform would be {1 / n:.2f})."


def _went(before: float, after: float) -> str:
    return "fell" if after < before * 0.99 else "rose" if after > before * 1.01 else "stayed"


def _kappa_j(state: HeadState) -> str:
    return "≥ " * state.is_bound + format_number(state.kappa_j)


def _matrix(settings: Settings, role: str) -> str:
    if settings.init == "minilm" and settings.scope != "packed":
        return f"W_{role.upper()}, one head"
    shown = {"matrix": f"W_{role.upper()}", "head": f"W_{role.upper()}, head 1", "packed": "Q, K, V stacked"}
    return shown[settings.scope]


def _table(view: HeadView, settings: Settings) -> str:
    def row(name: str, key: str, before: str, after: str) -> str:
        cells = f'<td>{before}</td><td id="after-{key}">{after}</td>'
        return f'<tr><th scope="row">{name}</th>{cells}</tr>'

    old, new = view.before, view.after
    n, dim, width = view.shape
    rows = [
        row(f"κ(W_{r.upper()})", f"kappa-{r}", format_number(old.kappa_w[r]), format_number(new.kappa_w[r]))
        for r in ROLES
    ]
    pairs = [("κ⁺(J), over its rank", "kappa-plus", "kappa_j_effective")]
    rows.append(row("κ(J), exact", "kappa-j", _kappa_j(old), _kappa_j(new)))
    rows += [row(name, key, *(format_number(getattr(s, at)) for s in (old, new))) for name, key, at in pairs]
    rows.append(row(f"rank of J, of {new.full}", "rank", str(old.rank), str(new.rank)))
    rows.append(row("bound on κ⁺(J)", "bound", *(format_number(s.factors["right"]) for s in (old, new))))
    rows.append(row("saturation: mean max attention", "saturation", *(f"{s.saturation:.3g}" for s in (old, new))))
    rows += [
        row(f"‖J_{r.upper()}‖", f"norm-{r}", format_number(old.block_norms[r]), format_number(new.block_norms[r]))
        for r in ROLES
    ]
    return (
        f'<table class="numbers"><caption>J: {escape(view.name)}, n = {n} tokens, D = {dim}, d = {width}. κ(W): '
        f'{SHAPED[settings.scope] if settings.init != "minilm" else "of this head"}.</caption>'
        f'<thead><tr><th scope="col">exact, float64</th><th scope="col">before</th><th scope="col">after</th></tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _bound(view: HeadView) -> str:
    rows = "".join(
        f'<tr><th scope="row">{text}</th><td>{format_number(view.before.factors[name])}</td>'
        f"<td>{format_number(view.after.factors[name])}</td></tr>"
        for name, text in FACTORS.items()
    )
    held = "holds" if view.after.kappa_j_effective <= view.after.factors["right"] * (1 + 1e-9) else "does not hold"
    return (
        '<details class="more"><summary>Theorem 3.4, factor by factor</summary><table class="numbers"><caption>After '
        f"the correction the inequality {held} here. κ⁺ is not submultiplicative, so it need not; where it holds it is "
        'mostly loose by orders of magnitude.</caption><thead><tr><th scope="col">factor</th><th scope="col">before'
        f'</th><th scope="col">after</th></tr></thead><tbody>{rows}</tbody></table></details>'
    )


def _spectra_table(view: HeadView) -> str:
    head = "".join(f'<th scope="col">W_{r.upper()} {when}</th>' for r in ROLES for when in ("before", "after"))
    sides = [s.spectra[r] for r in ROLES for s in (view.before, view.after)]
    rows = "".join(
        f'<tr><th scope="row">{i + 1}</th>' + "".join(f"<td>{format_number(v)}</td>" for v in values) + "</tr>"
        for i, values in enumerate(zip(*sides, strict=True))
    )
    return (
        '<details class="more"><summary>All singular values, as a table</summary><table class="numbers"><thead><tr>'
        f'<th scope="col">i</th>{head}</tr></thead><tbody>{rows}</tbody></table></details>'
    )
