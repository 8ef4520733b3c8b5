"""The race as history, charts and words: against frames written by hand, at gaps, divergence, rewinding, bad files."""

from __future__ import annotations

import copy
import json
import math
import re
import time
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from spectral_core.demo.history import METRICS, History
from spectral_core.demo.race_view import COLOURS, GAP, TITLES, describe_race, show_race
from spectral_core.demo.settings import ARMS

NOTHING = dict.fromkeys(METRICS)


def values(loss: float | None, kappa: float | None = 3.0, saturation: float = 0.2) -> dict[str, float | None]:
    return {"loss": loss, "accuracy": 0.5, "log_kappa": kappa, "saturation": saturation}


def frame(step: int, arms: dict, *, changed: bool = False, diverged: dict[str, int] | None = None) -> dict:
    return {"step": step, "changed": changed, "arms": arms, "diverged": diverged or {}}


def history_of(*frames: dict) -> History:
    out = History()
    for one in frames:
        out.append(one)
    return out


def losses(**curves: list[float | None]) -> History:
    """A frame every 5 steps."""
    count = len(next(iter(curves.values())))
    arms = {name.replace("_", "-"): curve for name, curve in curves.items()}
    return history_of(*(frame(5 * i, {name: values(curve[i]) for name, curve in arms.items()}) for i in range(count)))


def full(*names: str, frames: int = 121) -> History:
    """Losses that fall apart from each other, from 2.3, with waves of κ."""
    return history_of(*(
        frame(5 * i, {
            name: values(2.3 * math.exp(-i / (20 + 15 * k)), 3 + k + math.sin(i / 9), 0.1 + 0.2 * k)
            for k, name in enumerate(names)
        }, changed=i in (21, 61))
        for i in range(frames)
    ))  # fmt: skip


def parse(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<body>{html}</body>")


def words(html: str) -> str:
    return re.sub(r"\s+", " ", "".join(parse(html).itertext())).strip()


def nodes(element: ElementTree.Element) -> list[str]:
    return [child.tag for child in element.iter()]


# ---- history ---------------------------------------------------------------------------------------------


def test_a_mark_is_where_the_slider_took_effect() -> None:
    history = full("plain", "shaped")
    assert history.marks == [100, 300]  # changed in the frames at 105 and 305
    assert history.at(605 - 5)["plain"]["loss"] == pytest.approx(2.3 * math.exp(-120 / 20))
    with pytest.raises(ValueError, match=r"expected a step with a frame, .* got 3"):
        history.at(3)


def test_parts_of_a_frame_are_replaced_by_the_whole() -> None:
    """The engine sends a frame after each arm; the last one at a step counts, and marks it once."""
    history = losses(plain=[2.0], shaped=[2.0])
    history.append(frame(5, {"plain": values(1.5), "shaped": NOTHING}, changed=True))
    assert history.last("shaped", "loss") == 2.0
    history.append(frame(5, {"plain": values(1.5), "shaped": values(1.6)}, changed=True))
    assert history.step == [0, 5]
    assert history.marks == [0]
    assert history.arms["shaped"]["loss"] == [2.0, 1.6]


def test_cutting_is_as_if_the_rest_had_never_come() -> None:
    long = full("plain", "shaped")
    for step in (0, 50, 100, 105, 300, 304, 600):
        cut = copy.deepcopy(long)
        cut.cut(step)
        assert cut.to_json() == full("plain", "shaped", frames=step // 5 + 1).to_json()
    cut.cut(-1)
    assert cut.step == cut.marks == []
    assert cut.arms["plain"] == {metric: [] for metric in METRICS}


def test_cutting_to_the_last_good_step_forgets_the_divergence() -> None:
    history = losses(plain=[2.0, 1.5], shaped=[2.0, 9.0])
    history.append(frame(10, {"plain": values(1.0), "shaped": NOTHING}, diverged={"shaped": 5}))
    assert history.gone(10) == {"shaped": 5}
    assert history.gone(5) == {}  # its values of step 5 are still there
    history.cut(10)
    assert history.diverged == {"shaped": 5}
    history.cut(5)
    assert history.diverged == {}


def test_json_brings_an_equal_history_that_shares_nothing() -> None:
    history = full("plain", "qk-norm", frames=30)
    stored = json.loads(json.dumps(history.to_json()))
    back = History.from_json(stored)
    assert back == history
    back.cut(0)
    back.append(frame(5, {"plain": values(1.0), "qk-norm": values(1.0)}))
    assert stored == history.to_json()


def _set(path: str, value: object):
    def change(raw: dict) -> None:
        *way, last = path.split("/")
        for part in way:
            raw = raw[part]
        raw[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("more", 1), "expected step, arms, marks and diverged, got"),
        (_set("step", None), "step: expected whole numbers, ascending, got None"),
        (_set("step", [0, 10, 5]), r"step: expected whole numbers, ascending, got \[0, 10, 5\]"),
        (_set("step", [0, 5, 5]), "step: expected whole numbers, ascending"),
        (_set("step", [0, 5.0, 10]), "step: expected whole numbers, ascending"),
        (_set("step", [False, 5, 10]), "step: expected whole numbers, ascending"),
        (_set("marks", [7]), r"marks: expected steps that have a frame, got \[7\]"),
        (_set("arms", []), r"arms: expected some of plain, .* got \[\]"),
        (_set("arms/<script>", {}), "arms: expected some of plain"),
        (_set("arms/plain", {"loss": []}), "plain: expected loss, accuracy, log_kappa, saturation, got"),
        (_set("arms/plain/loss", [1.0]), r"plain, loss: expected 3 finite numbers or None, got \[1.0\]"),
        (_set("arms/plain/loss", [1.0, math.nan, 1.0]), "plain, loss: expected 3 finite numbers or None"),
        (_set("arms/plain/loss", [1.0, "2", 1.0]), "plain, loss: expected 3 finite numbers or None"),
        (_set("arms/plain/accuracy", [1.0, True, 1.0]), "plain, accuracy: expected 3 finite numbers or None"),
        (_set("diverged", {"polar": 5}), "diverged: expected a step for some of plain, got"),
        (_set("diverged", {"plain": -5}), "diverged: expected a step for some of plain, got"),
    ],
)
def test_what_is_no_history_is_refused(change, message) -> None:
    raw = losses(plain=[3.0, 2.0, 1.0]).to_json()
    History.from_json(copy.deepcopy(raw))
    change(raw)
    with pytest.raises(ValueError, match=f"^history: {message}"):
        History.from_json(raw)


