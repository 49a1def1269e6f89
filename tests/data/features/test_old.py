"""Caches of earlier commits: what holds today is used where it lies, the rest is extracted again; both are counted."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
import zlib

import numpy as np
import pytest
import torch

from llava.config.video import VideoSpec
from llava.data.features import old as old_features
from llava.data.features.content import ContentHashes
from llava.data.features.extract import cache_settings, distinct_clips, extract_features, verify_features
from llava.data.features.old import is_older
from llava.data.features.store import FeatureCache
from llava.data.records import load_records
from llava.data.video import frames_to_pixels, read_frames
from llava.model.multimodal_encoder.builder import load_vision_tower
from tests.conftest import PROCESSOR, SPEC


@pytest.fixture
def tower(assets):
    return load_vision_tower(str(assets.tower))


@pytest.fixture
def records(assets, tmp_path):
    shutil.copytree(assets.clips, tmp_path / "clips")
    return load_records(assets.video_json, None, tmp_path / "clips")[0]


def settings(tower, dtype="float16", spec=SPEC):
    return cache_settings(tower.checksum(), -2, "patch", spec, PROCESSOR, "fp32", dtype)


def write_as_format_2(root, tower, records, dtype="float16", other=()):
    """What commit f6813b7 wrote: hashes without checksums, keys without a kind, checksums of the bytes alone."""
    today = settings(tower, dtype)
    decoders = {k: v for k, v in today["decoders"].items() if k in ("decord", "av", "pillow")}
    old = {**today, "format": 2, "tower": next(iter(tower.old_checksums())), "decoders": decoders} | dict(other)
    folder = root / hashlib.sha256(json.dumps(old, sort_keys=True).encode()).hexdigest()[:16]
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(old))
    name = uuid.uuid4().hex
    contents = ContentHashes(root / "contents")
    paths = [clip[0] for clip in distinct_clips(records)]
    with torch.no_grad():
        pixels = [frames_to_pixels(read_frames(path, SPEC), PROCESSOR, "pad") for path in paths]
        features = np.stack([tower(p).half().numpy() for p in pixels])
    rows = features
    if dtype == "int8":
        rows = np.empty(len(features), np.dtype([("values", "i1", features.shape[1:]), ("scale", "<f4", (24,))]))
        for row, clip in zip(rows, features.astype(np.float32), strict=True):
            row["scale"] = np.maximum(np.abs(clip).max(axis=(0, 1)), 1e-12) / 127
            row["values"] = np.rint(clip / row["scale"])
    np.save(folder / f"{name}.npy", rows)
    entries = [
        {"key": contents.hash(path), "path": path, "crc32": zlib.crc32(row.tobytes())}
        for path, row in zip(paths, rows, strict=True)
    ]
    index = {"shape": features.shape[1:], "entries": entries, "size": (folder / f"{name}.npy").stat().st_size}
    (folder / f"{name}.json").write_text(json.dumps(index))
    return folder


def extract(root, tower, records, dtype="float16", repair=False):
    """The cache after extraction, and how many frames went through the tower."""
    seen = []

    class Counting:
        old_checksums = staticmethod(tower.old_checksums)

        def __call__(self, pixels):
            seen.append(len(pixels))
            return tower(pixels)

    cache = FeatureCache(root, settings(tower, dtype), repair)
    assert extract_features(records, cache, Counting(), SPEC, PROCESSOR, show_progress=False) == []
    return cache, sum(seen)


@pytest.fixture
def changed(monkeypatch):
    """Names of the clips whose frames are others today."""
    names: set[str] = set()
    monkeypatch.setattr(old_features, "unchanged", lambda clip, spec: clip[0].rsplit("/", 1)[-1] not in names)
    return names


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_rows_that_hold_are_used_where_they_lie_and_the_others_extracted_again(
    tmp_path, tower, records, changed, caplog, dtype
):
    root = tmp_path / "cache"
    folder = write_as_format_2(root, tower, records, dtype)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    changed |= {"clip1.mp4", "clip4.mp4"}
    cache, frames = extract(root, tower, records, dtype)
    assert frames == 2 * SPEC.num_frames
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 1 and "4 have the same frames today" in lines[0] and "2 are extracted again" in lines[0]
    again, frames = extract(root, tower, records, dtype)
    assert frames == 0 and len(caplog.records) == 1, "said once"
    for known in (cache, again):
        assert verify_features(records, known, tower, SPEC, PROCESSOR) == (6, [])
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    copied = sum(len(np.load(path)) for path in cache.folder.glob("*.npy"))
    assert copied == 2, "no row that holds is written again"


def test_a_damaged_old_row_is_never_served_and_repaired_once(tmp_path, tower, records, changed):
    root = tmp_path / "cache"
    folder = write_as_format_2(root, tower, records)
    (array,) = folder.glob("*.npy")
    data = bytearray(array.read_bytes())
    data[-3] ^= 4
    array.write_bytes(data)
    cache, frames = extract(root, tower, records)
    assert frames == 0
    assert [p.kind for p in verify_features(records, cache, tower, SPEC, PROCESSOR)[1]] == ["damaged features"]
    cache, frames = extract(root, tower, records, repair=True)
    assert frames == SPEC.num_frames
    assert verify_features(records, cache, tower, SPEC, PROCESSOR) == (6, [])
    assert extract(root, tower, records, repair=True)[1] == 0


def test_rows_taken_over_are_tied_to_their_clips(tmp_path, tower, records, changed):
    root = tmp_path / "cache"
    write_as_format_2(root, tower, records)
    cache, _ = extract(root, tower, records)
    (path,) = [p for p in cache.folder.glob("*.json") if p.name != "settings.json"]
    index = json.loads(path.read_text())
    keys = [entry["key"] for entry in index["entries"]]
    for entry, key in zip(index["entries"], [*keys[1:], keys[0]], strict=True):
        entry["key"] = key
    path.write_text(json.dumps(index))
    _, problems = verify_features(records, FeatureCache(root, cache.settings), tower, SPEC, PROCESSOR)
    assert [p.kind for p in problems] == ["damaged features"] * 6


@pytest.mark.parametrize(
    "difference",
    [
        {"tower": "0" * 64}, {"select_layer": -1}, {"precision": "bf16"}, {"decoders": {"av": "0.0.1"}}, {"frames": {}},
        {"format": 1}, {"format": "2"}, {"tower": None}, {"processor": {"image_size": 70}}, {"decoders": None},
    ],
)  # fmt: skip
def test_a_cache_of_other_settings_is_left_alone(tmp_path, tower, records, changed, caplog, difference):
    root = tmp_path / "cache"
    write_as_format_2(root, tower, records, other=difference)
    assert extract(root, tower, records)[1] == 6 * SPEC.num_frames
    assert caplog.text == ""


def test_a_damaged_old_cache_costs_an_extraction(tmp_path, tower, records, changed, caplog):
    root = tmp_path / "cache"
    folder = write_as_format_2(root, tower, records)
    next(p for p in folder.glob("*.json") if p.name != "settings.json").write_text("{")
    assert extract(root, tower, records)[1] == 6 * SPEC.num_frames
    assert caplog.text.count("damaged, ignored") == 1


def test_when_the_old_folder_is_deleted_its_rows_are_extracted_again(tmp_path, tower, records, changed):
    root = tmp_path / "cache"
    folder = write_as_format_2(root, tower, records)
    extract(root, tower, records)
    shutil.rmtree(folder)
    cache, frames = extract(root, tower, records)
    assert frames == 6 * SPEC.num_frames
    assert verify_features(records, cache, tower, SPEC, PROCESSOR) == (6, [])


def test_a_row_of_another_number_of_frames_is_not_the_clips(tmp_path, tower, records, changed):
    """An image and a video of one content shared a key: whichever was extracted first was served for both."""
    root = tmp_path / "cache"
    write_as_format_2(root, tower, records)
    (path,) = {clip[0] for clip in distinct_clips(records[:1])}
    cache = FeatureCache(root, settings(tower))
    contents = {path: cache.contents.hash(path)}
    for is_image, expected in ((True, []), (False, [(path, None, False)])):
        clip = (path, None, is_image)
        keys = {clip: cache.key(path, None, is_image)}
        assert old_features.adopt_old(cache, tower.old_checksums, keys, contents, SPEC) == expected


def test_what_an_old_cache_did_not_know_has_its_default(tower):
    here = settings(tower) | {"format": 3}
    old = {**here, "format": 2}
    assert is_older(old, here)
    frames = {k: v for k, v in here["frames"].items() if k != "video_fps"}
    assert is_older({**old, "frames": frames}, here), "the default"
    other = VideoSpec(num_frames=2, fast_latents=1, slow_latents=4, force_sample=True, video_fps=2.0)
    assert not is_older({**old, "frames": frames}, settings(tower, spec=other) | {"format": 3})
    assert is_older(old, {**here, "decoders": {**here["decoders"], "torchcodec": "0.12.0"}})
