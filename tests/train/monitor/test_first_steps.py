"""The rules of the first steps, on numbers; `test_alarms.py` has them as alarms."""

from __future__ import annotations

import pytest

from llava.train.monitor.first_steps import LEAST_POINTS, MOST_POINTS, SkippedSteps, rise


def test_a_line_that_rises_is_told_with_its_ends():
    points = [(step, 2.0 + 0.1 * step) for step in range(1, 21)]
    assert rise(points) == pytest.approx((2.1, 4.0))
    assert rise([(step, -loss) for step, loss in points]) is None


def test_too_few_points_and_too_many_are_not_judged():
    points = [(step, 2.0 + 0.1 * step) for step in range(1, MOST_POINTS + 2)]
    assert rise(points[: LEAST_POINTS - 1]) is None and rise(points) is None
    assert rise(points[:LEAST_POINTS]) is not None


def test_a_step_without_effect_counts_once_a_step_like_it_had_one():
    skipped = SkippedSteps()
    still, moves = {"blocks": 0.0}, {"blocks": 1e-3}
    rates, norms = {"blocks": 1e-3}, {"blocks": 1.0}
    assert skipped.add(1, norms, still, rates) == skipped.add(2, norms, moves, rates) == []
    assert skipped.add(3, norms, still, rates) == []
    assert skipped.add(4, norms, still, rates) == [3, 4]
    assert SkippedSteps().add(1, {}, {}, {}) == []
