"""The demo for everyone: axe's rules, keys alone, labels, tables, narrow and dark pages, less motion, calm speech."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from app_server import Server
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

TABS = ("Shape", "Race", "Audit")
expect.set_options(timeout=15_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("app") / "app.log", SPECTRAL_RUNS="1") as app:
        yield app


@pytest.fixture
def visit(browser: Browser, server: Server):
    """Open the page as a new visitor."""
    contexts = []

    def open_page(query: str = "", *, width: int = 1280, **options) -> Page:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.goto(server.url + query)
        expect(page.locator("#after-kappa-j")).to_be_visible()
        page.wait_for_selector("#announce", state="attached")
        if "kind=" in query:
            page.wait_for_function("location.search.includes('seed=')")  # the address as the page writes it
        return page

    yield open_page
    for context in contexts:
        context.close()


def show_tab(page: Page, name: str) -> None:
    """Choose a tab; a narrow page may keep it in a menu."""
    page.get_by_role("tab", name=name).click()
    expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")


def focused(page: Page) -> dict:
    return page.evaluate("""() => { const e = document.activeElement, style = getComputedStyle(e);
        const box = e.getBoundingClientRect();
        return {id: e.id, tag: e.tagName, role: e.getAttribute('role'), text: e.textContent.trim().slice(0, 40),
                inside: [...function* () { for (let n = e; n; n = n.parentElement) if (n.id) yield n.id; }()],
                classes: e.getAttribute('class') ?? '', type: e.type, outline: style.outlineStyle,
                width: parseFloat(style.outlineWidth), seen: box.width > 0 && box.height > 0}; }""")


def tab_to(page: Page, is_there, most: int = 60) -> dict:
    """Press Tab until a place is reached; every stop on the way can be seen."""
    for _ in range(most):
        page.keyboard.press("Tab")
        place = focused(page)
        if place["tag"] == "BODY":
            continue
        assert place["seen"], place
        assert place["outline"] not in ("none", "hidden"), place
        assert place["width"] >= 2, place
        if is_there(place):
            return place
    raise AssertionError(f"not reached within {most} stops; the last was {place}")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(visit, theme: str, width: int) -> None:
    page = visit(f"/?__theme={theme}", width=width)
    assert page.title() == "Spectral conditioning of attention"
    assert page.locator("html").get_attribute("lang")
    for name in ("Where it is put, and at what size", "Weights, tokens, seed"):
        page.get_by_role("button", name=name).click()
    for summary in page.locator("#view summary").all():
        summary.click()
    for kind in ("Drawn", "Profile"):
        page.locator("#kind").get_by_label(kind).click()
        expect(page.locator("#drawn-q")).to_be_visible(visible=kind == "Drawn")
        if kind == "Drawn":
            assert not serious(page)
    found = {}
    for name in TABS:
        show_tab(page, name)
        if name == "Race":
            page.locator("#curves summary").first.click()
        found[name] = serious(page)
    assert not any(found.values()), found


def serious(page: Page) -> list[str]:
    """Axe's serious and critical violations, each with its first place."""
    violations = Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['help']}, e.g. {v['nodes'][0]['html'][:200]} {v['nodes'][0]['failureSummary']}"
            for v in violations if v["impact"] in ("serious", "critical")]


