"""Which files a user means."""

from __future__ import annotations

import pytest

from llava.serve.clips import find_clips


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("b.mp4", "a.webm", "a.txt", "._b.mp4", "deep/er/c.MKV", "[1].mp4", "texts/a.txt"):
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folders_and_patterns_become_files_in_order_each_once(folder):
    files, remarks = find_clips(["gone.mp4", "clips/b.mp4", "clips"])
    assert files == ["gone.mp4", "clips/b.mp4", "clips/[1].mp4", "clips/a.webm", "clips/deep/er/c.MKV"]
    assert remarks == [
        "clips: 4 videos; left out are 3 other files",
        "1 files were named again and are captioned once",
    ]
    assert find_clips(["clips/**/*.MKV", "clips/?.webm"]) == (["clips/deep/er/c.MKV", "clips/a.webm"], [])
    # What a pattern matches is taken whatever it is called, and its reader says what is wrong with it.
    assert find_clips(["clips/a*"])[0] == ["clips/a.txt", "clips/a.webm"]
    assert find_clips([f"{folder}/clips/b.mp4", "clips/b.mp4"])[0] == [f"{folder}/clips/b.mp4"]


def test_a_name_with_brackets_that_is_there_is_no_pattern(folder):
    assert find_clips(["clips/[1].mp4"]) == (["clips/[1].mp4"], [])


def test_nothing_found_is_said_of_all_at_once(folder):
    with pytest.raises(
        ValueError, match=r"^--video no/\*: no file matches; clips/texts: a folder without videos \(\.3gp"
    ):
        find_clips(["no/*", "clips/b.mp4", "clips/texts"])
