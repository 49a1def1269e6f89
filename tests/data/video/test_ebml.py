"""Elements of Matroska, made byte by byte."""

from __future__ import annotations

import io
import zlib

from llava.data.video import ebml


def element(kind: int, body: bytes = b"", unknown: bool = False) -> bytes:
    size = b"\x01" + (b"\xff" * 7 if unknown else len(body).to_bytes(7, "big"))
    return kind.to_bytes((kind.bit_length() + 7) // 8, "big") + size + body


HEAD = element(ebml.EBML, b"webm")
TRACKS = element(ebml.TRACKS, element(0xAE, element(ebml.TRACK_NUMBER, b"\x01")))
BLOCK = element(ebml.SIMPLE_BLOCK, b"\x81" + bytes(20))
GROUP = element(ebml.BLOCK_GROUP, element(ebml.BLOCK, b"\x81" + bytes(20)))
TIME = element(0xE7, b"\0")


def sized(content: bytes) -> bytes:
    return HEAD + element(ebml.SEGMENT, content)


def live(content: bytes) -> bytes:
    return HEAD + element(ebml.SEGMENT, content, unknown=True)


def missing(data: bytes) -> str:
    return ebml.missing(io.BytesIO(data), len(data))


def damage(data: bytes) -> str:
    return ebml.damage(io.BytesIO(data), len(data))


CLUSTER = element(ebml.CLUSTER, TIME + BLOCK + GROUP)
OPEN_CLUSTER = element(ebml.CLUSTER, TIME + BLOCK + GROUP, unknown=True)


def test_whole_files_lack_nothing() -> None:
    for whole in (sized(TRACKS + CLUSTER * 2), live(TRACKS + CLUSTER * 2), live(TRACKS + OPEN_CLUSTER * 2)):
        assert missing(whole) == damage(whole) == ""
    # Notes after the segment, and files that were joined.
    assert missing(sized(TRACKS + CLUSTER) + b"a note") == ""
    assert missing(live(TRACKS + OPEN_CLUSTER) + sized(TRACKS)) == ""
    assert missing(b"") == damage(b"Un gatto.") == ""


def test_every_cut_of_a_segment_with_a_size_is_seen() -> None:
    whole = sized(TRACKS + CLUSTER * 2)
    for end in range(len(sized(b"")), len(whole)):
        assert "segment ends at byte" in missing(whole[:end])


def test_every_cut_of_a_live_stream_within_an_element_is_seen() -> None:
    whole = live(TRACKS + OPEN_CLUSTER * 2)
    start = len(live(TRACKS))
    heads = [start, start + 12, start + 12 + len(TIME), start + 12 + len(TIME + BLOCK)]
    between = {place + i * len(OPEN_CLUSTER) for place in heads for i in range(2)}
    for end in range(start, len(whole)):
        assert bool(missing(whole[:end])) == (end not in between), end


def test_damage_inside_of_clusters_is_seen() -> None:
    assert "unknown element" in damage(sized(TRACKS + element(ebml.CLUSTER, TIME + bytes([0x90]) + BLOCK[1:])))
    assert "longer than its cluster" in damage(sized(TRACKS + element(ebml.CLUSTER, TIME + BLOCK[:-3]) + CLUSTER))
    assert "no element" in damage(sized(TRACKS + element(ebml.CLUSTER, TIME + bytes(40))))
    other = element(ebml.SIMPLE_BLOCK, b"\x82" + bytes(20))
    assert "belongs to no track" in damage(sized(TRACKS + element(ebml.CLUSTER, TIME + other)))
    in_group = element(ebml.BLOCK_GROUP, element(ebml.BLOCK, b"\x82" + bytes(20)))
    assert "belongs to no track" in damage(sized(TRACKS + element(ebml.CLUSTER, TIME + in_group)))


def test_a_wrong_checksum_is_seen() -> None:
    content = TIME + BLOCK
    right = element(ebml.CRC, zlib.crc32(content).to_bytes(4, "little"))
    wrong = element(ebml.CRC, (zlib.crc32(content) ^ 1).to_bytes(4, "little"))
    assert damage(sized(TRACKS + element(ebml.CLUSTER, right + content))) == ""
    assert "checksum" in damage(sized(TRACKS + element(ebml.CLUSTER, wrong + content)))
