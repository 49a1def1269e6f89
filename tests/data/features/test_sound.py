"""A row is verified once in a run, by whichever process reads it first."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from llava.data.features import sound
from llava.data.features.shards import Entry, Shard
from llava.data.features.sound import SoundRows
from llava.data.features.store import DamagedFeatures, FeatureCache

CLIPS = 6


def entry(row: int, file: str = "a.npy") -> Entry:
    return Entry(Shard(file, "a", 1000, 10, 100, (1, 5, 10), 0, 100), row, 7, "key")


def filled(root: Path) -> tuple[FeatureCache, list[str]]:
    paths = [str(root / f"clip{i}.mp4") for i in range(CLIPS)]
    for path in paths:
        Path(path).write_text(path)
    cache = FeatureCache(root / "cache", {"dtype": "float16"})
    values = np.random.default_rng(0).normal(size=(CLIPS, 2, 9, 8)).astype(np.float16)
    cache.write([(cache.key(path, None), path) for path in paths], values)
    return cache, paths


class Reads(Dataset):
    """Items that say whether reading a clip verified it."""

    def __init__(self, cache: FeatureCache, paths: list[str]) -> None:
        self.cache, self.paths, self.verified = cache, paths, 0
        check = cache._damage
        cache._damage = lambda entry: self.count() or check(entry)

    def count(self) -> None:
        self.verified += 1

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, int]:
        before = self.verified
        self.cache.stored(self.paths[index], None)
        return self.verified - before, os.getpid()


def test_workers_of_later_epochs_verify_nothing_again(tmp_path):
    cache, paths = filled(tmp_path)
    loader = DataLoader(Reads(cache, paths), batch_size=None, num_workers=2)
    epochs = [list(loader) for _ in range(2)]
    assert [sum(count for count, _ in epoch) for epoch in epochs] == [CLIPS, 0]
    assert len({pid for epoch in epochs for _, pid in epoch}) == 4, "each epoch had workers of its own"
    assert cache.stored(paths[0], None) and loader.dataset.verified == 0, "nor does the process that trains"


def test_processes_of_a_run_verify_a_row_between_them_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sound.tempfile, "gettempdir", lambda: str(tmp_path))
    _, paths = filled(tmp_path)
    settings = tmp_path / "cache", {"dtype": "float16"}
    first, second, stranger = (FeatureCache(*settings, run=name) for name in ("run", "run", "other"))
    reads = [Reads(cache, paths) for cache in (first, second, stranger)]
    assert [sum(one[i][0] for i in range(CLIPS)) for one in reads] == [CLIPS, 0, CLIPS]
    del first, second, stranger, reads
    gc.collect()
    assert not list(tmp_path.glob("run*")), "and the file goes with them"


def test_a_damaged_row_is_named_every_time(tmp_path):
    cache, paths = filled(tmp_path)
    (array,) = cache.folder.glob("*.npy")
    data = bytearray(array.read_bytes())
    data[-1] ^= 1
    array.write_bytes(data)
    for _ in range(2):
        with pytest.raises(DamagedFeatures, match=r"clip5\.mp4: .*row 5, are damaged"):
            cache.stored(paths[5], None)


def test_a_full_table_forgets_and_never_claims(monkeypatch):
    monkeypatch.setattr(sound, "LEAST_SLOTS", 16)
    table = SoundRows(0)
    known = [entry(i) for i in range(40)]
    for one in known:
        assert one not in table
        table.add(one)
        assert one in table
    assert sum(one in table for one in known) == 16
    assert entry(39, "b.npy") not in table, "the same row of another file"


def test_there_is_room_for_all_rows_of_a_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(sound, "LEAST_SLOTS", 4)
    cache, _ = filled(tmp_path)
    assert cache._verified.room >= CLIPS
    assert FeatureCache(tmp_path / "cache", {"dtype": "float16"})._verified.room >= CLIPS
