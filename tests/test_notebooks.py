"""The lessons as files: pairs that agree, a checker that notices when they do not, budgets, links and the template.

The notebooks themselves are executed by nbmake, as pytest's own items.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import nbformat
import numpy as np
import pytest
from rich.progress import Progress

import spectral_core
from spectral_core.demo import RANGES, ROLES, parse_settings
from spectral_core.lessons.registry import Exercise, Question, View, entries

FOLDER = Path(__file__).parent.parent / "notebooks"
spec = importlib.util.spec_from_file_location("lesson_build", FOLDER / "build.py")
build = importlib.util.module_from_spec(spec)
sys.modules["lesson_build"] = build
spec.loader.exec_module(build)

LESSONS = build.sources()
SECTIONS = (
    "1. Cold open", "2. Objectives", "3. Setup", "4. Predict", "5. Idea, equation, shapes, code", "6. See",
    "7. Exercises", "8. Signature result", "9. Play", "10. Limits", "11. Recap",
)  # fmt: skip
DEMO_NAMES = {"kind", "roles", "preserve", "init", "source", "seed", *(f"{n}_{r}" for n in RANGES for r in ROLES)}

lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def text_of(path):
    return "\n".join(cell.source for cell in build.read_source(path).cells if cell.cell_type == "markdown")


def code_of(path):
    return [cell for cell in build.read_source(path).cells if cell.cell_type == "code"]


def section(path, title):
    return text_of(path).split(f"## {title}\n")[1].split("\n## ")[0]


# ---- pairs -----------------------------------------------------------------------------------------------


def test_there_are_lessons_and_every_pair_agrees():
    assert [path.stem[:3] for path in LESSONS][:2] == ["01_", "02_"]
    assert build.disagreements() == []


@pytest.fixture
def copy(tmp_path):
    """The folder of lessons, copied; the unbroken copy passes."""
    for path in [FOLDER / "build.py", *FOLDER.glob("[0-9]*")]:
        shutil.copy(path, tmp_path)
    assert build.disagreements(tmp_path) == []
    return tmp_path


def edit(path, change):
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    path.write_text(nbformat.writes(notebook), encoding="utf-8")


def drop_outputs(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def add_error(notebook):
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    cell.outputs.append(nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[]))


def change_source(notebook):
    notebook.cells[3].source += "\nx"


def drop_cell(notebook):
    del notebook.cells[-1]


def change_type(notebook):
    notebook.cells[0] = nbformat.v4.new_raw_cell(notebook.cells[0].source)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (change_source, "cell 3 of the notebook is not what the source says"),
        (drop_cell, "of the notebook is not what the source says"),
        (change_type, "cell 0 of the notebook is not what the source says"),
        (drop_outputs, "has no outputs"),
        (add_error, "shows an error"),
        (lambda notebook: notebook.metadata.pop("spectral_core"), "its hash differs"),
    ],
)
def test_an_edited_notebook_is_noticed(copy, change, why):
    edit(copy / LESSONS[0].with_suffix(".ipynb").name, change)
    (line,) = build.disagreements(copy)
    assert why in line
    assert line.startswith(f"{LESSONS[0].name} / {LESSONS[0].stem}.ipynb: ")


def test_an_edited_source_is_noticed_by_the_command(copy):
    source = copy / LESSONS[1].name
    source.write_text(source.read_text(encoding="utf-8") + "\n# one more comment\n", encoding="utf-8")
    command = [sys.executable, "build.py", "--check"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert LESSONS[1].stem in done.stdout
    assert "hash differs" in done.stdout
    assert LESSONS[0].stem not in done.stdout


def test_a_change_that_leaves_the_cells_alone_is_noticed_by_its_hash(copy):
    source = copy / LESSONS[0].name
    source.write_text("\n" + source.read_text(encoding="utf-8"), encoding="utf-8")
    assert any("hash differs" in line for line in build.disagreements(copy))


def test_missing_partners_are_noticed(copy):
    (copy / f"{LESSONS[0].stem}.ipynb").unlink()
    (copy / LESSONS[1].name).unlink()
    assert build.disagreements(copy) == [
        f"{LESSONS[0].name} / {LESSONS[0].stem}.ipynb: the notebook is missing",
        f"{LESSONS[1].stem}.ipynb: no {LESSONS[1].stem}.py beside it",
    ]


# ---- building --------------------------------------------------------------------------------------------

HEAD = "# %% [markdown]\n# # 0. Tiny\n# Runs in under {} s and {} MB on two cores.\n\n# %%\n{}\n"


def write(tmp_path, code, seconds=50, megabytes=1000):
    path = tmp_path / "00_tiny.py"
    path.write_text(HEAD.format(seconds, megabytes, code), encoding="utf-8")
    return path


def test_a_build_is_repeatable_and_keeps_nothing_of_the_moment(tmp_path):
    path = write(tmp_path, "import ipywidgets\n\nprint('hi')\nipywidgets.IntSlider()")
    pair = path.with_suffix(".ipynb")
    pair.write_text("the old notebook is not read")
    with Progress(disable=True) as progress:
        assert re.fullmatch(r"00_tiny: [\d.]+ s, \d+ MB, \d+ kB", build.build(path, progress))
        first = pair.read_bytes()
        build.build(path, progress)
    assert pair.read_bytes() == first
    assert build.disagreements(tmp_path) == []
    notebook = json.loads(first)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info", "spectral_core"}
    assert notebook["cells"][1]["outputs"][0]["text"] == ["hi\n"]
    assert len(notebook["cells"]) == 2  # the memory probe is gone
    assert b"widget-view" not in first


@pytest.mark.parametrize(
    ("code", "limits", "why"),
    [
        ("1 / 0", {}, "ZeroDivisionError"),
        ("pass", {"megabytes": 1}, "more than its head states"),
        ("pass", {"seconds": 0}, "more than its head states"),
        ("pass", {"seconds": 61}, "at most 60 s and 1500 MB"),
        ("import os; print(os.urandom(200_000).hex())", {}, "more than 300 kB"),
    ],
)
def test_a_build_that_breaks_a_promise_writes_nothing(tmp_path, code, limits, why):
    path = write(tmp_path, code, **limits)
    with Progress(disable=True) as progress, pytest.raises(build.BuildError, match=why):
        build.build(path, progress)
    assert not path.with_suffix(".ipynb").exists()


def test_the_memory_of_a_lesson_is_its_own_and_not_its_parents(tmp_path):
    ballast = np.ones(90_000_000)  # 720 MB here, in the process that starts the kernel
    path = write(tmp_path, "pass", megabytes=500)
    with Progress(disable=True) as progress:
        build.build(path, progress)
    assert ballast.nbytes == 720_000_000


def test_cell_ids_follow_from_the_content(tmp_path):
    path = write(tmp_path, "a = 1\n\n# %%\na = 1\n\n# %%\nb = 2")
    ids = [cell.id for cell in build.read_source(path).cells]
    assert len(set(ids)) == len(ids) == 4
    assert ids == [cell.id for cell in build.read_source(path).cells]
    moved = write(tmp_path, "c = 3\n\n# %%\na = 1\n\n# %%\na = 1\n\n# %%\nb = 2")
    assert set(ids) < {cell.id for cell in build.read_source(moved).cells}


def test_a_head_without_limits_is_refused(tmp_path):
    path = tmp_path / "00_tiny.py"
    path.write_text("# %% [markdown]\n# # Tiny\n", encoding="utf-8")
    with pytest.raises(build.BuildError, match="Runs in under N s and M MB"):
        build.limits(build.read_source(path))


# ---- what readers get ------------------------------------------------------------------------------------


@lesson
def test_the_notebook_keeps_its_budget_and_says_nothing_of_this_machine(path):
    raw = path.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert len(raw.encode()) < build.MAX_KILOBYTES * 1000
    assert build.limits(build.read_source(path))
    for word in (str(FOLDER.parent), str(Path.home()), "site-packages", "model_id", "Traceback", "<ipython-input"):
        assert word not in raw, word


@lesson
def test_the_notebook_carries_only_stable_metadata(path):
    notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info", "spectral_core"}
    assert notebook.metadata.language_info == {"name": "python"}
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr"
            if "image/png" in output.get("data", {}):
                assert len(output.data["text/plain"]) > 40  # the figure in words


@lesson
def test_every_section_of_the_template_is_there_in_order(path):
    text = text_of(path)
    assert re.findall(r"^## (.+)$", text, re.M) == list(SECTIONS)
    assert re.match(rf"# {int(path.stem[:2])}\. \S", text)


@lesson
def test_the_head_states_claim_time_needs_and_version(path):
    head = build.read_source(path).cells[0].source
    assert re.search(r"^\*\*Claim\.\*\* ", head, re.M)
    assert "control" in head
    assert re.search(r"\*\*Time\*\* \| about \d+ minutes", head)
    assert "**You need**" in head
    stated = re.search(r"written for spectral_core (\d+\.\d+);", head)[1]
    assert spectral_core.__version__.startswith(f"{stated}.")
    for mark in ("**[reported]**", "**[derived]**", "**[measured]**"):
        assert mark in head


@lesson
def test_objectives_are_mapped_to_what_checks_them(path):
    number = path.stem[:2]
    objectives = re.split(r"^\d+\. ", section(path, SECTIONS[1]), flags=re.M)[1:]
    assert 4 <= len(objectives) <= 7
    known = {entry.id for entry in entries() if isinstance(entry, (Exercise, Question))}
    mentioned = [re.findall(r"`(\d\d\.[\w-]+)`", objective) for objective in objectives]
    assert all(mentioned)
    assert {name for names in mentioned for name in names} <= known
    exercises = {entry.id for entry in entries() if isinstance(entry, Exercise) and entry.id.startswith(number)}
    assert exercises <= {name for names in mentioned for name in names}


@lesson
def test_everything_that_is_registered_is_used(path):
    code = "\n".join(cell.source for cell in code_of(path))
    for entry in entries():
        if entry.id.startswith(path.stem[:2]):
            assert f'"{entry.id}"' in code, entry.id
    assert "env_check()" in code
    assert code.count('quiz("') == 3
    predicted = re.findall(r'(\w+) = predict\("[\w.-]+", "skipped"\)', code)
    assert predicted
    for name in predicted:
        assert f"reveal({name})" in code


@lesson
def test_a_figure_stands_before_the_sliders_of_the_same_view(path):
    code = "\n".join(cell.source for cell in code_of(path))
    explored = re.findall(r'explore\("([\w.-]+)"\)', code)
    assert explored
    views = {entry.id for entry in entries() if isinstance(entry, View)}
    for view in explored:
        assert view in views
        assert 0 <= code.find(f'figure("{view}")') < code.find(f'explore("{view}")')
    things = re.split(r"^\d\. ", section(path, "6. See"), flags=re.M)[1:]
    assert len(things) >= 3
    assert any("widgets" in cell.metadata.get("tags", []) and ".sweep()" in cell.source for cell in code_of(path))


@lesson
def test_exercises_have_rating_reason_hints_solution_and_bugs(path):
    text = section(path, "7. Exercises")
    exercises = text.split("\n### Exercise ")[1:]
    assert 2 <= len(exercises) <= 4
    stubs = [cell.source for cell in code_of(path) if "exercise" in cell.metadata.get("tags", [])]
    assert len(stubs) == len(exercises)
    for exercise, stub in zip(exercises, stubs, strict=True):
        assert re.search(r"\*Difficulty [1-5] of 5 · \d+ minutes · Why it matters: ", exercise)
        folded = re.findall(r"<details><summary>(.+?)</summary>\n\n", exercise)
        assert [name.split(":")[0] for name in folded] == ["Hint 1", "Hint 2", "Solution", "Common bugs"]
        assert exercise.count("</details>") == 4
        assert "*Why:*" in exercise
        assert "raise NotImplementedError" in stub
        assert re.search(r'^check\("[\w.-]+", \w+\)$', stub, re.M)


@lesson
def test_links_lead_somewhere(path):
    links = re.findall(r"\[[^\]]+\]\(([^)\s]+)\)", text_of(path))
    demo = [urlsplit(link) for link in links if link.startswith("http://127.0.0.1:7860/")]
    assert demo
    for link in links:
        parts = urlsplit(link)
        if not parts.scheme:
            assert (FOLDER / parts.path).exists(), link
        elif parts not in demo:
            assert parts.scheme == "https"
    for parts in demo:
        query = dict(parse_qsl(parts.query, strict_parsing=True))
        assert set(query) <= DEMO_NAMES
        assert parse_settings(query)[1] == []
    recap = section(path, "11. Recap").split("**Links.**")[1].split("**Next lesson.**")
    assert 3 <= len(re.findall(r"\]\(", recap[0])) <= 6
    assert recap[1].strip()


@lesson
def test_numbers_in_the_text_are_asserted_in_cells(path):
    asserts = [cell for cell in code_of(path) if "assert" in cell.metadata.get("tags", [])]
    assert len(asserts) >= 3
    assert all("assert " in cell.source for cell in asserts if "widgets" not in cell.metadata.tags)


@lesson
def test_the_signature_result_has_seeds_baseline_and_negative_control(path):
    text = section(path, "8. Signature result")
    for word in ("**baseline**", "negative control", "control for"):
        assert word in text
    cells = [c for c in build.read_source(path).cells]
    at = next(i for i, c in enumerate(cells) if "## 8. Signature result" in c.source)
    code = "\n".join(cell.source for cell in cells[at : at + 4] if cell.cell_type == "code")
    assert "range(5)" in code
    assert "table(" in code
    assert "plots." in code
