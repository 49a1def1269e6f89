"""Keys of clips, and which clips show the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.data.features.content import ContentHashes
from llava.data.json_records import DatasetError
from llava.data.records import load_records
from llava.data.split.clips import clip_key, clips_of, group_clips, near_by_frames, same_content
from llava.data.split.core import chained
from tests.conftest import colour_frames, record, write_clip


def load(folder: Path, records: list[dict], **flags: str) -> list:
    path = folder / "data.json"
    path.write_text(json.dumps(records))
    return load_records(path, video_folder=folder, **flags)[0]


def test_keys_do_not_depend_on_where_clips_lie() -> None:
    assert clip_key("/x/clips/a/b.mp4", "/x/clips") == clip_key("a/b.webm") == "a/b"
    assert clip_key("citta\u0300.mp4") == clip_key("citt\u00e0.avi")


def test_the_name_of_a_clip_may_have_a_dot_and_no_extension(tmp_path: Path) -> None:
    names = ("scene.0001", "scene.0002", "a/b.mp4")
    texts = load(tmp_path, [{**record(name, "Uno."), "meta": {"clip": name}} for name in names])
    assert clips_of(texts).keys == [["scene.0001"], ["scene.0002"], ["a/b"]]
    assert clips_of(texts).keys[0] == [clip_key("scene.0001.mp4")], "as in an experiment on video"


def test_text_and_video_records_have_the_same_keys(tmp_path: Path) -> None:
    video = load(tmp_path, [record("a", "Uno.", "p/a.mp4"), record("b", "Due.", "b.mp4")])
    text = load(
        tmp_path, [{**record("a", "Uno."), "meta": {"clip": "p/a"}}, {**record("b", "Due."), "meta": {"clip": "b"}}]
    )
    assert clips_of(video).keys == clips_of(text).keys == [["p/a"], ["b"]]


def test_texts_without_clips_are_held_out_only_where_no_record_has_one(tmp_path: Path) -> None:
    alone = clips_of(load(tmp_path, [record("a", "Uno."), record("b", "Due."), record("c", "Uno.")]))
    assert not alone.has_clips and alone.keys[0] == alone.keys[2] != alone.keys[1]
    beside = clips_of(load(tmp_path, [record("a", "Uno."), record("b", "Due.", "b.mp4")]))
    assert beside.has_clips and beside.keys == [[], ["b"]]


def test_copies_segments_and_companions_are_one_group(tmp_path: Path) -> None:
    for i, name in enumerate(("a", "b", "c", "d")):
        write_clip(tmp_path / f"{name}.mp4", colour_frames(i))
    (tmp_path / "copy.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    # The same clip in another size and at another rate.
    write_clip(tmp_path / "again.mp4", colour_frames(1).repeat(2, axis=1).repeat(2, axis=2), fps=8)
    records = load(
        tmp_path,
        [
            *(record(name, "Uno.", f"{name}.mp4") for name in ("a", "b", "d", "copy", "again")),
            {**record("s1", "Due.", "c.mp4"), "meta": {"split": [0, 3]}},
            {**record("s2", "Tre.", "c.mp4"), "meta": {"split": [4, 7]}},
            {**record("two", "Due clip."), "video": ["c.mp4", "d.mp4"],
             "conversations": [{"from": "human", "value": "<video> <video>"}, {"from": "gpt", "value": "Due clip."}]},
        ],
    )  # fmt: skip
    clips = clips_of(records)
    equal = same_content(clips, ContentHashes(tmp_path / "contents"))
    near = near_by_frames(records, clips)
    groups = group_clips(clips, chained(equal), near)
    assert sorted(map(sorted, groups)) == [["a", "copy"], ["again", "b"], ["c", "d"]]
    assert [sorted(group) for group in equal] == [["a", "copy"]] and ("again", "b") in near


def test_a_clip_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no clip")
    records = load(tmp_path, [record("a", "Uno.", "a.mp4")])
    with pytest.raises(DatasetError, match="1 clips cannot be read.*a.mp4.*llava.data.check"):
        near_by_frames(records, clips_of(records))
