"""Scores of where and when: IoU of boxes, spans and tubes, their means, shares, and floors of constant answers. Pure.

Boxes are (x1, y1, x2, y2) and spans (start, end), numbers from 0 to 1. A tube is a box for each of some frames; frames
are named by their place in time, 0 to 99, which is the number in their coordinate token.

Letters in shapes: N answers, T frames of a clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from llava.constants import NUM_COORDINATES
from llava.data.coordinates import nearest
from llava.errors import UserError
from llava.eval.accuracy import clustered_share
from llava.eval.statistics import bootstrap_ratio

Box = tuple[float, float, float, float]
Span = tuple[float, float]
Tube = Mapping[int, Box]
Triple = tuple[float, float, float]
"""A figure and the ends of its 95 % interval over clips."""

CENTRE: Box = (0.25, 0.25, 0.75, 0.75)
"""The floor of who does not look: half as wide and half as high as the picture, in its middle."""
WHOLE: Span = (0.0, 1.0)
REACHED, PASSED = "≥", ">"
THRESHOLDS: dict[str, tuple[str, tuple[float, ...]]] = {
    "IoU": (REACHED, (0.5,)),
    "tIoU": (PASSED, (0.3, 0.5, 0.7)),
    "sIoU": (REACHED, (0.3, 0.5, 0.7)),
    "vIoU": (REACHED, (0.3, 0.5, 0.7)),
    "matched IoU": (REACHED, (0.5,)),
}
"""Of each measure the thresholds that answers are counted at, and whether they are to be reached or passed."""
ROUNDING = 1e-9
"""Thirds and tenths of a clip are no binary numbers: what differs by less is the same."""
SEARCHED = 2000
"""Boxes that the best constant one is searched on, evenly spread, where there are more."""
STARTS = 64


def box_iou(ones: ArrayLike, others: ArrayLike) -> np.ndarray:
    """Intersection over union of boxes (..., 4), broadcast; one without area is like an equal one only."""
    a, b = np.asarray(ones, dtype=float), np.asarray(others, dtype=float)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    both = np.clip(sides, 0, None).prod(axis=-1)
    either = _area(a) + _area(b) - both
    return np.where(either > 0, both / np.where(either > 0, either, 1.0), (a == b).all(axis=-1))


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(axis=-1)


def span_iou(ones: ArrayLike, others: ArrayLike) -> np.ndarray:
    """max(0, min e - max s) / (max e - min s) of spans (..., 2), broadcast; two equal instants have 1.

    A span that ends before it begins has 0.
    """
    a, b = np.asarray(ones, dtype=float), np.asarray(others, dtype=float)
    both = np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0])
    either = np.maximum(a[..., 1], b[..., 1]) - np.minimum(a[..., 0], b[..., 0])
    return np.where(either > 0, np.clip(both, 0, None) / np.where(either > 0, either, 1.0), (a == b).all(axis=-1))


def frame_grid(num_frames: int) -> list[int]:
    """The places in time of a clip's frames, which are spread from its first instant to its last."""
    return sorted({nearest(i / max(num_frames - 1, 1)) for i in range(num_frames)})


def frames_within(span: Span, grid: Sequence[int]) -> set[int]:
    """The frames of a span, both its ends included."""
    return {frame for frame in grid if nearest(span[0]) <= frame <= nearest(span[1])}


def true_tube(boxes: Tube, grid: Sequence[int]) -> dict[int, Box]:
    """Given boxes at the frames of the grid from the first of them to the last, between two of them on a straight line.

    Where no frame lies there, the nearest one has the box.
    """
    if not boxes:
        return {}
    places = sorted(boxes)
    within = [frame for frame in grid if places[0] <= frame <= places[-1]]
    if not within:
        return {min(grid, key=lambda frame: abs(frame - places[0])): boxes[places[0]]}
    edges = np.array([boxes[place] for place in places], dtype=float)
    lines = [np.interp(within, places, edge) for edge in edges.T]
    return {frame: tuple(map(float, box)) for frame, box in zip(within, zip(*lines, strict=True), strict=True)}  # type: ignore[misc]


def answered_tube(boxes: Tube, grid: Sequence[int]) -> dict[int, Box]:
    """Answered boxes, each at the frame of the grid nearest to it (half-way, the earlier one); of several at one frame
    the nearest."""
    found: dict[int, tuple[int, Box]] = {}
    for place, box in sorted(boxes.items()):
        frame = min(grid, key=lambda f: abs(f - place))
        if frame not in found or abs(place - frame) < found[frame][0]:
            found[frame] = abs(place - frame), box
    return {frame: box for frame, (_, box) in found.items()}


