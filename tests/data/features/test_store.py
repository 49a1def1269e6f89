"""The files of a feature cache: what is read is what was written, or an error that says which file is damaged."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal

import numpy as np
import pytest
import torch

from llava.data.features.store import TOLERANCES, DamagedFeatures, FeatureCache, decode, encode

CLIPS = 4


@pytest.fixture
def files(tmp_path):
    paths = [str(tmp_path / f"clip{i}.mp4") for i in range(CLIPS)]
    for path in paths:
        with open(path, "w") as file:
            file.write(path)
    return paths


@pytest.fixture
def features():
    """(4, 2, 9, 8), with channels of very different size."""
    values = np.random.default_rng(0).normal(size=(CLIPS, 2, 9, 8)) * np.logspace(-3, 2, 8)
    return values.astype(np.float16)


def fill(root, files, features, dtype="float16") -> FeatureCache:
    cache = FeatureCache(root, {"dtype": dtype})
    cache.write([(cache.key(path, None), path) for path in files], features)
    return cache


def error(found: torch.Tensor, expected: np.ndarray) -> float:
    reference = torch.from_numpy(expected).float()
    return ((found.float() - reference).norm() / reference.norm()).item()


def shard_files(cache):
    (array,) = cache.folder.glob("*.npy")
    return array, array.with_suffix(".json")


def flip(path, offset: int) -> None:
    """Flips one bit of the byte at `offset`, from the end when it is negative."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_what_is_read_is_what_was_written(tmp_path, files, features, dtype):
    fill(tmp_path / "cache", files, features, dtype)
    cache = FeatureCache(tmp_path / "cache", {"dtype": dtype})
    for path, expected in zip(files, features, strict=True):
        found = cache.read(path, None)
        assert found.dtype == torch.float16 and found.shape == expected.shape
        assert error(found, expected) <= (0 if dtype == "float16" else 0.01)
        for channel in range(8):
            assert error(found[..., channel], expected[..., channel]) < 0.02, "each channel has its own scale"
        found.zero_()
        assert error(cache.read(path, None), expected) < 0.02, "a tensor that is written to leaves the cache alone"


def test_int8_takes_half_the_room(tmp_path):
    features = np.ones((2, 4, 256, 64), np.float16)
    sizes = {dtype: encode(features, dtype).nbytes for dtype in TOLERANCES}
    assert sizes["int8"] / sizes["float16"] == pytest.approx(0.5, abs=0.01)


def test_int8_keeps_zeros_and_extremes():
    features = np.zeros((1, 2, 3, 4), np.float16)
    features[0, 0, 0, 1], features[0, 1, 2, 1] = 65504, -65504
    row = np.frombuffer(encode(features, "int8").tobytes(), np.uint8)
    found = decode(row, "int8", (2, 3, 4)).numpy()
    assert np.array_equal(found, features[0])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("offset", [-1, -7])
def test_a_flipped_bit_is_never_served(tmp_path, files, features, dtype, offset):
    array, _ = shard_files(fill(tmp_path / "cache", files, features, dtype))
    flip(array, offset)
    cache = FeatureCache(tmp_path / "cache", {"dtype": dtype})
    with pytest.raises(DamagedFeatures, match=r"clip3\.mp4: .*\.npy, row 3, are damaged \(checksum .*--repair_feat"):
        cache.read(files[3], None)
    assert error(cache.read(files[2], None), features[2]) < 0.02, "the other rows are sound"


def test_every_byte_of_a_row_is_covered(tmp_path, files, features):
    cache = fill(tmp_path / "cache", files, features, "int8")
    array, _ = shard_files(cache)
    size = next(iter(cache._entries.values())).shard.row_bytes
    assert size == 2 * 9 * 8 + 4 * 8
    for offset in range(1, size + 1):
        flip(array, -offset)
        assert cache._damage(cache._entries[cache.key(files[3], None)])
        flip(array, -offset)
    assert cache._damage(cache._entries[cache.key(files[3], None)]) == ""


def test_a_row_is_checked_once_in_a_process(tmp_path, files, features, monkeypatch):
    cache = fill(tmp_path / "cache", files, features)
    checked, damage = [], cache._damage
    monkeypatch.setattr(cache, "_damage", lambda entry: checked.append(entry.row) or damage(entry))
    for _ in range(3):
        cache.read(files[1], None)
    assert checked == [1]


def test_a_damaged_header_changes_nothing(tmp_path, files, features):
    array, _ = shard_files(fill(tmp_path / "cache", files, features))
    for offset in range(64):
        flip(array, offset)
    cache = FeatureCache(tmp_path / "cache", {"dtype": "float16"})
    assert error(cache.read(files[0], None), features[0]) == 0


def cut_array(array, index):
    array.write_bytes(array.read_bytes()[:-10])


def cut_index(array, index):
    index.write_text(index.read_text()[:-10])


def old_index(array, index):
    index.write_text(json.dumps(json.loads(index.read_text())["entries"]))


def no_checksum(array, index):
    value = json.loads(index.read_text())
    del value["entries"][0]["crc32"]
    index.write_text(json.dumps(value))


def other_shape(array, index):
    index.write_text(json.dumps({**json.loads(index.read_text()), "shape": [2, 9, 80]}))


def no_array(array, index):
    array.unlink()


