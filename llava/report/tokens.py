"""The token dump of pre-flight (`preflight_samples.html`), read back as pieces of text, so that a page can show it in
colours of its own and holds none of the file's markup.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

DUMP_FILE = "preflight_samples.html"
MOST_PIECES, MOST_CHARACTERS = 6000, 600_000
"""Pieces of all samples together, so that a page stays small, and of the dump what is read for them."""
STATES = {
    "#008000": "predicted", "#008080": "vision", "#800000": "masked", "#808000": "user", "#800080": "system",
    "#808080": "markup", "#7f7f7f": "edge",
}  # fmt: skip
"""What rich writes the colours of `llava.train.preflight.data.sample_text` as, and what they mean; `edge` stands
between two tokens. White on red is a target that must be none."""


@dataclass
class TokenSample:
    """A sample of the dump: modality and id, and its tokens as (text, state)."""

    title: str
    pieces: list[tuple[str, str]] = field(default_factory=list)


class _Dump(HTMLParser):
    """The lines of the page's <pre>, each a list of (text, state)."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.inside, self.state = False, ""
        self.lines: list[list[tuple[str, str]]] = [[]]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "pre":
            self.inside = True
        style = dict(attrs).get("style") or ""
        if tag == "span":
            colour = re.search(r"(?:^|[; ])color: (#[0-9a-f]{6})", style)
            wrong = "background-color: #800000" in style
            self.state = "wrong" if wrong else STATES.get(colour[1], "") if colour else ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "span":
            self.state = ""
        if tag == "pre":
            self.inside = False

    def handle_data(self, data: str) -> None:
        if not self.inside:
            return
        first, *more = data.split("\n")
        for number, text in enumerate((first, *more)):
            if number:
                self.lines.append([])
            if text:
                self.lines[-1].append((text, self.state))


def read_dump(page: str) -> list[TokenSample]:
    """The samples of a dump. An empty line ends one; other lines were broken for a terminal, and a legend in brackets
    ends the first.
    """
    dump = _Dump()
    dump.feed(page[:MOST_CHARACTERS])
    samples: list[TokenSample] = []
    title, fresh, left = "", True, MOST_PIECES
    for line in dump.lines:
        if not line:
            title, fresh = "", True
        elif fresh:
            title += "".join(text for text, _ in line)
            fresh = "  (" in title and not title.endswith(")")
            if not fresh:
                samples.append(TokenSample(title.partition("  (")[0]))
        elif left > 0:
            left -= len(line)
            samples[-1].pieces += line
    return [s for s in samples if s.pieces]
