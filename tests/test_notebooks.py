"""The lessons as files: pairs that agree, a checker that notices when they do not, budgets, links and the template.

The notebooks themselves are executed by nbmake, as pytest's own items.
"""

import base64
import importlib.util
import inspect
import itertools
import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import nbformat
import numpy as np
import pytest
from rich.progress import Progress

import spectral_core
from spectral_core.demo import control_names, parse_settings
from spectral_core.demo.presets import PRESETS
from spectral_core.lessons.heads import random_head
from spectral_core.lessons.registry import Exercise, Question, View, entries

FOLDER = Path(__file__).parent.parent / "notebooks"
sys.path.insert(0, str(FOLDER))
spec = importlib.util.spec_from_file_location("lesson_build", FOLDER / "build.py")
build = importlib.util.module_from_spec(spec)
sys.modules["lesson_build"] = build
spec.loader.exec_module(build)
pages, pairs = sys.modules["pages"], sys.modules["pairs"]

LESSONS = build.sources()
SECTIONS = (
    "1. Cold open", "2. Objectives", "3. Setup", "4. Predict", "5. Idea, equation, shapes, code", "6. See",
    "7. Exercises", "8. Signature result", "9. Play", "10. Limits", "11. Recap",
)  # fmt: skip
DEMO_NAMES = {"preset", *control_names()}

lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def text_of(path):
    return "\n".join(cell.source for cell in build.read_source(path).cells if cell.cell_type == "markdown")


def code_of(path):
    return [cell for cell in build.read_source(path).cells if cell.cell_type == "code"]


def section(path, title):
    return text_of(path).split(f"## {title}\n")[1].split("\n## ")[0]


# ---- pairs -----------------------------------------------------------------------------------------------


def test_there_are_lessons_and_every_pair_agrees():
    assert [path.stem[:3] for path in LESSONS] == [f"{number:02}_" for number in range(13)]
    assert build.disagreements() == []