def test_every_drawing_has_a_label_and_a_table(visit) -> None:
    page = visit("/?kind=identity&lam_q=0.5")
    labels = page.locator("#view svg").evaluate_all("all => all.map(s => [s.getAttribute('role'), s.ariaLabel])")
    assert len(labels) == 6  # three spectra, the law, two maps
    assert [role for role, _ in labels] == ["group"] * 3 + ["img"] * 3
    assert all(label and len(label) > 15 for _, label in labels)
    hits = page.locator(".spectrum").first.locator(".hit")
    assert hits.evaluate_all("""all => all.every(h => h.role === 'slider' && h.ariaLabel && h.ariaValueNow
        && h.ariaValueText && +h.ariaValueMin <= +h.ariaValueNow && +h.ariaValueNow <= +h.ariaValueMax)""")
    assert hits.evaluate_all("all => all.filter(h => h.tabIndex === 0).length") == 1
    tables = page.locator("#view table")
    assert tables.count() == 3
    assert tables.nth(2).locator("tbody tr").count() == 32  # every bar
    show_tab(page, "Race")
    figures = page.locator("#curves figure")
    assert figures.count() == 4
    for figure in figures.all():
        drawing, rows = figure.locator("svg[role=img]"), figure.locator("table tbody tr:not([hidden])")
        assert "step 600" in drawing.get_attribute("aria-label")
        assert rows.count() == 13  # each 50 steps
        head = figure.locator("thead th").all_text_contents()
        last = rows.last.locator("th, td").all_text_contents()
        assert last[0] == "600"
        for arm, value in zip(head[1:], last[1:], strict=True):
            assert f"{arm} {value}" in drawing.get_attribute("aria-label")
    dashes = page.locator("#curves svg").first.locator(".line").evaluate_all(
        "all => all.map(p => getComputedStyle(p).strokeDasharray)")
    assert len(set(dashes)) == len(dashes)  # not by colour alone


def test_keys_alone_make_the_whole_journey(visit) -> None:
    page = visit()
    tab_to(page, lambda place: place["id"] == "preset-small-lambda")
    page.keyboard.press("Enter")
    expect(page.locator("#story")).to_contain_text("λ = 1 on Q, K and V")
    expect(page.locator("#preset-small-lambda")).to_be_focused()

    tab_to(page, lambda place: place["role"] == "tab")
    bar = tab_to(page, lambda place: place["role"] == "slider" and place["tag"] == "rect")
    assert "hit" in bar["classes"]
    page.keyboard.press("ArrowDown")
    page.wait_for_function("location.search.includes('kind=drawn')")
    place = focused(page)
    assert (place["role"], place["tag"]) == ("slider", "rect")
    page.keyboard.press("ArrowRight")
    assert focused(page)["width"] >= 2

    # radios: the chosen one, or any, is a stop, and arrow keys or Space choose
    tab_to(page, lambda place: "kind" in place["inside"])
    for _ in range(6):
        if page.evaluate("document.activeElement.value") == "identity":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.locator("#lam-q input[type=range]")).to_be_visible()
    slider = tab_to(page, lambda place: "lam-q" in place["inside"] and place["type"] == "range")
    assert slider["tag"] == "INPUT"
    page.keyboard.press("ArrowRight")
    page.wait_for_function("location.search.includes('lam_q=1.05')")

    tab_to(page, lambda place: place["role"] == "tab")  # around, from the end to the start
    page.keyboard.press("ArrowRight")
    if "Race" not in focused(page)["text"]:  # arrow keys do not move between tabs: Tab does
        tab_to(page, lambda place: place["role"] == "tab" and place["text"] == "Race")
    page.keyboard.press("Enter")
    expect(page.get_by_role("tab", name="Race")).to_have_attribute("aria-selected", "true")
    tab_to(page, lambda place: place["id"] == "start")
    page.keyboard.press("Enter")
    page.wait_for_function("""() => { const race = document.querySelector('#curves .race');
        return +race.dataset.frames >= 2 && +race.dataset.frames < 121 }""")
    tab_to(page, lambda place: place["id"] == "stop")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Stopped.")
    expect(page.locator("#stop")).to_be_focused()


