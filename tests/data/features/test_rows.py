"""Rows of features go from their file into the tensor of a batch, once."""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest
import torch

from llava.data.collator import vision_of
from llava.data.features import rows as stored_rows
from llava.data.features.rows import DamagedFeatures, StoredRows, read_rows
from llava.data.features.store import TOLERANCES, FeatureCache
from llava.model.vision_batch import VisionBatch

SHAPE = (2, 9, 8)


@pytest.fixture
def clips(tmp_path):
    paths = [str(tmp_path / f"clip{i}.mp4") for i in range(4)]
    for path in paths:
        with open(path, "w") as file:
            file.write(path)
    return paths


def filled(root, clips, dtype="float16"):
    cache = FeatureCache(root / "cache", {"dtype": dtype})
    values = np.random.default_rng(0).normal(size=(4, *SHAPE)) * np.logspace(-3, 2, SHAPE[-1])
    cache.write([(cache.key(path, None), path) for path in clips], values.astype(np.float16))
    return cache


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_batch_is_what_its_clips_are_alone_each_byte_read_once(tmp_path, clips, dtype, monkeypatch):
    cache = filled(tmp_path, clips, dtype)
    alone = torch.stack([cache.read(clips[i], None) for i in (2, 0, 2)])
    samples = [{"video_features": [cache.stored(clips[i], None)]} for i in (2, 0, 2)]
    read, places, preadv = [], [], os.preadv

    def watched(file, buffers, offset):
        places.extend(b.__array_interface__["data"][0] for b in buffers)
        read.append(preadv(file, buffers, offset))
        return read[-1]

    monkeypatch.setattr(os, "preadv", watched)
    batch = vision_of(samples)
    assert sum(read) == sum(t.nbytes for t in batch.values())
    starts = [t[i].data_ptr() for i in range(3) for t in batch.values()]
    assert places == starts, "into the tensors of the batch themselves"
    given = VisionBatch(**batch).items[1].inputs[1]
    assert given.dtype == torch.float16 and torch.equal(given, alone)


def test_memory_of_large_pages_is_memory(tmp_path, clips, monkeypatch):
    cache = filled(tmp_path, clips)
    expected = read_rows([cache.stored(path, None) for path in clips])[0]
    monkeypatch.setattr(stored_rows, "HUGE_PAGE", 1)
    found = read_rows([cache.stored(path, None) for path in clips])[0]
    stored_rows._open.cache_clear()
    gc.collect()
    assert torch.equal(found, expected)
    found.zero_()  # May be written to.
    assert torch.equal(read_rows([cache.stored(path, None) for path in clips])[0], expected)


def test_an_image_has_no_axis_of_frames(tmp_path, clips):
    cache = FeatureCache(tmp_path / "cache", {"dtype": "int8"})
    values = np.random.default_rng(0).normal(size=(1, 1, *SHAPE[1:])).astype(np.float16)
    cache.write([(cache.key(clips[0], None, True), clips[0])], values)
    batch = vision_of([{"image_features": [cache.stored(clips[0], None, True)]}])
    assert batch["image_features"].shape == (1, *SHAPE[1:]) and batch["image_scales"].shape == (1, SHAPE[-1])
    given = VisionBatch(**batch).items[0].inputs[1]
    assert torch.equal(given, cache.read(clips[0], None, True)), "which is (1, P, Dv) with its one frame"


def test_reads_that_the_system_cuts_short_go_on(tmp_path, clips, monkeypatch):
    cache = filled(tmp_path, clips, "int8")
    rows, preadv = [cache.stored(path, None) for path in clips], os.preadv
    whole = read_rows(rows)
    monkeypatch.setattr(os, "preadv", lambda file, buffers, offset: preadv(file, [buffers[0][:61]], offset))
    assert all(map(torch.equal, whole, read_rows(rows)))


def test_a_file_that_is_cut_or_goes_after_it_was_verified_is_named(tmp_path, clips):
    cache = filled(tmp_path, clips)
    rows = StoredRows(cache.stored(path, None) for path in clips)
    (array,) = cache.folder.glob("*.npy")
    os.truncate(array, array.stat().st_size - 5)
    with pytest.raises(DamagedFeatures, match=rf"clip3\.mp4: its features in {array}.* cannot be read \(.*it ends at"):
        rows.read("video_features")
    array.unlink()
    stored_rows._open.cache_clear()
    with pytest.raises(DamagedFeatures, match=r"clip0\.mp4: .*No such file"):
        rows.read("video_features")


def test_more_shards_than_files_may_be_open(tmp_path, clips, monkeypatch):
    monkeypatch.setattr(stored_rows, "_open", stored_rows._File)  # None is kept.
    cache = filled(tmp_path, clips)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        read_rows([cache.stored(path, None) for path in clips])
    assert len(os.listdir("/proc/self/fd")) == before


def test_features_and_tensors_may_stand_beside_each_other(tmp_path, clips):
    cache = filled(tmp_path, clips)
    one, other = cache.stored(clips[0], None), torch.ones(1, *SHAPE).half()
    batch = vision_of([{"video_features": [one]}, {"video_features": other}])
    assert torch.equal(batch["video_features"], torch.stack([one.tensor(), other[0]]))


def test_rows_of_other_shapes_are_refused(tmp_path, clips):
    row = filled(tmp_path, clips).stored(clips[0], None)
    with pytest.raises(ValueError, match="clip0.mp4: features of"):
        read_rows([row, row._replace(shape=(1, 9, 8))])
