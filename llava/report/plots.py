"""Numbers and pictures of the report: curves as inline SVG, frames as data URLs.

Colours of curves are CSS variables of the page, so that one drawing fits light and dark. They are those that M. Okabe
and K. Ito chose for colour-blind readers (Color Universal Design, 2008).
"""

from __future__ import annotations

import base64
import io
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava.config.video import VideoSpec
from llava.data.video import read_frames

MAX_POINTS = 2000
SMOOTHED = 60
"""Curves with more points are drawn thin, with their running median over them."""
THUMBNAIL_WIDTH = 160
FRAME_BUDGET = 1_000_000
"""Bytes of base64 that all frames together may take, so that a page stays below 2 MB."""
WIDTH, HEIGHT = 360, 235
"""Size of a drawing in its own units; text of 11 units stays readable on a telephone."""
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#010101")
"""What matplotlib draws with; the page knows the n-th one as `--c<n>`. The last is black, yellow in dark mode."""
INK = "#0d0d0d"
LEFT, RIGHT, BOTTOM, TOP = 0.16, 0.69, 0.17, 0.98
"""Edges of the axes as shares of the drawing; curves are named to their right."""
LABEL_WIDTH, FONT_SIZE = 14, 11
NATS = "nats per supervised token"
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))

Interval = tuple[float, ...]
"""Mean, low and high end."""
CONDITIONS = {
    "true": ("", "its own video"),
    "other": ("video", "another clip's video"),
    "shuffled": ("time", "its frames in another order"),
    "blank": ("blank", "a blank video"),
    "no_fast": ("fast", "without the fast stream"),
    "no_slow": ("slow", "without the slow stream"),
}
"""Condition of the controls: the gain that compares it with the true video, and its name."""


