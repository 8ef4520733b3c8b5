"""Frames as plain lists: appended, cut when time turns back, found by an untrusted number, stored and read."""

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectral_core.demo.history import METRICS, History
from spectral_core.demo.settings import ARMS

STEPS = (0, 5, 10, 15)


def frame(step, *, changed=False, diverged=None, **arms):
    values = {name: dict.fromkeys(METRICS, value) for name, value in (arms or {"plain": float(step)}).items()}
    return {"step": step, "changed": changed, "query": "", "arms": values, "diverged": diverged or {}}


def history(steps=STEPS):
    out = History()
    for step in steps:
        out.append(frame(step, changed=step in (10, 15)))
    return out


def test_frames_are_kept_by_arm_and_metric():
    out = History()
    out.append(frame(0, plain=2.0, polar=None))
    out.append(frame(5, plain=1.0, polar=3.0, diverged={"plain": 4}))
    assert out.step == [0, 5]
    assert out.arms["plain"] == {metric: [2.0, 1.0] for metric in METRICS}
    assert out.arms["polar"] == {metric: [None, 3.0] for metric in METRICS}
    assert out.diverged == {"plain": 4}


def test_a_mark_stands_where_the_sliders_had_been_moved():
    assert history().marks == [5, 10]  # the frames at 10 and 15 were the first to feel it
    out = History()
    out.append(frame(0, changed=True))
    assert out.marks == [0]


def test_a_frame_on_the_way_gives_way_to_the_whole_one():
    out = History()
    for step in (0, 5):
        out.append(frame(step, plain=3.0, polar=3.0))
    out.append(frame(10, changed=True, plain=1.0, polar=None))
    out.append(frame(10, changed=True, plain=1.0, polar=2.0))
    assert (out.step, out.marks) == ([0, 5, 10], [5])
    assert out.at(10) == {"plain": dict.fromkeys(METRICS, 1.0), "polar": dict.fromkeys(METRICS, 2.0)}


def test_a_frame_of_an_earlier_step_turns_time_back():
    out = history()
    out.append(frame(5, plain=9.0))
    assert (out.step, out.marks) == ([0, 5], [])
    assert out.arms["plain"]["loss"] == [0.0, 9.0]


@pytest.mark.parametrize(("step", "kept", "marks"), [
    (15, [0, 5, 10, 15], [5, 10]), (99, [0, 5, 10, 15], [5, 10]), (14, [0, 5, 10], [5]), (10, [0, 5, 10], [5]),
    (9, [0, 5], []), (0, [0], []), (-1, [], []),
])
def test_what_came_after_is_forgotten(step, kept, marks):
    out = history()
    out.cut(step)
    assert (out.step, out.marks) == (kept, marks)
    assert out.arms["plain"] == {metric: [float(s) for s in kept] for metric in METRICS}


def test_a_divergence_is_forgotten_with_the_frames_that_show_it():
    out = History()
    for step in (0, 5, 10, 15):
        gone = step > 5
        out.append(frame(step, plain=1.0, polar=None if gone else 1.0, diverged={"polar": 7} if gone else {}))
    out.cut(10)
    assert out.diverged == {"polar": 7}
    out.cut(9)
    assert out.diverged == {}


def test_a_part_of_a_frame_is_dropped_where_a_run_ends():
    out = History()
    for step in (0, 5):
        out.append(frame(step, plain=1.0, polar=2.0, xavier=3.0))
    out.drop_part()
    assert out.step == [0, 5]
    out.append(frame(10, changed=True, plain=1.0, polar=None, xavier=None))
    out.drop_part()
    assert (out.step, out.marks) == ([0, 5], [])
    out.append(frame(10, plain=1.0, polar=None, xavier=3.0, diverged={"polar": 8}))  # whole: one arm has none left
    out.drop_part()
    assert out.step == [0, 5, 10]
    empty = History()
    empty.drop_part()
    assert empty == History()


def test_cutting_the_same_place_twice_changes_nothing():
    out = history()
    out.cut(10)
    once = json.dumps(out.to_json())
    out.cut(10)
    assert json.dumps(out.to_json()) == once


@pytest.mark.parametrize(("wanted", "step"), [
    (10, 10), ("10", 10), (7, 5), (8, 10), (7.5, 10), (-3, 0), (1e300, 15), (math.inf, 15), (-math.inf, 0),
    (math.nan, 15), ("nan", 15), ("x", 15), (None, 15), ([], 15), ({}, 15), (10**400, 15), (b"", 15), (True, 0),
])
def test_the_nearest_frame_to_any_value(wanted, step):
    assert history().nearest(wanted) == step


@given(st.floats(allow_nan=False), st.lists(st.integers(0, 600), min_size=1, unique=True).map(sorted))
def test_no_frame_is_nearer_than_the_nearest(wanted, steps):
    out = history(steps)
    found = out.nearest(wanted)
    assert found in steps
    near = min(max(wanted, 0), 1e9)
    assert all(abs(found - near) <= abs(step - near) for step in steps)


