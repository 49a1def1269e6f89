"""Elements of Matroska and WebM files (EBML, RFC 8794; Matroska, RFC 9559): whether the file holds all of them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

EBML, SEGMENT, CLUSTER, CRC, VOID = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0xBF, 0xEC
TRACKS, TRACK_NUMBER, SIMPLE_BLOCK, BLOCK_GROUP, BLOCK = 0x1654AE6B, 0xD7, 0xA3, 0xA0, 0xA1
TOP = {0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367, CLUSTER, CRC, VOID}
"""What a segment may hold: SeekHead, Info, Tracks, Cues, Attachments, Chapters, Tags, clusters."""
BLOCKS = {0xE7, 0xA7, 0xAB, 0xA3, 0xA0, 0x5854, 0xAF, CRC, VOID}
"""What a cluster may hold: Timestamp, Position, PrevSize, SimpleBlock, BlockGroup, SilentTracks, EncryptedBlock."""
MOST_HEAD = 12
"""Bytes of the longest head of an element: 4 of kind and 8 of size."""


class Element(NamedTuple):
    """`start`, `body` and `end` are positions in the file; `end` is as announced, None when its size is unknown."""

    kind: int
    start: int
    body: int
    end: int | None


class Fault(NamedTuple):
    """What is wrong with an element; `is_cut` when the file ends too early for it."""

    what: str
    is_cut: bool


def element_at(file: BinaryIO, position: int) -> Element | None:
    """None when there are no head of an element and its size."""
    file.seek(position)
    head = file.read(MOST_HEAD)
    if not head or not head[0] >> 4:
        return None
    length = 9 - head[0].bit_length()
    if len(head) <= length or not head[length]:
        return None
    width = 9 - head[length].bit_length()
    if len(head) < length + width:
        return None
    size = int.from_bytes(head[length : length + width], "big") & ((1 << 7 * width) - 1)
    body = position + length + width
    end = None if size == (1 << 7 * width) - 1 else body + size
    return Element(int.from_bytes(head[:length], "big"), position, body, end)


def missing(file: BinaryIO, size: int) -> str:
    """What a file of `size` bytes lacks, empty when nothing.

    A segment of unknown size, as a live stream has it, is walked to its end; one that ends between two blocks cannot
    be told from a whole one here.
    """
    segment = _segment(file)
    if segment is None:
        return ""
    if segment.end is not None:
        return f"its segment ends at byte {segment.end} of {size}" if segment.end > size else ""
    *_, last = [None, *_content(file, segment.body, size, deep=False)]
    return last.what if isinstance(last, Fault) and last.is_cut else ""


def damage(file: BinaryIO, size: int) -> str:
    """The first place where elements do not fit together or a checksum (CRC-32) differs, empty when there is none."""
    segment = _segment(file)
    if segment is None:
        return ""
    stop = size if segment.end is None else min(segment.end, size)
    tracks: set[int] = set()
    for element in _content(file, segment.body, stop, deep=True):
        if isinstance(element, Fault):
            return element.what
        if element.kind == TRACKS:
            tracks = {
                _number(file, t) for e in _inside(file, element) for t in _inside(file, e) if t.kind == TRACK_NUMBER
            }
        if tracks and element.kind in (SIMPLE_BLOCK, BLOCK_GROUP) and _track_of(file, element) not in tracks:
            return f"a block at byte {element.start} belongs to no track"
        if element.end is not None and element.kind != CRC and not _has_right_checksum(file, element):
            return f"the checksum of an element at byte {element.start} differs"
    return ""


def _inside(file: BinaryIO, parent: Element) -> Iterator[Element]:
    position = parent.body
    while parent.end is not None and position < parent.end:
        element = element_at(file, position)
        if element is None or element.end is None or element.end > parent.end:
            return
        yield element
        position = element.end


def _number(file: BinaryIO, element: Element) -> int:
    file.seek(element.body)
    return int.from_bytes(file.read((element.end or element.body) - element.body), "big")


def _track_of(file: BinaryIO, block: Element) -> int | None:
    """The track number that a block begins with, a number of one to eight bytes as sizes are."""
    if block.kind == BLOCK_GROUP:
        return next((_track_of(file, e) for e in _inside(file, block) if e.kind == BLOCK), None)
    file.seek(block.body)
    head = file.read(8)
    if not head or not head[0]:
        return None
    width = 9 - head[0].bit_length()
    return int.from_bytes(head[:width], "big") & ((1 << 7 * width) - 1)


def _segment(file: BinaryIO) -> Element | None:
    header = element_at(file, 0)
    if header is None or header.kind != EBML or header.end is None:
        return None
    segment = element_at(file, header.end)
    return segment if segment is not None and segment.kind == SEGMENT else None


def _content(file: BinaryIO, position: int, stop: int, deep: bool) -> Iterator[Element | Fault]:
    """The elements of a segment up to the first fault, if there is one.

    Args:
        deep: also walk what is inside of clusters whose size is known.
    """
    cluster_end: int | None = None  # `stop` when the size of the cluster is unknown, None outside of clusters.
    while position < stop:
        if cluster_end is not None and position >= cluster_end:
            cluster_end = None
        element = element_at(file, position)
        if element is None:
            is_cut = stop - position < MOST_HEAD
            yield Fault("its last element" if is_cut else f"there is no element at byte {position}", is_cut)
            return
        is_block = cluster_end is not None and element.kind in BLOCKS
        if not is_block and element.kind in (EBML, SEGMENT):
            return  # Files that were joined.
        if not is_block and element.kind not in TOP:
            yield Fault(f"an unknown element at byte {position}", False)
            return
        if element.end is not None and element.end > stop:
            yield Fault(f"its last element ends at byte {element.end} of {stop}", True)
            return
        if is_block and element.end is not None and element.end > (cluster_end or stop):
            yield Fault(f"an element at byte {position} is longer than its cluster", False)
            return
        yield element
        if element.kind == CLUSTER and (deep or element.end is None):
            cluster_end, position = element.end or stop, element.body
        elif element.end is None:
            return
        else:
            position = element.end


def _has_right_checksum(file: BinaryIO, element: Element) -> bool:
    """RFC 8794, 11.3.1: the CRC-32 comes first in its element and covers the rest of it."""
    crc = element_at(file, element.body)
    if element.kind in BLOCKS or crc is None or crc.kind != CRC or crc.end != crc.body + 4:
        return True
    file.seek(crc.body)
    stored = int.from_bytes(file.read(4), "little")
    return zlib.crc32(file.read((element.end or 0) - crc.end)) == stored