@dataclass(frozen=True)
class Series:
    """One curve: `values[i]` at step `steps[i]`; `low` and `high` are the ends of its intervals.

    Values that are not finite are gaps. `colour` counts through the palette, then through dashes.
    """

    label: str
    steps: np.ndarray
    values: np.ndarray
    colour: int
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    @property
    def style(self) -> tuple[str, Any]:
        return PALETTE[self.colour % len(PALETTE)], DASHES[self.colour // len(PALETTE) % len(DASHES)]


@dataclass(frozen=True)
class Panel:
    """A drawing with its title and remarks; `log` asks for a logarithmic axis, where the values allow it."""

    title: str
    unit: str
    series: Sequence[Series]
    log: bool = False
    marks: Sequence[int] = ()
    zero: bool = False

    @property
    def notes(self) -> list[str]:
        """What the drawing does not show by itself."""
        notes = ["Ticks at the bottom: alarms."] if self.marks else []
        if any(s.low is not None for s in self.series):
            notes.append("Bands: 95\u00a0% bootstrap intervals.")
        for s in self.series:
            if count := int((~np.isfinite(s.values)).sum()):
                notes.append(
                    f"{s.label or self.title}: {count} value{'s are' if count > 1 else ' is'} not finite and left out."
                )
        if longest := max((len(s.values) for s in self.series if len(s.values) > MAX_POINTS), default=0):
            notes.append(f"Thinned from {longest:,} points; lowest and highest values are kept.")
        return notes


def number(value: Any) -> float:
    """`value` as a float; what is no number becomes NaN."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def format_number(value: Any, decimals: int = 3) -> str:
    """A number with a true minus; a dash for what is none."""
    value = number(value)
    return f"{value:,.{decimals}f}".replace("-", "−") if math.isfinite(value) else "–"


def format_interval(interval: Interval, decimals: int = 2) -> str:
    mean, low, high = (format_number(v, decimals) for v in interval)
    return f"{mean} [{low}, {high}]"


def series_of(
    entries: Iterable[Mapping[str, Any]], key: str, label: str, colour: int, scale: float = 1
) -> Series | None:
    """`scale` times the values of `key` over the steps of a log, in the order of steps; None without any."""
    points = [(number(e.get("step")), scale * number(e[key])) for e in entries if key in e]
    points = sorted((p for p in points if math.isfinite(p[0])), key=lambda point: point[0])
    if not any(math.isfinite(value) for _, value in points):
        return None
    steps, values = np.array(points, dtype=float).T
    return Series(label, steps, np.where(np.isfinite(values), values, np.nan), colour)


def thin(values: np.ndarray, limit: int = MAX_POINTS) -> np.ndarray:
    """Indexes of at most `limit` values: of equal stretches the lowest, the highest and one gap."""
    if len(values) <= limit:
        return np.arange(len(values))
    kept = {0, len(values) - 1}
    for bucket in np.array_split(np.arange(len(values)), limit // 5):
        finite = np.isfinite(values[bucket])
        if finite.any():
            kept |= {int(bucket[np.nanargmin(values[bucket])]), int(bucket[np.nanargmax(values[bucket])])}
        if not finite.all():
            kept.add(int(bucket[np.argmin(finite)]))
    return np.array(sorted(kept))


def running_median(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indexes of up to 400 places and the medians around them, over a twentieth of the curve; gaps stay gaps."""
    finite = np.isfinite(values)
    half, places = len(values) // 40, np.linspace(0, len(values) - 1, min(len(values), 400)).astype(int)
    at = np.union1d(places, np.flatnonzero(finite)[-1:])
    return at, np.array([np.nanmedian(values[max(i - half, 0) : i + half + 1]) if finite[i] else np.nan for i in at])


def run_panels(log: Sequence[Mapping[str, Any]], alarm_steps: Sequence[int]) -> list[Panel]:
    """The curves of one run from its log; a curve that was not logged is left out."""

    def panel(title: str, unit: str, keys: Mapping[str, str], scale: float = 1, **options: Any) -> Panel:
        drawn = [series_of(log, key, label, i, scale) for i, (key, label) in enumerate(keys.items())]
        return Panel(title, unit, [s for s in drawn if s], **options)

    def grouped(name: str, total: str) -> dict[str, str]:
        groups = dict.fromkeys(key for e in log for key in e if key.startswith(f"{name}/"))
        if all(e[key] == e.get(name) for e in log for key in groups if key in e):
            return {name: total}
        own = {key: key.split("/", 1)[1].removeprefix("mm_").replace("_", " ") for key in groups}
        return {**({name: total} if total else {}), **own}

    loss = {"loss": "training", "eval_loss": "evaluation", "eval_common_loss": "evaluation, common tokens"}
    shares = {"padding_share": "padding", "data_wait_share": "waiting for data", "monitor_share": "monitoring"}
    panels = (
        panel("Loss", NATS, loss, log=True, marks=sorted(set(alarm_steps))),
        panel("Training loss by kind of sample", NATS, {"caption_loss": "captions", "text_loss": "text"}, log=True),
        panel("Evaluation loss of a caption", "nats per caption", {"eval_nats_per_caption": ""}, log=True),
        panel("Gradient norm", "norm", grouped("grad_norm", "all"), log=True),
        panel("Size of an update, relative to the weights", "ratio", grouped("update_ratio", ""), log=True),
        panel("Learning rate", "learning rate", grouped("learning_rate", "")),
        panel("Speed", "supervised tokens per second", {"supervised_tokens_per_second": ""}),
        panel("Speed in samples", "samples per second", {"samples_per_second": ""}),
        panel("What is not computing", "share, %", shares, scale=100),
    )
    return [p for p in panels if p.series]


def comparison_panels(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Panel]:
    """The curves of several runs over each other; a curve that no run logged is left out."""
    keys = {
        "loss": ("Training loss", NATS, True),
        "caption_loss": ("Training loss of captions", NATS, True),
        "eval_loss": ("Evaluation loss", NATS, True),
        "eval_common_loss": ("Evaluation loss, common tokens", NATS, True),
        "grad_norm": ("Gradient norm", "norm", True),
        "learning_rate": ("Learning rate", "learning rate", False),
        "supervised_tokens_per_second": ("Speed", "supervised tokens per second", False),
    }
    panels = []
    for key, (title, unit, log) in keys.items():
        drawn = [series_of(entries, key, name, i) for i, (name, entries) in enumerate(logs.items())]
        panels.append(Panel(title, unit, [s for s in drawn if s], log=log))
    return [p for p in panels if p.series]


def gain_of(line: Mapping[str, Any], name: str, unit: str = "per_caption") -> Interval | None:
    """(mean, low, high) of a gain in a line of controls.jsonl, in nats; None where it was not measured."""
    interval = ((line.get("gains") or {}).get(name) or {}).get(unit)
    return tuple(number(v) for v in interval) if interval else None


def _gain_series(controls: Sequence[Mapping[str, Any]], name: str, label: str, colour: int) -> Series | None:
    """A gain in nats per caption over the steps, each of which counts once; None with fewer than two evaluations."""
    points: dict[float, Interval] = {}
    for line in controls:
        interval, step = gain_of(line, name), number(line.get("step"))
        if interval is not None and math.isfinite(step):
            points[step] = interval
    steps = sorted(points)
    if len(steps) < 2 or not any(math.isfinite(mean) for mean, *_ in points.values()):
        return None
    mean, low, high = np.array([points[s] for s in steps]).T
    return Series(label, np.array(steps), np.where(np.isfinite(mean), mean, np.nan), colour, low, high)


def gain_panels(controls: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Panel]:
    """What each control costs over time in one run; in several, the gains of the video and of the frames' order."""
    unit = "nats per caption"
    if len(controls) == 1:
        (lines,) = controls.values()
        drawn = [_gain_series(lines, name, label, i) for i, (name, label) in enumerate(CONDITIONS.values())]
        panels = [Panel("What each control costs a caption", unit, [s for s in drawn if s], zero=True)]
    else:
        panels = []
        for gain, title in {"video": "Visual information gain", "time": "Gain of the order of frames"}.items():
            drawn = [_gain_series(lines, gain, name, i) for i, (name, lines) in enumerate(controls.items())]
            panels.append(Panel(title, unit, [s for s in drawn if s], zero=True))
    return [panel for panel in panels if panel.series]


def draw(panel: Panel) -> str:
    """The panel as an `<svg>` element that scales with its box and names nothing outside the page."""
    # Importing matplotlib writes its caches and may print, which importing this module must not do.
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    options: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": panel.title, "text.parse_math": False, "font.size": FONT_SIZE,
        "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
    }  # fmt: skip
    with matplotlib.rc_context(options):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        named = any(s.label for s in panel.series)
        axes = figure.add_axes((LEFT, BOTTOM, (RIGHT if named else 0.97) - LEFT, TOP - BOTTOM))
        log = panel.log and _spans_decades(panel.series)
        axes.set_yscale("log" if log else "linear", **({"nonpositive": "mask"} if log else {}))
        ends = [_draw_series(axes, series) for series in panel.series]
        if panel.zero:
            axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xlim(left=min(axes.get_xlim()[0], 0))
        if panel.marks:
            axes.vlines(panel.marks[:100], 0, 0.06, color=PALETTE[1], lw=1.2, transform=axes.get_xaxis_transform())
        axes.grid(axis="y", color=INK, alpha=0.14, linewidth=0.6)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(panel.unit)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        if log:
            decades = math.log10(axes.get_ylim()[1] / axes.get_ylim()[0])
            places = (1,) if decades > 2.2 else (1, 2, 5) if decades > 1 else (1, 1.5, 2, 3, 5, 7)
            axes.yaxis.set_major_locator(LogLocator(subs=places, numticks=8))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
        if named:
            _label_ends(axes, panel.series, ends)
        figure.savefig(buffer := io.StringIO(), format="svg", transparent=True)
    return tidy_svg(buffer.getvalue(), panel.title)