def test_the_last_value_that_there_was():
    out = History()
    for step, value in ((0, 3.0), (5, 2.0), (10, None), (15, None)):
        out.append(frame(step, plain=value, polar=None))
    assert out.last("plain", "loss") == 2.0
    assert out.last("plain", "loss", at=5) == 2.0
    assert out.last("plain", "loss", at=4) == 3.0
    assert out.last("plain", "loss", at=-1) is None
    assert out.last("polar", "loss") is None


def test_a_history_is_stored_and_read():
    out = history()
    out.diverged = {"plain": 12}
    raw = json.loads(json.dumps(out.to_json()))
    assert History.from_json(raw) == out
    assert History.from_json(json.loads(json.dumps(History().to_json()))) == History()


def changed(**fields):
    return {**json.loads(json.dumps(history().to_json())), **fields}


def curves(**metrics):
    return {"plain": {metric: metrics.get(metric, [0] * 4) for metric in METRICS}}


@pytest.mark.parametrize(("raw", "said"), [
    ([], "history: expected step, arms, marks and diverged, got []"),
    (None, "history: expected step, arms, marks and diverged, got None"),
    ({"step": []}, "history: expected step, arms, marks and diverged, got {'step': []}"),
    (changed(more=1), "history: expected step, arms, marks and diverged, got {'step': [0, 5, 10, 15]"),
    (changed(step=[0, 5, 5, 15]), "history: step: expected whole numbers, ascending, got [0, 5, 5, 15]"),
    (changed(step=[5, 0, 10, 15]), "history: step: expected whole numbers, ascending, got [5, 0, 10, 15]"),
    (changed(step=3), "history: step: expected whole numbers, ascending, got 3"),
    (changed(step=[0, 5.0, 10, 15]), "history: step: expected whole numbers, ascending, got [0, 5.0, 10, 15]"),
    (changed(step=[0, "5"]), "history: step: expected whole numbers, ascending, got [0, '5']"),
    (changed(step=[-5, 0]), "history: step: expected whole numbers, ascending, got [-5, 0]"),
    (changed(step=[False, True]), "history: step: expected whole numbers, ascending, got [False, True]"),
    (changed(marks=[10, 5]), "history: marks: expected whole numbers, ascending, got [10, 5]"),
    (changed(marks=[7]), "history: marks: expected steps that have a frame, got [7]"),
    (changed(arms=[]), f"history: arms: expected some of {', '.join(ARMS)}, got []"),
    (changed(arms={"fast": {}}), f"history: arms: expected some of {', '.join(ARMS)}, got {{'fast': {{}}}}"),
    (changed(arms={"plain": []}), "history: plain: expected loss, accuracy, log_kappa, saturation, got []"),
    (changed(arms={"plain": {"loss": []}}), "history: plain: expected loss, accuracy, log_kappa, saturation, got "
                                            "{'loss': []}"),
    (changed(arms=curves(accuracy=[0] * 3)), "history: plain, accuracy: expected 4 finite numbers or None, got "
                                             "[0, 0, 0]"),
    (changed(arms=curves(loss=3)), "history: plain, loss: expected 4 finite numbers or None, got 3"),
    (changed(arms=curves(loss=[0, 0, 0, math.nan])), "history: plain, loss: expected 4 finite numbers or None, got "
                                                     "[0, 0, 0, nan]"),
    (changed(arms=curves(loss=[0, 0, "0", None])), "history: plain, loss: expected 4 finite numbers or None, got "
                                                   "[0, 0, '0', None]"),
    (changed(diverged={"polar": 5}), "history: diverged: expected a step for some of plain, got {'polar': 5}"),
    (changed(diverged={"plain": "5"}), "history: diverged: expected a step for some of plain, got {'plain': '5'}"),
    (changed(diverged=[]), "history: diverged: expected a step for some of plain, got []"),
])
def test_what_is_no_history_is_refused(raw, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        History.from_json(raw)


def test_what_was_read_is_a_copy():
    raw = json.loads(json.dumps(history().to_json()))
    out = History.from_json(raw)
    out.append(frame(20, changed=True))
    assert raw == history().to_json()


def test_the_values_at_a_step():
    assert history().at(10) == {"plain": dict.fromkeys(METRICS, 10.0)}
    with pytest.raises(ValueError, match=r"history: expected a step with a frame, .*, got 7"):
        history().at(7)


def test_an_arm_is_gone_once_it_has_no_values():
    out = History()
    out.append(frame(0, plain=1.0, polar=1.0))
    out.append(frame(5, plain=1.0, polar=1.0, diverged={"polar": 5}))  # at the very step of divergence
    out.append(frame(10, plain=1.0, polar=None, diverged={"polar": 5}))
    assert [out.gone(step) for step in (0, 5, 7, 10)] == [{}, {}, {}, {"polar": 5}]
