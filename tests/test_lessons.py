"""The course's checks, questions, figures and sliders.

Every exercise is taken from the lesson as the learner sees it: the unsolved stub is "not attempted", the solution in
the text passes, so does a right answer that is written differently, and typical wrong ones fail with their cause.
"""

import ast
import importlib
import itertools
import math
import re
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from answers import MUTANTS, NAMES, OTHERS
from scipy import stats

import spectral_core
from spectral_core import IdentityCorrection, lessons, plots
from spectral_core.demo import Settings, head_view
from spectral_core.lessons import (
    check,
    env_check,
    environment,
    explore,
    figure,
    lesson_08_runs,
    own_or_solution,
    predict,
    quiz,
    reveal,
    table,
)
from spectral_core.lessons.heads import digit_head, random_head
from spectral_core.lessons.lesson_01 import gradient_descent, random_matrix, with_spectrum
from spectral_core.lessons.lesson_02 import identity_head
from spectral_core.lessons.panels import Panel
from spectral_core.lessons.registry import Choice, Exercise, Question, Slider, View, entries, find
from spectral_core.lessons.statistics import interval, ratio_interval

ROOT = Path(spectral_core.__file__).parent
SOURCES = "\n".join(
    path.read_text(encoding="utf-8") for path in sorted((ROOT.parent / "notebooks").glob("[0-9]*.py"))
)
EXERCISES = [entry for entry in entries() if isinstance(entry, Exercise)]
QUESTIONS = [entry for entry in entries() if isinstance(entry, Question)]
VIEWS = [entry for entry in entries() if isinstance(entry, View)]

MODULES = sorted([*(ROOT / "lessons").glob("*.py"), *(ROOT / "plots").glob("*.py")])


def ids(entry):
    return entry.id


# ---- exercises, as they stand in the lessons ---------------------------------------------------------------


def stub(exercise_id):
    """(source of the stub, name of its function) as in the lesson."""
    cell = next(c for c in SOURCES.split("\n# %%") if f'check("{exercise_id}"' in c)
    name = re.search(rf'check\("{exercise_id}", (\w+)\)', cell)[1]
    return cell.split("\n", 1)[1].split("\ncheck(")[0], name


def solution(exercise_id):
    """The code in the first <details> Solution after the stub."""
    after = SOURCES.split(f'check("{exercise_id}"')[1].split("<summary>Solution</summary>")[1]
    block = re.search(r"# ```python\n(.*?)# ```", after, re.S)[1]
    return re.sub(r"^# ?", "", block, flags=re.M)


def run(source, name):
    """The function `name` that `source` defines, in a notebook's namespace."""
    namespace = {"torch": torch}
    exec(source, namespace)
    return namespace[name]


@pytest.mark.parametrize("exercise", EXERCISES, ids=ids)
def test_the_stub_is_reported_as_not_attempted(exercise):
    result = check(exercise.id, run(*stub(exercise.id)))
    assert not result.attempted
    assert not result.passed
    assert not result
    for shown in (repr(result), result._repr_html_()):
        assert "not attempted yet" in shown
        assert "✗" not in shown


@pytest.mark.parametrize("exercise", EXERCISES, ids=ids)
def test_the_solution_in_the_lesson_passes(exercise):
    result = check(exercise.id, run(solution(exercise.id), stub(exercise.id)[1]))
    assert result.passed, result
    assert bool(result)
    assert f"{len(exercise.cases)} of {len(exercise.cases)} checks passed. Well done." in repr(result)
    assert all(case.passed and not case.cause for case in result.cases)


@pytest.mark.parametrize("exercise", EXERCISES, ids=ids)
def test_the_lesson_goes_on_with_the_learners_function_or_the_solution(exercise):
    assert exercise.solution is not None
    assert own_or_solution(exercise.id, run(*stub(exercise.id))) is exercise.solution
    mine = run(solution(exercise.id), stub(exercise.id)[1])
    assert own_or_solution(exercise.id, mine) is mine
    wrong = exercise.mistakes[0][1]
    assert own_or_solution(exercise.id, wrong) is exercise.solution
    assert check(exercise.id, exercise.solution).passed


