"""Folders of arrays: made once, made anew when what they are made of changes, and never read when they are damaged."""

from __future__ import annotations

import gc
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from llava.data.prepared import ABANDONED, Prepared, Texts, Writer, code_digest, identify, prepared

WORDS = ["", "perché no", "", "ma\nsì", "\U0001f408"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "data.json"
    path.write_text("[]")
    return path


def open_it(root: Path, source: Path, made: list[int], identity: object = "x", check: bool = True) -> Prepared:
    def make(writer: Writer) -> int:
        made.append(1)
        for start in range(0, 10, 3):
            writer.add("numbers", range(start, min(start + 3, 10)), np.uint16)
        writer.add("none", [], np.int32)
        for word in WORDS:
            writer.add_texts("words", [word])
        return len(made)

    return prepared(root, "things", {"identity": identity}, [identify(str(source))], make, check)


def test_what_was_written_is_read_by_every_later_opening(tmp_path, source):
    made: list[int] = []
    for found in (open_it(tmp_path / "cache", source, made), open_it(tmp_path / "cache", source, made)):
        assert found["numbers"].tolist() == list(range(10)) and found["numbers"].dtype == np.uint16
        assert len(found["none"]) == 0
        assert np.load(found.folder / "numbers.npy").tolist() == list(range(10)), "numpy reads it"
        texts = Texts(found, "words")
        assert [texts[i] for i in range(len(texts))] == WORDS
        assert texts.filled().tolist() == [bool(word) for word in WORDS]
        assert found.made == 1
        with pytest.raises(ValueError):
            found["numbers"][0] = 1
    again = pickle.loads(pickle.dumps(found))
    assert isinstance(again["numbers"].base, np.memmap) and len(pickle.dumps(found)) < 1000
    assert made == [1]


def test_another_identity_or_a_changed_file_is_made_anew_and_the_stale_folder_goes(tmp_path, source):
    made: list[int] = []
    root = tmp_path / "cache"
    first, other = (open_it(root, source, made, identity).folder for identity in "ab")
    assert first != other and len(made) == 2
    source.write_text("[1]")
    changed = open_it(root, source, made, "a").folder
    assert len(made) == 3 and [path for path in root.iterdir()] == [changed]
    os.utime(source, ns=(0, 0))
    assert open_it(root, source, made, "a").folder != changed, "a time of change alone is a change"
    source.unlink()
    abandoned = root / ".things.1"
    abandoned.mkdir()
    os.utime(abandoned, times=(0, ABANDONED))
    (tmp_path / "b.json").write_text("[]")
    open_it(root, tmp_path / "b.json", made)
    assert len(list(root.iterdir())) == 2, "of a file that is gone nothing is deleted"


@pytest.mark.parametrize("damage", ["bit", "header", "short", "about", "no array"])
def test_a_damaged_folder_is_named_and_made_again(tmp_path, source, damage, caplog):
    made: list[int] = []
    folder = open_it(tmp_path / "cache", source, made).folder
    path = folder / ("about.json" if damage == "about" else "numbers.npy")
    data = bytearray(path.read_bytes())
    data[-1 if damage == "bit" else 3] ^= 1
    if damage == "no array":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "short" else data)
    found = open_it(tmp_path / "cache", source, made)
    assert found["numbers"].tolist() == list(range(10)) and len(made) == 2
    assert str(folder) in caplog.text and "damaged" in caplog.text


def test_nothing_is_left_of_a_making_that_failed(tmp_path, source):
    def fail(writer: Writer) -> None:
        writer.add("numbers", np.zeros(1 << 22), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path / "cache", "things", {}, [], fail)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_cannot_be_written_serves_this_run_alone(tmp_path, source, caplog):
    (tmp_path / "cache").write_text("a file")
    found = open_it(tmp_path / "cache" / "below", source, made := [])
    assert found["numbers"].tolist() == list(range(10)) and made == [1]
    folder = found.folder
    assert "serves this run alone" in caplog.text and folder.is_dir()
    del found
    caplog.clear()
    assert not folder.exists()


def test_other_code_is_another_identity():
    assert code_digest("llava.data.hashes") == code_digest("llava.data.hashes") != code_digest("llava.data.prepared")


def test_texts_of_many_rows_are_those_of_each(tmp_path, source):
    words = ["", "perché", "a", "", "città e 猫", "z"]

    def make(writer: Writer) -> None:
        writer.add_texts("word", words[:2])
        writer.add_texts("word", words[2:])

    texts = Texts(prepared(tmp_path / "root", "words", {}, [identify(str(source))], make), "word")
    for rows in ([], [0], [5], [0, 1, 2, 3, 4, 5], [2, 3, 4], [4, 3], [0, 2, 2], [1, 3, 2, 4]):
        assert texts.many(np.array(rows, dtype=np.int64)) == [words[row] for row in rows]


def test_circles_are_looked_for_again_after_a_making(tmp_path, source):
    def make(writer: Writer) -> None:
        assert not gc.isenabled()
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        prepared(tmp_path / "root", "words", {}, [identify(str(source))], make)
    assert gc.isenabled()
