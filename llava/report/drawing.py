"""A panel of curves as a static drawing, which reads without scripts and in print; `curves.js` adds hover and zoom.

The page's template writes the SVG. Places are in units of the drawing: x to the right, y down, `WIDTH` by `HEIGHT`
between the axes. Colours of curves are CSS variables of the page, so that one drawing fits light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from llava.report.plots import Panel, Series, running_median, thin

WIDTH, HEIGHT = 300, 165
SMOOTHED = 60
"""Curves with more points are drawn thin, with their running median over them."""
DOTS = 30
"""Up to so many points are drawn as dots too."""
COLOURS, DASHES = 7, ("", "5 2", "1.5 2")
MARKS = 100
ROWS = 60
"""Steps that the table of a drawing has at most."""


class Tick(NamedTuple):
    """A place on an axis, and what is written there."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` (their decimal logarithms where `log`) on `length` units."""

    low: float
    high: float
    length: float
    log: bool = False

    def place(self, values: Any) -> np.ndarray:
        """Distances from the low end; NaN for what a logarithm does not have."""
        values = np.asarray(values, dtype=float)
        if self.log:
            values = np.log10(np.where(values > 0, values, np.nan))
        return (values - self.low) / (self.high - self.low) * self.length

    def ticks(self, text: Callable[[float], str] | None = None) -> list[Tick]:
        """At most eight round values, and their places; `text` writes them, `tick_text` by default."""
        values = log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high)
        return [Tick(float(p), (text or tick_text)(v)) for v, p in zip(values, self.place(values), strict=True)]


@dataclass(frozen=True)
class Curve:
    """One curve as paths; `thin` is what was logged where `line` is its running median."""

    label: str
    colour: int
    dashes: str
    line: str
    thin: str
    dots: str
    band: str


@dataclass(frozen=True)
class Drawing:
    """What the template writes of a panel; `levels` are heights with their names, `data` is what hovering reads."""

    panel: Panel
    curves: Sequence[Curve]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    zero: float | None
    levels: Sequence[tuple[float, str]]
    marks: Sequence[float]
    data: dict[str, Any]
    table: Sequence[tuple[float, Sequence[float]]]
    steps: int


def draw(panel: Panel) -> Drawing:
    """The panel on its axes."""
    # A dot at step 0 or at the last one would be cut in half by the edge.
    x = axis_of([np.append(s.steps, 0) for s in panel.series], WIDTH, panel.log_x, 0.02)
    log = panel.log and _spans_decades(panel.series)
    drawn = [v for s in panel.series for v in (s.values, s.low, s.high) if v is not None]
    levels = [(value, text) for value, text in panel.levels if math.isfinite(value) and (value > 0 or not log)]
    fixed = [*([0.0] if panel.zero else []), *(value for value, _ in levels)]
    y = axis_of([*drawn, np.array(fixed)], HEIGHT, log)
    steps = sorted({float(step) for s in panel.series for step in s.steps})
    return Drawing(
        panel,
        [_curve(s, x, y) for s in panel.series],
        x.ticks(amount_text if panel.log_x else tick_text),
        [Tick(HEIGHT - t.at, t.text) for t in y.ticks()],
        HEIGHT - float(y.place(0)) if panel.zero and not log else None,
        [(HEIGHT - float(y.place(value)), text) for value, text in levels],
        x.place(panel.marks[:MARKS]).round(2).tolist(),
        {
            "x": [x.low, x.high], "y": [y.low, y.high], "log": log, "size": [WIDTH, HEIGHT],
            "series": [_data(s) for s in panel.series],
        },
        _table(panel.series, steps),
        len(steps),
    )  # fmt: skip


def axis_of(parts: Iterable[np.ndarray], length: float, log: bool = False, margin: float = 0.05) -> Axis:
    """The axis that shows all finite values (above 0 where `log`), with some room at both ends."""
    values = np.concatenate([np.asarray(p, dtype=float) for p in parts])
    values = values[np.isfinite(values)]
    if log:
        values = np.log10(values[values > 0])
    low, high = float(values.min()), float(values.max())
    room = margin * (high - low) or (0.0 if high > low else max(abs(high) * 0.1, 0.1))
    return Axis(low - room, high + room, length, log)