@pytest.mark.parametrize("exercise", EXERCISES, ids=ids)
def test_a_right_answer_written_differently_passes(exercise):
    result = check(exercise.id, OTHERS[exercise.id])
    failed = {case.name for case in result.cases if not case.passed}
    # a polar factor by eigenvalues of WᵀW has no answer for a singular W
    assert failed <= ({"a singular W ends at κ = 2 exactly"} if exercise.id == "01.polar" else set()), result


@pytest.mark.parametrize(("exercise_id", "body", "cause"), [(e, *m) for e in MUTANTS for m in MUTANTS[e]])
def test_typical_wrong_answers_fail_with_their_cause(exercise_id, body, cause):
    source, name = stub(exercise_id)
    namespace = {"torch": torch, **NAMES[exercise_id[:2]]}
    exec(re.sub(r"raise NotImplementedError", body, source), namespace)
    result = check(exercise_id, namespace[name])
    assert result.attempted
    assert not result.passed
    assert any(cause in case.cause for case in result.cases), result
    assert f"likely cause: {next(c.cause for c in result.cases if cause in c.cause)}" in repr(result)
    assert "<em>likely cause:</em>" in result._repr_html_()


@pytest.mark.parametrize("exercise", EXERCISES, ids=ids)
def test_exercises_are_well_formed(exercise):
    assert len(MUTANTS[exercise.id]) >= 3
    assert len(exercise.cases) >= 3
    assert {case.kind for case in exercise.cases} == {"property", "edge", "reference"}
    assert len({case.name for case in exercise.cases}) == len(exercise.cases)
    for told, mistake in exercise.mistakes:
        result = check(exercise.id, mistake)
        assert not result.passed, told
        assert told in {case.cause for case in result.cases}


@pytest.mark.parametrize("exercise", EXERCISES, ids=ids)
def test_checks_are_seeded_and_keep_their_arguments(exercise):
    for case in exercise.cases:
        for a, b in zip(case.arguments(), case.arguments(), strict=True):
            assert a is not b or not isinstance(a, torch.Tensor)
            torch.testing.assert_close(a, b, rtol=0, atol=0)

    def spoil(*arguments):
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                argument.zero_()
        return OTHERS[exercise.id](*case.arguments())

    case = exercise.cases[0]
    assert next(iter(check(exercise.id, spoil).cases)).passed  # the reference got arguments of its own


def test_a_function_that_stops_is_reported_with_its_error():
    result = check("01.kappa", lambda w: w @ w)
    assert [case.passed for case in result.cases] == [False] * 4
    assert "RuntimeError" in repr(result)
    assert "given: called with a tensor (9, 4)" in repr(result)
    mixed = check("02.slopes", lambda x, p, v, scale: scale * v.float().mT @ x)
    assert "float32 and float64 were mixed" in repr(mixed)


def test_float32_answers_pass():
    assert check("01.polar", lambda w: spectral_core.PolarCorrection()(w.float()))
    assert check("02.softmax", lambda p: OTHERS["02.softmax"](p.float()))


def test_a_missing_import_is_said():
    result = check("01.kappa", lambda w: nothing_such.inf)  # noqa: F821
    assert "name 'nothing_such' is not defined: import it, or define it above" in repr(result)


def test_several_numbers_may_come_as_a_tensor_or_an_array():
    def stacked(w, rtol):
        return torch.stack([torch.as_tensor(float(v)) for v in OTHERS["01.effective"](w, rtol)])

    assert check("01.effective", stacked)
    assert check("01.effective", lambda w, rtol: stacked(w, rtol).numpy())


def test_one_number_in_a_tensor_with_a_dimension_is_said():
    result = check("02.rank", lambda *sizes: torch.tensor([OTHERS["02.rank"](*sizes)]))
    assert "shape (1,) where one number was expected" in repr(result)


def test_a_wrong_shape_is_said():
    result = check("02.softmax", lambda p: OTHERS["02.softmax"](p).flatten())
    assert "shape (48,) where (3, 4, 4) was expected" in repr(result)


def test_check_refuses_what_is_not_an_exercise_or_a_function():
    with pytest.raises(ValueError, match=r"expected the id of one of 01\.kappa, .* got '01\.kapa'"):
        check("01.kapa", print)
    with pytest.raises(ValueError, match="expected your function, got 3"):
        check("01.kappa", 3)
    with pytest.raises(FrozenInstanceError):
        check("02.rank", OTHERS["02.rank"]).exercise = "x"


