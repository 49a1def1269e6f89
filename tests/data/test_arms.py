"""An arm in the record of a run and in words."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from llava.data.arms import arm_record, describe, entropies_of, flag_problems
from llava.data.blind import BlindDraw


def test_an_arm_is_recorded_and_said():
    assert arm_record(SimpleNamespace(others=None, blind=None)) is None
    assert describe(None) == "each record its own clip"
    hashes = np.arange(1200, dtype=np.uint64)
    blind = BlindDraw(hashes, hashes % 2 == 0, 0.25, 3)
    others = SimpleNamespace(seed=7, named=np.zeros((40, 2)), digest="abc")
    arm = arm_record(SimpleNamespace(others=others, blind=blind))
    assert arm == {
        "other_clips": {"seed": 7, "clips": 40, "digest": "abc"}, "blind": {"share": 0.25, "seed": 3, "records": 600},
    }  # fmt: skip
    assert describe(arm) == (
        "each record another clip (40 clips exchanged by content, seed 7); without it 25 % of 600 records, drawn anew "
        "each epoch"
    )


def test_flags_without_a_tower_are_named():
    assert flag_problems(None, 0.0, sees=False) == flag_problems(0, 0.5, sees=True) == []
    problems = flag_problems(0, 0.5, sees=False)
    assert [p.partition(":")[0] for p in problems] == ["--other_clips 0", "--blind_share 0.5"]


def test_captions_that_are_shown_blind_are_texts_of_the_same_words():
    record = {"data": {"train": {"supervised": {"captions": {"entropy": 3.0}}}}}
    plain, blind = SimpleNamespace(alone=None), SimpleNamespace(alone=object())
    assert entropies_of(record, plain) == {"captions": 3.0} and entropies_of({}, blind) == {}
    assert entropies_of(record, blind) == {"captions": 3.0, "text": 3.0}
    record["data"]["train"]["supervised"]["text"] = {"entropy": 5.0}
    assert entropies_of(record, blind)["text"] == 5.0, "texts of their own are most of them"
