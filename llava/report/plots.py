"""Numbers and pictures of the report: which curves there are, and frames as data URLs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava.config.video import VideoSpec
from llava.data.video import read_frames

MAX_POINTS = 1200
"""Of a curve, so that a page stays small; the lowest and highest values are among them."""
THUMBNAIL_WIDTH = 160
FRAME_BUDGET = 1_000_000
"""Bytes of base64 that all frames together may take, so that a page stays below 2 MB."""
NATS = "nats per supervised token"
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


@dataclass(frozen=True)
class Panel:
    """A drawing with its title and remarks; `log` asks for a logarithmic axis, where the values allow it.

    `levels` are values that curves are compared with, each with its name; NaN where it is not known. `x` names the
    other axis, which is logarithmic too where `log_x`: for drawings without `curves.js`, which does not know of it.
    """

    title: str
    unit: str
    series: Sequence[Series]
    log: bool = False
    marks: Sequence[int] = ()
    zero: bool = False
    levels: Sequence[tuple[float, str]] = ()
    x: str = "optimiser step"
    log_x: bool = False

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


def format_figures(value: Any) -> str:
    """A number of any size with four figures; a dash for what is none."""
    value = number(value)
    return f"{value:.4g}".replace("-", "−") if math.isfinite(value) else "–"


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


def run_panels(
    log: Sequence[Mapping[str, Any]],
    alarm_steps: Sequence[int],
    levels: Sequence[tuple[float, str]] = (),
    start: float = math.nan,
) -> list[Panel]:
    """The curves of one run from its log; a curve that was not logged is left out.

    Args:
        levels: values that its loss is compared with, and their names.
        start: its loss before the first step; NaN where that was not measured.
    """

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
    if math.isfinite(start):
        log, loss = [{"step": 0, "start": start}, *log], {**loss, "start": "before the first step"}
    loss = {**loss, "eval_coordinate_loss": "evaluation, coordinates"}
    shares = {"padding_share": "padding", "data_wait_share": "waiting for data", "monitor_share": "monitoring"}
    panels = (
        panel("Loss", NATS, loss, log=True, marks=sorted(set(alarm_steps)), levels=levels),
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
        spec = VideoSpec(num_frames=4, force_sample=True)
        return self.within(
            lambda path: [to_url(frame) for frame in read_frames(path, spec, sample.get("split"))], sample.get("video")
        )

    def within(self, draw: Callable[[Path], list[str]], named: object) -> tuple[list[str], str]:
        """What is drawn of a clip or image and "", or nothing and the reason.

        Args:
            draw: of where the file is now.
            named: its path, as a sample has it.
        """
        if self.left <= 0:
            return [], "the page would exceed 2 MB"
        try:
            drawn = draw(self._find(Path(str(named))))
        except Exception as error:  # A page about a run must not fail since a clip has moved or a decoder crashed.
            return [], str(error) or type(error).__name__
        self.left -= sum(map(len, drawn))
        return drawn, ""


def to_url(frame: np.ndarray) -> str:
    """A frame (H, W, 3) uint8 as the data URL of a JPEG, at most `THUMBNAIL_WIDTH` pixels wide."""
    image = Image.fromarray(frame)
    image.thumbnail((THUMBNAIL_WIDTH, 2 * THUMBNAIL_WIDTH))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