# ---- questions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", QUESTIONS, ids=ids)
def test_questions_have_feedback_for_every_option(question):
    assert question.answer in question.options
    assert len(question.options) >= 3
    for letter, option in question.options.items():
        for ask in (lambda choice: reveal(predict(question.id, choice)), lambda choice: quiz(question.id, choice)):
            answer = ask(letter)
            assert answer.correct == (letter == question.answer)
            assert option.feedback in answer.verdict
            assert question.options[question.answer].feedback in answer.verdict
            assert ("Right: " in repr(answer)) == answer.correct


@pytest.mark.parametrize("question", QUESTIONS, ids=ids)
def test_a_skipped_question_keeps_its_answer_folded(question):
    asked, revealed, quizzed = predict(question.id), reveal(predict(question.id)), quiz(question.id)
    right = question.options[question.answer]
    assert right.feedback not in repr(asked)
    assert right.feedback not in repr(quizzed)
    for shown in (revealed._repr_html_(), quizzed._repr_html_()):
        assert shown.index("<details>") < shown.index(right.feedback.split("'")[0].split("<")[0][:20])
    assert not revealed.correct


def test_a_sure_miss_is_pointed_out():
    assert "You were sure" in repr(reveal(predict("01.scale", "a", "sure")))
    assert "You were sure" not in repr(reveal(predict("01.scale", "b", "sure")))
    assert "You were sure" not in repr(reveal(predict("01.scale", "a", "unsure")))
    assert "(sure)" in repr(predict("01.scale", "a", "sure"))


def test_predictions_refuse_what_is_no_option():
    with pytest.raises(ValueError, match=r"choice: expected one of \('a', 'b', 'c', 'skipped'\), got 'd'"):
        predict("01.scale", "d")
    with pytest.raises(ValueError, match="confidence"):
        predict("01.scale", "a", "very")
    with pytest.raises(ValueError, match="expected the id of one of"):
        quiz("01.kappa")


def test_numbers_in_the_questions_are_right():
    assert identity_head(0, 0, 0).kappa == pytest.approx(900_000, rel=0.05)  # 02.celebrate
    assert identity_head(10, 10, 10).kappa == pytest.approx(11, rel=0.01)
    assert OTHERS["02.rank"](20, 4, 3, 3) == 27  # 02.rank
    a = with_spectrum([10.0, 5.0, 1.0])
    assert OTHERS["01.steps"](a, 1e-3) == pytest.approx(350, rel=0.05)  # 01.quiz-square
    assert OTHERS["01.steps"](with_spectrum([math.sqrt(10), 1.0]), 1e-3) == pytest.approx(35, rel=0.05)


# ---- figures and sliders -----------------------------------------------------------------------------------


def corners(view):
    names = [control.name for control in view.controls]
    return [dict(zip(names, ends, strict=True)) for ends in itertools.product(*(c.ends for c in view.controls))]


def check_figure(drawn):
    """Labels with what is shown on every axis, numbers that can be drawn, words for who cannot see it."""
    assert len(drawn.alt) > 40
    assert not re.search(r"\bnan\b", drawn.alt)
    for ax in drawn.axes:
        assert ax.get_xlabel() or ax.get_ylabel()
        limits = np.array([*ax.get_xlim(), *ax.get_ylim()], dtype=float)
        assert np.isfinite(limits).all()
        for line in ax.lines:
            if not line.get_transform().contains_branch_seperately(ax.transData)[1]:
                continue  # a vertical line: its y is a share of the axis
            values = np.asarray(line.get_ydata(), dtype=float)
            assert not len(values) or np.isfinite(values).any()
            if ax.get_yscale() == "log":
                assert (values[np.isfinite(values)] > 0).all()

@pytest.mark.parametrize("view", VIEWS, ids=ids)
def test_views_draw_at_all_corners_of_their_sliders(view):
    for i, values in enumerate(corners(view)):
        drawn = view.draw(**values)
        check_figure(drawn)
        if i % 5 == 0:  # rendering takes most of the time
            assert plots.png(drawn).startswith(b"\x89PNG")


