"""Boxes of MP4 and QuickTime files (ISO 14496-12, 4.2): whether the file holds all that they announce."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple


class Box(NamedTuple):
    """`kind` is its four letters; `body` and `end` are positions in the file, `end` as announced."""

    kind: bytes
    body: int
    end: int


def walk(file: BinaryIO, start: int, stop: int) -> Iterator[Box]:
    """The boxes from `start` on that begin before `stop`; the last one may announce an end beyond it."""
    while start + 8 <= stop:
        file.seek(start)
        header = file.read(16)
        size, kind, body = int.from_bytes(header[:4], "big"), header[4:8], start + 8
        if size == 1:
            size, body = int.from_bytes(header[8:16], "big"), start + 16
        end = stop if size == 0 else start + size
        if end < body or not all(32 <= byte < 127 or byte == 0xA9 for byte in kind):
            return
        yield Box(kind, body, end)
        start = end


def missing(file: BinaryIO, size: int) -> str:
    """What a fragmented file of `size` bytes lacks, empty when nothing; of others, the index is compared elsewhere.

    A file that ends between two fragments is told from a whole one only by an index of fragments (`sidx`).
    """
    boxes = list(walk(file, 0, size))
    moov = next((box for box in boxes if box.kind == b"moov"), None)
    fragmented = moov and any(b.kind == b"mvex" for b in walk(file, moov.body, min(moov.end, size)))
    if not (fragmented or any(box.kind == b"moof" for box in boxes)):
        return ""
    last = boxes[-1]
    if last.end > size:
        return f"its last box, {last.kind.decode('latin-1')}, ends at byte {last.end} of {size}"
    if last.kind == b"moof":
        return "the data of its last fragment"
    if 0 < size - last.end < 8:
        return "it ends inside the head of a box"
    announced = max((_end_of_index(file, box) for box in boxes if box.kind == b"sidx"), default=0)
    return f"its index of fragments reaches to byte {announced} of {size}" if announced > size else ""


def _end_of_index(file: BinaryIO, box: Box) -> int:
    """Where the last fragment that a `sidx` box (ISO 14496-12, 8.16.3) lists ends."""
    file.seek(box.body)
    data = file.read(box.end - box.body)
    wide = 8 if data[:1] != b"\0" else 4
    position = 12 + 2 * wide
    offset = int.from_bytes(data[12 + wide : position], "big")
    count = int.from_bytes(data[position + 2 : position + 4], "big")
    entries = (data[position + 4 + 12 * i : position + 8 + 12 * i] for i in range(count))
    return box.end + offset + sum(int.from_bytes(entry, "big") & 0x7FFFFFFF for entry in entries)
