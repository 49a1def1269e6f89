"""Which caption fits a clip: places, chance, and a model that knows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from llava.data.records import load_records
from llava.eval.retrieval import choose_clips, format_retrieval, ranks, retrieval_scores
from tests.conftest import record


def test_the_own_captions_place_is_counted_from_one():
    losses = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [2.0, 1.0, 2.0]])
    assert ranks(losses).tolist() == [1, 2, 2.5], "equal losses share their places"


def test_a_model_that_does_not_look_is_at_chance():
    blind = np.tile(np.random.default_rng(0).normal(size=20), (20, 1))
    found = retrieval_scores(blind)
    for name, (value, low, high) in found["scores"].items():
        assert value == pytest.approx(found["chance"][name]) and low <= value <= high
    assert found["chance"] == {"R@1": 0.05, "R@5": 0.25, "median rank": 10.5}
    line = format_retrieval("val", found)
    assert line.startswith("val: which of 20 captions") and "R@1 0.05 [" in line and "(chance 10.50)" in line


def test_a_model_that_knows_finds_all():
    found = retrieval_scores(1 - np.eye(6))["scores"]
    assert found == {"R@1": (1, 1, 1), "R@5": (1, 1, 1), "median rank": (1, 1, 1)}


def test_clips_are_drawn_by_seed_and_have_captions_that_differ(tmp_path):
    path = tmp_path / "r.json"
    texts = ["Uno.", "uno", "Due.", "Tre.", "Quattro."]
    path.write_text(json.dumps([record(f"{i}{k}", t, f"c{i}") for i, t in enumerate(texts) for k in "ab"]))
    records, _ = load_records(path)
    chosen = choose_clips(records, 50, 0)
    assert len(chosen) == 4 and len({i for i in chosen if i in (0, 2)}) == 1
    assert set(chosen) <= {0, 2, 4, 6, 8}, "the first record of each clip"
    assert chosen == choose_clips(records, 50, 0) and choose_clips(records, 2, 0) == chosen[:2]
    assert len({tuple(choose_clips(records, 2, seed)) for seed in range(8)}) > 1