@pytest.fixture
def copy(tmp_path):
    """The folder of lessons, copied with what they depend on; the unbroken copy passes."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for path in [*FOLDER.glob("*.py"), *FOLDER.glob("[0-9]*.ipynb"), *FOLDER.glob("*.md")]:
        shutil.copy(path, folder)
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(FOLDER.parent / name, tmp_path)
    assert build.disagreements(folder) == []
    return folder


def run_build(folder, *options):
    command = [sys.executable, "build.py", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


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
        (lambda notebook: notebook.cells[4].metadata.update(tags=["x"]), "edited by hand"),
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
    done = run_build(copy, "--check")
    assert done.returncode == 1
    assert LESSONS[1].stem in done.stdout
    assert "hash differs" in done.stdout
    assert LESSONS[0].stem not in done.stdout


def test_a_change_that_leaves_the_cells_alone_is_noticed_by_its_hash(copy):
    source = copy / LESSONS[0].name
    source.write_text("\n" + source.read_text(encoding="utf-8"), encoding="utf-8")
    assert any("hash differs" in line for line in build.disagreements(copy))


def test_other_constraints_are_noticed_by_their_hash(copy):
    constraints = copy.parent / "constraints.txt"
    constraints.write_text(constraints.read_text(encoding="utf-8") + "\nnothing==1\n", encoding="utf-8")
    done = run_build(copy, "--check")
    assert done.returncode == 1
    assert " ".join(done.stdout.split()).count("constraints.txt changed") == len(LESSONS)


def test_one_command_from_the_sources_leaves_git_nothing_to_say(copy):
    assert run_build(copy, "--rewrite").returncode == 0
    compare = ["git", "diff", "--no-index", "--exit-code", "--stat", str(FOLDER), str(copy)]
    ignored = {"__pycache__", ".ipynb_checkpoints"}
    for path in copy.iterdir():
        if path.name not in ignored:
            compare[-2:] = [str(FOLDER / path.name), str(path)]
            done = subprocess.run(compare, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout
    edit(copy / LESSONS[0].with_suffix(".ipynb").name, change_source)
    assert run_build(copy, "--rewrite").returncode == 0
    assert build.disagreements(copy) == []  # the hand's edit is gone


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
        done = build.build(path, progress)
        assert done.stem == "00_tiny"
        assert 0 < done.slowest < done.seconds < 60
        assert 20 < done.megabytes < 1000
        assert 0 < done.kilobytes < 5
        first = pair.read_bytes()
        build.build(path, progress)
    assert pair.read_bytes() == first
    assert build.disagreements(tmp_path) == []
    notebook = json.loads(first)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info", "spectral_core"}
    assert notebook["cells"][2]["outputs"][0]["text"] == ["hi\n"]
    assert len(notebook["cells"]) == 3  # head, install cell, code: the memory probe is gone
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


def test_a_slow_cell_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CELL_SECONDS", 0.2)
    path = write(tmp_path, "import time\ntime.sleep(0.5)")
    with Progress(disable=True) as progress, pytest.raises(build.BuildError, match="cell 2 took"):
        build.build(path, progress)


def test_the_memory_of_a_lesson_is_its_own_and_not_its_parents(tmp_path):
    ballast = np.ones(90_000_000)  # 720 MB here, in the process that starts the kernel
    path = write(tmp_path, "pass", megabytes=500)
    with Progress(disable=True) as progress:
        build.build(path, progress)
    assert ballast.nbytes == 720_000_000


def test_cell_ids_follow_from_the_content(tmp_path):
    path = write(tmp_path, "a = 1\n\n# %%\na = 1\n\n# %%\nb = 2")
    ids = [cell.id for cell in build.read_source(path).cells]
    assert len(set(ids)) == len(ids) == 5
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
        assert set(cell.metadata) <= {"tags", "jupyter"}
        folded = set(cell.metadata.get("tags", [])) & {"assert", "setup", "solution"}
        assert cell.metadata.get("jupyter") == ({"source_hidden": True} if folded else None)
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
def test_a_solution_cell_follows_each_exercise(path):
    cells = build.read_source(path).cells
    for i, cell in enumerate(cells):
        if "exercise" not in cell.metadata.get("tags", []):
            continue
        exercise_id, name = re.search(r'^check\("([\w.-]+)", (\w+)\)$', cell.source, re.M).groups()
        after = next(c for c in cells[i + 1 :] if c.cell_type == "code")
        assert after.metadata.tags == ["solution"]
        assert f'{name} = own_or_solution("{exercise_id}", {name})' in after.source


@lesson
def test_no_wall_of_code(path):
    for cell in code_of(path):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= 15, f"{len(lines)} lines: {cell.source[:80]}"


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
        assert query.get("preset", "healthy") in PRESETS
        assert parse_settings(query)[1] == []
    recap = section(path, "11. Recap").split("**Links.**")[1].split("**Next lesson.**")
    assert 3 <= len(re.findall(r"\]\(", recap[0])) <= 6
    assert recap[1].strip()


@pytest.mark.parametrize("name", PRESETS)
def test_the_lesson_of_a_preset_links_back(name):
    assert f"http://127.0.0.1:7860/?preset={name})" in text_of(FOLDER / f"{PRESETS[name].lesson}.py")


@lesson
def test_numbers_in_the_text_are_asserted_in_cells(path):
    asserts = [cell for cell in code_of(path) if "assert" in cell.metadata.get("tags", [])]
    assert len(asserts) >= 3
    assert all("assert " in cell.source for cell in asserts if "widgets" not in cell.metadata.tags)


@lesson
def test_the_signature_result_has_seeds_baseline_and_negative_control(path):
    text = section(path, "8. Signature result")
    for word in ("**baseline**", "negative control", "control for"):
        assert word in text.lower()
    cells = [c for c in build.read_source(path).cells]
    at, end = (next(i for i, c in enumerate(cells) if f"## {title}" in c.source) for title in SECTIONS[7:9])
    code = "\n".join(cell.source for cell in cells[at:end] if cell.cell_type == "code")
    assert any(int(count) >= 3 for count in re.findall(r"range\((\d+)\)", code)), "three seeds, in a range(...)"
    assert "table(" in code
    shown = [c for c in nbformat.read(path.with_suffix(".ipynb"), as_version=4).cells if c.cell_type == "code"]
    after = sum(c.cell_type == "code" for c in build.read_source(path).cells[:at])
    before = sum(c.cell_type == "code" for c in build.read_source(path).cells[:end])
    assert any("image/png" in output.get("data", {}) for c in shown[after:before] for output in c.outputs)


# ---- pages beside the lessons ------------------------------------------------------------------------------

PAGES = [*LESSONS, FOLDER / "notation.md", FOLDER / "glossary.md", FOLDER.parent / "README.md"]


def test_the_glossary_is_generated_and_explains_every_term_once():
    assert (FOLDER / "glossary.md").read_text(encoding="utf-8") == pages.glossary()
    known = [pages.terms(path) for path in LESSONS]
    assert all(2 <= len(terms) <= 12 for terms in known)
    for terms in known:
        for term, said in terms.items():
            assert len(said) > 15, term
            assert term.count("*") == 0


def test_a_stale_glossary_is_noticed(copy):
    page = copy / "glossary.md"
    page.write_text(page.read_text(encoding="utf-8").replace("ellipsoid", "egg") + "\n", encoding="utf-8")
    done = run_build(copy, "--check")
    assert done.returncode == 1
    assert "glossary.md: the lessons' terms changed" in done.stdout


def test_notation_is_that_of_the_docstrings():
    text = (FOLDER / "notation.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) > 20
    for row in rows:
        codes = re.findall(r"`([^`]+)`", row[-1])
        assert codes, row
        for code in codes:
            check_notation(code, row[0].removeprefix("| "))


def check_notation(code, symbol):
    """`code` is an argument or a formula of AttentionJacobian's docstring, an option, an attribute, or a name."""
    jacobian = spectral_core.AttentionJacobian(*random_head(3, 4, 2, 2))
    title, *lines = (line.strip() for line in jacobian.__doc__.splitlines())
    name, _, attribute = code.replace("(...)", "").partition(".")
    if ":" in code:
        assert any(line.startswith(code) for line in lines), code
    elif attribute:
        owner = jacobian if name in ("", "AttentionJacobian") else getattr(spectral_core, name)
        assert hasattr(owner, attribute) or attribute in owner.__dataclass_fields__, code
    elif "=" in code:
        option, value = code.split("=")
        assert spectral_core.IdentityCorrection(1.0, **{option: json.loads(value)}).settings()[option] in value
    elif "(" in code and code not in title:
        called, arguments = code.rstrip(")").split("(")
        assert arguments in inspect.signature(getattr(spectral_core, called)).parameters, code
    elif "(" not in code:
        found = getattr(spectral_core, code)
        assert not inspect.ismodule(found) or symbol in found.__doc__, code


