"""Small files of other containers, made byte by byte, and cut at every byte."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from llava.data.video import chunks

RIFF = b"RIFF" + (24).to_bytes(4, "little") + b"AVI " + bytes(20)
IMAGE = b"\x2c" + bytes(8) + b"\x81" + bytes(12) + b"\x02" + b"\x03abc\x02de\x00"
"""An image of a GIF with a colour table of four entries."""
GIF_HEAD = b"GIF89a" + bytes(4) + b"\x80" + bytes(2) + bytes(6)
EXTENSION = b"\x21\xf9\x04" + bytes(4) + b"\x00"
GIF = GIF_HEAD + EXTENSION + IMAGE * 2 + b"\x3b"
FLV_HEAD = b"FLV\x01\x05" + (9).to_bytes(4, "big") + bytes(4)
TAG = b"\x09" + (5).to_bytes(3, "big") + bytes(7) + b"video" + bytes(4)
OBJECT = bytes(16) + (40).to_bytes(8, "little") + bytes(16)
PACKETS = b"\x47" + bytes(187)
PACK = b"\0\0\1\xba\x44" + bytes(8) + b"\xf9\xff"
PES = b"\0\0\1\xe0" + (6).to_bytes(2, "big") + b"abcdef"


def page(kind: int, serial: int = 1) -> bytes:
    return b"OggS\0" + bytes([kind]) + bytes(8) + serial.to_bytes(4, "little") + bytes(8) + b"\x02\x03\x04" + b"abcdefg"


@pytest.mark.parametrize(
    ("walk", "head", "parts"),
    [
        pytest.param(chunks.avi, b"", [RIFF, RIFF], id="avi"),
        pytest.param(chunks.gif, GIF_HEAD, [EXTENSION + IMAGE * 2 + b"\x3b"], id="gif"),
        pytest.param(chunks.flv, FLV_HEAD, [TAG[:-4], TAG[-4:], TAG[:-4]], id="flv"),
        pytest.param(chunks.ogg, b"", [page(2) + page(2, 7) + page(0) + page(4, 7) + page(4)], id="ogg"),
        pytest.param(chunks.asf, b"", [OBJECT, OBJECT], id="asf"),
        pytest.param(chunks.mpeg_ts, PACKETS * 2, [PACKETS], id="ts"),
        pytest.param(chunks.mpeg_ps, b"", [PACK, PES, PES], id="mpeg"),
    ],
)
def test_every_cut_is_seen(walk: Callable, head: bytes, parts: list[bytes]) -> None:
    """But for one between two parts, and where less is left than the head of a part that no format requires."""
    whole = head + b"".join(parts)
    assert walk(io.BytesIO(whole), len(whole)) == ""
    between = {len(head + b"".join(parts[:i])) for i in range(len(parts) + 1)}
    notes = {"avi": 12, "asf": 24, "mpeg_ps": 4, "flv": 4}.get(walk.__name__, 0)
    for end in range(len(head), len(whole)):
        after = min(end - place for place in between if place <= end)
        if after >= notes and end not in between:
            assert walk(io.BytesIO(whole[:end]), end), end
        elif end in between - {len(head)}:
            assert not walk(io.BytesIO(whole[:end]), end), end


@pytest.mark.parametrize(("length", "before"), [(192, 4), (204, 0)])
def test_packets_of_other_lengths(length: int, before: int) -> None:
    packet = bytes(before) + b"\x47" + bytes(length - before - 1)
    assert chunks.mpeg_ts(io.BytesIO(packet * 12), 12 * length) == ""
    assert "last packet" in chunks.mpeg_ts(io.BytesIO(packet * 12), 12 * length - 5)


def test_what_was_broken_off_or_follows() -> None:
    assert "never written" in chunks.avi(io.BytesIO(b"RIFF" + bytes(40)), 44)
    assert chunks.avi(io.BytesIO(RIFF + b"a note of a tool"), len(RIFF) + 16) == ""
    assert "damaged block" in chunks.gif(io.BytesIO(GIF_HEAD + b"\x99" + IMAGE), len(GIF_HEAD + IMAGE) + 1)
    assert chunks.gif(io.BytesIO(GIF + b"note"), len(GIF) + 4) == ""


def test_the_checksum_of_a_page() -> None:
    """A page of libogg, whose checksum is right."""
    head = b"OggS\0\x02" + bytes(8) + b"\x01\0\0\0" + bytes(4)
    body = b"\x01\x03abc"
    crc = 0
    for byte in head + bytes(4) + body:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    right = head + crc.to_bytes(4, "little") + body
    assert chunks.ogg_damage(io.BytesIO(right), len(right)) == ""
    wrong = right[:-1] + b"d"
    assert "checksum" in chunks.ogg_damage(io.BytesIO(wrong), len(wrong))
