"""The rule by which a path leaves its folder; `tests/data/test_records.py` has its use."""

from __future__ import annotations

import os

import pytest

from llava.data.paths import leaves_folder, place


@pytest.mark.parametrize(
    ("path", "leaves"),
    [
        ("a.mp4", False), ("a/b.mp4", False), ("..a/b..", False), ("...", False), ("", False),
        ("/a.mp4", True), ("..", True), ("a/..", True), ("../a", True), ("a/../b", True), ("a\\..\\b", True),
    ],
)  # fmt: skip
def test_absolute_paths_and_parents_leave(path: str, leaves: bool) -> None:
    assert leaves_folder(path) is leaves


def test_a_path_lies_in_its_folder_or_in_the_working_directory() -> None:
    assert place("a/b.mp4", "clips") == "clips/a/b.mp4"
    assert place("a/b.mp4", "") == "a/b.mp4"


@pytest.mark.parametrize("folder", ["/clips", "/clips/", "clips", ".", "/", "//", "a b/è"])
@pytest.mark.parametrize("path", ["a.mp4", "a/b.mp4", "/a.mp4", "//a", "./a", "../a", ".", "è/ .mp4"])
def test_a_place_is_what_the_system_joins(folder: str, path: str) -> None:
    assert place(path, folder) == os.path.join(folder, path)
