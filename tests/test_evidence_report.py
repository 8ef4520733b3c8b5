"""The evidence page on made-up runs: its sentences, table cells by hand, nulls, few arms, no number at all."""

import dataclasses
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from spectral_core.experiments import report
from spectral_core.experiments.arms import ARMS as EVERY_ARM
from spectral_core.experiments.registry import TASKS as REGISTERED
from spectral_core.experiments.report import write_report
from spectral_core.experiments.report_data import collect, number
from spectral_core.experiments.report_figures import mean_curve
from spectral_core.experiments.report_predictors import PREDICTORS, predict
from spectral_core.experiments.report_words import paragraph
from spectral_core.experiments.store import read
from spectral_core.experiments.task import Task

ARMS = {
    name: SimpleNamespace(name=name, title=title, kind=kind)
    for name, title, kind in (
        ("plain", "plain", "plain"),
        ("xavier", "Xavier", "control"),
        ("orthogonal", "orthogonal", "control"),
        ("lambda", "λ = 10", "paper"),
        ("calibrated", "calibrated", "correction"),
        ("muon", "Muon", "rival"),
    )
}
# mean (loss, accuracy) of each arm; plain is worst, orthogonal the best control
LEVELS = {
    "plain": (1.0, 0.80),
    "xavier": (0.8, 0.84),
    "orthogonal": (0.7, 0.86),
    "lambda": (1.1, 0.78),
    "calibrated": (0.7, 0.86),
    "muon": (0.75, 0.85),
}
NOTHING = "No correction beats plain and the best initialisation control with an interval that excludes zero on three"


def unused(*args):
    raise AssertionError("a report trains nothing")


def task(name, *, metric="accuracy", higher=True, group="vision", paper=None):
    return Task(
        name, f"task {name}", group, unused, unused, unused, unused, unused, metric, higher, rates=(1e-3, 3e-3, 1e-2),
        paper=paper,
    )


TASKS = {
    "a": task("a", paper=("ImageNet-1k top-1, ViT-B", 80.7, 81.7)),
    "b": task("b"),
    "c": task("c", group="long sequences"),
    "d": task("d", metric="nats", higher=False, group="language"),
}


def line(task, arm, seed, loss, test, **changes):
    steps = 300
    curve = [[s, None if loss is None else loss + 2 * math.exp(-s / 60)] for s in range(6, steps + 1, 6)]
    kappa = {"plain": 900.0, "lambda": 1.5}.get(arm, 40.0) * (1 + 0.1 * seed)
    probe = {"kappa_w": kappa, "kappa_j": 1e4 * (loss or 1) ** 2, "saturation": 0.9 if arm == "lambda" else 0.1}
    return {
        "task": task, "arm": arm, "seed": seed, "lr": 3e-3, "purpose": "final", "steps": steps, "batch_size": 32,
        "size": "small", "test": test, "validation": test, "final_loss": loss, "curve": curve, "diverged": None,
        "notes": [], "probes": {w: probe | {"kappa_j_of": "model"} for w in ("start", "middle", "end")},
        "seconds": 12.0, "command": f"spectral-core experiment {task} {arm} --seed {seed}",
        "versions": {"torch": "2.13"}, "dtype": "float32",
        "machine": {"device": "cpu", "processor": "x86", "cores": 2, "python": "3.11"},
    } | changes  # fmt: skip


def evidence(tasks="abcd", arms=tuple(ARMS), seeds=5, winning=""):
    """Runs with small seed noise; in the tasks named by `winning`, "calibrated" is clearly the best arm."""
    random, lines = np.random.default_rng(0), []
    for t in tasks:
        for arm in arms:
            for seed in range(seeds):
                loss, accuracy = LEVELS[arm]
                if arm == "calibrated" and t in winning:
                    loss, accuracy = 0.4, 0.95
                loss, accuracy = loss + 0.01 * random.normal(), accuracy + 0.002 * random.normal()
                lines.append(line(t, arm, seed, loss, accuracy if TASKS[t].higher_is_better else 2 - accuracy))
    return lines


def write(lines, folder):
    return write_report(lines, folder, tasks=TASKS, arms=ARMS).read_text()


@pytest.fixture
def no_drawing(monkeypatch):
    """Figures are built but not rendered, which takes most of the time."""
    monkeypatch.setattr(report, "png", lambda figure: b"")


