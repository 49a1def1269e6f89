"""Boxes on frames and spans on a time line, as SVG that stands in a page. Pure.

Places are in hundredths of the picture or the clip. True ones have dashes, so that colours are not needed to tell them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from llava.data.coordinates import nearest

TRUE, SAID = "true", "said"
LABELS = {TRUE: "true", SAID: "answered"}
SHOWN = 6
"""Frames of a clip that are drawn."""
CSS = """
.boxed { display: flex; flex-wrap: wrap; gap: 4px; align-items: flex-start; }
.boxed svg { width: 128px; height: 128px; border-radius: 4px; }
.boxed rect, .timeline rect { vector-effect: non-scaling-stroke; }
.boxed rect { fill: none; stroke-width: 2.5; }
.boxed .true, .timeline .true { stroke: #ffd23f; stroke-dasharray: 5 3; }
.boxed .said { stroke: #ff3fd0; }
.timeline { display: block; width: 100%; max-width: 800px; height: 34px; }
.timeline text { font-size: 10px; fill: currentColor; }
.timeline .line { stroke: currentColor; opacity: .4; }
.timeline .true { fill: #ffd23f66; stroke-width: 1.5; } .timeline .said { fill: #ff3fd0; stroke: none; }
"""


@dataclass(frozen=True)
class Marks:
    """What is marked in a clip or an image: by kind (`TRUE`, `SAID`) boxes of every frame, boxes by the place of their
    frame in time, and a span.
    """

    every: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    frames: Mapping[str, Mapping[int, Sequence[float]]] = field(default_factory=dict)
    spans: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @classmethod
    def of_example(cls, example: Mapping[str, Any]) -> Marks:
        """Of an example in `tests/grounding.json`."""
        parts = {TRUE: example.get("truth") or {}, SAID: example.get("said") or {}}
        return cls(
            {kind: [*([p["box"]] if p.get("box") else []), *(p.get("listed") or [])] for kind, p in parts.items()},
            {kind: {int(k): box for k, box in (p.get("boxes") or {}).items()} for kind, p in parts.items()},
            {kind: p["span"] for kind, p in parts.items() if p.get("span")},
        )

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any((*self.every.values(), *self.frames.values(), *self.spans.values()))

    def at(self, place: int) -> list[tuple[str, Sequence[float]]]:
        """The boxes of the frame at a place in time."""
        found = [(kind, box) for kind, boxes in self.every.items() for box in boxes]
        return found + [(kind, boxes[place]) for kind, boxes in self.frames.items() if place in boxes]


def chosen(count: int, marks: Marks, limit: int = SHOWN) -> list[int]:
    """Indices of the frames that are drawn of `count`: all where they are few, else evenly spread over those that have
    boxes, or over all.
    """
    boxed = {place for boxes in marks.frames.values() for place in boxes}
    having = [i for i in range(count) if place_of(i, count) in boxed]
    listed = list(range(count)) if count <= limit or not having else having
    if len(listed) <= limit:
        return listed
    return sorted({listed[round(i * (len(listed) - 1) / (limit - 1))] for i in range(limit)})


def place_of(index: int, count: int) -> int:
    """The place in time of a frame, 0 to 99."""
    return nearest(index / max(count - 1, 1))


def frames_svg(pictures: Mapping[int, str], count: int, marks: Marks) -> str:
    """Pictures (data URLs by the index of their frame) with their boxes, and below a clip's its time line.

    Args:
        count: frames of the clip; 1 is an image.
    """
    drawn = [_frame(url, marks.at(place_of(i, count)), f"frame {i + 1} of {count}") for i, url in pictures.items()]
    line = time_line(marks.spans, [place_of(i, count) for i in pictures]) if count > 1 and marks.spans else ""
    return f'<div class="boxed">{"".join(drawn)}</div>{line}'


def _frame(url: str, boxes: Iterable[tuple[str, Sequence[float]]], label: str) -> str:
    listed = list(boxes)
    said = "; ".join(f"{LABELS[kind]} box {', '.join(f'{v:.2f}' for v in box)}" for kind, box in listed)
    title = escape(f"{label}{': ' if said else ''}{said}")
    rects = "".join(
        f'<rect class="{kind}" x="{100 * x1:.1f}" y="{100 * y1:.1f}" width="{100 * max(x2 - x1, 0):.1f}" '
        f'height="{100 * max(y2 - y1, 0):.1f}"/>'
        for kind, (x1, y1, x2, y2) in sorted(listed, key=lambda pair: pair[0] != TRUE)
    )
    return (
        f'<svg viewBox="0 0 100 100" role="img"><title>{title}</title>'
        f'<image href="{escape(url)}" width="100" height="100" preserveAspectRatio="none"/>{rects}</svg>'
    )


def time_line(spans: Mapping[str, Sequence[float]], places: Sequence[int] = ()) -> str:
    """Spans on the clip from its first frame to its last, with a tick at each frame that is shown."""
    said = "; ".join(f"{LABELS[kind]} span {s:.2f} to {e:.2f}" for kind, (s, e) in spans.items())
    rows = "".join(
        f'<rect class="{kind}" x="{800 * s:.1f}" y="{3 + 11 * (kind == SAID)}" '
        f'width="{max(800 * (e - s), 2):.1f}" height="9"/>'
        for kind, (s, e) in spans.items()
    )
    ticks = "".join(f'<path class="line" d="M{800 * place / 99:.1f} 25v6"/>' for place in places)
    return (
        '<svg class="timeline" viewBox="-4 0 808 34" preserveAspectRatio="none" role="img">'
        f"<title>{escape(said)}</title>"
        f'<path class="line" d="M0 28h800"/>{ticks}{rows}</svg>'
    )


LEGEND = (
    "Dashed, yellow: true. Solid, pink: answered. Ticks below the time line are the frames that are shown; pictures "
    "are as the vision tower sees them."
)
