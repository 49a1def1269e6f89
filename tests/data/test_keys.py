"""Which keys name a record's files, and what is said of those that do so unread."""

from __future__ import annotations

from typing import Any

import pytest

from llava.data.keys import files_under, unread_keys

NONE: dict[str, tuple[str, ...]] = {"video": (), "image": ()}
SEEN = {"video": ("a.mp4",), "image": ()}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"video": "a.mp4"}, ("video", "a.mp4")),
        ({"videos": ["a.mp4"]}, ("videos", ["a.mp4"])),
        ({"video": None, "videos": "a.mp4"}, ("videos", "a.mp4")),
        ({"video": [], "videos": []}, ("video", [])),
        ({}, ("video", None)),
    ],
)
def test_the_plural_is_read_where_the_singular_is_not_there(raw: dict[str, Any], expected: tuple[str, Any]) -> None:
    assert files_under(raw, "video") == expected


@pytest.mark.parametrize(
    "raw",
    [
        {"Video": "a.mp4"}, {"VIDEOS": ["a.mp4"]}, {"video_path": "clip/7"}, {"videoFile": "a"}, {"image_path": "b"},
        {"clip": "a.MP4"}, {"clip": ["x/a.webm"]}, {"file": "foto .jpeg\n"}, {"path": "a b.mkv"},
        {"Images": {"path": "c"}},
    ],
)  # fmt: skip
def test_a_key_that_loses_a_file_is_refused(raw: dict[str, Any]) -> None:
    ((message, lost),) = unread_keys({"id": "r", "conversations": [], **raw}, NONE)
    assert lost and repr(next(iter(raw))) in message


@pytest.mark.parametrize(("raw", "lost"), [
    ({"Video": "a.mp4"}, False), ({"image_path": "b.png"}, True), ({"thumbnail": "b.png"}, False),
])  # fmt: skip
def test_beside_another_file_only_what_is_called_one_of_another_kind_is_lost(raw: dict[str, Any], lost: bool) -> None:
    ((_, found),) = unread_keys({"video": "a.mp4", **raw}, SEEN)
    assert found is lost


@pytest.mark.parametrize(
    "raw",
    [
        {"source_url": "https://a.org/b.mp4"}, {"meta": {"file": "a.mp4"}}, {"variables": {"clip": "a.mp4"}},
        {"video_id": "a7"}, {"data_source": "0_30_s"}, {"duration": 3.5}, {"Video": None},
        {"title": "Il film .mp4 e poi"},
        {"topic": "gatti"}, {"video_path": ""}, {"image_size": [1, 2]}, {"hidden": ".mp4"},
    ],
)  # fmt: skip
def test_other_keys_are_left_alone(raw: dict[str, Any]) -> None:
    assert unread_keys(raw, NONE) == []


def test_two_keys_that_name_other_files_are_refused() -> None:
    assert unread_keys({"video": "a.mp4", "videos": ["a.mp4"]}, SEEN) == []
    ((message, lost),) = unread_keys({"video": "a.mp4", "videos": ["b.mp4"]}, SEEN)
    assert lost and "keep one of the two" in message