def flat(page):
    return " ".join(page.split())


def row(page, heading, arm, lead):
    """Cells of one row: below the heading, below the lead."""
    part = page.split(f"### {heading}\n")[1].split("\n## ")[0].split(f"{lead}:\n")[1]
    return next([c.strip() for c in x.split("|")[1:-1]] for x in part.splitlines() if x.startswith(f"| {arm} |"))


@pytest.fixture(scope="module")
def won(tmp_path_factory):
    folder = tmp_path_factory.mktemp("won")
    lines = evidence(winning="abd")
    return lines, write(lines, folder), folder


def test_an_arm_that_wins_on_three_tasks_is_named_with_them(won):
    _, page, _ = won
    for outcome in ("Optimisation", "Generalisation"):
        sentence = flat(page).split(f"**{outcome}**")[1]
        assert (
            "calibrated beats plain and the best initialisation control with an interval that excludes zero on 3 of 4 "
            "tasks (task a, task b, task d); after Holm's correction over the arms of a task, on 3." in sentence
        )
    assert NOTHING not in flat(page)
    assert "No rival method beats plain" in flat(page)
    assert "Try calibrated (optimisation and generalisation): ahead of" in flat(page)
    assert "No correction is recommended" not in flat(page)
    assert "That is a rival method" not in flat(page)
    assert "| λ = 10 | paper | 4 | 0 | 0 |" in page


@pytest.mark.usefixtures("no_drawing")
def test_when_nothing_wins_the_page_says_so(tmp_path):
    page = flat(write(evidence(winning="a"), tmp_path))
    assert page.count(NOTHING) == 2
    assert "calibrated does on 1 (task a), after Holm on 1." in page
    assert "No correction is recommended over a well-scaled initialisation." in page
    assert "best held-out mean is orthogonal (on 4 of 4 tasks)" in page
    assert "after Holm's correction over the arms of a task" not in page


@pytest.mark.usefixtures("no_drawing")
def test_a_rival_that_wins_recommends_no_correction(tmp_path):
    lines = evidence(winning="abd")
    swap = {"calibrated": "muon", "muon": "calibrated"}
    page = flat(write([x | {"arm": swap.get(x["arm"], x["arm"])} for x in lines], tmp_path))
    assert "Try Muon (optimisation and generalisation): ahead of plain and the best control" in page
    assert "That is a rival method, no correction of weights. No correction is recommended over a well-scaled" in page


@pytest.mark.usefixtures("no_drawing")
def test_a_pick_that_does_not_survive_holm_is_a_hint(tmp_path):
    lines = [x for x in evidence() if x["arm"] != "muon"]
    for x in lines:
        if x["arm"] == "calibrated":  # gains over orthogonal of which one alone would be significant, not one of two
            base = next(y for y in lines if (y["task"], y["arm"], y["seed"]) == (x["task"], "orthogonal", x["seed"]))
            x["final_loss"] = base["final_loss"] - (0.006, 0.05, 0.005, 0.06, 0.045)[x["seed"]]
    found = collect(lines, tasks=TASKS, arms=ARMS)[0].comparisons["loss"]["calibrated"]
    assert 0.025 < found.to_control.p < 0.05 < found.joint_holm
    page = flat(write(lines, tmp_path))
    assert "on 4 of 4 tasks (task a, task b, task c, task d); after Holm's correction" in page
    assert "over the arms of a task, on 0." in page
    assert "a hint, and not yet a finding" in page
    assert "Worth a confirmation with new seeds, chosen in advance: calibrated (optimisation)" in page