def tube_iou(answered: Tube, truth: Tube, claimed: Iterable[int] = ()) -> tuple[float, float]:
    """sIoU and vIoU of a tube: the summed IoU of the frames in both tubes, over the number of frames in both, and over
    that of the frames in either (Zhang et al. 2020, "Where Does It Exist").

    Args:
        answered, truth: on the same grid.
        claimed: more frames that the answer says the event is in; without a box their IoU is 0, so that an answer
            never gains by leaving a box out.
    """
    frames = {*answered, *claimed}
    both, either = frames & truth.keys(), frames | truth.keys()
    total = sum(float(box_iou(answered[f], truth[f])) for f in both if f in answered)
    return (total / len(both) if both else 0.0), (total / len(either) if either else 0.0)


def matched_iou(answered: Sequence[Box], truth: Sequence[Box]) -> float:
    """IoU of boxes without an order, matched one to one so that the sum is greatest, over the larger number of them.

    A box too many or too few counts as one with IoU 0; none of none is 1.
    """
    if not answered or not truth:
        return float(len(answered) == len(truth))
    ious = box_iou(np.array(answered)[:, None], np.array(truth)[None])
    return float(ious[linear_sum_assignment(-ious)].sum()) / max(len(answered), len(truth))


def passes(values: np.ndarray, sign: str, threshold: float) -> np.ndarray:
    """(N,) whether values reach or pass a threshold."""
    return values >= threshold - ROUNDING if sign == REACHED else values > threshold + ROUNDING


def figures(measure: str, values: Sequence[float], clips: Sequence[Any]) -> dict[str, Triple]:
    """Mean of a measure and shares of answers at its `THRESHOLDS`, each with its 95 % interval over clips.

    Whole clips are resampled for the mean; shares have Wilson's interval over clusters, which has a width where all
    answers are alike.

    Args:
        values, clips: (N,) of each answer, and which clip it is about: anything that can be a key.

    Returns:
        figures by name: `mean`, `≥ 0.5` and so on; ends are NaN for a single clip, and all is without an answer.
    """
    sign, thresholds = THRESHOLDS[measure]
    names = ["mean", *(f"{sign} {threshold}" for threshold in thresholds)]
    if not len(values):
        return dict.fromkeys(names, (np.nan,) * 3)
    array, numbers = np.asarray(values, dtype=float), {clip: i for i, clip in enumerate(dict.fromkeys(clips))}
    clusters = [numbers[clip] for clip in clips]
    found = [bootstrap_ratio(array.tolist(), [1.0] * len(array), clusters)]
    found += [clustered_share(passes(array, sign, t).astype(float).tolist(), clusters) for t in thresholds]
    return dict(zip(names, found, strict=True))


def best_span(truth: Sequence[Span]) -> Span:
    """The span between two coordinates with the highest mean tIoU: no constant answer does better.

    Raises:
        ValueError: without a span.
    """
    if not len(truth):
        raise UserError("no span to find the best constant one of")
    ends = np.linspace(0, 1, NUM_COORDINATES)
    first, last = np.triu_indices(NUM_COORDINATES)
    candidates = np.column_stack([ends[first], ends[last]])
    totals = np.zeros(len(candidates))
    for span in truth:
        totals += span_iou(candidates, span)
    return tuple(map(float, candidates[int(np.argmax(totals))]))  # type: ignore[return-value]


def best_end(truth: Sequence[Span]) -> float:
    """The end with the highest mean tIoU where the starts are given."""
    ends = np.linspace(0, 1, NUM_COORDINATES)
    totals = np.zeros(len(ends))
    for start, end in truth:
        totals += span_iou(np.column_stack([np.full_like(ends, start), ends]), (start, end))
    return float(ends[int(np.argmax(totals))])


def best_box(truth: Sequence[Box]) -> Box:
    """A box between coordinates with a high mean IoU: the best of the middle one, the median and some given ones, each
    edge of which is moved as long as that helps. Nearby constant answers do no better.

    Raises:
        ValueError: without a box.
    """
    if not len(truth):
        raise UserError("no box to find the best constant one of")
    boxes = np.array(truth, dtype=float)
    boxes = boxes[np.unique(np.linspace(0, len(boxes) - 1, SEARCHED).round().astype(int))]
    spread = np.unique(np.linspace(0, len(boxes) - 1, STARTS).round().astype(int))
    steps = NUM_COORDINATES - 1
    starts = np.vstack([CENTRE, np.median(boxes, axis=0), boxes[spread]])
    starts = np.round(starts * steps) / steps
    means = [float(box_iou(start, boxes).mean()) for start in starts]
    best, height = starts[int(np.argmax(means))].copy(), max(means)
    moved = True
    while moved:
        moved = False
        for edge in range(4):
            candidates = np.repeat(best[None], NUM_COORDINATES, axis=0)
            candidates[:, edge] = np.linspace(0, 1, NUM_COORDINATES)
            heights = box_iou(candidates[:, None], boxes[None]).mean(axis=1)
            if heights.max() > height + ROUNDING:
                best, height, moved = candidates[int(np.argmax(heights))], float(heights.max()), True
    return tuple(map(float, best))  # type: ignore[return-value]