@pytest.mark.parametrize(
    ("code", "symbol"),
    [("z: (…, n, D)", "Z"), (".nothing", "n"), ("Spectrum.nothing", "r"), ('preserve="nothing"', "‖M‖"),
     ("vec(B)", "B"), ("IdentityCorrection(mu)", "μ"), ("nothing", "x"), ("closed_form", "Z_i")],
)  # fmt: skip
def test_notation_that_the_package_does_not_have_is_noticed(code, symbol):
    with pytest.raises((AssertionError, AttributeError, ValueError)):
        check_notation(code, symbol)


def test_what_the_lessons_take_is_recorded_and_within_budget():
    text = pages.TIMES.read_text(encoding="utf-8")
    text = re.sub(r"^\| \[(.+)\]\(\.\./notebooks/\w+\.ipynb\)", r"| \1", text, flags=re.M)
    rows = re.findall(r"^\| (.+) \| (\d+) \| ([\d.]+) \| (\d+) \| (\d+) \|$", text, re.M)
    assert [row[0] for row in rows] == [*map(pages.title, LESSONS), "all"]
    for name, seconds, slowest, megabytes, kilobytes in rows[:-1]:
        assert int(seconds) < 60, name
        assert float(slowest) < build.CELL_SECONDS, name
        assert int(megabytes) < 1500, name
        assert int(kilobytes) < 300, name
    assert int(rows[-1][1]) < pages.COURSE_SECONDS
    for path, row in zip(LESSONS, rows, strict=False):
        assert int(row[1]) <= build.limits(build.read_source(path)).seconds


