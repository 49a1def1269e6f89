"""Hashes of clips: each file is read once, by one process, in one run."""

from __future__ import annotations

import json
import os

import pytest

from llava.data.features import content as content_hashes
from llava.data.features.content import ContentHashes
from llava.errors import Stopped


@pytest.fixture
def files(tmp_path):
    paths = [str(tmp_path / f"clip{i}.mp4") for i in range(5)]
    for i, path in enumerate(paths):
        with open(path, "wb") as file:
            file.write(bytes([i]) * (i + 1))
    return paths


@pytest.fixture
def reads(monkeypatch):
    """Paths that are read to be hashed."""
    seen, hash_file = [], content_hashes._hash
    monkeypatch.setattr(content_hashes, "_hash", lambda path: seen.append(path) or hash_file(path))
    return seen


def test_another_process_and_the_next_run_read_nothing_again(tmp_path, files, reads, monkeypatch):
    first = ContentHashes(tmp_path / "contents")
    hashes, errors = first.resolve(files)
    assert sorted(reads) == files and errors == {}
    assert len(set(hashes.values())) == len(files)

    stats, stat = [], os.stat
    second = ContentHashes(tmp_path / "contents")
    monkeypatch.setattr(content_hashes.os, "stat", lambda path, **kw: stats.append(path) or stat(path, **kw))
    assert second.resolve(files * 3) == (hashes, {})
    assert stats == files, "one stat for each file"
    assert [second.hash(path) for path in files] == [hashes[path] for path in files]
    assert len(reads) == len(files)


def test_a_moved_clip_is_read_once_more_and_a_changed_one_too(tmp_path, files, reads):
    before, _ = ContentHashes(tmp_path / "contents").resolve(files)
    moved = str(tmp_path / "moved.mp4")
    os.rename(files[0], moved)
    with open(files[1], "ab") as file:
        file.write(b"x")
    reads.clear()
    after, _ = ContentHashes(tmp_path / "contents").resolve([moved, *files[1:]])
    assert sorted(reads) == sorted([moved, files[1]])
    assert after[moved] == before[files[0]] and after[files[1]] != before[files[1]]
    reads.clear()
    ContentHashes(tmp_path / "contents").resolve([moved, *files[1:]])
    assert reads == []


def test_processes_learn_from_each_other_while_they_run(tmp_path, files, reads):
    one, other = ContentHashes(tmp_path / "contents"), ContentHashes(tmp_path / "contents")
    one.resolve(files[:2])
    other.reload()
    other.resolve(files)
    assert sorted(reads) == files


def test_files_that_cannot_be_read_do_not_hold_up_the_others(tmp_path, files):
    folder = tmp_path / "folder.mp4"
    folder.mkdir()
    gone = str(tmp_path / "gone.mp4")
    hashes, errors = ContentHashes(tmp_path / "contents").resolve([gone, str(folder), *files])
    assert sorted(hashes) == files
    assert set(errors) == {gone, str(folder)} and "gone.mp4" in errors[gone]


@pytest.mark.parametrize("text", ["", "{", "[[1]]", '{"a": 1}', "[1]", "\x00"])
def test_a_malformed_file_is_ignored_with_a_warning(tmp_path, files, reads, caplog, text):
    known = ContentHashes(tmp_path / "contents")
    hashes, _ = known.resolve(files)
    next(known.folder.glob("*.json")).write_text(text)
    again = ContentHashes(tmp_path / "contents")
    assert "malformed, ignored" in caplog.text
    assert again.resolve(files)[0] == hashes
    assert len(reads) == 2 * len(files)


def test_what_was_hashed_before_a_stop_is_kept(tmp_path, files, reads):
    known = ContentHashes(tmp_path / "contents")
    answers = iter([False, False, True])
    with pytest.raises(Stopped, match="the same command goes on"):
        known.resolve(files, lambda: next(answers))
    (kept,) = known.folder.glob("*.json")
    assert [entry[0] for entry in json.loads(kept.read_text())] == files[:3]


def test_a_folder_that_cannot_be_written_costs_time_alone(tmp_path, files, caplog):
    (tmp_path / "contents").write_text("a file in the way")
    hashes, errors = ContentHashes(tmp_path / "contents").resolve(files)
    assert sorted(hashes) == files and errors == {}
    assert "cannot keep the hashes of 5 files" in caplog.text
