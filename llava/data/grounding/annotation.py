"""What is where and when in a clip or an image, as people or programs have marked it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llava.data.grounding.geometry import Box
from llava.data.grounding.text import Span
from llava.data.variables import coordinate_word
from llava.errors import UserError, show


@dataclass(frozen=True)
class Event:
    """Something that is named, when it is and where.

    Attributes:
        text: a phrase or a sentence.
        span: its first and last time, from 0 to 1; None where that is not known, and in images.
        boxes: by time from 0 to 1; of an image the one box at 0.
        first_box: where it starts, should none of `boxes` be at that time.
    """

    text: str
    span: Span | None = None
    boxes: Mapping[float, Box] = field(default_factory=dict)
    first_box: Box | None = None


@dataclass(frozen=True)
class Annotation:
    """A clip or an image with what was marked in it; numbers are fractions of the frame and of the segment.

    Attributes:
        id: of the clip; ids of records begin with it.
        video, image: the path of the one or the other.
        width, height: of a frame in pixels, as a player shows it; 0 where no event has boxes and nobody knows.
        num_frames: frames that are seen of the clip; their times are `i / (num_frames - 1)`. 0 where boxes are given
            at other times.
        split: the segment in frames, [first, last], as `meta.split`.

    Raises:
        ValueError: at construction, naming the annotation, the field and what it has.
    """

    id: str
    width: int
    height: int
    events: Sequence[Event]
    video: str | None = None
    image: str | None = None
    num_frames: int = 0
    split: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        wrong = []
        if bool(self.video) == bool(self.image):
            wrong.append(f"expected a video or an image, got {self.video!r} and {self.image!r}")
        is_placed = any(event.boxes for event in self.events)
        if min(self.width, self.height) < is_placed:
            wrong.append(f"width and height are {self.width} x {self.height} pixels")
        for number, event in enumerate(self.events):
            wrong += [f"events[{number}]: {problem}" for problem in _problems(event)]
        if wrong:
            raise UserError(f"annotation {show(self.id)!r}: {'; '.join(wrong[:3])}")


def _problems(event: Event) -> list[str]:
    found = [] if event.text.strip() else ["its text is empty"]
    if word := coordinate_word(event.text):
        found.append(f"its text holds {word}, which stands for a number")
    if event.span is not None and not (_are_fractions(event.span) and event.span[0] <= event.span[1]):
        found.append(f"its span {list(event.span)} is not two times from 0 to 1, the first before the last")
    for time, box in event.boxes.items():
        ordered = len(box) == 4 and box[0] < box[2] and box[1] < box[3]
        if not (ordered and _are_fractions(box)):
            found.append(f"its box {list(box)} at {time:g} is not x1 < x2 and y1 < y2, all from 0 to 1")
        if not _are_fractions([time]):
            found.append(f"the time {time:g} of a box is not from 0 to 1")
    return found


def _are_fractions(values: Sequence[float]) -> bool:
    return all(math.isfinite(v) and 0 <= v <= 1 for v in values)
