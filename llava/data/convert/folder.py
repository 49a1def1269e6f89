"""A folder of clips with their captions beside them: `a.mp4` with `a.txt`, `a.srt` or `a.vtt`."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator
from pathlib import Path

from llava.data.convert.clips import VIDEOS, composed
from llava.data.convert.columns import Asked, is_language, language_code
from llava.data.convert.rows import UNREADABLE, Fault, Read, Row, read_text
from llava.data.json_records import DatasetError

SIDECARS = (".txt", ".srt", ".vtt")
_TIMES = re.compile(r"((?:\d+:)?\d+:\d+[.,]\d+)\s+-->\s+((?:\d+:)?\d+:\d+[.,]\d+)")
_MARKUP = re.compile(r"<[^>]*>|\{\\[^}]*\}")


def read_cues(text: str) -> Iterator[tuple[int, float, float, str] | tuple[int, str]]:
    """(line, start, end, words) of every cue of SubRip or WebVTT, in seconds; (line, what is wrong) for other blocks.

    Formatting is left out, lines of a cue are joined by a space.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    block: list[str] = []
    for number, line in enumerate([*lines, ""], 1):
        if line.strip():
            block.append(line.strip())
            continue
        first, kept, block = number - len(block), block, []
        if kept and re.match(r"(WEBVTT|NOTE|STYLE|REGION)\b", kept[0]):
            # A first cue may follow the header without a line between.
            cue = next((i for i, part in enumerate(kept) if "-->" in part), len(kept))
            first, kept = first + cue, kept[cue:] if kept[0].startswith("WEBVTT") else []
        if not kept:
            continue
        at = next((i for i, part in enumerate(kept[:2]) if "-->" in part), None)
        times = _TIMES.match(kept[at]) if at is not None else None
        if at is None or times is None:
            yield first, f"no cue with its times (00:00:01,000 --> 00:00:02,500): {kept[0]!r:.60}"
            continue
        start, end = (_seconds(t) for t in times.groups())
        if end <= start:
            yield first, f"a cue that ends before it starts: {kept[at]!r:.60}"
            continue
        yield first, start, end, html.unescape(_MARKUP.sub("", " ".join(kept[at + 1 :]))).strip()


def _seconds(time: str) -> float:
    seconds = 0.0
    for part in time.replace(",", ".").split(":"):
        seconds = seconds * 60 + float(part)
    return round(seconds, 3)


def sidecars(folder: Path) -> list[Path]:
    """The files of captions below a folder, in the order of their names."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SIDECARS and p.is_file())


def read_folder(folder: Path, asked: Asked, encoding: str) -> Iterator[Read]:
    """The rows of the captions in a folder: each line of a text is a caption of the whole clip, each cue of subtitles
    one of its segment. `a.it.srt` is of `a`, in Italian, unless a clip is called `a.it`.
    """
    clips = {
        composed(p.relative_to(folder).with_suffix("").as_posix())
        for p in folder.rglob("*")
        if p.suffix.lower() in VIDEOS
    }
    for path in sidecars(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        language = ""
        stem, suffix = os.path.splitext(name)
        if composed(name) not in clips and suffix.lower() not in VIDEOS and is_language(suffix[1:]):
            name, language = stem, language_code(suffix[1:])
        try:
            text = read_text(path, encoding)
        except DatasetError as error:
            yield Fault(str(path), UNREADABLE, str(error))
            continue
        if path.suffix.lower() == ".txt":
            for number, line in enumerate(text.splitlines(), 1):
                if line.strip():
                    yield Row(f"{path}:{number}", name, line, language)
            if not text.strip():
                yield Row(str(path), name, "", language)
            continue
        for cue in read_cues(text):
            if len(cue) == 2:
                yield Fault(f"{path}:{cue[0]}", UNREADABLE, cue[1])
            else:
                number, start, end, words = cue
                yield Row(f"{path}:{number}", name, words, language, start=start, end=end, is_within=True)
