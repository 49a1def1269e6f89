from __future__ import annotations

import os
from pathlib import Path

import pytest

from llava.data.video import VideoError
from llava.data.video.files import file_name, is_utf8, require_file, what_it_is


def test_a_name_is_never_an_address() -> None:
    assert file_name("12:30.mp4") == "./12:30.mp4"
    assert file_name("http://localhost/a.mp4") == "./http://localhost/a.mp4"
    assert file_name("/clips/a.mp4") == "/clips/a.mp4"


def test_names_that_are_not_utf8() -> None:
    assert is_utf8("perché.mp4")
    assert not is_utf8(os.fsdecode(b"perch\xe9.mp4"))


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("a")
    os.mkfifo(tmp_path / "pipe")
    assert require_file(tmp_path / "a") == require_file(tmp_path / "link") == 3
    for path, message in ((tmp_path, "a folder"), (tmp_path / "pipe", "a pipe"), (Path("/dev/null"), "a device")):
        with pytest.raises(VideoError, match=message):
            require_file(path)
    with pytest.raises(VideoError, match="no name of a file"):
        require_file("a\0b")
    with pytest.raises(FileNotFoundError):
        require_file(tmp_path / "absent")


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"#EXTM3U\n", "HLS playlist"),
        (b"\xef\xbb\xbfffconcat version 1.0", "ffconcat"),
        (b"%!PS-Adobe-3.0", "PostScript"),
        (b"\n<!DOCTYPE HTML>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (b"Un gatto.\n", "a text"),
        ("perché".encode(), "a text"),
        (b"", "an empty file"),
        (b"\0\0\0\x20ftypisom", ""),
        (b"GIF89a\x10\0", ""),
    ],
)
def test_what_it_is(tmp_path: Path, head: bytes, expected: str) -> None:
    (tmp_path / "a.mp4").write_bytes(head)
    found = what_it_is(tmp_path / "a.mp4")
    assert expected in found and bool(expected) == bool(found)
