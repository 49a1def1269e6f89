"""What extraction says of disk and time before the first clip."""

from __future__ import annotations

import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from llava.data.features import room
from llava.data.features.extract import FeatureCache, cache_settings, extract_features
from llava.data.features.shards import encode
from llava.data.records import load_records
from llava.model.multimodal_encoder.builder import load_vision_tower
from tests.conftest import PROCESSOR, SPEC

DINOV2_LARGE = (4, 256, 1024)


def free(monkeypatch, size: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_the_size_is_that_of_what_is_written(dtype):
    video, image = np.zeros((1, 2, 3, 8), np.float16), np.zeros((1, 1, 3, 8), np.float16)
    written = 5 * encode(video, dtype).nbytes + 7 * encode(image, dtype).nbytes
    assert room.needed_bytes(5, 7, (2, 3, 8), dtype) == written


def test_what_fits_is_said_with_what_is_free(tmp_path, monkeypatch):
    free(monkeypatch, 300_000_000_000)
    text = room.check_room(tmp_path / "not" / "there", 7110, 0, DINOV2_LARGE, "float16")
    assert text.startswith("7,110 clips to extract: 14.9 GB in ") and text.endswith(", 300.0 GB free")


def test_what_cannot_fit_is_refused_with_what_would(tmp_path, monkeypatch):
    free(monkeypatch, 10_000_000_000)
    with pytest.raises(ValueError, match=r"take 14\.9 GB, and .* has 10\.0 GB free.*int8 takes 7\.5 GB, which fits"):
        room.check_room(tmp_path, 7110, 0, DINOV2_LARGE, "float16")
    free(monkeypatch, 1_000_000)
    with pytest.raises(ValueError, match=r"int8 takes 7\.5 GB, too much as well"):
        room.check_room(tmp_path, 7110, 0, DINOV2_LARGE, "float16")
    with pytest.raises(ValueError, match="llava.clean lists what can go") as error:
        room.check_room(tmp_path, 7110, 0, DINOV2_LARGE, "int8")
    assert "--feature_dtype" not in str(error.value)


@pytest.mark.parametrize("feature", ["patch", "cls_patch"])
def test_extraction_refuses_before_a_clip_is_read(assets, tmp_path, monkeypatch, feature, caplog):
    caplog.set_level(logging.INFO)
    tower = load_vision_tower(str(assets.tower), -2, feature)
    records = load_records(assets.video_json, None, assets.clips)[0]
    cache = FeatureCache(tmp_path / "cache", cache_settings(tower.checksum(), -2, feature, SPEC, PROCESSOR))
    needed = 6 * 2 * (16 + (feature != "patch")) * 24 * 2
    free(monkeypatch, needed - 1)
    with monkeypatch.context() as patch:
        patch.setattr("llava.data.features.extract.read_pixels", lambda *_, **__: pytest.fail("a clip was read"))
        with pytest.raises(ValueError, match="6 clips to extract: their features take"):
            extract_features(records, cache, tower, SPEC, PROCESSOR, show_progress=False)
    free(monkeypatch, needed)
    assert extract_features(records, cache, tower, SPEC, PROCESSOR, batch_size=2) == []
    assert "6 clips to extract: " in caplog.text and "to go" not in caplog.text, "seconds need no announcement"


def test_the_time_is_said_once_and_without_the_first_batch():
    said: list[str] = []
    times = iter([100.0, 102.0, 104.0])
    forecast = room.Forecast(3616, said.append, lambda: next(times))
    for done in (16, 32, 48):
        forecast.batch(done)
    assert said == ["vision features: 8 clips a second, about 7 min to go"]
    assert room.shown_time(7800) == "2 h 10 min"
