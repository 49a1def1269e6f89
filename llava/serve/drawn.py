"""What an answer says of where and when, drawn on the frames that the model saw: on the page, in a file of the CLI."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from llava.data.features.content import replace_file
from llava.data.grounding.text import parse_boxes, parse_frame_boxes, parse_span
from llava.errors import show
from llava.report.boxes import CSS, SAID, Marks, chosen, frames_svg
from llava.report.plots import to_url

LEGEND = "Pink: what the answer says. Pictures are as the vision tower sees them."
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Where and when</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1000px; padding: 0 1rem; color: #222; }}
h2 {{ font-size: 1rem; margin: 2rem 0 .4rem; overflow-wrap: anywhere; }} p {{ overflow-wrap: anywhere; }}
{css}</style></head><body>
<p>{legend}</p>
{parts}
</body></html>
"""


def marks_of(text: str) -> Marks:
    """What a text says: boxes of frames, or else boxes of the whole clip, and a span. A single time is no span."""
    frames = parse_frame_boxes(text)
    every = [] if frames else parse_boxes(text)
    span = parse_span(text)
    return Marks({SAID: every}, {SAID: frames}, {SAID: span} if span else {})


def drawn_html(frames: np.ndarray, text: str) -> str:
    """Frames (T, S, S, 3) uint8 with what a text says of them; nothing where it says neither where nor when."""
    marks = marks_of(text)
    if marks.is_empty:
        return ""
    places = chosen(len(frames), marks)
    return frames_svg({i: to_url(frames[i]) for i in places}, len(frames), marks)


class ShowFile:
    """A page of clips with what the model answered drawn on them, written when it is closed.

    Args:
        path: of the page.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: list[str] = []

    def add(self, clip: str, frames: np.ndarray, text: str) -> None:
        """A clip's frames (T, S, S, 3) uint8, and the answer."""
        drawn = drawn_html(frames, text) or _plain(frames)
        self.parts.append(f"<h2>{escape(show(clip))}</h2>\n{drawn}\n<p>{escape(show(text)) or '(nothing)'}</p>")

    def write(self) -> None:
        """Writes the page, whole or not at all."""
        page = PAGE.format(css=CSS, legend=LEGEND, parts="\n".join(self.parts))
        replace_file(self.path, lambda file: file.write(page.encode("utf-8", "backslashreplace")))


def _plain(frames: np.ndarray) -> str:
    """Frames of an answer that says neither where nor when."""
    places: Sequence[int] = chosen(len(frames), Marks())
    drawn = frames_svg({i: to_url(frames[i]) for i in places}, len(frames), Marks())
    return drawn + "<p><em>The answer has no box and no span that can be read.</em></p>"