def not_text(array, index):
    index.write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    "damage", [cut_array, cut_index, old_index, no_checksum, other_shape, no_array, not_text], ids=lambda f: f.__name__
)
def test_a_malformed_shard_counts_as_not_extracted(tmp_path, files, features, caplog, damage):
    damage(*shard_files(fill(tmp_path / "cache", files, features)))
    cache = FeatureCache(tmp_path / "cache", {"dtype": "float16"})
    assert len(cache) == 0 and not cache.has(files[0], None)
    assert caplog.text.count("damaged, ignored") == 1
    cache.reload()
    assert caplog.text.count("damaged, ignored") == 1, "said once"
    cache.write([(cache.key(path, None), path) for path in files], features)
    again = FeatureCache(tmp_path / "cache", {"dtype": "float16"})
    assert error(again.read(files[0], None), features[0]) == 0


def test_an_array_that_shrinks_while_a_run_reads_is_an_error(tmp_path, files, features):
    cache = fill(tmp_path / "cache", files, features)
    cache.read(files[0], None)
    cut_array(*shard_files(cache))
    with pytest.raises(DamagedFeatures, match="bytes, expected"):
        cache.read(files[3], None)


def test_damaged_rows_are_struck_and_the_others_stay(tmp_path, files, features):
    array, _ = shard_files(fill(tmp_path / "cache", files, features))
    flip(array, -1)
    cache = FeatureCache(tmp_path / "cache", {"dtype": "float16"})
    keys = [cache.key(path, None) for path in files]
    assert cache.remove_damaged([*keys, "unknown"]) == 1
    for known in (cache, FeatureCache(tmp_path / "cache", {"dtype": "float16"})):
        assert [key in known for key in keys] == [True, True, True, False]
        assert error(known.read(files[2], None), features[2]) == 0
    assert cache.remove_damaged(keys) == 0


def test_a_full_disk_is_a_message_and_leaves_nothing_half_written(tmp_path, files, features):
    """A limit on the size of files, which the kernel enforces, in place of a disk that is really full."""
    fill(tmp_path / "cache", files[:1], features[:1])
    cache = FeatureCache(tmp_path / "cache", {"dtype": "float16"})
    before = sorted(path.name for path in cache.folder.iterdir())
    keys = [(cache.key(path, None), path) for path in files]
    big = np.zeros((CLIPS, 4, 64, 64), np.float16)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write 0\.1 MB of vision features to .*MB free.*--feature_cache"):
            cache.write(keys, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(path.name for path in cache.folder.iterdir()) == before
    assert len(cache) == 1
    cache.write(keys, big)
    assert cache.read(files[3], None).shape == (4, 64, 64)


def test_a_folder_that_cannot_be_made_is_the_same_message(tmp_path, files, features):
    (tmp_path / "cache").write_text("a file in the way")
    cache = FeatureCache(tmp_path / "cache", {"dtype": "float16"})
    with pytest.raises(OSError, match="cannot write .* of vision features"):
        cache.write([("key", files[0])], features[:1])


def test_many_shards_leave_files_to_open(tmp_path, files, features):
    """A cache of thousands of shards held one file open for each, beyond the limit of most systems."""
    entry = next(iter(fill(tmp_path / "cache", files, features)._entries.values()))
    before = len(os.listdir("/proc/self/fd"))
    for i in range(600):
        entry._replace(shard=entry.shard._replace(name=str(i))).bytes()
    assert len(os.listdir("/proc/self/fd")) - before < 300


def test_siblings_differ_in_one_setting(tmp_path, files, features):
    for precision, dtype in (("bf16", "float16"), ("bf16", "int8")):
        cache = FeatureCache(tmp_path / "cache", {"dtype": dtype, "precision": precision, "frames": (1, 2)})
        cache.write([(cache.key(files[0], None), files[0])], features[:1])
    here = FeatureCache(tmp_path / "cache", {"dtype": "float16", "precision": "fp32", "frames": (1, 2)})
    ((_, name, there, ours),) = here.siblings()
    assert (name, there, ours) == ("precision", "bf16", "fp32")


def test_a_sound_cache_gives_no_warning(tmp_path, files, features, caplog):
    fill(tmp_path / "cache", files, features)
    with caplog.at_level(logging.INFO):
        assert len(FeatureCache(tmp_path / "cache", {"dtype": "float16"})) == CLIPS
    assert caplog.text == ""


def test_a_clip_that_is_deleted_during_training_is_named(tmp_path, files, features):
    cache = fill(tmp_path / "cache", files, features)
    os.unlink(files[1])
    with pytest.raises(FileNotFoundError, match=r"clip1\.mp4: gone since the run started.*put the file back"):
        cache.read(files[1], None)


def test_a_second_copy_of_a_clips_features_is_checked_too(tmp_path, files, features):
    cache = fill(tmp_path / "cache", files, features)
    cache.read(files[3], None)
    other = FeatureCache(tmp_path / "cache", {"dtype": "float16"})
    first, _ = shard_files(cache)
    other.write([(other.key(path, None), path) for path in files], features)
    (second,) = [path for path in cache.folder.glob("*.npy") if path != first]
    flip(second, -1)
    first.with_suffix(".json").unlink()  # The other copy is now the one that is read.
    cache.reload()
    with pytest.raises(DamagedFeatures):
        cache.read(files[3], None)