def test_table_cells_equal_numbers_computed_by_hand(won):
    lines, page, _ = won

    def values(arm, key, name="d"):
        return np.array([x[key] for x in lines if x["task"] == name and x["arm"] == arm])

    for lead, key in (("Optimisation", "final_loss"), ("Generalisation", "test")):
        cells = row(page, "task d", "calibrated", lead)
        plain, own, control = (values(a, key) for a in ("plain", "calibrated", "orthogonal"))
        gains = plain - own  # nats: lower is better
        half = stats.t.ppf(0.975, 4) * gains.std(ddof=1) / 5**0.5
        own_half = stats.t.ppf(0.975, 4) * own.std(ddof=1) / 5**0.5
        assert cells[:3] == ["calibrated", "0.003", "5"]
        assert cells[3] == f"{own.mean():.4g} ± {own_half:.2g}"
        assert cells[4] == f"{gains.mean():+.3g}"
        assert cells[5] == f"{gains.mean() - half:+.3g} to {gains.mean() + half:+.3g}"
        assert cells[8] == f"{(control - own).mean():+.3g}"
    cells = row(page, "task a", "λ = 10", "Generalisation")  # accuracy: higher is better, and λ = 10 is worse
    assert cells[4] == f"{(values('lambda', 'test', 'a') - values('plain', 'test', 'a')).mean():+.3g}"
    assert cells[4].startswith("-")
    assert row(page, "task a", "orthogonal", "Optimisation")[8] == "is the best control"


def test_steps_to_plains_loss_and_condition_numbers(won):
    lines, page, _ = won
    target = np.mean([x["final_loss"] for x in lines if x["task"] == "a" and x["arm"] == "plain"])
    own = [x for x in lines if x["task"] == "a" and x["arm"] == "calibrated"]
    steps = np.median([next(s for s, v in x["curve"] if v <= target) for x in own])
    assert row(page, "task a", "calibrated", "Optimisation")[11] == f"{steps:.0f} (5 of 5)"
    assert row(page, "task a", "λ = 10", "Optimisation")[11] == "not reached (0 of 5)"
    cells = row(page, "task a", "plain", "Condition numbers (geometric means) and saturation")
    assert cells[1] == f"{stats.gmean([900 * (1 + 0.1 * s) for s in range(5)]):.0f}"
    assert cells[5:] == ["0.10", "0.10"]


def test_the_paper_is_marked_as_not_ours(won):
    _, page, _ = won
    assert "reported by the paper, at full size, not ours" in page
    assert "| task a | ImageNet-1k top-1, ViT-B | 80.7 | 81.7 | +1 |" in page


def test_figures_are_written_and_linked(won):
    _, page, folder = won
    links = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", page)
    names = {name for _, name in links}
    assert names == {p.name for p in folder.glob("*.png")} == {
        "evidence_curves.png", "evidence_predictors.png", "evidence_forest_vision.png",
        "evidence_forest_language.png", "evidence_forest_long_sequences.png",
    }  # fmt: skip
    assert all(len(alt) > 40 for alt, _ in links)
    assert all((folder / n).read_bytes()[:4] == b"\x89PNG" and (folder / n).stat().st_size > 4000 for n in names)


def test_markdown_is_tidy(won, tmp_path):
    for page in (won[1], write(evidence("a", ("plain", "calibrated"), 2), tmp_path)):
        lines = page.splitlines()
        headings = [x for x in lines if x.startswith("#")]
        assert len(set(headings)) == len(headings)
        assert sum(x.startswith("# ") for x in headings) == 1
        assert page.endswith("\n")
        assert "\n\n\n" not in page
        assert not [x for x in lines if x != x.rstrip()]
        assert not [x for x in lines if len(x) > 120 and x[0] not in "|!" and not x.startswith("spectral-core")]
        for block in page.split("\n\n"):
            if block.startswith("|"):
                assert len({x.count("|") for x in block.splitlines()}) == 1
            assert not any(x in block for x in ("nan", "None", "inf "))