@pytest.mark.parametrize("raw", [None, [], "x", {}])
def test_what_is_no_dict_of_a_history_is_refused(raw) -> None:
    with pytest.raises(ValueError, match="expected step, arms, marks and diverged"):
        History.from_json(raw)


# ---- charts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("plain",), ("plain", "polar"), ("shaped", "conditioned", "qk-norm", "xavier")])
def test_all_frames_of_a_race_have_the_same_nodes(names) -> None:
    """Losses over eight powers of ten: the axis gets other labels, the table more rows, marks come, an arm goes."""
    history, seen = History(), set()
    for i in range(121):
        arms = {name: values(2.0 * 10 ** (-i / 15), 2 + i / 12) for name in names}
        arms[names[-1]] = NOTHING if i > 40 else arms[names[-1]]
        gone = {names[-1]: 200} if i > 40 else {}
        history.append(frame(5 * i, arms, changed=i in (9, 50), diverged=gone))
        for at in (None, 0, 5 * i):
            html = show_race(history, at=at)
            seen.add((*nodes(parse(html)), *nodes(parse(describe_race(history, "Training.", at=at)))))
    assert len(seen) == 1


def test_curves_map_values_to_pixels() -> None:
    """Corners of the frame: accuracy 0 at step 0 is bottom left, 1 at the last step is top right."""
    history = history_of(frame(0, {"plain": values(1.0) | {"accuracy": 0.0}}),
                         frame(10, {"plain": values(1.0) | {"accuracy": 1.0}}))
    chart = parse(show_race(history, steps=10)).findall(".//svg")[1]
    axis = next(p.get("d") for p in chart.iter("path") if p.get("class") == "axis")
    left, top, floor, right = map(float, re.fullmatch(r"M(\d+) (\d+)V(\d+)H(\d+)", axis).groups())
    line = next(p.get("d") for p in chart.iter("path") if p.get("class") == "line plain")
    assert [float(n) for n in re.findall(r"[\d.]+", line)] == [left, floor, right, top]


def test_the_loss_axis_is_logarithmic() -> None:
    chart = parse(show_race(losses(plain=[1.0, 0.1, 0.01]), steps=10)).find(".//svg")
    line = next(p.get("d") for p in chart.iter("path") if p.get("class") == "line plain")
    y = [float(b) for b in re.findall(r" ([\d.]+)", line)]
    assert y[1] - y[0] == pytest.approx(y[2] - y[1], abs=0.11)
    shown = [t.text for t in chart.iter("text") if t.get("class") == "end" and t.get("visibility") != "hidden"]
    assert shown == ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]


