"""The feature cache: what is read is what was computed, from the same clip and settings, or nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from llava.config.video import VideoSpec
from llava.data.features import content as content_hashes
from llava.data.features import extract as features
from llava.data.features.extract import (
    FeatureCache,
    cache_settings,
    describe_cache,
    distinct_clips,
    extract_features,
    verify_features,
)
from llava.data.features.store import TOLERANCES
from llava.data.features.workers import WorkerFailure
from llava.data.records import load_records
from llava.data.video import FRAME_RULE, frames_to_pixels, read_frames
from llava.errors import Stopped, UnwritableFile
from llava.model.multimodal_encoder.builder import load_vision_tower
from tests.conftest import PROCESSOR, SPEC, colour_frames


@pytest.fixture
def tower(assets):
    return load_vision_tower(str(assets.tower))


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


def test_frame_rule_and_decoder_are_part_of_the_key(tower):
    plain, by_pyav = settings(tower), settings(tower, spec=replace(SPEC, video_decoder="pyav"))
    assert plain["frame_rule"] == FRAME_RULE
    assert by_pyav["decoders"]["decord"] == "none"
    assert {**by_pyav, "decoders": plain["decoders"]} == plain, "auto and decord read the same"
    assert settings(tower, spec=replace(SPEC, video_decoder="auto")) == plain


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


def index_files(cache):
    return [path for path in cache.folder.glob("*.json") if path.name != "settings.json"]


def test_a_read_only_cache_is_named_before_anything_is_computed(tmp_path, tower, records, monkeypatch):
    """What it has is served; where it lacks something, nobody waits for features that cannot be kept."""
    cache = FeatureCache(tmp_path / "cache", settings(tower))
    extract_features(records[:2], cache, tower, SPEC, PROCESSOR)

    def forbidden(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    def never(pixels):
        raise AssertionError("computed")

    monkeypatch.setattr("llava.data.features.store.tempfile.TemporaryFile", forbidden)
    monkeypatch.setattr("llava.data.features.store.replace_file", forbidden)
    assert extract_features(records[:2], cache, never, SPEC, PROCESSOR) == []
    with pytest.raises(UnwritableFile, match=r"cannot write .*Permission denied.*make it writable") as error:
        extract_features(records, cache, never, SPEC, PROCESSOR)
    assert "make room" not in str(error.value)


def test_copies_of_a_clip_are_computed_once_and_bad_ones_reported_for_all(tmp_path, tower, records):
    cache = FeatureCache(tmp_path / "cache", settings(tower))
    copies = []
    for record in records[:2]:
        path = record.videos[0].replace(".mp4", "-copy.mp4")
        shutil.copyfile(record.videos[0], path)
        copies.append(replace(record, videos=(path,), id=f"copy of {record.id}"))
    for path in (records[1].videos[0], copies[1].videos[0]):
        with open(path, "wb") as file:
            file.write(b"no video")
    seen = []
    problems = extract_features(
        [*records, *copies], cache, lambda p: seen.append(len(p)) or tower(p), SPEC, PROCESSOR, show_progress=False
    )
    assert sum(seen) == 5 * SPEC.num_frames
    assert torch.equal(cache.read(copies[0].videos[0], None), cache.read(records[0].videos[0], None))
    assert [p.record_id for p in problems] == ["v1", "copy of v1"]


def test_a_clip_that_changes_while_it_is_read_is_a_problem(tmp_path, tower, records, monkeypatch):
    cache = FeatureCache(tmp_path / "cache", settings(tower))
    read = features.read_pixels

    def change(clip, **kwargs):
        pixels = read(clip, **kwargs)
        if clip[0].endswith("clip1.mp4"):
            shutil.copyfile(records[0].videos[0], clip[0])
        if clip[0].endswith("clip2.mp4"):
            os.unlink(clip[0])
        return pixels

    monkeypatch.setattr(features, "read_pixels", change)
    problems = extract_features(records, cache, tower, SPEC, PROCESSOR, show_progress=False)
    assert [(p.record_id, "changed while it was read" in p.message) for p in problems] == [("v1", True), ("v2", True)]
    assert len(cache) == 4


def test_two_extractions_of_the_same_clips_at_once(tmp_path, tower, records):
    """The second starts when the first has looked into the cache, and ends before the first writes."""
    caches = [FeatureCache(tmp_path / "cache", settings(tower)) for _ in range(2)]

    def meanwhile(pixels):
        if not len(caches[1]):
            extract_features(records[1:], caches[1], tower, SPEC, PROCESSOR, show_progress=False)
        return tower(pixels)

    extract_features(records, caches[0], meanwhile, SPEC, PROCESSOR, show_progress=False)
    whole = FeatureCache(tmp_path / "cache", settings(tower))
    for cache in (*caches, whole):
        for record in records[1:]:
            assert torch.equal(cache.read(record.videos[0], None), whole.read(record.videos[0], None))
    assert verify_features(records, whole, tower, SPEC, PROCESSOR) == (6, [])


def test_a_stop_writes_what_was_computed(tmp_path, tower, records):
    cache = FeatureCache(tmp_path / "cache", settings(tower))
    answers = iter([False] * 6 + [False, False, False, True])
    with pytest.raises(Stopped, match="3 of 6 clips were read.*the same command goes on"):
        extract_features(
            records, cache, tower, SPEC, PROCESSOR, batch_size=2, show_progress=False, should_stop=lambda: next(answers)
        )
    assert len(FeatureCache(tmp_path / "cache", settings(tower))) == 2
    seen = []
    again = FeatureCache(tmp_path / "cache", settings(tower))
    extract_features(records, again, lambda p: seen.append(len(p)) or tower(p), SPEC, PROCESSOR, show_progress=False)
    assert sum(seen) == 4 * SPEC.num_frames


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_repair_computes_damaged_features_again_and_no_others(tmp_path, tower, records, dtype):
    keys = {**settings(tower), "dtype": dtype}
    cache = FeatureCache(tmp_path / "cache", keys)
    extract_features(records, cache, tower, SPEC, PROCESSOR, show_progress=False)
    (array,) = cache.folder.glob("*.npy")
    data = bytearray(array.read_bytes())
    data[-5] ^= 1
    array.write_bytes(data)
    number, problems = verify_features(records, FeatureCache(tmp_path / "cache", keys), tower, SPEC, PROCESSOR)
    assert number == 6 and [p.kind for p in problems] == ["damaged features"]
    seen = []
    repaired = FeatureCache(tmp_path / "cache", keys, repair=True)
    extract_features(records, repaired, lambda p: seen.append(len(p)) or tower(p), SPEC, PROCESSOR, show_progress=False)
    assert sum(seen) == SPEC.num_frames
    for known in (repaired, FeatureCache(tmp_path / "cache", keys)):
        assert verify_features(records, known, tower, SPEC, PROCESSOR) == (6, [])


def test_a_broken_index_costs_an_extraction(tmp_path, tower, records):
    cache = FeatureCache(tmp_path / "cache", settings(tower))
    extract_features(records, cache, tower, SPEC, PROCESSOR, show_progress=False)
    index_files(cache)[0].write_text("[{")
    again = FeatureCache(tmp_path / "cache", settings(tower))
    extract_features(records, again, tower, SPEC, PROCESSOR, show_progress=False)
    assert verify_features(records, again, tower, SPEC, PROCESSOR) == (6, [])


def test_the_start_reads_no_clip_that_is_known(tmp_path, tower, records, monkeypatch):
    cache = FeatureCache(tmp_path / "cache", settings(tower))
    extract_features(records, cache, tower, SPEC, PROCESSOR, show_progress=False)
    os.rename(tmp_path / "clips", tmp_path / "moved")
    moved = [replace(r, videos=tuple(v.replace("/clips/", "/moved/") for v in r.videos)) for r in records]
    extract_features(moved, FeatureCache(tmp_path / "cache", settings(tower)), None, SPEC, PROCESSOR)

    def never(path):
        raise AssertionError(f"{path} was hashed again")

    monkeypatch.setattr(content_hashes, "_hash", never)
    again = FeatureCache(tmp_path / "cache", settings(tower))
    assert extract_features(moved, again, None, SPEC, PROCESSOR) == []
    assert again.read(moved[0].videos[0], None).shape == (2, 16, 24)


def test_a_new_cache_names_those_that_another_machine_made(tmp_path, tower, records):
    keys = {**settings(tower), "precision": "bf16"}
    cache = FeatureCache(tmp_path / "cache", keys)
    extract_features(records[:1], cache, tower, SPEC, PROCESSOR, show_progress=False)
    assert describe_cache(cache).endswith("1 there")
    text = describe_cache(FeatureCache(tmp_path / "cache", settings(tower)))
    assert "computed in fp32" in text and "--vision_precision bf16 would use them" in text
    assert str(cache.folder) in text
    with pytest.raises(ValueError, match="--feature_dtype float8: use one of float16, int8"):
        cache_settings("", -2, "patch", SPEC, PROCESSOR, "fp32", "float8")


@pytest.mark.parametrize("asked", [False, True])
def test_a_signal_to_the_whole_job_is_a_stop_and_no_crash_of_a_clip(tmp_path, tower, records, monkeypatch, asked):
    """It ends decoding processes, in the middle of a clip or of their start."""
    stop = []

    def killed_while_reading(work, tasks, *args):
        yield tasks[0], work(tasks[0])
        stop.append(asked)
        yield tasks[1], WorkerFailure("reader crashed", "signal 15")

    def killed_while_starting(work, tasks, *args):
        yield tasks[0], work(tasks[0])
        stop.append(asked)
        raise RuntimeError("a worker process could not start")

    for number, killed in enumerate((killed_while_reading, killed_while_starting)):
        stop.clear()
        monkeypatch.setattr(features, "run_tasks", killed)
        cache = FeatureCache(tmp_path / f"cache{number}", settings(tower))
        options = {"batch_size": 1, "show_progress": False, "should_stop": lambda: any(stop)}
        if asked:
            with pytest.raises(Stopped, match="1 of 6"):
                extract_features(records, cache, tower, SPEC, PROCESSOR, **options)
            assert len(FeatureCache(tmp_path / f"cache{number}", settings(tower))) == 1
        elif killed is killed_while_reading:
            problems = extract_features(records, cache, tower, SPEC, PROCESSOR, **options)
            assert [p.kind for p in problems] == ["reader crashed"]
        else:
            with pytest.raises(RuntimeError, match="could not start"):
                extract_features(records, cache, tower, SPEC, PROCESSOR, **options)


def test_an_image_and_a_video_of_one_file_are_two(tmp_path, tower):
    """A GIF of one picture can be both, and the two are read by other decoders."""
    from PIL import Image

    path = tmp_path / "both.gif"
    Image.fromarray(colour_frames(0)[0]).save(path)
    rows = []
    for kind, token in (("image", "<image>"), ("video", "<video>")):
        turns = [{"from": "human", "value": token}, {"from": "gpt", "value": "Un quadrato."}]
        rows.append({"id": kind, kind: path.name, "conversations": turns})
    (tmp_path / "both.json").write_text(json.dumps(rows))
    both, problems = load_records(tmp_path / "both.json", tmp_path, tmp_path)
    assert problems == []
    cache = FeatureCache(tmp_path / "cache", settings(tower))
    assert extract_features(both, cache, tower, SPEC, PROCESSOR, show_progress=False) == []
    assert cache.read(str(path), None).shape[0] == SPEC.num_frames
    assert cache.read(str(path), None, True).shape[0] == 1
    assert verify_features(both, cache, tower, SPEC, PROCESSOR) == (2, [])
