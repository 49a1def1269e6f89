"""Shards as tars: rows in their place, for this cache and for whoever reads tars."""

from __future__ import annotations

import io
import json
import logging
import tarfile

import numpy as np
import pytest

from llava.data.features.shards import read_index
from llava.data.features.store import TOLERANCES, DamagedFeatures, FeatureCache
from tests.data.features.test_store import features, files, fill, flip  # noqa: F401


def fill_tar(root, files, features, dtype="float16") -> FeatureCache:  # noqa: F811
    cache = FeatureCache(root, {"dtype": dtype}, shards=True)
    cache.write([(cache.key(path, (0, 9), n == 1), path) for n, path in enumerate(files)], features)
    return cache


def pair(cache: FeatureCache):
    (tar,) = cache.folder.glob("*.tar")
    return tar, tar.with_suffix(".json")


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_folder_of_tars_is_read_as_one_of_arrays_is(tmp_path, files, features, dtype):  # noqa: F811
    fill_tar(tmp_path / "tars", files, features, dtype)
    arrays = fill(tmp_path / "arrays", files, features, dtype)
    tars = FeatureCache(tmp_path / "tars", {"dtype": dtype})
    for n, path in enumerate(files):
        assert tars.read(path, (0, 9), n == 1).equal(arrays.read(path, None)), path


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_whoever_reads_tars_finds_an_array_a_clip(tmp_path, files, features, dtype):  # noqa: F811
    """Names are as WebDataset wants them: what stands before the first dot is the sample."""
    cache = fill_tar(tmp_path, files, features, dtype)
    with tarfile.open(pair(cache)[0]) as tar:
        members = tar.getmembers()
        assert [m.name.partition(".")[::2] for m in members] == [
            (cache.key(path, (0, 9), n == 1).replace(":", "_"), "npy") for n, path in enumerate(files)
        ]
        for member, clip in zip(members, features, strict=True):
            array = np.load(io.BytesIO(tar.extractfile(member).read()), allow_pickle=False)
            values = array if dtype == "float16" else array["values"] * array["scale"]
            assert np.allclose(values, clip, atol=np.abs(clip).max() / 100)


def test_damage_is_named_with_shard_and_clip(tmp_path, files, features, caplog):  # noqa: F811
    cache = fill_tar(tmp_path, files, features)
    tar, _ = pair(cache)
    flip(tar, tar.read_bytes().index(features[3].tobytes()) + 7)
    reader = FeatureCache(tmp_path, {"dtype": "float16"})
    assert reader.read(files[2], (0, 9)) is not None
    with pytest.raises(DamagedFeatures, match=rf"clip3\.mp4: its features in {tar}, row 3, are damaged \(checksum"):
        reader.read(files[3], (0, 9))
    tar.write_bytes(tar.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert not len(FeatureCache(tmp_path, {"dtype": "float16"}))
    assert "damaged, ignored" in caplog.text


@pytest.mark.parametrize(
    "layout",
    [None, [], {}, {"first": 0}, {"first": -1, "stride": 10**6}, {"first": 0, "stride": 1},
     {"first": 10**9, "stride": 512}, {"first": 0, "stride": 10**9},
     {"first": 0.0, "stride": 512}, {"first": True, "stride": 10**5}],
)  # fmt: skip
def test_absurd_layouts_are_refused(tmp_path, files, features, layout):  # noqa: F811
    cache = fill_tar(tmp_path, files, features)
    _, index = pair(cache)
    index.write_text(json.dumps({**json.loads(index.read_text()), "tar": layout}))
    with pytest.raises(ValueError, match="do not fit"):
        read_index(index, "float16")


def test_rows_at_another_place_are_not_served(tmp_path, files, features):  # noqa: F811
    cache = fill_tar(tmp_path, files, features)
    _, index = pair(cache)
    table = json.loads(index.read_text())
    table["tar"]["first"] += 2
    index.write_text(json.dumps(table))
    with pytest.raises(DamagedFeatures, match="checksum"):
        FeatureCache(tmp_path, {"dtype": "float16"}).read(files[0], (0, 9))
