"""Axes carry round numbers, values that are no numbers are left out, heat maps have a cell a value."""

from __future__ import annotations

import re

import pytest
from dehvf_kit_report import charts


@pytest.mark.parametrize(
    ("low", "high", "ticks"), [(0, 2400, [0, 500, 1000, 1500, 2000]), (0.2, 0.9, [0.2, 0.4, 0.6, 0.8]), (3, 3, [3])]
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert charts._ticks(low, high) == pytest.approx(ticks)


def test_a_curve_skips_what_is_no_number() -> None:
    points = [(1, 8.0), (2, float("nan")), (3, float("inf")), (4, 0.5)]
    drawn = charts.lines(points, "step", "loss", logarithmic=True)
    (path,) = re.findall(r"points='(.*?)'", drawn)
    assert len(path.split()) == 2 and "nan" not in drawn and "inf" not in drawn
    assert charts.lines(points[:2], "step", "loss") == ""


def test_a_short_logarithmic_axis_has_marks_too() -> None:
    drawn = charts.lines([(1, 5.4), (2, 8.1)], "step", "loss", logarithmic=True)
    assert all(f">{mark}<" in drawn for mark in (6, 7, 8))


def test_flat_and_non_positive_curves_are_drawn() -> None:
    for points in ([(1, 2.0), (2, 2.0)], [(1, 0.0), (2, -1.0)]):
        assert "<polyline" in charts.lines(points, "step", "loss", logarithmic=True)


def test_a_heat_map_has_a_cell_for_each_value_there_is() -> None:
    drawn = charts.heat_map([[0.5, None], [1.0, 0.25]], ["layer 1", "layer 2"], ["3", "<4>"], "keys", "vision layer")
    assert drawn.count("<rect") == 3 and "layer 2, &lt;4&gt;: 0.250" in drawn
    opacity = [float(value) for value in re.findall(r"fill-opacity='([\d.]+)'", drawn)]
    assert opacity[1] == 1.0 and opacity[0] > opacity[2]


def test_intervals_place_values_on_the_axis() -> None:
    drawn = charts.intervals([("all", [(50.0, 40.0, 60.0), (float("nan"),) * 3])], ["mine", "other"])
    (x,) = (float(value) for value in re.findall(r"<circle cx='([\d.]+)'", drawn))
    marks = dict(zip((0, 25, 50, 75, 100), re.findall(r"<line x1='([\d.]+)' x2='\1'", drawn), strict=True))
    assert x == pytest.approx(float(marks[50]), abs=0.11)
