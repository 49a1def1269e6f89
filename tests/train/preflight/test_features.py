"""Which rows of the cache are computed again, and how many when the tower is slow."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from llava.train.preflight import features as preflight_features
from llava.train.preflight.features import check_cache, spread_rows


def clips(files):
    return {(f"{name}{row}", None, False): (name, row) for name, rows in files.items() for row in range(rows)}


def test_every_file_has_rows_and_its_first_is_never_the_only_one():
    places = clips({"a": 100, "b": 3, "c": 1, "d": 50})
    chosen = [places[c] for c in spread_rows(places, 32)]
    assert len(chosen) == len(set(chosen)) == 32
    assert {name: max(r for n, r in chosen if n == name) for name, _ in chosen} == {"a": 99, "b": 2, "c": 0, "d": 49}
    assert [places[c] for c in spread_rows(places, 4)] == [("a", 99), ("b", 2), ("c", 0), ("d", 49)]
    assert len(spread_rows(clips({"a": 5}), 32)) == 5 and spread_rows({}, 32) == []


def test_a_slow_tower_computes_what_fits_and_the_table_says_how_many(monkeypatch):
    """A tower of 2 CPU-seconds a frame."""
    now = [0.0]
    monkeypatch.setattr(preflight_features.time, "process_time", lambda: now[0])

    class Tower(torch.nn.Linear):
        def forward(self, pixels):
            now[0] += 2.0
            return pixels.flatten(2)

    features = torch.arange(24.0).view(2, 3, 4)
    cache = SimpleNamespace(
        place=lambda path, split, is_image: ("file", int(path)),
        read=lambda path, split, is_image: features,
        dtype="float16",
    )
    records = [SimpleNamespace(id=f"r{i}", videos=(str(i),), images=(), split=None) for i in range(8)]
    dataset = SimpleNamespace(
        cache=cache, records=records, read_video=lambda path, split: features.view(2, 3, 2, 2)
    )  # fmt: skip
    found = check_cache(dataset, Tower(1, 1))
    assert found.status == "ok" and found.finding.startswith("2 rows of 1 of 1 files, one frame each")
    assert "6 more not measured: the tower takes 2.0 CPU-s a frame" in found.finding
    cache.read = lambda path, split, is_image: features.flip(0)
    assert "record 'r7' are not those of 7 (frame 0" in check_cache(dataset, Tower(1, 1)).finding