@pytest.mark.parametrize("view", VIEWS, ids=ids)
def test_the_static_figure_is_the_view_at_its_defaults(view):
    drawn = figure(view.id)
    assert plots.png(drawn) == plots.png(view.draw(**view.defaults)) == plots.png(drawn)
    bundle, metadata = drawn._repr_mimebundle_()
    assert bundle["image/png"] == plots.png(drawn)
    assert bundle["text/plain"] == metadata["image/png"]["alt"] == drawn.alt == repr(drawn)
    assert len(bundle["image/png"]) < 40_000
    for control in view.controls:
        assert control.label
        assert control.note
        if isinstance(control, Slider):
            assert control.low <= control.default <= control.high


@pytest.mark.parametrize("view", VIEWS, ids=ids)
def test_sliders_have_the_ranges_of_the_view_and_redraw(view):
    panel = explore(view.id)
    before = panel.image.value
    assert bytes(before[:4]) == b"\x89PNG"
    for control in view.controls:
        box = panel.inputs[control.name]
        assert box.description == control.label
        if isinstance(control, Slider):
            assert (box.min, box.max, box.step) == (control.low, control.high, control.step)
            assert box.continuous_update is False
        else:
            assert box.options == control.values
    changed = False
    for control in view.controls:
        for end in control.ends:
            panel.inputs[control.name].value = end  # as a hand does
            assert panel.values[control.name] == end
            changed = changed or panel.image.value != before
        panel.inputs[control.name].value = control.default
    assert changed
    assert panel.image.value == before
    assert "<strong>" not in panel.words.value


def toy(draw):
    controls = (Slider("x", "x", 0, 4, 1, 1, "a number"), Choice("c", "c", ("u", "v"), "u", "one of two"))
    return View("00.toy", draw, controls)


def draw_toy(x, c):
    if x > 2 or c == "v":
        raise ValueError(f"cannot draw {x:g} {c}")
    return plots.curves({"a": [1.0, 0.5 + x]}, title="toy figure for the tests", y_label="y")


def test_what_a_drawing_raises_comes_out_of_the_slider_and_stands_on_the_page():
    panel = Panel(toy(draw_toy))
    with pytest.raises(ValueError, match="cannot draw 3 u"):
        panel.inputs["x"].value = 3
    assert panel.words.value == "<strong>ValueError: cannot draw 3 u</strong>"
    panel.inputs["x"].value = 2
    assert "toy figure" in panel.words.value
    with pytest.raises(ValueError, match="cannot draw 2 v"):
        panel.inputs["c"].value = "v"
    with pytest.raises(ValueError, match="cannot draw 4 u"):
        Panel(toy(draw_toy)).sweep()
    with pytest.raises(ValueError, match="cannot draw 4 u"):
        Panel(toy(draw_toy)).set(x=4)


def test_set_redraws_once_and_reset_goes_back():
    drawn = []

    def draw(x, c):
        drawn.append((x, c))
        return plots.curves({"a": [1.0, 2.0 + x]}, title="toy figure for the tests", y_label="y")

    panel = Panel(toy(draw), x=2)
    assert panel.set(x=3, c="v") is panel
    assert drawn == [(2, "u"), (3, "v")]
    reset = panel.box.children[-3]
    reset.click()
    assert panel.values == {"x": 2, "c": "u"}
    assert panel.sweep().values == {"x": 2, "c": "u"}


def test_a_saved_panel_reads_as_words():
    panel = explore("01.descent", kappa=7)
    bundle = panel._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "Run this cell to get sliders for κ, step · L" in bundle["text/html"]
    assert bundle["text/plain"] == repr(panel)
    assert "kappa=7" in repr(panel)


def test_figures_and_panels_refuse_values_outside_their_controls():
    with pytest.raises(ValueError, match="kappa: expected a number <= 100, got 101"):
        figure("01.descent", kappa=101)
    with pytest.raises(ValueError, match=r"01\.descent: expected controls among kappa, step, angle, steps, got 'lam'"):
        explore("01.descent", lam=1)
    with pytest.raises(ValueError, match="init: expected one of"):
        explore("02.head").set(init="zeros")
    with pytest.raises(ValueError, match=r"got '01\.nothing'"):
        figure("01.nothing")


