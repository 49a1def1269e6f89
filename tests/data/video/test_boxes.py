"""Boxes of MP4, made byte by byte."""

from __future__ import annotations

import io

import pytest

from llava.data.video import boxes


def box(kind: bytes, body: bytes = b"") -> bytes:
    return (8 + len(body)).to_bytes(4, "big") + kind + body


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


HEAD = box(b"ftyp", b"isom") + box(b"moov", box(b"mvhd", bytes(20)) + box(b"mvex", box(b"trex", bytes(20))))
FRAGMENT = box(b"moof", bytes(16)) + box(b"mdat", bytes(40))


def missing(data: bytes) -> str:
    return boxes.missing(io.BytesIO(data), len(data))


def test_whole_files_lack_nothing() -> None:
    assert missing(HEAD + FRAGMENT * 3) == ""
    assert missing(HEAD + FRAGMENT + box(b"mfra", bytes(8))) == ""
    last_without_size = bytes(4) + b"mdat" + bytes(9)
    assert missing(HEAD + box(b"moof") + last_without_size) == ""
    wide = number(1) + b"mdat" + (16 + 5).to_bytes(8, "big") + bytes(5)
    assert missing(HEAD + box(b"moof") + wide) == ""


def test_every_cut_of_a_fragment_is_seen() -> None:
    whole = HEAD + FRAGMENT * 2
    between = {len(HEAD), len(HEAD + FRAGMENT)}
    for end in range(len(HEAD), len(whole)):
        assert bool(missing(whole[:end])) == (end not in between), end


@pytest.mark.parametrize("version", [0, 1])
def test_an_index_of_fragments_shows_what_ends_between_two(version: int) -> None:
    width = 4 << version
    entries = b"".join(number(len(FRAGMENT)) + bytes(8) for _ in range(2))
    index = bytes([version, 0, 0, 0]) + bytes(8) + bytes(2 * width) + bytes(2) + (2).to_bytes(2, "big") + entries
    whole = HEAD + box(b"sidx", index) + FRAGMENT * 2
    assert missing(whole) == ""
    assert "index of fragments" in missing(whole[: -len(FRAGMENT)])


def test_a_file_without_fragments_is_left_to_its_index() -> None:
    assert missing(box(b"ftyp") + box(b"moov", box(b"mvhd")) + box(b"mdat", bytes(40))[:20]) == ""
    assert missing(b"") == missing(b"Un gatto nero dorme.") == ""
