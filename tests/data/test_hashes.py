"""Hashes that runs and checkpoints of earlier commits have written down stay what they are."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from itertools import product
from pathlib import PurePosixPath

from llava.data.hashes import below, hash64, paths_below, record_digest
from llava.data.mixture import Source, Strategy
from llava.data.records import Record
from tests.data.test_captions import talk


def test_the_hashes_of_earlier_commits():
    assert hash64("r1") == 3512079124192222595
    source = Source("a.json", "a.json", Strategy(), "/clips", "", "draw")
    record = Record(
        "r1", talk("<video>", "Un gatto è nero."), ("/clips/a/b.mp4",), ("c.png",), (1, 9), {}, "x", (), source
    )
    assert paths_below(record) == (["a/b.mp4"], ["c.png"])
    assert record_digest(record) == record_digest(record, (["a/b.mp4"], ["c.png"])) == 10968933209960574954
    placed = replace(record, coordinates=(0.25, 0.5))
    sized = replace(placed, meta={"width": 640, "height": 480})
    others = (replace(record, coordinates=(0.5, 0.25)), sized, replace(sized, meta={"width": 480, "height": 640}))
    assert len({record_digest(r) for r in (record, placed, *others)}) == 5, "numbers move by the size of the frame"
    assert record_digest(replace(record, meta=sized.meta)) == record_digest(record)


def test_a_path_outside_its_folder_stays_whole():
    assert [below("/a/b/c", folder) for folder in ("/a/b", "/a/bc", "", None)] == ["c", "/a/b/c", "/a/b/c", "/a/b/c"]


def test_a_path_below_its_folder_is_what_pathlib_says():
    def as_pathlib_says(path: str, folder: str) -> str:
        place = PurePosixPath(path)
        return (place.relative_to(folder) if folder and place.is_relative_to(folder) else place).as_posix()

    names = ("a", "b.mp4", "..", ".", "", "/", ".h", "a.", "è ")
    folders = ("", "/", "//", "///", ".", "./", "a", "a/", "a//", "/a", "./a", "a/..", "..", "a/b.mp4", "a/./", "//a")
    for count, folder in product((1, 2, 3), folders):
        for parts in product(names, repeat=count):
            path = "/".join(parts)
            assert below(path, folder) == as_pathlib_says(path, folder), (path, folder)


def test_a_digest_is_that_of_the_parts_as_json():
    texts = ('Un "gatto"\\\n\t\x00\x7f', "Perché? \U0001f408", "\ud800", "/</ \u2028", "")
    for text, split, numbers, meta in product(texts, (None, (1, 9)), ((), (1 / 3, 0.0)), ({}, {"width": 6.5})):
        record = Record(text, talk(text, f"{text} x", text), (text, "b.mp4"), (), split, meta, "x", (), None, numbers)
        turns = [[turn["from"], turn["value"]] for turn in record.conversations]
        parts = [text, turns, *paths_below(record), split]
        parts += [numbers, meta.get("width"), meta.get("height")] if numbers else []
        written = json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")
        assert record_digest(record) == int.from_bytes(hashlib.sha256(written).digest()[:8], "big")
