"""SVG charts: numbers as people write them, valid XML, text alternatives, awkward data."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from spectral_core.svg import Series, bars, format_number, heat_map, line_chart


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (67.31, "67.3"), (0.03123, "0.0312"), (8307.6, "8308"), (912345.0, "9.12 × 10⁵"),
     (1.79e-11, "1.79 × 10⁻¹¹"),
     (math.inf, "∞"), (-math.inf, "−∞"), (math.nan, "–"), (0, "0")],
)
def test_format_number(value, text) -> None:
    assert format_number(value) == text


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


@pytest.mark.parametrize(
    "ys", [[], [1.0], [2.0, 2.0, 2.0], [1.0, math.nan, 3.0], [math.inf, 1.0], [1e-12, 1e12], [0.0, 0.0]], ids=str
)
@pytest.mark.parametrize("log_y", [False, True])
def test_line_chart_survives_awkward_data(ys, log_y) -> None:
    chart = parse(line_chart("loss <a&b>", [Series("x", list(range(len(ys))), ys, "baseline")], log_y=log_y, marks=[0]))
    svg = chart.find("svg")
    assert svg.get("role") == "img"
    assert svg.get("aria-label").startswith("loss <a&b>. ")
    drawn = next(p for p in svg.iter("path") if p.get("data-points"))
    assert "nan" not in drawn.get("d")
    assert "inf" not in drawn.get("d")


def test_line_chart_maps_data_to_pixels() -> None:
    svg = line_chart("t", [Series("s", [0, 5, 10], [0.0, math.nan, 1.0], "baseline")], x_max=10, y_range=(0.0, 1.0))
    drawn = next(p for p in parse(svg).iter("path") if p.get("data-points"))
    assert drawn.get("d") == "M46.0 186.0M342.0 26.0"  # corners of the frame, and a gap between


def test_log_axis_has_powers_of_ten() -> None:
    chart = parse(line_chart("t", [Series("s", [0, 1], [0.01, 10.0], "baseline")], log_y=True))
    labels = [t.text for t in chart.iter("text") if t.get("class") == "end"]
    assert labels == ["0.01", "0.1", "1", "10"]


def test_bars_draw_both_spectra() -> None:
    chart = parse(bars("W", [2.0, 1.0], [3.0, 3.0]))
    styles = [p.get("class") for p in chart.iter("path")]
    assert {"bar before", "bar after"} <= set(styles)
    assert "before, from 2 to 1; after, from 3 to 3" in chart.find("svg").get("aria-label")


def test_heat_map_covers_every_cell() -> None:
    svg = parse(heat_map("P", [[1.0, 0.0, 0.5]] * 3))
    assert sum(p.get("d").count("M") for p in svg.iter("path")) == 9
    assert "mean of row maxima 1.00" in svg.find("svg").get("aria-label")
