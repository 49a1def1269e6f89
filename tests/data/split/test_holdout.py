"""The clips that a run holds out by itself: the same for text and video, copies on one side, one line about it."""

from __future__ import annotations

import json

import pytest

from llava.data.features.content import ContentHashes
from llava.data.records import load_records
from llava.data.split.holdout import difference, plan
from tests.conftest import record


def rows(count, video="c{}.mp4", captions=2):
    return [record(f"r{i}_{n}", f"Clip {i}, {n}.", video.format(i)) for i in range(count) for n in range(captions)]


def loaded(folder, values, clips=None):
    folder.mkdir(exist_ok=True)
    (folder / "data.json").write_text(json.dumps(values))
    found, problems = load_records(folder / "data.json", video_folder=clips)
    assert problems == []
    return found


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [(9, 0.02, 0), (10, 0.02, 1), (100, 0.02, 10), (400, 0.02, 32), (2000, 0.02, 40), (100, 0, 0), (100, 0.3, 30)],
)
def test_how_many_are_held_out(tmp_path, count, fraction, expected):
    found = plan(loaded(tmp_path, rows(count)), fraction)
    assert (len(found.chosen), found.captions, found.total) == (expected, 2 * expected, count)
    assert found.summary().items() >= {"held_out": expected, "captions": 2 * expected, "of": "clips"}.items()


def test_text_and_video_hold_out_the_same_clips_in_any_order(tmp_path):
    """As records with their videos, elsewhere and in another order, and as texts that keep the clip's name."""
    videos = plan(loaded(tmp_path / "a", rows(40), "clips"), 0.02)
    turned = plan(loaded(tmp_path / "b", rows(40, "c{}.mkv")[::-1], "elsewhere"), 0.02)
    texts = [{k: v for k, v in r.items() if k != "video"} | {"meta": {"clip": r["video"]}} for r in rows(40)]
    for r in texts:
        r["conversations"][0]["value"] = ""
    named = plan(loaded(tmp_path / "c", texts), 0.02)
    assert videos.chosen == turned.chosen == named.chosen and len(videos.chosen) == 4
    assert videos.held_out == turned.held_out[::-1] == named.held_out
    assert difference(videos.summary(), named.summary()) is None
    other = plan(loaded(tmp_path / "d", rows(40, "new/c{}.mp4")), 0.02).summary()
    assert "it held out 4 of 40 clips at --val_fraction 0.02, seed 42" in difference(videos.summary(), other)


def test_texts_without_clips_are_held_out_by_their_words(tmp_path):
    texts = [record(f"t{i}", f"Frase {i % 20}.") for i in range(40)]
    found = plan(loaded(tmp_path, texts), 0.02)
    assert (found.noun, found.total, len(found.chosen), found.captions) == ("texts", 20, 2, 4)
    out = {texts[i]["conversations"][1]["value"] for i, is_out in enumerate(found.held_out) if is_out}
    kept = {texts[i]["conversations"][1]["value"] for i, is_out in enumerate(found.held_out) if not is_out}
    assert not out & kept


def test_copies_of_a_clip_are_on_one_side(tmp_path):
    """Every clip has a copy under another name; with the files out of reach that cannot be known, and is said."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for i in range(40):
        (clips / f"c{i}.mp4").write_bytes(b"clip %d" % (i % 20))
    records = loaded(tmp_path, rows(40, captions=1), clips)
    contents = ContentHashes(tmp_path / "contents")
    found = plan(records, 0.02, contents)
    assert len(found.chosen) == 4 and found.copies == "content"
    assert all(found.held_out[i] == found.held_out[i + 20] for i in range(20))
    by_name = plan(records, 0.02)
    assert by_name.copies == "name" and any(by_name.held_out[i] != by_name.held_out[i + 20] for i in range(20))
    (clips / "c3.mp4").unlink()
    assert plan(records, 0.02, contents).copies == "name"
    assert plan(records[:9], 0.02, ContentHashes(tmp_path / "none")).chosen == frozenset()
    assert not (tmp_path / "none").exists(), "no file is read where nothing is held out"


def test_one_line_says_what_is_held_out_or_what_follows(tmp_path):
    records = loaded(tmp_path, rows(20))
    lines = [str(plan(records, 0.02)), str(plan(records, 0)), str(plan(records[:8], 0.02))]
    assert lines[0].startswith("held out for evaluation: 2 of 20 clips, 4 of 40 captions, copies told by name; --val_")
    assert "(--val_fraction 0); sight and loss are measured on training clips only, not on unseen ones" in lines[1]
    assert lines[2].startswith(
        "nothing is held out: 4 clips are fewer than 10; sight and loss are measured on training"
    )
    assert not any("\n" in line for line in lines)
