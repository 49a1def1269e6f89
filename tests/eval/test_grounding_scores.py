"""Scores of where and when against plain loops over pixels, instants and frames."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.eval.grounding_scores import (
    CENTRE,
    answered_tube,
    best_box,
    best_end,
    best_span,
    box_iou,
    figures,
    frame_grid,
    frames_within,
    matched_iou,
    passes,
    span_iou,
    true_tube,
    tube_iou,
)

TENTHS = st.integers(0, 10)
BOX = st.tuples(TENTHS, TENTHS, TENTHS, TENTHS)


def tenths(values):
    return tuple(v / 10 for v in values)


@given(BOX, BOX)
def test_iou_of_boxes_counts_cells(a, b):
    def cells(box):
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    one, other = cells(a), cells(b)
    expected = len(one & other) / len(one | other) if one | other else float(a == b)
    assert float(box_iou(tenths(a), tenths(b))) == pytest.approx(expected)


@given(st.tuples(TENTHS, TENTHS), st.tuples(TENTHS, TENTHS))
def test_iou_of_spans_is_over_the_whole_stretch(a, b):
    """As the formula of the benchmarks has it: the gap between two spans counts as none of both."""
    longest = max(a[1], b[1]) - min(a[0], b[0])
    common = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    expected = common / longest if longest > 0 else float(a == b)
    assert float(span_iou(tenths(a), tenths(b))) == pytest.approx(expected)
    if a[0] > a[1] and b[0] <= b[1]:
        assert float(span_iou(tenths(a), tenths(b))) == 0


def test_iou_by_hand():
    assert float(box_iou((0, 0, 0.5, 0.5), (0.25, 0.25, 0.75, 0.75))) == pytest.approx(1 / 7)
    assert float(box_iou((0.9, 0.9, 0.1, 0.1), (0, 0, 1, 1))) == 0, "corners in the wrong order enclose nothing"
    assert float(span_iou((0.0, 0.5), (0.25, 1.0))) == pytest.approx(0.25)
    assert float(span_iou((0.3, 0.3), (0.3, 0.3))) == 1
    assert span_iou(np.array([[0, 1], [0, 0.5]]), (0, 1)).tolist() == [1, 0.5]


def test_the_grid_of_frames():
    assert frame_grid(12) == [9 * i for i in range(12)] and frame_grid(10)[-1] == 99 and frame_grid(1) == [0]
    assert frame_grid(100) == list(range(100)) == frame_grid(150)
    assert frames_within((9 / 99, 0.3), frame_grid(12)) == {9, 18, 27}
    assert frames_within((0.5, 0.4), frame_grid(12)) == set()


LINE = (0.0, 0.0, 0.2, 0.2)


def test_true_boxes_lie_on_the_frames_between_the_first_and_the_last():
    moved = tuple(v + 0.5 for v in LINE)
    tube = true_tube({0: LINE, 50: moved}, [0, 10, 25, 50, 60])
    assert list(tube) == [0, 10, 25, 50] and tube[0] == LINE and tube[50] == pytest.approx(moved)
    assert tube[10] == pytest.approx([v + 0.1 for v in LINE])
    assert true_tube({4: LINE}, [0, 10]) == {0: LINE} and true_tube({}, [0]) == {}
    every = {k: (k / 99, 0, 1, 1) for k in range(100)}
    assert true_tube(every, frame_grid(12)) == {k: pytest.approx(every[k]) for k in frame_grid(12)}


def test_answered_boxes_go_to_the_nearest_frame():
    a, b, c = ((v, v, 1.0, 1.0) for v in (0.1, 0.2, 0.3))
    assert answered_tube({1: a, 9: b, 11: c}, [0, 10, 20]) == {0: a, 10: b}
    assert answered_tube({9: c, 10: b, 5: a}, [0, 10]) == {0: a, 10: b}


@given(
    st.dictionaries(st.integers(0, 6), BOX, max_size=7),
    st.dictionaries(st.integers(0, 6), BOX, min_size=1, max_size=7),
    st.sets(st.integers(0, 6)),
)
def test_tubes_against_a_loop_over_frames(answered, truth, claimed):
    answered = {f: tenths(b) for f, b in answered.items()}
    truth = {f: tenths(b) for f, b in truth.items()}
    total = both = either = 0.0
    for frame in range(7):
        said, true = frame in answered or frame in claimed, frame in truth
        either += said or true
        if said and true:
            both += 1
            total += float(box_iou(answered[frame], truth[frame])) if frame in answered else 0.0
    expected = (total / both if both else 0.0, total / either)
    assert tube_iou(answered, truth, claimed) == pytest.approx(expected)
    assert tube_iou(truth, truth)[1] == pytest.approx(1.0 if all(b == b for b in truth.values()) else 0.0)


@given(st.lists(BOX, max_size=4), st.lists(BOX, max_size=4))
def test_boxes_without_an_order_are_matched_as_the_best_of_all_orders(answered, truth):
    a, b = [tenths(v) for v in answered], [tenths(v) for v in truth]
    if not a or not b:
        assert matched_iou(a, b) == float(len(a) == len(b))
        return
    short, long = sorted((a, b), key=len)
    best = max(
        sum(float(box_iou(x, y)) for x, y in zip(short, order, strict=True))
        for order in itertools.permutations(long, len(short))
    )
    assert matched_iou(a, b) == pytest.approx(best / len(long))


def test_thresholds_are_passed_or_reached():
    third = np.array([0.1 + 0.2, 0.3, 0.5, 0.49])
    assert passes(third, ">", 0.3).tolist() == [False, False, True, True]
    assert passes(third, "≥", 0.3).tolist() == [True] * 4
    assert passes(third, "≥", 0.5).tolist() == [False, False, True, False]


def test_figures_have_intervals_over_clips():
    found = figures("tIoU", [0.2, 0.4, 0.8, 0.9], [("a", None), ("a", None), "b", "c"])
    assert list(found) == ["mean", "> 0.3", "> 0.5", "> 0.7"]
    assert found["mean"][0] == pytest.approx(0.575) and found["> 0.3"][0] == 0.75 and found["> 0.7"][0] == 0.5
    assert all(low < value < high for value, low, high in found.values())
    value, low, high = figures("IoU", [1.0] * 3, "abc")["≥ 0.5"]
    assert value == high == 1 and low < 0.9, "three right answers do not show that all are"
    assert math.isnan(figures("IoU", [1.0, 1.0], "aa")["mean"][1]), "one clip says nothing of others"
    assert all(math.isnan(x) for triple in figures("IoU", [], []).values() for x in triple)


def test_no_constant_span_is_better():
    generator = np.random.default_rng(0)
    truth = [tuple(sorted(pair)) for pair in np.round(generator.uniform(size=(30, 2)) * 99) / 99]
    best = best_span(truth)

    def mean(span):
        return sum(float(span_iou(span, t)) for t in truth) / len(truth)

    height = mean(best)
    assert all(mean((s / 99, e / 99)) <= height + 1e-12 for s in range(0, 100, 3) for e in range(s, 100, 3))
    assert best_span([(0.0, 1.0)]) == (0.0, 1.0) and best_span([(3 / 99, 3 / 99)]) == pytest.approx((3 / 99, 3 / 99))
    with pytest.raises(ValueError, match="no span"):
        best_span([])
    ends = [(0.2, 0.5), (0.3, 0.5), (0.1, 0.5)]
    assert best_end(ends) == pytest.approx(0.5, abs=0.01)


@settings(max_examples=10)
@given(st.integers(0, 100))
def test_no_nearby_constant_box_is_better(seed):
    corners = np.round(np.random.default_rng(seed).uniform(size=(20, 2, 2)) * 99) / 99
    truth = [(*pair.min(axis=0), *pair.max(axis=0)) for pair in corners]
    best = best_box(truth)
    height = box_iou(best, np.array(truth)).mean()
    assert height >= box_iou(CENTRE, np.array(truth)).mean() - 1e-2
    assert height >= max(box_iou(t, np.array(truth)).mean() for t in truth) - 1e-9
    for edge, step in itertools.product(range(4), (-3, -1, 1, 3)):
        moved = list(best)
        moved[edge] += step / 99
        if 0 <= moved[edge] <= 1:
            assert box_iou(moved, np.array(truth)).mean() <= height + 1e-9
    assert best_box([truth[0]] * 3) == pytest.approx(truth[0])


def test_without_a_box_there_is_no_best_one():
    with pytest.raises(ValueError, match="no box"):
        best_box([])