@pytest.mark.parametrize(
    ("curve", "shown"),
    [([1.0, 1e-6], ["1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1", "1"]), ([2.3, 2.31], ["2", "3"]),
     ([1.0, 1e-16], None), ([1e30, 1e-30], None), ([4.0, 4.1], ["4", "5"]), ([1.0, 1.0], None)],
    ids=str,
)
def test_axes_have_a_few_labels_whatever_the_range(curve, shown) -> None:
    for metric, svg in zip(TITLES, parse(show_race(losses(plain=curve))).iter("svg"), strict=True):
        labels = [t for t in svg.iter("text") if t.get("class") == "end" and t.get("visibility") != "hidden"]
        assert 2 <= len(labels) <= 12
        at = sorted(float(t.get("y")) for t in labels)
        assert min(b - a for a, b in pairwise(at)) > 10  # they do not touch
        if shown and metric == "loss":
            assert [t.text for t in labels] == shown


def test_a_gap_stays_a_gap_and_zero_loss_is_no_point() -> None:
    history = history_of(*(frame(5 * i, {"plain": values(0.0 if i == 1 else 1.0, kappa)})
                           for i, kappa in enumerate([3.0, 3.5, None, 4.0, 3.0])))
    loss, _, kappa, _ = (next(p for p in svg.iter("path") if p.get("class") == "line plain")
                         for svg in parse(show_race(history)).iter("svg"))
    assert (kappa.get("data-points"), re.sub(r"[^ML]", "", kappa.get("d"))) == ("4", "MLML")
    assert (loss.get("data-points"), re.sub(r"[^ML]", "", loss.get("d"))) == ("4", "MMLL")


def test_labels_keep_apart_and_inside() -> None:
    """Four arms that end at the same height, at the top and at the bottom."""
    for end in (0.0, 0.5, 1.0):
        arms = {name: values(1.0, saturation=end) for name in list(ARMS)[:4]}
        chart = parse(show_race(history_of(frame(0, arms)))).findall(".//svg")[3]
        named = [t for t in chart.iter("text") if t.get("class").startswith("name")]
        assert [t.get("class").split()[1] for t in named] == list(arms)
        at = sorted(float(t.get("y")) for t in named)
        assert min(b - a for a, b in pairwise(at)) >= GAP - 0.11
        assert at[0] > 10
        assert at[-1] < float(chart.get("viewBox").split()[3]) - 20


def test_the_cursor_stands_on_the_curves() -> None:
    history = full("plain", "polar")
    for svg in parse(show_race(history, at=250)).iter("svg"):
        (group,) = (g for g in svg.iter("g") if g.get("visibility") == "visible")
        for dot in group.iter("circle"):
            line = next(p for p in svg.iter("path") if p.get("data-arm") == dot.get("class"))
            assert re.split("[ML]", line.get("d"))[51] == f"{dot.get('cx')} {dot.get('cy')}"
    assert not [g for g in parse(show_race(history)).iter("g") if g.get("visibility") == "visible"]


def test_marks_are_where_sliders_moved() -> None:
    for svg in parse(show_race(full("plain"), steps=600)).iter("svg"):
        marks = next(p.get("d") for p in svg.iter("path") if p.get("class") == "mark")
        axis = next(p.get("d") for p in svg.iter("path") if p.get("class") == "axis")
        left, right = (float(n) for n in re.findall(r"[MH](\d+)", axis))
        wanted = [left + (right - left) * share for share in (1 / 6, 1 / 2)]
        assert [float(x) for x in re.findall(r"M([\d.]+)", marks)] == pytest.approx(wanted, abs=0.06)


def test_a_table_has_every_fiftieth_step_and_the_last() -> None:
    page = parse(show_race(losses(plain=[2.0 - i / 100 for i in range(24)]), steps=600))
    assert (page[0].get("data-frames"), page[0].get("data-step")) == ("24", "115")
    tables = page.findall(".//table")
    assert len(tables) == len(TITLES)
    shown = [tuple(row.itertext()) for row in tables[0].iter("tr") if row.get("hidden") is None]
    assert shown == [("step", "plain"), ("0", "2"), ("50", "1.9"), ("100", "1.8"), ("115", "1.77")]
    last = parse(show_race(full("plain"))).findall(".//table")[0]
    assert len([row for row in last.iter("tr") if row.get("hidden") is None]) == 14


def test_a_chart_says_its_last_values() -> None:
    history = losses(plain=[2.0, 1.5], shaped=[2.0, 1.25])
    history.append(frame(10, {"plain": values(1.0), "shaped": NOTHING}, diverged={"shaped": 7}))
    said = [svg.get("aria-label") for svg in parse(show_race(history)).iter("svg")]
    assert said[0] == "training loss (nats, log scale), at step 10: plain 1; your sliders diverged at step 7"
    assert all(svg.get("role") == "img" for svg in parse(show_race(history)).iter("svg"))
    back = parse(show_race(history, at=5)).find(".//svg").get("aria-label")
    assert back.endswith("at step 5: plain 1.5; your sliders 1.25")
    assert parse(show_race(History())).find(".//svg").get("aria-label").endswith(", no data yet: ")


