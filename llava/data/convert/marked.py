"""Annotations of where and when in the units of their source to records: seconds, frames and pixels to fractions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from llava.data.convert.build import Tally, locate, tidy, times_of, wrong_text
from llava.data.convert.clips import ClipIndex
from llava.data.convert.rows import Fault, Row
from llava.data.grounding.annotation import Annotation, Event
from llava.data.grounding.geometry import Box, is_other_shape
from llava.data.grounding.tasks import asked_as, records_of
from llava.data.video.image import image_size
from llava.data.video.select import spread_evenly
from llava.errors import UserError

WRONG = "wrong annotation"
SLACK = 1.5
"""Pixels, or seconds, by which boxes and spans may leave their frame or clip, where they are cut."""
MISCOUNTED = 0.01
"""Share of its frames by which a file may have others than its source says: decoders drop some at the ends."""
ASKS_ONLY = ("REC", "TVG", "STVG", "SVG")
"""Tasks in which an event is told and never an answer."""


@dataclass(frozen=True)
class Marked:
    """One event of one clip or image, as the source has it.

    Attributes:
        source: its file and place.
        clip: what the source calls the clip.
        text: of the event.
        size: (width, height) in pixels; None where no box is given.
        boxes: (x1, y1, x2, y2) in pixels by frame of the clip, from 0; of an image under 0.
        frames: (first, last) frame of the event; None where `seconds` has it.
        seconds: (start, end) of the event.
        segment: (first, last) frame of the part of the clip that is looked at; None for all of it.
        num_frames: of the clip, where the source says so: those that frames are counted by.
        is_question: `text` asks, and is no answer.
        task, question: where the source says what is asked and how.
        split: part of the data.
    """

    source: str
    clip: str
    text: str
    size: tuple[int, int] | None = None
    boxes: Mapping[int, Sequence[float]] = field(default_factory=dict)
    frames: tuple[int, int] | None = None
    seconds: tuple[float, float] | None = None
    segment: tuple[int, int] | None = None
    num_frames: int = 0
    is_image: bool = False
    is_question: bool = False
    task: str = ""
    question: str = ""
    split: str = ""


@dataclass(frozen=True)
class Wanted:
    """What is made of the annotations."""

    tasks: Sequence[str]
    language: str
    num_frames: int
    seed: int


def build_marked(
    items: Iterable[Marked | Fault], index: ClipIndex, tally: Tally, wanted: Wanted
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(split, record) of every annotation and task; what cannot be one is counted in `tally`, with what is wrong."""
    rng = random.Random(wanted.seed)
    times, size = lru_cache(64)(times_of), lru_cache(64)(image_size)
    ids: set[str] = set()
    for item in items:
        if isinstance(item, Fault):
            tally.faults.append(item)
            continue
        tally.read += 1
        found = locate(Row(item.source, item.clip, item.text, is_image=item.is_image), index, times, tally)
        if found is None:
            continue
        try:
            if item.is_image:
                _check_shape(item, size(str(index.folder / found[0])))
            annotation = annotation_of(item, found[0], wanted.num_frames, partial(times, str(index.folder / found[0])))
            records = _records(item, annotation, wanted, rng)
        except UserError as error:
            tally.faults.append(Fault(item.source, WRONG, f"{item.clip}: {error}"))
            continue
        if refused := [wrong for record in records for wrong in wrong_text(record)]:
            kind, message = refused[0]
            tally.faults.append(Fault(item.source, kind, f"{item.clip}: {message}"))
            continue
        for record in records:
            number, name = 0, record["id"]
            while record["id"] in ids:  # Other events of the clip.
                number += 1
                record["id"] = f"{name.rpartition('_')[0]}_{number}"
            ids.add(record["id"])
            tally.add(found[0], item.split)
            yield item.split, record


def _records(item: Marked, annotation: Annotation, wanted: Wanted, rng: random.Random) -> list[dict[str, Any]]:
    if item.question:
        return [asked_as(annotation, item.task, "en", item.question)] if item.task in wanted.tasks else []
    tasks = [t for t in wanted.tasks if t in ASKS_ONLY or not item.is_question]
    return records_of(annotation, tasks, wanted.language, rng)


