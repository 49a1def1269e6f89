"""Means with their intervals beside each other, as one static drawing: what each control costs, or each run gains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from llava.report.drawing import COLOURS, Tick, axis_of
from llava.report.plots import CONDITIONS, Interval, format_interval, gain_of

BAR_WIDTH, ROW_HEIGHT = 320, 34
"""Units of the drawing: between the ends of the axis, and from row to row."""


class Bar(NamedTuple):
    """One row: places of mean, ends and single values (seeds) on the axis, and what is written beside it."""

    label: str
    text: str
    colour: int
    mean: float
    low: float
    high: float
    y: float
    points: tuple[float, ...] = ()


@dataclass(frozen=True)
class Intervals:
    """What the template writes; `zero` is the place of 0, `height` that of all rows."""

    title: str
    unit: str
    bars: Sequence[Bar]
    ticks: Sequence[Tick]
    zero: float
    height: float


def draw_intervals(
    title: str,
    unit: str,
    rows: Sequence[tuple[str, Interval, int]],
    points: Sequence[Sequence[float]] | None = None,
    decimals: int = 2,
) -> Intervals | None:
    """Rows of (label, (mean, low, high), colour) on one axis with 0; None without any that is finite.

    An end that is not finite, as that of a single clip, is left out.

    Args:
        points: single values that a row's mean is of, such as those of seeds, drawn below it.
    """
    singles = points if points is not None else [()] * len(rows)
    kept = [(*row, each) for row, each in zip(rows, singles, strict=True) if math.isfinite(row[1][0])]
    if not kept:
        return None
    shown = (np.array([*interval, *each]) for _, interval, _, each in kept)
    axis = axis_of([np.array([0.0]), *shown], BAR_WIDTH)

    def bar(row: int, label: str, interval: Interval, colour: int, each: Sequence[float]) -> Bar:
        mean, low, high = (float(v) for v in axis.place(interval))
        ends = (low, high) if math.isfinite(low) and math.isfinite(high) else (mean, mean)
        text, y = format_interval(interval, decimals), (row + 1) * ROW_HEIGHT - 9
        return Bar(label, text, colour % COLOURS, mean, *ends, y, tuple(axis.place(each).tolist()))

    bars = [bar(i, *row) for i, row in enumerate(kept)]
    return Intervals(title, unit, bars, axis.ticks(), float(axis.place(0)), len(bars) * ROW_HEIGHT)


def gain_intervals(controls: Mapping[str, Sequence[Mapping[str, Any]]]) -> Intervals | None:
    """The last evaluation's gains of one run; of several, each run's gain of the video. None where none was measured.

    Colours are those of the curves over time.
    """
    unit = "nats per caption, mean and 95\u00a0% interval"
    if len(controls) > 1:
        last = [
            (name, gain_of(lines[-1], "video") if lines else None, i)
            for i, (name, lines) in enumerate(controls.items())
        ]
        found = [(name, interval, colour) for name, interval, colour in last if interval is not None]
        return draw_intervals("Visual information gain", unit, found)
    (lines,) = controls.values()
    gains = [
        (label, gain_of(lines[-1], gain) if lines and gain else None, i)
        for i, (gain, label) in enumerate(CONDITIONS.values())
    ]
    found = [(label, interval, colour) for label, interval, colour in gains if interval is not None]
    return draw_intervals("What a caption costs more than with its own video", unit, found)
