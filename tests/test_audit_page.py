"""The report: its table in a real browser, nothing but itself, any name escaped; words and charts beside it."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from test_audit import MINILM, TRIPLE, small

from spectral_core.audit import audit_checkpoint
from spectral_core.audit.charts import heat_map, spectra
from spectral_core.audit.measure import MatrixAudit, random_kappa
from spectral_core.audit.page import audit_page
from spectral_core.audit.result import Audit, HeadAudit
from spectral_core.audit.table import audit_table
from spectral_core.audit.words import limit, overview, suggestions
from spectral_core.svg import format_number

HOSTILE = '<img src=x onerror=alert(1)>"\'&</title><script>alert(2)</script>'
CONFIG = {"num_attention_heads": 2}


@pytest.fixture(scope="module")
def minilm():
    return audit_checkpoint(MINILM, progress=False)


@pytest.fixture
def report(minilm, tmp_path, browser):
    """A page that shows the report of MiniLM, and everything that the console or the network heard."""
    file = tmp_path / "report.html"
    file.write_text(audit_page(minilm), encoding="utf-8")
    heard = []

    def visit(**settings):
        context = browser.new_context(**settings)
        page = context.new_page()
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("request", lambda request: heard.extend([request.url] * (request.url[:5] not in ("file:", "data:"))))
        page.goto(file.as_uri())
        return page

    yield visit, heard
    for context in browser.contexts:
        context.close()


def test_the_table_in_a_browser_has_the_numbers(report, minilm):
    visit, heard = report
    page = visit(viewport={"width": 1200, "height": 900})
    rows = page.locator("section, div.scroll").filter(has=page.get_by_text("Layer by layer")).locator("tbody tr")
    assert rows.count() == 18
    whole = [m for m in minilm.matrices if m.head is None]
    for i, m in enumerate(whole):
        cells = rows.nth(i).locator("td").all_inner_texts()
        worst = max((h for h in minilm.matrices if (h.index, h.role) == (m.index, m.role) and h.head is not None),
                    key=lambda h: h.kappa)  # fmt: skip
        assert cells[:2] == [str(m.index), m.role.upper()]
        assert cells[2:5] == [format_number(m.kappa), format_number(worst.kappa), str(worst.head)]
        assert (cells[7], cells[10]) == ("384 × 384", m.layer)
    page.get_by_text("Every head, 216 rows").click()
    heads = page.locator("details").filter(has_text="Every head, 216 rows").locator("tbody tr")
    assert heads.count() == 216
    assert heads.first.locator("td").nth(3).inner_text() == f"{minilm.matrices[1].kappa:.7g}"
    assert page.locator("svg[role=img]").count() == 3 + 1 + 6
    assert page.locator("svg.map, figure.map rect").count() == 216 + 18
    assert heard == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1400, "dark")])
def test_it_is_legible_on_a_phone_and_in_the_dark(report, width, scheme):
    visit, heard = report
    page = visit(viewport={"width": width, "height": 844}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    light, dark = sorted((sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)), reverse=True)
    assert light - dark > 500
    assert (light == sum(map(int, re.findall(r"\d+", paper)[:3]))) == (scheme == "light")
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('svg text')].map(t => parseFloat(getComputedStyle(t).fontSize) * "
        "t.getScreenCTM().a))"
    )
    assert smallest >= 8.5  # pixels on the screen, after the drawing is scaled to the width
    assert heard == []


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.events = set(), []

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        self.events += [name for name, _ in attributes if name.startswith("on")]


def test_names_from_a_file_are_escaped(tmp_path):
    shapes = {f"layers.0{HOSTILE}.attn.{n}.weight": (8, 8) for n in ("q_proj", "k_proj", "v_proj")}
    shapes |= {f"blocks.0.{HOSTILE}attn.qkv.weight": (24, 8)}
    found = audit_checkpoint(small(shapes, {**CONFIG, "model_type": HOSTILE}, tmp_path), progress=False)
    assert any(HOSTILE in m.layer for m in found.matrices)
    page = audit_page(found)
    tags = Tags()
    tags.feed(page)
    assert not tags.seen & {"img", "script", "iframe", "object"}
    assert tags.events == []
    assert "&lt;script&gt;alert(2)" in page
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=\"(?!data:,)", page)


def test_a_browser_meets_no_script_of_a_hostile_file(tmp_path, browser):
    shapes = {f"layers.0{HOSTILE}.attn.{n}.weight": (8, 8) for n in ("q_proj", "k_proj", "v_proj")}
    file = tmp_path / "report.html"
    file.write_text(audit_page(audit_checkpoint(small(shapes, CONFIG, tmp_path), progress=False)), encoding="utf-8")
    page, heard = browser.new_page(), []
    page.on("dialog", lambda dialog: heard.append(dialog.message))
    page.on("console", lambda message: heard.append(message.text))
    page.goto(file.as_uri())
    assert page.locator("h1").inner_text().startswith("Attention audit")
    assert heard == []
    page.close()


def in_terminal(found, width=140):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(audit_table(found, width))
    return console.export_text()


def test_the_terminal_has_seven_digits_and_markup_in_names_is_text(minilm, tmp_path):
    text = in_terminal(minilm)
    for m in minilm.matrices:
        if m.head is None:
            assert f"{m.kappa:.7g}" in text
    shapes = {f"[bold]x[/].attn.{n}.weight": (8, 8) for n in ("q_proj", "k_proj", "v_proj")}
    assert "[bold]x[/].attn" in in_terminal(audit_checkpoint(small(shapes, CONFIG, tmp_path), progress=False))


def test_words_follow_what_was_found(tmp_path):
    flat = torch.eye(8)
    flat[0, 0] = 1e4
    q = "layers.0.attn.q_proj.weight"
    bad = audit_checkpoint(small(TRIPLE, CONFIG, tmp_path, **{q: flat}), progress=False)
    assert any("1 matrix lies far above chance (layers 0)" in line for line in suggestions(bad))
    assert any("neither helps a model that is only used" in line for line in suggestions(bad))
    assert "The worst, layer 0, Q, head 0, is " in overview(bad)[1]
    zero = audit_checkpoint(small(TRIPLE, CONFIG, tmp_path, **{q: torch.zeros(8, 8)}), progress=False)
    assert any("3 matrices are rank deficient" in line and "3 of them all zero" in line for line in overview(zero))
    assert any("where W_Q or W_K is, it averages over tokens" in line for line in suggestions(zero))
    assert not any("no reason to correct" in line for line in suggestions(zero))
    holes = audit_checkpoint(small(TRIPLE, CONFIG, tmp_path, **{q: flat / 0}), progress=False)
    assert overview(holes)[-1] == "The audit is incomplete: 1 gap, listed below."
    assert suggestions(holes)[0].startswith("Close the gaps first")


def test_words_do_not_call_all_well_when_whole_matrices_are_not():
    def row(head, shape, kappa):
        return MatrixAudit("a", 0, "q", head, "t", "separate", "F32", shape, kappa, kappa, 1, 1.0, 1.0, 1.0, (1.0,))

    found = Audit("x", (row(None, (48, 48), 4e4), row(0, (8, 48), 2.0)))
    lines = suggestions(found)
    assert lines[0] == "No head is far above what chance gives its shape: that is no reason to correct anything."
    assert lines[1].startswith("The large κ of whole matrices lies between heads")


@pytest.mark.parametrize("seed", range(5))
def test_random_weights_are_not_called_badly_conditioned(seed, tmp_path):
    generator = torch.Generator().manual_seed(seed)
    names = [f"layers.{i}.attn.{n}.weight" for i in range(12) for n in ("q_proj", "k_proj", "v_proj")]
    save_file({n: torch.randn(48, 48, generator=generator) for n in names}, tmp_path / "model.safetensors")
    for heads in (None, 3):
        lines = suggestions(audit_checkpoint(tmp_path, heads=heads, progress=False))
        assert any("no reason to correct anything" in line for line in lines)
        assert not any("condition(model" in line or "lies between heads" in line for line in lines)


def test_what_is_said_of_the_worst_of_many_square_matrices_is_so():
    generator = torch.Generator().manual_seed(0)
    count, n = 18, 48
    draws = torch.randn(250 * count, n, n, generator=generator, dtype=torch.float64)
    worst = (torch.linalg.cond(draws) / random_kappa(n, n)).view(-1, count).amax(1)
    rows = [MatrixAudit("a", i, "q", None, "t", "separate", "F64", (n, n), 2.0, 2.0, n, 1.0, 0.5, 1.0, (1.0,))
            for i in range(count)]  # fmt: skip
    summary = Audit("x", tuple(rows)).summaries(heads=False)[0]
    said = int(re.search(r"worst is over (\d+) times", overview(Audit("x", tuple(rows)))[1])[1])
    assert 0.75 < float(worst.median()) / said < 1.35
    assert float((worst > limit(summary)).double().mean()) < 0.04  # one in a hundred is meant


@pytest.mark.parametrize("width", [80, 100])
def test_a_narrow_terminal_still_says_what_a_row_is_about(width, minilm):
    text = in_terminal(minilm, width)
    assert max(map(len, text.splitlines())) <= width
    rows = [line for line in text.splitlines() if line.startswith("│")]
    assert [row.split("│")[2].strip() for row in rows if row.split("│")[2].strip()] == list("QKV") * 6
    assert sum("self" in row or "encoder" in row for row in rows) >= 6
    assert "28898.95" in text


def test_words_about_jacobians_and_the_tables_that_show_them(minilm):
    heads = tuple(
        HeadAudit(minilm.layers[i], i, j, 1, 10.0 ** (i + j), i == 5, 30, 0.5, 1.0, 2.0, 3.0)
        for i in range(6) for j in range(12)
    )  # fmt: skip
    seen = Audit("x", minilm.matrices, heads, data="4 texts", advice="Chosen: nothing.")
    assert "On 4 texts: the largest κ(J) of a head is at least 10¹⁶ (layer 5, head 11)" in " ".join(
        overview(seen)
    ).replace("1.00 × ", "")
    assert suggestions(seen)[-1] == "If you go on training, calibrate says on the same data: Chosen: nothing."
    assert not any("--data" in line for line in suggestions(seen))
    text = in_terminal(seen)
    assert "Jacobians on 4 texts" in text
    assert "≥ 1e+16" in text
    page = audit_page(seen)
    assert page.count('class="map"') == 3 + 1 + 2
    assert "≥ 1.00 × 10¹⁶" in page
    rows = list(json.loads(seen.to_json())["heads"])
    assert rows[-1]["kappa_j"] == 1e16
    assert "1e+16,0.5" in seen.to_csv()


def test_nothing_measured_is_still_a_page_and_a_table(tmp_path):
    found = audit_checkpoint(
        small(TRIPLE, CONFIG, tmp_path, **{name: torch.full((8, 8), float("nan")) for name in TRIPLE}), progress=False
    )
    assert in_terminal(found).count("64 of 64 entries are nan") == 6 + 6  # rows and gaps
    assert "64 of 64 entries are nan" in audit_page(found)


def test_a_thousand_heads_are_left_to_the_csv():
    minilm = audit_checkpoint(MINILM, scope="head", progress=False)
    many = Audit("x", minilm.matrices * 10)
    assert "2,160 heads are too many for a page: --csv lists them." in audit_page(many)


def test_a_heat_map_shows_holes_and_infinity():
    drawn = heat_map(
        "κ", {(0, 0): (2.0, 1.0, "here"), (1, 1): (float("inf"), float("inf"), "there")}, span=[1.0, float("inf")]
    )
    assert drawn.count('class="hole"') == 2
    assert 'fill-opacity="1.00"><title>there: ∞</title>' in drawn
    assert "2 layers by 2 columns, from 2 to 2" in drawn
    assert ">7</text>" in heat_map("κ", {(7, 0): (2.0, 2.0, "here")}, span=[2.0])
    even = heat_map("κ", {(0, i): (2 + i / 100, 2 + i / 100, "") for i in range(9)}, span=[2.0, 2.08])
    assert max(float(o) for o in re.findall(r'fill-opacity="([\d.]+)"', even)) < 0.15  # no contrast out of nothing
    assert 'style="max-width: none"' in heat_map("κ", {(0, i): (2.0, 2.0, "") for i in range(40)}, span=[2.0])


def test_spectra_are_paths_of_every_role():
    drawn = spectra("Layer 0", "name", {"q": [4.0, 2.0, 1.0], "k": [1.0], "v": [0.0, 0.0]})
    assert re.findall(r'<path class="(\w)"', drawn) == ["q", "k", "v"]
    assert "Q 4, K 1, V ∞" in drawn
    assert "nan" not in drawn.lower().replace("name", "")