@pytest.mark.parametrize(
    ("module", "call", "needs"),
    [
        ("matplotlib.figure", lambda: plots.curves({"a": [1.0]}, title="t", y_label="y"), "matplotlib"),
        ("ipywidgets", lambda: explore("01.descent"), "ipywidgets"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, module, call, needs):
    style = importlib.import_module("spectral_core.plots.style")
    style._figure_class.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{needs}: pip install 'spectral-core\[course\]'"):
        call()


def test_pyplot_is_never_touched():
    for path in MODULES:
        assert "pyplot" not in path.read_text(encoding="utf-8").replace("No pyplot", "").replace("without pyplot", "")


def test_seed_dots_counts_what_is_infinite():
    columns = {"κ": {"a": [1.0, 10.0, math.inf], "b": [math.inf] * 3}, "p": {"a": [0.1, 0.2, 0.3], "b": [1.0] * 3}}
    drawn = plots.seed_dots(columns, title="two arms with three seeds each", log=["κ"])
    check_figure(drawn)
    assert [text.get_text() for text in drawn.axes[0].texts] == ["1 × ∞", "3 × ∞"]
    assert not drawn.axes[1].texts
    assert "b ∞, ∞, ∞" in drawn.alt
    assert drawn.axes[0].lines[0].get_xdata().tolist() == [1.0, 10.0]


# ---- the rest ----------------------------------------------------------------------------------------------


def test_env_check_lists_python_and_every_package_of_the_course():
    report = env_check()
    assert report.ok
    names = [line.split()[1] for line in report.lines]
    assert names[:2] == ["python", "spectral-core"]
    assert {"torch", "numpy", "matplotlib", "ipywidgets", "jupytext", "scikit-learn", "timm", "cores"} <= set(names)
    assert not {"gradio", "accelerate", "pytest", "mypy"} & set(names)
    assert all(line.startswith("[OK]") for line in report.lines)
    assert report.text() in report._repr_html_().replace("&#x27;", "'")


def test_env_check_says_what_is_missing_or_too_old(monkeypatch):
    installed = {"matplotlib": None, "torch": "2.5.1+cpu", "ipywidgets": "10.0"}
    monkeypatch.setattr(environment, "_installed", lambda name: installed.get(name, "99"))
    report = env_check()
    assert not report.ok
    failed = [line for line in report.lines if line.startswith("[FAIL]")]
    assert [line.split(maxsplit=2)[1:] for line in failed] == [
        ["torch", "2.5.1+cpu, 2.6 or newer is needed"],
        ["matplotlib", "missing, 3.9 or newer is needed"],
    ]
    assert repr(report).endswith("Repair with: pip install 'spectral-core[course]'")


@pytest.mark.parametrize(("has_gpu", "name"), [(True, "cuda"), (False, "cpu")])
def test_lessons_train_on_a_gpu_where_there_is_one(monkeypatch, has_gpu, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert environment.device() == name


def test_lesson_8_trains_on_the_device_of_the_lessons(monkeypatch):
    monkeypatch.setattr(lesson_08_runs, "device", lambda: "meta")
    with pytest.raises(NotImplementedError, match="meta tensor"):  # which holds no numbers to bring back
        lesson_08_runs.train("plain", [0], steps=1)


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_intervals_are_those_of_scipy(n):
    values = [float(i * i % 7) for i in range(n)]
    low, high = stats.t.interval(0.95, n - 1, np.mean(values), stats.sem(values))
    for given in (values, torch.tensor(values)):
        mean, half = interval(given)
        assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-12)


def test_ratio_intervals_are_intervals_of_logarithms():
    old = [3.0, 5.0, 7.0]
    mean, half = 1.0, 4.302653 / math.sqrt(3)  # of the logarithms 0, 1 and 2, by hand
    found = ratio_interval([3.0, 5.0 * math.e, 7.0 * math.e**2], old)
    assert found == pytest.approx((math.exp(mean), math.exp(mean - half), math.exp(mean + half)), rel=1e-6)
    assert ratio_interval([1.0, math.inf, 1.0], old) == (math.inf, math.inf, math.inf)
    with pytest.raises(ValueError, match="zip"):
        ratio_interval([1.0, 2.0], old)


def test_tables_show_numbers_as_people_write_them():
    shown = table(["name", "value", "list"], [["a<b", 1234.5678, [1.0, math.inf]], ["c", torch.tensor(3), True]])
    assert repr(shown).splitlines() == [
        "name  value  list",
        "────  ─────  ────",
        "a<b   1235   1, ∞",
        "c     3      True",
    ]
    assert '<th scope="row">a&lt;b</th><td>1235</td>' in shown._repr_html_()
    with pytest.raises(ValueError, match="expected rows of 2 cells, as the headers, got 1"):
        table(["a", "b"], [["c"]])


@pytest.mark.parametrize("lam", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("init", ["trunc-normal", "xavier"])
def test_the_lessons_head_is_the_demos_head(lam, init):
    here = digit_head({role: IdentityCorrection(lam) for role in "qkv"}, init=init)
    there = head_view(Settings(kind="identity", init=init, lam=dict.fromkeys("qkv", lam))).after
    assert here.kappa == pytest.approx(there.kappa_j, rel=1e-9)
    assert here.saturation == pytest.approx(there.saturation, rel=1e-9)
    assert here.norms == pytest.approx(there.block_norms, rel=1e-6, abs=1e-15)


def test_digit_head_corrects_only_the_roles_it_is_given():
    plain, fixed = digit_head(seed=2, image=3), digit_head({"v": IdentityCorrection(2.0)}, seed=2, image=3)
    assert torch.equal(plain.w_q, fixed.w_q)
    assert torch.equal(plain.w_k, fixed.w_k)
    torch.testing.assert_close(fixed.w_v - plain.w_v, 2.0 * torch.eye(32, 16).double(), atol=1e-6, rtol=0)
    q, k, v = (plain.norms[role] for role in "qkv")
    assert plain.query_key_share == pytest.approx(math.hypot(q, k) / math.hypot(q, k, v))


def test_matrices_of_the_lessons_have_the_shapes_and_spectra_they_promise():
    w = with_spectrum([3.0, 2.0, 0.5], seed=4, m=7)
    assert w.shape == (7, 3)
    np.testing.assert_allclose(np.linalg.svd(w.numpy(), compute_uv=False), [3, 2, 0.5], atol=1e-12)
    assert random_matrix(400, 100, seed=1).square().mean() == pytest.approx(1 / 100, rel=0.05)
    assert [tuple(t.shape) for t in random_head(5, 6, 3, 2)] == [(5, 6), (6, 3), (6, 3), (6, 2)]


def test_gradient_descent_shrinks_each_singular_direction_by_its_own_factor():
    a = with_spectrum([2.0, 1.0], seed=1)
    u = torch.linalg.svd(a).U
    slow = gradient_descent(a, u[:, 1], steps=5)
    np.testing.assert_allclose(slow, [(1 - 2 / 5) ** t for t in range(6)], rtol=1e-12)


def test_ids_are_unique_and_carry_their_lesson():
    for kind in (Exercise, Question, View):
        names = [entry.id for entry in entries() if isinstance(entry, kind)]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"\d\d\.[a-z-]+", name) for name in names)
        assert find(kind, names[0]).id == names[0]
    for entry in entries():
        assert type(replace(entry)) is type(entry)  # plain frozen data


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_modules_are_documented_and_print_nothing(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert "print" not in calls
    assert ast.get_docstring(tree)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 250
    module = importlib.import_module(f"spectral_core.{path.parent.name}.{path.stem}".removesuffix(".__init__"))
    for name in module.__all__:
        if name != "ENTRIES" and not name.isupper():
            assert getattr(module, name).__doc__, name


def test_importing_the_lessons_needs_neither_matplotlib_nor_widgets(monkeypatch):
    for name in ("matplotlib", "ipywidgets", "IPython"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in [m for m in sys.modules if m.startswith(("spectral_core.lessons", "spectral_core.plots"))]:
        monkeypatch.delitem(sys.modules, name)
    fresh = importlib.import_module("spectral_core.lessons")
    assert fresh is not lessons
    assert fresh.check("02.rank", OTHERS["02.rank"]).passed