@pytest.mark.parametrize(("limit", "status"), [(1300, 1), (1400, 0)])
def test_lessons_that_are_not_built_now_count_as_recorded(monkeypatch, tmp_path, limit, status):
    rows = [pages.Build(path.stem, 100.0, 1.0, 1, 1.0) for path in LESSONS]
    again = pages.Build(LESSONS[3].stem, 150.0, 2.0, 1, 1.0)
    monkeypatch.setattr(pages, "recorded", lambda: rows)
    monkeypatch.setattr(build, "build", lambda path, progress: again)
    monkeypatch.setattr(build, "COURSE_SECONDS", limit)
    monkeypatch.setattr(build, "HERE", tmp_path)
    for name in ("TIMES", "PICTURE"):
        monkeypatch.setattr(build, name, tmp_path / name)
    monkeypatch.setattr(sys, "argv", ["build.py", str(LESSONS[3])])
    assert pages.course([again]) == [*rows[:3], again, *rows[4:]]
    assert build.main() == status
    assert "| all | 1350 |" in (tmp_path / "TIMES").read_text(encoding="utf-8")


@lesson
def test_badges_lead_to_this_notebook(path):
    head = nbformat.read(path.with_suffix(".ipynb"), as_version=4).cells[0].source
    place = pairs.repository().removeprefix("https://github.com/")
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", place)
    (colab,) = re.findall(r"\]\(https://colab\.research\.google\.com/github/([^)]+)\)", head)
    assert colab.startswith(f"{place}/blob/main/")
    assert (FOLDER.parent / colab.removeprefix(f"{place}/blob/main/")) == path.with_suffix(".ipynb")
    assert f"](https://codespaces.new/{place})" in head
    install = nbformat.read(path.with_suffix(".ipynb"), as_version=4).cells[1].source
    assert f"git clone --quiet --depth 1 {pairs.repository()} " in install
    assert '%pip install --quiet "..[course]"' in install  # from the clone: lessons read ../results
    assert install == build.read_source(LESSONS[0]).cells[1].source  # one identical cell in every lesson


def test_the_readme_shows_the_first_figure_of_the_course():
    assert pages.PICTURE.read_bytes() == pages.first_picture()


def test_the_devcontainer_sets_up_the_course():
    settings = json.loads((FOLDER.parent / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    target = settings["postCreateCommand"].removeprefix("make ")
    makefile = (FOLDER.parent / "Makefile").read_text(encoding="utf-8")
    assert target == ".venv/.course"
    assert "$(VENV)/.course" in makefile
    assert re.search(r"^course:.*\n\t.*jupyter lab notebooks/00_start_here\.ipynb$", makefile, re.M)
    assert settings["image"].endswith(":3.11")
    assert (FOLDER / "00_start_here.ipynb").exists()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_link_inside_the_repository_leads_to_a_file(path):
    text = text_of(path) if path.suffix == ".py" else path.read_text(encoding="utf-8")
    for target in re.findall(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)", text):
        parts = urlsplit(target)
        if parts.scheme:
            continue
        aim = (path.parent / parts.path).resolve()
        assert aim.exists(), target
        assert aim.is_relative_to(FOLDER.parent), target


def test_every_lesson_leads_to_the_next_and_to_the_pages_beside_and_the_first_to_all():
    for path, after in itertools.pairwise(LESSONS):
        assert f"({after.stem}.ipynb)" in section(path, "11. Recap").split("**Next lesson.**")[1], path.stem
    start = text_of(LESSONS[0])
    for path in LESSONS[1:]:
        assert f"({path.stem}.ipynb)" in start
    for path in LESSONS:
        assert "[notation](notation.md) · [glossary](glossary.md)" in build.read_source(path).cells[0].source


@lesson
def test_figures_are_readable_in_a_page_of_700_pixels(path):
    notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                width = struct.unpack(">I", base64.b64decode(output.data["image/png"])[16:20])[0]
                # text of 9 pt at 80 dpi has 10 px; a wider picture is scaled down
                assert 10 * min(1, 700 / width) >= 8.9, f"{width} px wide: {output.data['text/plain'][:60]}"
