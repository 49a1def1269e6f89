"""What every reader gives: a caption of a clip with its place in the source, or what is wrong at a place."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from llava.data.json_records import DatasetError
from llava.errors import show

UNREADABLE = "unreadable row"
NO_CLIP = "row without clip"
COMMAND = "python -m llava.data.convert"


@dataclass(frozen=True, slots=True)
class Row:
    """One caption of one clip, as the source has them; `source` is its file and place.

    `clip` is what the source calls the clip, `folder` the folder below the clips that it names, if it does. `start` and
    `end` are seconds, and None where the caption is of all of the clip; `is_within` says that they are of the clip's
    own file, as those of subtitles are, and not maybe of a longer one that it was cut from.
    """

    source: str
    clip: str
    caption: str
    language: str = ""
    split: str = ""
    folder: str = ""
    start: float | None = None
    end: float | None = None
    is_image: bool = False
    is_within: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong at a place of the source, or with one of its captions, which is not written."""

    source: str
    kind: str
    message: str

    def __str__(self) -> str:
        return show(f"{self.source}: {self.kind}: {self.message}")


Read = Row | Fault


def open_source(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked where it is gzip.

    Raises:
        DatasetError: when it cannot be opened.
    """
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return io.BufferedReader(gzip.open(path, "rb")) if packed else open(path, "rb")
    except OSError as error:
        raise DatasetError(f"{show(path)}: {error.strerror or error}; check SOURCE") from error


def decode_lines(path: Path, data: Iterable[bytes], encoding: str) -> Iterator[str]:
    """Lines of bytes as text, ends of lines included.

    Raises:
        DatasetError: naming the line that is not text of this encoding, and what to do.
    """
    for number, line in enumerate(data, 1):
        if number == 1:
            line = _without_mark(path, line, encoding)
            if b"\r" in line.rstrip(b"\r") and not line.endswith(b"\n"):
                raise DatasetError(
                    f"{show(path)}: its lines end with a carriage return alone, as those of old Macs; save it with "
                    "Unix line ends (tr '\\r' '\\n' < OLD > NEW)"
                )
        try:
            yield line.decode(encoding)
        except UnicodeDecodeError as error:
            raise DatasetError(_not_text(path, line, number, encoding, error)) from error


def read_text(path: Path, encoding: str) -> str:
    """The text of a file; see `decode_lines` for what is raised."""
    with open_source(path) as file:
        return "".join(decode_lines(path, file, encoding))


def _without_mark(path: Path, line: bytes, encoding: str) -> bytes:
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DatasetError(f"{show(path)}: is UTF-16; save it as UTF-8 (iconv -f utf-16 -t utf-8 OLD > NEW)")
    return line.removeprefix(b"\xef\xbb\xbf") if encoding.casefold().replace("_", "-") in ("utf-8", "utf8") else line


def _not_text(path: Path, line: bytes, number: int, encoding: str, error: UnicodeDecodeError) -> str:
    around = line[max(error.start - 20, 0) : error.start + 20].decode("latin-1").strip()
    return (
        f"{show(path)}: line {number} is not {encoding.upper()} ({error.reason}, byte {line[error.start]:#04x}; as "
        f"Latin-1 it reads {show(around)!r}): add --encoding latin-1 (or cp1252) if that reads well, or save the file "
        "as UTF-8"
    )