def _tick(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e4:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e") if abs(value) < 1 else f"{value:,.0f}"
    return f"{value:.6g}".replace("-", "−")


def _spans_decades(series: Sequence[Series]) -> bool:
    """Whether a logarithmic axis shows more: all finite values above 0, and the highest over three times the lowest."""
    values = np.concatenate([s.values[np.isfinite(s.values)] for s in series])
    positive = values[values > 0]
    # A norm of exactly 0 is a gap of a logarithmic curve, as long as it is the exception.
    return len(positive) > 0.9 * len(values) and bool((values >= 0).all()) and positive.max() > 3 * positive.min()


def _draw_series(axes: Any, series: Series) -> tuple[float, float]:
    """Draws a curve with its intervals, and gives the point where it ends."""
    kept = thin(series.values)
    steps, values = series.steps[kept], series.values[kept]
    colour, dashes = series.style
    if series.low is not None and series.high is not None:
        axes.fill_between(steps, series.low[kept], series.high[kept], color=colour, alpha=0.18, linewidth=0)
    if len(values) > SMOOTHED:
        axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
        at, values = running_median(series.values)
        steps = series.steps[at]
    axes.plot(steps, values, color=colour, linewidth=1.5, linestyle=dashes)
    finite = np.isfinite(values)
    alone = finite & ~np.r_[False, finite[:-1]] & ~np.r_[finite[1:], False]
    dots = finite if len(values) <= 30 else alone
    axes.plot(steps[dots], values[dots], color=colour, linestyle="none", marker="o", markersize=3.2)
    last = np.flatnonzero(finite)[-1]
    return steps[last], values[last]


def _label_ends(axes: Any, series: Sequence[Series], ends: Sequence[tuple[float, float]]) -> None:
    """Writes each curve's name to the right of its end, moved apart where ends are close."""
    # A masked 0 of a logarithmic axis has no place; its name goes to the bottom.
    places = np.nan_to_num(axes.transAxes.inverted().transform(axes.transData.transform(ends)), neginf=0, posinf=1)
    labels = [wrap_label(s.label) for s in series]
    order = np.argsort(places[:, 1], kind="stable")
    line = 1.12 * FONT_SIZE / ((TOP - BOTTOM) * HEIGHT)
    centres = spread(places[order, 1].tolist(), [(len(labels[i]) + 0.25) * line for i in order])
    for i, centre in zip(order, centres, strict=True):
        x, y = places[i]
        colour, dashes = series[i].style
        options = {"color": colour, "transform": axes.transAxes, "clip_on": False}
        if x <= 0.9:
            axes.plot([x, 1.0], [y, y], linewidth=0.8, linestyle=(0, (1, 2)), **options)
        axes.plot([max(x, 1.0), 1.05], [y, centre], linewidth=1.5, linestyle=dashes, **options)
        axes.text(1.07, centre, "\n".join(labels[i]), transform=axes.transAxes, va="center", linespacing=1.12)


def wrap_label(label: str) -> list[str]:
    """A name in at most two lines, broken at spaces and underscores; a longer one loses its middle."""
    lines = [line.replace("_ ", "_") for line in textwrap.wrap(label.replace("_", "_ "), LABEL_WIDTH)]
    return lines if len(lines) <= 2 else [f"{label[: LABEL_WIDTH - 3]}…", label[-LABEL_WIDTH + 3 :]]


def spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Centres near the `wanted` ones (ascending) of boxes of these heights, apart, and from 0 to 1 if they fit."""
    centres: list[float] = []
    floor = 0.0
    for centre, height in zip(wanted, heights, strict=True):
        centres.append(max(centre, floor + height / 2))
        floor = centres[-1] + height / 2
    ceiling = max(1.0, sum(heights))
    for i in reversed(range(len(centres))):
        centres[i] = min(centres[i], ceiling - heights[i] / 2)
        ceiling = centres[i] - heights[i] / 2
    return centres


def tidy_svg(svg: str, label: str) -> str:
    """matplotlib's SVG for use inside a page: no prologue, metadata or outside names, short numbers, page colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<(g|svg|text) id="[^"]*"', r"<\1", svg)
    head, body = svg.split(">", 1)
    head = re.sub(r'\s(xmlns(:\w+)?|version|width|height)="[^"]*"', "", head)
    svg = f"{head}>{body}"

    def shorten(tag: re.Match[str]) -> str:
        text = re.sub(r"\s+", " ", tag[0])
        text = re.sub(r' (d|x|y|transform)="[^"]*"', lambda part: re.sub(r"(\.\d)\d+", r"\1", part[0]), text)
        for i, colour in enumerate(PALETTE):
            text = text.replace(colour, f"var(--c{i})")
        return text.replace(INK, "currentColor")

    svg = re.sub(r"<[^>]*>", shorten, svg)
    return re.sub(r">\s+<", "><", svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)).strip()