def annotation_of(item: Marked, path: str, seen: int, times: Callable[[], Any]) -> Annotation:
    """The annotation in fractions, with boxes at the times of the frames that are seen.

    Args:
        seen: frames of a clip that training sees, evenly spread, the first and the last included.
        times: gives when the frames of the clip are shown, (N,) seconds, or why they cannot be read.

    Raises:
        ValueError: naming the field that is wrong.
    """
    width, height = item.size or (0, 0)
    boxes = {frame: _fractions(box, width, height, frame) for frame, box in item.boxes.items()}
    if item.is_image:
        event = Event(tidy(item.text), None, {0.0: boxes[0]})
        return Annotation(item.clip, width, height, [event], image=path)
    span: tuple[float, float] | None = None
    at: dict[float, Box] = {}
    if item.seconds is not None:
        span = _of_seconds(item.seconds, times())
    elif item.frames is not None:
        first, last = item.segment or (0, item.num_frames - 1)
        total = last - first + 1
        start, end = item.frames
        if item.segment is not None:
            _check_count(item, times())
        if not (total > 1 and first <= start <= end <= last):
            raise UserError(f"frames {start} to {end} of the event are not within {first} to {last} of the clip")
        if stray := [frame for frame in boxes if not start <= frame <= end]:
            raise UserError(f"a box of frame {stray[0]}, which is not of the event in frames {start} to {end}")
        span = (start - first) / (total - 1), (end - first) / (total - 1)
        shown = [first + int(place) for place in spread_evenly(total, seen)]
        at = {(k / (seen - 1) if seen > 1 else 0.5): boxes[f] for k, f in enumerate(shown) if f in boxes}
        if boxes and not at:
            raise UserError(
                f"none of the {seen} frames that are seen lies in frames {start} to {end}; raise --num_frames"
            )
    event = Event(tidy(item.text), span, at, boxes.get(item.frames[0]) if item.frames else None)
    return Annotation(item.clip, width, height, [event], video=path, num_frames=seen, split=item.segment)


def _check_shape(item: Marked, shown: tuple[int, int]) -> None:
    """Whether an image is shown as it was annotated.

    Args:
        shown: of `image_size`.

    Raises:
        ValueError: when it has another shape.
    """
    width, height = shown
    if item.size is not None and min(*item.size, height) > 0 and is_other_shape(item.size, (width, height)):
        raise UserError(
            f"the source says {item.size[0]} x {item.size[1]} pixels, and the file is shown in {width} x {height}: it "
            "is turned by its EXIF data, or is another picture"
        )


def _check_count(item: Marked, times: Any) -> None:
    """Whether frames of a segment are those of the file at hand.

    Args:
        times: as in `annotation_of`.

    Raises:
        ValueError: when the file has no such frames, or so many others that they are not the ones that are meant.
    """
    if isinstance(times, str):
        raise UserError(times)
    assert item.segment is not None
    there, last = len(times), item.segment[1]
    if (
        item.segment[0] < 0
        or last >= there
        or (item.num_frames and abs(there - item.num_frames) > max(2, MISCOUNTED * item.num_frames))
    ):
        asked = f"with frames {item.segment[0]} to {last}"
        said = f"of {item.num_frames} frames" if item.num_frames else asked
        raise UserError(f"its file has {there} frames, and the source is about one {said}: of another rate, or cut")


def _fractions(box: Sequence[float], width: int, height: int, frame: int) -> Box:
    x1, y1, x2, y2 = box
    if min(x1, y1) < -SLACK or x2 > width + SLACK or y2 > height + SLACK or x2 <= x1 or y2 <= y1:
        raise UserError(
            f"bbox of frame {frame}: {x1:g}, {y1:g} to {x2:g}, {y2:g} is no box within {width} x {height} pixels"
        )
    return max(x1 / width, 0.0), max(y1 / height, 0.0), min(x2 / width, 1.0), min(y2 / height, 1.0)


def _of_seconds(seconds: tuple[float, float], times: Any) -> tuple[float, float]:
    """Seconds as fractions of the time from the first frame to the last."""
    if isinstance(times, str):
        raise UserError(times)
    start, end = seconds
    length = float(times[-1])
    if not (0 <= start < end and start < length and end <= length + SLACK):
        raise UserError(f"start and end are {start:g} and {end:g} s, of a clip whose last frame is at {length:g} s")
    return start / length, min(end / length, 1.0)
