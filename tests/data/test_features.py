"""The feature cache: what is read is what was computed, from the same clip and settings, or nothing."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from llava.config import VideoSpec
from llava.data.features import FeatureCache, cache_settings, distinct_clips, extract_features
from llava.data.records import load_records
from llava.data.video import frames_to_pixels, read_frames
from llava.model.multimodal_encoder.dinov2_encoder import DINOv2VisionTower
from tests.conftest import PROCESSOR, SPEC


@pytest.fixture
def tower(assets):
    return DINOv2VisionTower.from_pretrained(str(assets.tower))


@pytest.fixture
def records(assets, tmp_path):
    shutil.copytree(assets.clips, tmp_path / "clips")
    return load_records(assets.video_json, None, tmp_path / "clips")[0]


def settings(tower, spec=SPEC, processor=PROCESSOR, layer=-2):
    return cache_settings(tower.checksum(), layer, "patch", spec, processor)


def test_features_are_the_towers_own(tmp_path, tower, records):
    cache = FeatureCache(tmp_path / "cache", settings(tower))
    assert extract_features(records, cache, tower, SPEC, PROCESSOR, show_progress=False) == []
    again = FeatureCache(tmp_path / "cache", settings(tower))
    for record in records:
        pixels = frames_to_pixels(read_frames(record.videos[0], SPEC), PROCESSOR, "pad")
        assert torch.allclose(again.read(record.videos[0], None).float(), tower(pixels), atol=2e-3)


def test_nothing_is_computed_twice(tmp_path, tower, records):
    cache = FeatureCache(tmp_path / "cache", settings(tower))
    extract_features(records[:4], cache, tower, SPEC, PROCESSOR, show_progress=False)
    seen = []

    def counting(pixels):
        seen.append(len(pixels))
        return tower(pixels)

    extract_features(records + records, cache, counting, SPEC, PROCESSOR, show_progress=False)
    assert sum(seen) == 2 * SPEC.num_frames


def test_ranks_share_the_work_whatever_the_others_have_written(tmp_path, tower, records):
    """The second rank opens the cache when the first has already finished."""
    for rank in range(2):
        cache = FeatureCache(tmp_path / "cache", settings(tower))
        extract_features(records, cache, tower, SPEC, PROCESSOR, rank=rank, world_size=2, show_progress=False)
    whole = FeatureCache(tmp_path / "cache", settings(tower))
    assert all(whole.has(r.videos[0], None) for r in records)


def test_a_changed_clip_is_never_served_stale(tmp_path, tower, records):
    cache = FeatureCache(tmp_path / "cache", settings(tower))
    extract_features(records, cache, tower, SPEC, PROCESSOR, show_progress=False)
    path = records[0].videos[0]
    shutil.copyfile(records[1].videos[0], path)
    assert torch.equal(cache.read(path, None), cache.read(records[1].videos[0], None)), "the content decides"
    with open(path, "ab") as file:
        file.write(b"\0" * 8)
    with pytest.raises(LookupError, match="changed since extraction"):
        FeatureCache(tmp_path / "cache", settings(tower)).read(path, None)


@pytest.mark.parametrize(
    "other",
    [
        {"spec": VideoSpec(num_frames=2, fast_latents=1, slow_latents=4)},
        {"spec": VideoSpec(num_frames=3, fast_latents=1, slow_latents=4, force_sample=True)},
        {"processor": PROCESSOR.__class__(image_size=56, image_mean=(0.5, 0.5, 0.5))},
        {"layer": -1},
    ],
)
def test_other_settings_are_another_cache(tmp_path, tower, records, other):
    cache = FeatureCache(tmp_path / "cache", settings(tower))
    extract_features(records, cache, tower, SPEC, PROCESSOR, show_progress=False)
    assert not FeatureCache(tmp_path / "cache", settings(tower, **other)).has(records[0].videos[0], None)


def test_latents_do_not_change_the_features(tower):
    more = VideoSpec(num_frames=2, fast_latents=4, slow_latents=9, force_sample=True)
    assert settings(tower) == settings(tower, spec=more)


def test_an_array_without_its_index_is_never_read(tmp_path, tower, records):
    cache = FeatureCache(tmp_path / "cache", settings(tower))
    extract_features(records, cache, tower, SPEC, PROCESSOR, show_progress=False)
    index = next(p for p in cache.folder.glob("*.json") if p.name != "settings.json")
    index.unlink()
    (cache.folder / ".half-written.npy.123").write_bytes(b"x")
    again = FeatureCache(tmp_path / "cache", settings(tower))
    assert not again.has(records[0].videos[0], None)


def test_bad_clips_are_problems_of_every_record_that_names_them(tmp_path, tower, records):
    with open(records[0].videos[0], "wb") as file:
        file.write(b"no video")
    cache = FeatureCache(tmp_path / "cache", settings(tower))
    problems = extract_features([*records, records[0]], cache, tower, SPEC, PROCESSOR, show_progress=False)
    assert [(p.kind, p.record_id) for p in problems] == [("unreadable", "v0")] * 2
    assert cache.has(records[1].videos[0], None)


def test_features_that_overflow_fp16_are_an_error(tmp_path, records):
    cache = FeatureCache(tmp_path / "cache", {"tower": "huge"})
    with pytest.raises(ValueError, match="not finite in fp16"):
        extract_features(
            records, cache, lambda x: torch.full((len(x), 16, 4), 1e6), SPEC, PROCESSOR, show_progress=False
        )


def test_segments_of_one_clip_are_kept_apart(tmp_path, assets, tower):
    raw = json.loads(assets.video_json.read_text())[:1]
    raw += [{**raw[0], "id": "first half", "meta": {"split": [0, 3]}}]
    path = tmp_path / "split.json"
    path.write_text(json.dumps(raw))
    records, problems = load_records(path, None, assets.clips)
    assert problems == []
    assert len(distinct_clips(records)) == 2
    cache = FeatureCache(tmp_path / "cache", settings(tower))
    extract_features(records, cache, tower, SPEC, PROCESSOR, show_progress=False)
    whole, half = (cache.read(r.videos[0], r.split).numpy() for r in records)
    assert np.array_equal(whole[0], half[0])
    assert not np.array_equal(whole[1], half[1])