class Frames:
    """Frames of clips as data URLs, up to `FRAME_BUDGET` bytes; a clip that lay in `trained` now lies in `folder`."""

    def __init__(self, folder: str | None, trained: str | None) -> None:
        self.folder, self.trained, self.left = folder or trained, trained or "", FRAME_BUDGET

    def _find(self, path: Path) -> Path:
        if path.is_file() or not self.folder:
            return path
        return Path(self.folder) / (path.relative_to(self.trained) if path.is_relative_to(self.trained) else path)

    def __call__(self, sample: Mapping[str, Any]) -> tuple[list[str], str]:
        """The data URLs of four frames and "", or none and the reason."""
        if self.left <= 0:
            return [], "the page would exceed 2 MB"
        try:
            path = self._find(Path(str(sample["video"])))
            spec = VideoSpec(num_frames=4, force_sample=True)
            urls = [to_url(frame) for frame in read_frames(path, spec, sample.get("split"))]
        except Exception as error:  # A page about a run must not fail since a clip has moved or a decoder crashed.
            return [], str(error) or type(error).__name__
        self.left -= sum(map(len, urls))
        return urls, ""


def to_url(frame: np.ndarray) -> str:
    """A frame (H, W, 3) uint8 as the data URL of a JPEG, at most `THUMBNAIL_WIDTH` pixels wide."""
    image = Image.fromarray(frame)
    image.thumbnail((THUMBNAIL_WIDTH, 2 * THUMBNAIL_WIDTH))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