def test_every_arm_has_a_dash_and_a_colour_of_its_own() -> None:
    assert set(COLOURS) == set(ARMS)
    assert len({dash for _, _, dash in COLOURS.values()}) == len(ARMS)
    for light, dark, _ in COLOURS.values():
        assert contrast(light, "#ffffff") > 4.5
        assert contrast(dark, "#0b0f19") > 4.5


def contrast(a: str, b: str) -> float:
    """WCAG 2's contrast ratio."""
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_a_frame_is_quick_and_small() -> None:
    history = full(*list(ARMS)[:4])
    assert len(show_race(history, at=300).encode()) < 60_000
    took = []
    for _ in range(10):
        began = time.perf_counter()
        show_race(history, at=300)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.02  # 0.0025 s measured, the rest for busy machines


def test_names_and_states_are_escaped() -> None:
    history = losses(**{'"><b>': [1.0, 0.5], "plain": [1.0, 1.0]})
    for html in (show_race(history, at=5), describe_race(history, "<b>&")):
        assert "<b>" not in html
        parse(html)


# ---- words -----------------------------------------------------------------------------------------------


def test_words_say_who_leads_and_when_each_was_there() -> None:
    history = losses(plain=[2.0, 1.8, 1.5, 1.0], identity=[2.0, 1.0, 0.8, 0.5], polar=[2.0, 1.9, 1.8, 1.7],
                     xavier=[2.0, 1.5, 0.9, 0.8])
    said = describe_race(history, "Training.", steps=600)
    assert words(said) == (
        "Training. Step 15 of 600. Training loss: λ·I 0.5, Xavier 0.8, plain 1, polar 1.7. "
        "Lowest: λ·I, 0.3 below Xavier. The loss of plain now, 1, was first reached by λ·I at step 5, "
        "Xavier at step 10, polar not yet. One seed is one seed: small differences are noise."
    )
    assert [(s.get("aria-live"), s.text) for s in parse(said).iter("span")] == [("polite", "Training.")]
    assert "Step 5 of 600. Training loss: λ·I 1, Xavier 1.5, plain 1.8, polar 1.9." in words(
        describe_race(history, "Looking back.", at=5))


def test_words_where_plain_leads_or_is_not_there() -> None:
    said = words(describe_race(losses(plain=[2.0, 1.0, 0.5], polar=[2.0, 1.9, 1.2], xavier=[2.0, 1.0, 0.505]), ""))
    assert "Lowest: plain and Xavier, within 2 %." in said
    assert "The loss of polar now, 1.2, was first reached by plain at step 5." in said
    said = words(describe_race(losses(polar=[2.0, 1.0], shaped=[2.0, 1.5], identity=[2.0, 1.2]), ""))
    assert "The loss of your sliders now, 1.5, was first reached by polar at step 5, λ·I at step 5." in said


def test_words_call_small_differences_level() -> None:
    said = words(describe_race(losses(plain=[1.0, 0.99], polar=[1.0, 0.98]), "Paused."))
    assert "All are level, within 2 %." in said
    assert "Lowest" not in said


def test_words_leave_out_who_diverged() -> None:
    """Its last loss is the lowest there is, and is no lead."""
    history = losses(plain=[2.0, 1.5], shaped=[2.0, 0.1])
    history.append(frame(10, {"plain": values(1.0), "shaped": NOTHING}, diverged={"shaped": 6}))
    said = words(describe_race(history, "Training."))
    assert "Training loss: plain 1. Diverged: your sliders at step 6." in said
    assert "Lowest" not in said
    before = words(describe_race(history, "Looking back.", at=5))
    assert "Lowest: your sliders" in before
    assert "Diverged" not in before


def test_words_warn_of_attention_that_is_switched_off() -> None:
    history = history_of(frame(0, {"plain": values(1.0, saturation=0.9), "identity": values(1.0, saturation=0.901)}))
    assert "Attention is switched off in λ·I: each token looks at one token only." in words(describe_race(history, ""))


def test_words_of_few_or_no_arms() -> None:
    assert words(describe_race(History(), "Waiting: 2 ahead of you.")) == "Waiting: 2 ahead of you."
    assert words(describe_race(losses(plain=[2.0]), "Training.")) == (
        "Training. Step 0 of 600. Training loss: plain 2.")
    assert words(describe_race(history_of(frame(0, {"plain": NOTHING})), "Training.")) == "Training. Step 0 of 600."
