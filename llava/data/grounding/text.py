"""Boxes, spans and boxes of frames as LLaVA-ST writes them: made with placeholders, read from coordinate tokens.

| what | text |
| --- | --- |
| box | `[<WIDTH-...><HEIGHT-...><WIDTH-...><HEIGHT-...>]`: x1, y1, x2, y2 |
| span | `{<TEMP-...><TEMP-...>}` |
| boxes of frames | `<TEMP-012>:[box] <TEMP-024>:[box]` |
| event (ELC) | `<TEMP-044>, what happens. <TEMP-012>:[box] ...`: its end, its words, its boxes |
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from llava.constants import NUM_COORDINATES
from llava.data.grounding.geometry import Box

Span = tuple[float, float]
"""First and last time from 0 to 1."""
Written = tuple[str, list[float]]
"""A text with placeholders, and their numbers in reading order."""

_LAST = NUM_COORDINATES - 1
_BOX = r"\[\s*<WIDTH-(0\d\d)>\s*<HEIGHT-(0\d\d)>\s*<WIDTH-(0\d\d)>\s*<HEIGHT-(0\d\d)>\s*\]"
_ANY_BOX = re.compile(_BOX)
_FRAME_BOX = re.compile(rf"<TEMP-(0\d\d)>\s*:\s*{_BOX}")
_SPAN = re.compile(r"\{\s*<TEMP-(0\d\d)>\s*<TEMP-(0\d\d)>\s*\}")
_END = re.compile(r"\s*<TEMP-(0\d\d)>(?!\s*:\s*\[)\s*,?")


def box_text(box: Sequence[float], way: str = "OUTPUT") -> Written:
    """A box that is asked for, or told (`way` INPUT)."""
    x1, y1, x2, y2 = box
    return f"[{f'<WIDTH-{way}><HEIGHT-{way}>' * 2}]", [x1, y1, x2, y2]


def time_text(time: float, way: str = "OUTPUT") -> Written:
    """A single time."""
    return f"<TEMP-{way}>", [time]


def span_text(span: Sequence[float], way: str = "OUTPUT") -> Written:
    """A span of time."""
    start, end = span
    return f"{{<TEMP-{way}><TEMP-{way}>}}", [start, end]


def frame_boxes_text(boxes: Mapping[float, Sequence[float]], way: str = "OUTPUT") -> Written:
    """A box for each time, in the order of time."""
    written = [(time, *box_text(boxes[time], way)) for time in sorted(boxes)]
    text = " ".join(f"<TEMP-{way}>:{box}" for _, box, _ in written)
    return text, [number for time, _, numbers in written for number in (time, *numbers)]


def parse_box(text: str) -> Box | None:
    """The first box of a text; None where there is none. It may have no area: a model may say so."""
    found = _ANY_BOX.search(text)
    return _box(found.groups()) if found else None


def parse_boxes(text: str) -> list[Box]:
    """All boxes of a text, in their order."""
    return [_box(found.groups()) for found in _ANY_BOX.finditer(text)]


def parse_span(text: str) -> Span | None:
    """The first span of a text; None where there is none. It may end before it starts."""
    found = _SPAN.search(text)
    return (int(found[1]) / _LAST, int(found[2]) / _LAST) if found else None


def parse_frame_boxes(text: str) -> dict[int, Box]:
    """The boxes of frames by the index of their time's token; of several for a time the first."""
    boxes: dict[int, Box] = {}
    for found in _FRAME_BOX.finditer(text):
        boxes.setdefault(int(found[1]), _box(found.groups()[1:]))
    return boxes


def parse_phrases(text: str) -> list[tuple[str, Box]]:
    """Each box of a text with the words between it and the box before: an image described with boxes in it (DGC)."""
    found, start = [], 0
    for match in _ANY_BOX.finditer(text):
        found.append((" ".join(text[start : match.start()].split()), _box(match.groups())))
        start = match.end()
    return found


def parse_event(text: str) -> tuple[float | None, str, dict[int, Box]]:
    """(end, words, boxes of frames) of an event that was localised and described (ELC); the end None where it is not
    there.
    """
    end = _END.match(text)
    rest = text[end.end() :] if end else text
    first = _FRAME_BOX.search(rest)
    words = " ".join(rest[: first.start() if first else None].split()).removesuffix(".")
    return int(end[1]) / _LAST if end else None, words, parse_frame_boxes(rest)


def _box(tokens: Sequence[str]) -> Box:
    x1, y1, x2, y2 = (int(token) / _LAST for token in tokens)
    return x1, y1, x2, y2
