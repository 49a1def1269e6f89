"""Whatever an index says, a clip is served its own features or none, and nothing ends in a traceback."""

from __future__ import annotations

import copy
import json
import logging
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.data.features.shards import read_index
from llava.data.features.store import DamagedFeatures, FeatureCache, caches_beside

CLIPS = 40


def write_cache(root: Path, clips: int = CLIPS, dtype: str = "float16") -> tuple[FeatureCache, list[str], np.ndarray]:
    """A cache of `clips` clips with features (clips, 2, 3, 2)."""
    files = [str(root / f"clip{i}.mp4") for i in range(clips)]
    for path in files:
        Path(path).write_text(path)
    features = np.random.default_rng(0).normal(size=(clips, 2, 3, 2)).astype(np.float16)
    cache = FeatureCache(root / "cache", {"dtype": dtype})
    contents, _ = cache.contents.resolve(files)
    cache.write([(contents[path], path) for path in files], features)
    return cache, files, features


def index_of(cache: FeatureCache) -> Path:
    (array,) = cache.folder.glob("*.npy")
    return array.with_suffix(".json")


def served(root: Path, files: list[str], features: np.ndarray) -> int:
    """How many clips are served, each with its own features; damage is an error that says so."""
    cache, count = FeatureCache(root / "cache", {"dtype": "float16"}), 0
    for path, expected in zip(files, features, strict=True):
        try:
            found = cache.read(path, None)
        except (LookupError, DamagedFeatures):
            continue
        assert torch.equal(found, torch.from_numpy(expected)), path
        count += 1
    return count


def rotate(index: dict, name: str) -> None:
    values = [entry[name] for entry in index["entries"]]
    for entry, value in zip(index["entries"], [*values[1:], values[0]], strict=True):
        entry[name] = value


@pytest.mark.parametrize("what", ["key", "crc32", "rows"])
def test_a_clip_is_never_served_the_row_of_another(tmp_path, what):
    """With checksums of the bytes alone, rotated keys gave all 40 clips the features of another."""
    cache, files, features = write_cache(tmp_path)
    path = index_of(cache)
    index = json.loads(path.read_text())
    if what == "rows":
        data = path.with_suffix(".npy").read_bytes()
        path.with_suffix(".npy").write_bytes(
            data[:-24][: len(data) - 24 * CLIPS] + data[-24:] + data[-24 * CLIPS : -24]
        )
    else:
        rotate(index, what)
        path.write_text(json.dumps(index))
    assert served(tmp_path, files, features) == 0


def test_rotated_hashes_of_contents_are_found_and_the_clips_hashed_again(tmp_path, caplog):
    cache, files, features = write_cache(tmp_path)
    (path,) = cache.contents.folder.glob("*.json")
    rows = json.loads(path.read_text())
    digests = [row[3] for row in rows]
    for row, digest in zip(rows, [*digests[1:], digests[0]], strict=True):
        row[3] = digest
    path.write_text(json.dumps(rows))
    assert served(tmp_path, files, features) == CLIPS
    assert "does not fit its checksum" in caplog.text


def test_a_shape_of_as_many_numbers_is_damage(tmp_path):
    cache, files, features = write_cache(tmp_path)
    path = index_of(cache)
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "shape": [3, 2, 2]}))
    assert served(tmp_path, files, features) == 0


def deep(levels: int = 100_000) -> str:
    return "[" * levels + "]" * levels