def test_paragraphs_never_start_a_line_as_a_list_or_a_heading():
    text = paragraph(" ".join(["word"] * 23 + ["on", "3.", "Then", "- one", "+ two", "# three"] * 9))
    assert not re.search(r"^(\d+\.|[-+#*]) ", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.usefixtures("no_drawing")
def test_diverged_runs_count_as_the_worst_value_and_are_listed(tmp_path):
    lines = evidence("a")
    lost = next(x for x in lines if x["arm"] == "muon" and x["seed"] == 2)
    lost |= {"diverged": 120, "final_loss": 1e9, "test": None, "curve": [[6, 3.0], [12, None]]}
    bare = next(x for x in lines if x["arm"] == "xavier" and x["seed"] == 1)
    bare |= {"final_loss": "inf", "test": "nan", "probes": {}, "notes": None, "machine": None, "versions": None}
    (found,) = collect(lines, tasks=TASKS, arms=ARMS)
    rest = [x for x in lines if x is not lost and x is not bare]
    assert found.values["loss"]["muon"][2] == max(x["final_loss"] for x in rest)
    assert found.values["metric"]["muon"][2] == min(x["test"] for x in rest) == found.values["metric"]["xavier"][1]
    assert found.comparisons["loss"]["muon"].to_plain.count == 5
    page = write(lines, tmp_path)
    assert row(page, "task a", "Muon", "Optimisation")[12] == "1 (step 120)"
    assert row(page, "task a", "Xavier", "Optimisation")[12] == "1 without a number"
    assert "2 runs diverged or lack a finite number and count as the worst value" in flat(page)
    steps, means = mean_curve(found, "muon")
    assert steps == [6, 12]
    assert math.isnan(means[1])


@pytest.mark.usefixtures("no_drawing")
def test_few_arms_and_no_controls(tmp_path):
    page = flat(write(evidence("a", ("plain", "calibrated"), 2), tmp_path))
    assert "No claim for a correction can be made" in page
    assert "No rival method was run" in page
    assert "No initialisation control was run" in page
    assert "No initialisation control has a usable run." in page


@pytest.mark.usefixtures("no_drawing")
def test_two_tasks_could_not_have_shown_a_win(tmp_path):
    page = flat(write(evidence("ab", winning="ab"), tmp_path))
    assert page.count(NOTHING) == 2
    assert "With 2 tasks to judge by, it could not have come out otherwise." in page


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize(("chance", "said"), [(0.5, False), (0.845, False), (0.95, True)])
def test_a_task_on_which_no_arm_beats_a_guess_is_named(chance, said, tmp_path):
    tasks = TASKS | {"a": dataclasses.replace(TASKS["a"], chance=chance)}
    page = flat(write_report(evidence("ab"), tmp_path, tasks=tasks, arms=ARMS).read_text())
    assert (f"No arm does better than a guess ({chance:g}): at this size and budget" in page) is said
    assert (f"No arm does better than a guess in task a ({chance:g}): these tasks say nothing" in page) is said


@pytest.mark.usefixtures("no_drawing")
def test_a_task_whose_arms_ran_on_two_machines_is_named(tmp_path):
    lines = evidence("ab")
    assert "more than one machine" not in flat(write(lines, tmp_path))
    for x in lines:
        if x["task"] == "b" and x["arm"] == "muon":
            x["machine"] = x["machine"] | {"cores": 16}
    assert "The arms of task b ran on more than one machine" in flat(write(lines, tmp_path))


@pytest.mark.usefixtures("no_drawing")
def test_tasks_without_a_choice_of_rate_and_tasks_that_share_runs_are_named(tmp_path):
    lines = evidence("abc")
    page = flat(write(lines, tmp_path))
    assert "No learning rate was chosen in" not in page  # none at all was: another sentence says so
    assert "not independent of each other" not in page
    lines += [x | {"purpose": "tune", "seed": 1000} for x in lines if x["task"] == "a"]
    for x in lines:
        if x["task"] == "c" and x["arm"] == "muon" and x["seed"] == 2:
            x["final_loss"] = next(
                y["final_loss"] for y in lines if (y["task"], y["arm"], y["seed"]) == ("b", "muon", 2)
            )
    page = flat(write(lines, tmp_path))
    assert "No learning rate was chosen in task b, task c: there every arm has the same one." in page
    assert "task b and task c hold runs with one and the same training loss" in page


@pytest.mark.usefixtures("no_drawing")
def test_one_seed_gives_no_interval(tmp_path):
    page = write(evidence("a", seeds=1), tmp_path)
    assert row(page, "task a", "Muon", "Optimisation")[5] == "one common seed, so no interval"
    assert "±" not in row(page, "task a", "Muon", "Optimisation")[3]
    assert "No claim for a correction can be made" in flat(page)


def test_all_diverged_and_no_plain_and_only_plain(tmp_path):
    lost = [x | {"diverged": 5, "final_loss": None, "test": None, "curve": []} for x in evidence("a", seeds=2)]
    page = flat(write(lost, tmp_path / "lost"))
    assert "Optimisation: no run that did not diverge has a finite number." in page
    assert "2 (step 5, 5)" in page
    page = flat(write(evidence("a", ("xavier", "calibrated")), tmp_path / "orphans"))
    assert "Plain was not run, so there is no gain to report." in page
    page = flat(write(evidence("a", ("plain",)), tmp_path / "alone"))
    assert "No correction was run" in page


def test_predictors_find_the_quantity_that_was_planted(won):
    lines, page, _ = won
    found = predict(collect(lines, tasks=TASKS, arms=ARMS))
    assert found["loss"]["κ(J)"].pooled.rho == pytest.approx(1.0)  # κ(J) grows with the loss by construction
    assert found["loss"]["κ(W)"].pooled.rho < 0.7
    limited = found["loss"][PREDICTORS[2]]
    assert {p.arm for p in limited.points} == set(ARMS) - {"lambda"}
    mine = [x for x in lines if x["task"] == "d"]
    by_hand = stats.spearmanr([x["probes"]["start"]["kappa_w"] for x in mine], [x["test"] for x in mine])
    assert found["metric"]["κ(W)"].by_task["task d"].rho == pytest.approx(by_hand.statistic)
    assert "For optimisation, a larger κ(J)" in flat(page).replace("κ(W), ", "").replace("κ(W) or ", "")


@pytest.mark.usefixtures("no_drawing")
def test_tuning_runs_and_repeated_seeds(tmp_path):
    lines = evidence("a")
    tuned = [x | {"purpose": "tune", "final_loss": 0.0} for x in lines]
    old = [x | {"final_loss": 50.0, "lr": 1e-2} for x in lines[:3]]
    page, clean = write([*tuned, *old, *lines], tmp_path), write(lines, tmp_path)
    assert row(page, "task a", "plain", "Optimisation") == row(clean, "task a", "plain", "Optimisation")
    page = flat(page)
    assert "3 runs were repeated with the same seed" in page
    assert "33 final runs and 30 to choose learning rates" in page


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "expected at least one finished run, got none; run make evidence"),
        ([line("a", "plain", 0, 1.0, 0.8, purpose="tune")], "expected runs of purpose 'final', got 1 lines without"),
        ([line("z", "plain", 0, 1.0, 0.8)], r"task: expected one of .*, got \['z'\]"),
        ([line("a", "adam", 0, 1.0, 0.8)], r"arm: expected one of .*, got \['adam'\]"),
    ],
)
def test_errors(lines, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write(lines, tmp_path)


def test_numbers_as_stored():
    assert number("inf") == math.inf
    assert all(math.isnan(number(x)) for x in (None, "nan", "x", []))


def test_an_arm_must_beat_what_it_builds_on(tmp_path):
    base = SimpleNamespace(name="base", title="Base", kind="rival")
    ours = SimpleNamespace(name="ours", title="Base, ours", kind="correction", against=("base",))
    arms = {name: ARMS[name] for name in ("plain", "xavier")} | {"base": base, "ours": ours}
    level = {"plain": 2.0, "xavier": 1.5, "base": 0.5, "ours": 0.8}
    lines = [line("a", arm, seed, level[arm] + 0.01 * seed * (1 + i), 0.9 - level[arm] / 10)
             for i, arm in enumerate(arms) for seed in range(4)]  # fmt: skip
    found = collect(lines, tasks=TASKS, arms=arms)[0].comparisons["loss"]
    assert found["base"].control == "xavier"
    assert found["ours"].control == "base"
    assert found["ours"].to_control.mean < 0 < found["ours"].to_plain.mean
    assert not found["ours"].wins_both
    assert found["base"].wins_both
    text = write_report(lines, tmp_path, tasks=TASKS, arms=arms).read_text(encoding="utf-8")
    assert " over Base |" in text


@pytest.mark.usefixtures("no_drawing")
def test_the_page_in_results_is_what_its_runs_say(tmp_path):
    results = Path(__file__).parents[1] / "results"
    page = write_report(read(results / "evidence.jsonl"), tmp_path, tasks=REGISTERED, arms=EVERY_ARM)
    assert page.read_text("utf-8") == (results / "README.md").read_text("utf-8"), "run make evidence"
    for name in re.findall(r"\]\((evidence_\w+\.png)\)", page.read_text("utf-8")):
        assert (results / name).exists(), name