@pytest.mark.parametrize("width", [390, 768, 1280, 1920])
def test_no_sideways_scroll(visit, width: int) -> None:
    page = visit("/?kind=profile", width=width)
    page.get_by_role("button", name="Where it is put, and at what size").click()
    for name in TABS:
        show_tab(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.body.scrollWidth") <= width
        wide = page.evaluate("""() => [...document.querySelectorAll('svg, table, button, input')].filter(e => {
            const box = e.getBoundingClientRect(); return box.width && box.right > innerWidth + 1
                && !e.closest('details') })  // a wide table scrolls by itself
            .map(e => e.outerHTML.slice(0, 120))""")
        assert not wide
    for name, place in (("Shape", "#view"), ("Race", "#curves")):
        show_tab(page, name)
        for summary in page.locator(f"{place} summary").all():
            summary.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator(f"{place} details").evaluate_all("""all => all.every(d => d.open
            && d.getBoundingClientRect().right <= innerWidth && getComputedStyle(d).overflowX === 'auto')""")


def test_a_dark_page_has_no_white_block(visit) -> None:
    page = visit("/?__theme=dark")
    for name in TABS:
        show_tab(page, name)
        page.wait_for_timeout(250)  # colours of buttons fade in
        light = page.evaluate("""() => [...document.querySelectorAll('body *')].filter(e => {
            const box = e.getBoundingClientRect(), fill = getComputedStyle(e).backgroundColor;
            const [r, g, b, a] = fill.match(/[\\d.]+/g).map(Number);
            return box.width * box.height > 400 && (a ?? 1) > 0.3 && Math.min(r, g, b) > 170 })
            .map(e => e.outerHTML.slice(0, 150))""")
        assert not light
        cover = page.locator("gradio-app").bounding_box()  # the body's own colour is never seen
        assert (cover["x"], cover["width"]) == (0, 1280)
        assert cover["height"] >= 900
    show_tab(page, "Race")
    ink = page.locator("#curves text").first.evaluate("e => getComputedStyle(e).fill")
    assert min(int(part) for part in ink.removeprefix("rgb(").rstrip(")").split(",")) > 150


def test_less_motion_where_that_is_asked_for(visit) -> None:
    page = visit(reduced_motion="reduce")
    for name in TABS:
        show_tab(page, name)
        moving = page.evaluate("""() => [...document.querySelectorAll('.gradio-container *')].filter(e => {
            const style = getComputedStyle(e), zero = text => text.split(',').every(t => parseFloat(t) === 0);
            return !(style.transitionProperty === 'none' || zero(style.transitionDuration))
                || !(style.animationName === 'none' || zero(style.animationDuration)) })
            .map(e => e.outerHTML.slice(0, 120))""")
        assert not moving


def test_speech_is_calm_while_a_slider_moves(visit) -> None:
    page = visit("/?kind=identity")
    page.evaluate("""() => { window.spoken = []; document.querySelectorAll('[aria-live], [role=status], [role=alert]')
        .forEach(live => new MutationObserver(() => window.spoken.push([performance.now(), live.id, live.textContent]))
        .observe(live, {childList: true, characterData: true, subtree: true})) }""")
    page.locator("#lam-q input[type=range]").focus()
    began = time.monotonic()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(40)
    page.wait_for_function("document.querySelector('#announce').textContent !== ''")
    seconds = time.monotonic() - began
    page.wait_for_timeout(1200)
    spoken = page.evaluate("window.spoken")
    assert 1 <= len(spoken) <= 1 + seconds, spoken
    assert spoken[-1][1] == "announce"
    assert spoken[-1][2] == page.locator("#said").text_content()
    gaps = [b[0] - a[0] for a, b in pairwise(spoken)]
    assert all(gap > 900 for gap in gaps)


def test_a_race_announces_its_state_only(visit) -> None:
    """Not every frame: what is read aloud is "Training." once, and the end."""
    page = visit("/?kind=identity&arms=plain")
    show_tab(page, "Race")
    page.evaluate("""() => { window.spoken = []; new MutationObserver(() => {
        const text = document.querySelector('#status [aria-live]')?.textContent;
        if (text !== window.spoken.at(-1)) window.spoken.push(text) })
        .observe(document.querySelector('#status'), {childList: true, characterData: true, subtree: true}) }""")
    page.click("#start")
    page.wait_for_function("""() => { const n = +document.querySelector('#curves .race').dataset.frames;
        return n > 9 && n < 121 }""")
    page.click("#stop")
    expect(page.locator("#status")).to_contain_text("Stopped.")
    spoken = page.evaluate("window.spoken")
    assert spoken[-1] == "Stopped."
    assert [text for text in spoken if text == "Training."] == ["Training."]
    assert len(spoken) <= 4