ABSURD = {
    "negative size": lambda i: {**i, "size": -i["size"]},
    "negative shape": lambda i: {**i, "shape": [-2, -3, 2]},
    "1e18 in the shape": lambda i: {**i, "shape": [10**18, 10**18, 10**18]},
    "a number without end": lambda i: {**i, "shape": [10**4000, 1, 1]},
    "a float in the shape": lambda i: {**i, "shape": [2.0, 3, 2]},
    "NaN": lambda i: {**i, "size": float("nan")},
    "infinity": lambda i: {**i, "shape": [float("inf"), 3, 2]},
    "true": lambda i: {**i, "shape": [True, 3, 2]},
    "a shape of text": lambda i: {**i, "shape": "232"},
    "two dimensions": lambda i: {**i, "shape": [6, 2]},
    "no entries": lambda i: {**i, "entries": None},
    "entries in a table": lambda i: {**i, "entries": {"a": 1}},
    "a row beyond the file": lambda i: {**i, "entries": [*i["entries"], i["entries"][0]]},
    "entries of text": lambda i: {**i, "entries": ["x"] * len(i["entries"])},
    "a key twice": lambda i: {**i, "entries": [i["entries"][1], *i["entries"][1:]]},
    "a key that is a list": lambda i: {**i, "entries": [{"key": [1], "crc32": 1}, *i["entries"][1:]]},
    "a checksum of text": lambda i: {**i, "entries": [{"key": "a", "crc32": "1"}, *i["entries"][1:]]},
    "another file's array": lambda i: {**i, "array": "../../../etc/passwd"},
    "an array that is a number": lambda i: {**i, "array": 7},
    "a list": lambda i: [i],
    "text": lambda i: "index",
    "nested without end": lambda i: deep(),
    "nothing": lambda i: None,
}


@pytest.mark.parametrize("name", ABSURD)
def test_an_absurd_index_is_ignored_with_a_warning(tmp_path, caplog, name):
    cache, files, features = write_cache(tmp_path)
    path = index_of(cache)
    value = ABSURD[name](json.loads(path.read_text()))
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    assert served(tmp_path, files, features) == 0
    assert caplog.text.count("damaged, ignored") == 1
    again = FeatureCache(tmp_path / "cache", {"dtype": "float16"})
    again.write([(again.key(path, None), path) for path in files], features)
    assert served(tmp_path, files, features) == CLIPS, "and extraction goes on"


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**19), 10**19) | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=5), children, max_size=4),
    max_leaves=8,
)


def places(value, path=()):
    """Every place inside a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def put(value, path, new):
    if not path:
        return new
    value[path[0]] = put(value[path[0]], path[1:], new)
    return value


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_is_changed_in_its_files_a_cache_serves_the_truth_or_nothing(data):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cache, files, features = write_cache(root, clips=3)
        logging.disable(logging.WARNING)
        try:
            names = [index_of(cache), cache.folder / "settings.json", *cache.contents.folder.glob("*.json")]
            path = data.draw(st.sampled_from(names))
            value = json.loads(path.read_text())
            for _ in range(data.draw(st.integers(1, 2))):
                place = data.draw(st.sampled_from(list(places(value))))
                other = data.draw(st.sampled_from(list(places(value))))
                inner = value
                for step in other:
                    inner = inner[step]
                value = put(value, place, data.draw(st.one_of(JUNK, st.just(copy.deepcopy(inner)))))
            path.write_text(json.dumps(value))
            served(root, files, features)
            FeatureCache(root / "cache", {"dtype": "int8"}).siblings()
        finally:
            logging.disable(logging.NOTSET)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | JUNK.map(lambda value: json.dumps(value).encode()))
def test_anything_in_the_place_of_an_index_is_an_error_that_is_foreseen(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        path.write_bytes(content)
        for dtype in ("float16", "int8"):
            with pytest.raises((ValueError, OSError)):
                read_index(path, dtype)


def test_settings_of_another_folder_are_not_believed(tmp_path):
    cache, _, _ = write_cache(tmp_path)
    assert [folder for folder, _ in caches_beside(cache.folder)] == [cache.folder]
    cache.folder.rename(cache.folder.with_name("0" * 16))
    assert caches_beside(cache.folder) == []


def test_a_checksum_covers_bytes_shape_and_key():
    from llava.data.features.shards import row_checksum

    first = row_checksum(zlib.crc32(b"row"), "key", (1, 2, 3))
    others = [(zlib.crc32(b"raw"), "key", (1, 2, 3)), (zlib.crc32(b"row"), "kez", (1, 2, 3)),
              (zlib.crc32(b"row"), "key", (2, 1, 3))]  # fmt: skip
    assert first not in {row_checksum(*other) for other in others}