def _spans_decades(series: Sequence[Series]) -> bool:
    """Whether a logarithmic axis shows more: all finite values above 0, and the highest over three times the lowest."""
    values = np.concatenate([s.values[np.isfinite(s.values)] for s in series])
    positive = values[values > 0]
    # A norm of exactly 0 is a gap of a logarithmic curve, as long as it is the exception.
    all_above = len(positive) > 0.9 * len(values) and (values >= 0).all()
    return bool(all_above and positive.max() > 3 * positive.min())


def _curve(series: Series, x: Axis, y: Axis) -> Curve:
    def places(at: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x.place(series.steps[at]), HEIGHT - y.place(values)

    kept = thin(series.values)
    xs, ys = places(kept, series.values[kept])
    every = path(xs, ys)
    line = path(*places(*running_median(series.values))) if len(kept) > SMOOTHED else every
    finite = np.isfinite(ys)
    alone = finite & ~np.r_[False, finite[:-1]] & ~np.r_[finite[1:], False]
    shown = finite if len(kept) <= DOTS else alone
    dots = "".join(f"M{a:.2f} {b:.2f}h0" for a, b in zip(xs[shown], ys[shown], strict=True))
    band = ""
    if series.low is not None and series.high is not None:
        both = kept[np.isfinite(series.low[kept]) & np.isfinite(series.high[kept])]
        upper, lower = places(both, series.high[both]), places(both[::-1], series.low[both[::-1]])
        band = path(np.concatenate([upper[0], lower[0]]), np.concatenate([upper[1], lower[1]]))
    number, dashes = series.colour % COLOURS, DASHES[series.colour // COLOURS % len(DASHES)]
    return Curve(series.label, number, dashes, line, every if line != every else "", dots, band)


def path(xs: np.ndarray, ys: np.ndarray) -> str:
    """The points as the `d` of an SVG path, which starts anew behind what is not finite."""
    parts, inside = [], False
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(y):
            parts.append(f"{'L' if inside else 'M'}{x:.2f} {y:.2f}")
        inside = math.isfinite(y)
    return "".join(parts)


def _data(series: Series) -> dict[str, Any]:
    kept = thin(series.values)

    def numbers(values: np.ndarray) -> list[float | None]:
        return [float(f"{v:.5g}") if math.isfinite(v) else None for v in values[kept]]

    data: dict[str, Any] = {"steps": series.steps[kept].tolist(), "values": numbers(series.values)}
    if series.low is not None and series.high is not None:
        data |= {"low": numbers(series.low), "high": numbers(series.high)}
    return data


def _table(series: Sequence[Series], steps: Sequence[float]) -> list[tuple[float, list[float]]]:
    """(step, value of each curve) of at most `ROWS` steps, evenly spread; NaN where a curve has none."""
    spread = np.linspace(0, len(steps) - 1, min(len(steps), ROWS)).round().astype(int)
    values = [dict(zip(s.steps.tolist(), s.values.tolist(), strict=True)) for s in series]
    return [(steps[i], [each.get(steps[i], math.nan) for each in values]) for i in spread]


def linear_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Round values between 10^low and 10^high: of each decade more, the fewer decades there are."""
    places = (1,) if high - low > 2.2 else (1, 2, 5) if high - low > 1 else (1, 1.5, 2, 3, 5, 7)
    values = [f * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for f in places]
    inside = [v for v in values if low <= math.log10(v) <= high]
    return inside[:: math.ceil(len(inside) / most)] if inside else [10**low, 10**high]


def tick_text(value: float) -> str:
    """A number as short as an axis needs it."""
    if value and not 1e-4 <= abs(value) < 1e4:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e") if abs(value) < 1 else f"{value:,.0f}"
    return f"{value:.6g}".replace("-", "−")


def amount_text(value: float) -> str:
    """A number of words in short: 500, 10k, 1.5M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"
