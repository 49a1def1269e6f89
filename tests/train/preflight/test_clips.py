"""Clips in which nothing moves, that look alike or that all records name are said, with the reason; good ones not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llava.config.video import VideoSpec
from llava.data.records import Record
from llava.train.preflight.clips import check_clips, check_segments, twin_groups, why_still
from tests.conftest import colour_frames, write_clip

SPEC = VideoSpec(num_frames=4, force_sample=True)


def dataset(features, paths=None, splits=None):
    """Records of clips with these features (T, P, Dv), one a record."""
    paths = paths or [f"{i}.mp4" for i in range(len(features))]
    splits = splits or [None] * len(features)
    records = [
        Record(f"r{i}", [], (path,), (), split, {}, "")
        for i, (path, split) in enumerate(zip(paths, splits, strict=True))
    ]
    rows = dict(zip(zip(paths, splits, strict=True), features, strict=True))
    cache = SimpleNamespace(read=lambda path, split: rows[path, split].half())
    return SimpleNamespace(records=records, cache=cache, spec=SPEC)


def moving(count):
    return list(torch.randn(count, 4, 9, 80, generator=torch.Generator().manual_seed(0)))


def statuses(data):
    return {f.check: f.status for f in check_clips(data)}


def test_clips_that_move_and_differ_are_silent():
    assert statuses(dataset(moving(40))) == {
        "clips": "ok", "motion in clips": "ok", "twins among clips": "ok",
    }  # fmt: skip


@pytest.mark.parametrize(("still", "status"), [(0, "ok"), (8, "ok"), (9, "warning"), (40, "warning")])
def test_a_fifth_of_clips_without_motion_is_a_warning(still, status):
    features = moving(40)
    for i in range(still):
        features[i] = features[i][:1].expand(4, -1, -1) * (1 + 1e-3 * torch.randn(4, 1, 1))
    found = next(f for f in check_clips(dataset(features)) if f.check == "motion in clips")
    assert found.status == status and found.finding.startswith(f"{still} of 40 clips")
    assert statuses(dataset(features))["twins among clips"] == "ok"


def test_copies_are_a_warning_and_clips_that_are_all_the_same_stop_the_run():
    features = moving(40)
    features[1] = features[0] * 1.001
    assert statuses(dataset(features))["twins among clips"] == "ok", "one copy is no fault"
    features[3] = features[2]
    found = next(f for f in check_clips(dataset(features)) if f.check == "twins among clips")
    assert (found.status, found.finding[:10]) == ("warning", "4 of 40 cl") and "0.mp4 and 1.mp4" in found.finding
    assert statuses(dataset([features[0]] * 40))["twins among clips"] == "FAIL"
    assert statuses(dataset([features[0]] * 4))["twins among clips"] == "ok"


def test_one_clip_that_all_records_name_is_a_warning():
    features = moving(1) * 30
    assert statuses(dataset(features, ["a.mp4"] * 30))["clips"] == "warning"
    assert statuses(dataset(features[:6], ["a.mp4"] * 6))["clips"] == "ok"
    segments = [(i, i + 9) for i in range(30)]
    assert statuses(dataset(moving(30), ["a.mp4"] * 30, segments))["clips"] == "ok"


def test_text_alone_and_no_cache_have_less_to_say():
    text = SimpleNamespace(records=[Record("t", [], (), (), None, {}, "")], cache=None, spec=None)
    assert check_clips(text) == []
    without = dataset(moving(3))
    without.cache = None
    assert [f.check for f in check_clips(without)] == ["clips"]


def test_why_nothing_moves(tmp_path):
    clip = tmp_path / "clip.mp4"
    write_clip(clip, colour_frames(1, frames=60), fps=25)
    seconds = VideoSpec(num_frames=4, video_fps=1.0, force_sample=False)
    assert why_still((str(clip), (1, 2)), seconds) == "one frame is chosen", "a segment of one to two seconds"
    write_clip(clip, np.zeros((8, 64, 64, 3), np.uint8))
    assert why_still((str(clip), None), SPEC) == "one colour"
    write_clip(clip, np.repeat(colour_frames(1)[:1], 8, axis=0))
    assert why_still((str(clip), None), SPEC) == "a picture that stands"
    assert why_still((str(tmp_path / "gone.mp4"), None), SPEC) == "cannot be opened"


def test_groups_of_rows():
    rows = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 0.001], [5.0, 5.0], [1.0, 1.0]])
    assert twin_groups(rows, 0.01) == [[0, 2], [1, 4]]


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "long.mp4"
    write_clip(path, colour_frames(1, frames=24))
    return str(path)


def with_segments(path, splits):
    return [Record(f"r{i}", [], (path,), (), split, {}, "") for i, split in enumerate(splits)]


def test_segments_beyond_the_end_name_their_records(long_clip):
    found = check_segments(with_segments(long_clip, [(0, 23), (3, 24), (5, 90)]))
    assert found.status == "warning" and "2 of 3 segments" in found.finding
    assert "'r1' [3, 24]" in found.finding and "'r2' [5, 90]" in found.finding and "frames 0 to 23" in found.finding
    assert check_segments(with_segments(long_clip, [(0, 23), (3, 20)])).status == "ok"
    assert check_segments(with_segments(long_clip, [None])) is None


def test_one_segment_for_all_of_much_longer_clips(long_clip):
    found = check_segments(with_segments(long_clip, [(0, 1)] * 20))
    assert found.status == "warning" and "all 20 records have the segment [0, 1]" in found.finding
    assert check_segments(with_segments(long_clip, [(0, 11)] * 20)).status == "ok"
    assert check_segments(with_segments(long_clip, [(0, 1)] * 19)).status == "ok"
    assert check_segments(with_segments(long_clip, [(i, i + 1) for i in range(20)])).status == "ok"
