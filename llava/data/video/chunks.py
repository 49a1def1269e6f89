"""The plain structure of other containers: whether a file ends where its last chunk, page or packet does.

Each function takes an open file and its size in bytes, and says what is missing, empty when nothing is. What follows
the last known chunk is left alone: tools append notes of their own.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO


def avi(file: BinaryIO, size: int) -> str:
    """RIFF chunks, several in files above 1 GB (OpenDML). A size of 0 was never filled in: a recording that broke."""
    position = 0
    while position + 12 <= size:
        file.seek(position)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] != b"RIFF":
            return ""
        if length in (0, 0xFFFFFFFF):
            return "its size was never written, as when a recording breaks off"
        if position + 8 + length > size:
            return _beyond("RIFF chunk", position + 8 + length, size)
        position += 8 + length + length % 2
    return ""


def gif(file: BinaryIO, size: int) -> str:
    """Blocks up to the trailer (GIF89a specification, 27)."""
    file.seek(0)
    data = file.read()
    position = 13 + _table(data, 10)
    while position < size:
        kind = data[position]
        if kind == 0x3B:
            return ""
        if kind == 0x2C:
            position += 11 + _table(data, position + 9)
        elif kind == 0x21:
            position += 2
        else:
            return f"a damaged block at byte {position}"
        while position < size and data[position]:
            position += data[position] + 1
        position += 1
    return "its trailer"


def _table(data: bytes, position: int) -> int:
    """Bytes of the colour table that the flags at `position` announce."""
    flags = data[position] if position < len(data) else 0
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def flv(file: BinaryIO, size: int) -> str:
    """Tags of sound (8), pictures (9) and notes (18), as Adobe's FLV specification 10.1 has them in annex E."""
    file.seek(0)
    position = int.from_bytes(file.read(9)[5:], "big") + 4
    while position < size:
        file.seek(position)
        head = file.read(11)
        if head[0] & 31 not in (8, 9, 18):
            return ""
        end = position + 11 + int.from_bytes(head[1:4], "big")
        if len(head) < 11 or end > size:
            return _beyond("tag", end, size)
        position = end + 4
    return ""


def ogg(file: BinaryIO, size: int) -> str:
    """Pages (RFC 3533, 6); the last page of each stream is marked."""
    open_streams: set[bytes] = set()
    for head, _, end in _ogg_pages(file, size):
        if end > size:
            return "the rest of its last page"
        (open_streams.discard if head[5] & 4 else open_streams.add)(head[14:18])
    return "the last page of a stream" if open_streams else ""


def ogg_damage(file: BinaryIO, size: int) -> str:
    """The first page whose checksum (RFC 3533, 6, CRC-32 from the highest bit on) differs, empty when there is none."""
    for head, start, end in _ogg_pages(file, size):
        if end > size:
            return ""
        file.seek(start)
        page = head[:22] + bytes(4) + file.read(end - start)[26:]
        # zlib's CRC-32 is the same polynomial from the lowest bit on, with all bits turned at both ends.
        crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
        if int(f"{crc:032b}"[::-1], 2) != int.from_bytes(head[22:26], "little"):
            return f"the checksum of the page at byte {start} differs"
    return ""


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_pages(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Head, start and announced end of each page."""
    position = 0
    while position < size:
        file.seek(position)
        head = file.read(27)
        if head[:4] != b"OggS"[: len(head)]:
            return
        table = file.read(head[26]) if len(head) == 27 else b""
        whole = len(head) == 27 and len(table) == head[26]
        end = position + 27 + len(table) + sum(table) if whole else size + 1
        yield head, position, end
        position = end


def asf(file: BinaryIO, size: int) -> str:
    """Top-level objects, 16 bytes of GUID and 8 of size; a data object of size 0 is a live stream's."""
    position = 0
    while position + 24 <= size:
        file.seek(position + 16)
        length = int.from_bytes(file.read(8), "little")
        if length < 24:
            return ""
        if position + length > size:
            return _beyond("object", position + length, size)
        position += length
    return ""


def mpeg_ts(file: BinaryIO, size: int) -> str:
    """Packets of 188 bytes (ISO 13818-1, 2.4.3.2), of 192 with a time in front (Blu-ray), of 204 with a checksum."""
    file.seek(0)
    head = file.read(204 * 10)
    for length, before in ((188, 0), (192, 4), (204, 0)):
        for start in range(length):
            places = range(start + before, len(head), length)
            if len(places) and all(head[place] == 0x47 for place in places):
                rest = (size - start) % length
                return f"{length - rest} bytes of its last packet" if rest else ""
    return ""


def mpeg_ps(file: BinaryIO, size: int) -> str:
    """Packs and packets (ISO 11172-1, 2.4.3; ISO 13818-1, 2.5.3)."""
    position = 0
    while position + 4 <= size:
        file.seek(position)
        head = file.read(14)
        kind = head[3]
        if head[:3] != b"\0\0\1" or kind < 0xB9:
            return ""
        if kind == 0xB9:
            end = position + 4
        elif kind == 0xBA:
            is_mpeg2 = len(head) > 4 and head[4] >> 6 == 1
            end = position + (14 + (head[-1] & 7) if is_mpeg2 else 12)
        else:
            end = position + 6 + int.from_bytes(head[4:6], "big")
        if end > size:
            return _beyond("packet", end, size)
        position = end
    return ""


def _beyond(what: str, end: int, size: int) -> str:
    return f"its last {what} ends at byte {end} of {size}"
