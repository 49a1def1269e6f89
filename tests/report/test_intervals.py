"""Means with their intervals on one axis."""

from __future__ import annotations

import math

import pytest

from llava.report.intervals import BAR_WIDTH, draw_intervals, gain_intervals
from tests.report.made import control_line


def test_means_and_ends_lie_on_one_axis_with_zero():
    drawn = draw_intervals("x", "nats", [("a", (2.0, 1.0, 3.0), 1), ("b", (-1.0, -2.0, 0.5), 9)])
    a, b = drawn.bars
    unit = (a.mean - a.low) / 1.0
    assert a.mean - drawn.zero == pytest.approx(2 * unit) and a.high - drawn.zero == pytest.approx(3 * unit)
    assert drawn.zero - b.mean == pytest.approx(unit) and b.high - drawn.zero == pytest.approx(0.5 * unit)
    assert 0 < b.low < a.high < BAR_WIDTH and a.y < b.y < drawn.height
    assert (a.text, b.text, b.colour) == ("2.00 [1.00, 3.00]", "−1.00 [−2.00, 0.50]", 2)
    assert [t.text for t in drawn.ticks] == ["−2", "0", "2"]


def test_zero_is_shown_beside_gains_that_are_all_above():
    drawn = draw_intervals("x", "nats", [("a", (9.0, 8.0, 10.0), 0)])
    assert 0 < drawn.zero < drawn.bars[0].low


def test_what_has_no_interval_is_a_dot_and_what_is_not_finite_is_left_out():
    drawn = draw_intervals("x", "nats", [("one clip", (2.0, math.nan, math.nan), 0), ("b", (math.nan, 1.0, 2.0), 1)])
    (bar,) = drawn.bars
    assert bar.low == bar.mean == bar.high and bar.text == "2.00 [–, –]"
    assert draw_intervals("x", "nats", [("b", (math.nan, 1.0, 2.0), 1)]) is None
    assert gain_intervals({"a": []}) is None


def test_the_last_gains_of_a_run_and_the_video_of_several():
    lines = [control_line(6, (9, 8, 10)), control_line(12, (4, 3, 5))]
    lines[1]["gains"]["blank"] = {"per_caption": [6.0, 5.0, 7.0]}
    one = gain_intervals({"a": lines})
    assert [(b.label, b.text, b.colour) for b in one.bars] == [
        ("another clip's video", "4.00 [3.00, 5.00]", 1), ("a blank video", "6.00 [5.00, 7.00]", 3)
    ]  # fmt: skip
    two = gain_intervals({"a": lines, "none": [], "b": lines[:1]})
    assert [(b.label, b.text, b.colour) for b in two.bars] == [
        ("a", "4.00 [3.00, 5.00]", 0),
        ("b", "9.00 [8.00, 10.00]", 2),
    ]


def test_single_values_stand_on_the_axis_of_their_mean():
    rows = [("none", (math.nan, 0.0, 0.0), 0), ("a", (2.0, 1.0, 3.0), 1)]
    drawn = draw_intervals("x", "nats", rows, [[9.0], [0.0, 4.0]], 3)
    (bar,) = drawn.bars
    assert bar.points[0] == pytest.approx(drawn.zero) and bar.points[1] < BAR_WIDTH
    assert sum(bar.points) / 2 == pytest.approx(bar.mean) and bar.text == "2.000 [1.000, 3.000]"
