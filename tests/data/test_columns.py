"""Answers about a plain list of records; tests/data/test_record_table.py compares those about a table with them."""

from __future__ import annotations

import numpy as np

from llava.data.columns import RecordIds, representatives, standing_at, take
from llava.data.records import Record
from tests.data.test_captions import talk


def test_answers_about_a_list():
    records = [Record(name, talk("", "Un gatto."), (), (), None, {}, f"data[{i}]") for i, name in enumerate("abab")]
    assert [r.source for r in take(records, np.array([3, 0]))] == ["data[3]", "data[0]"]
    assert standing_at(records, {"data[1]", "x"}).tolist() == [False, True, False, False]
    firsts, index = representatives(records)
    assert firsts is records and index.tolist() == [0, 1, 2, 3]
    ids = RecordIds(records)
    assert [ids.places(name).tolist() for name in "abc"] == [[0, 2], [1, 3], []]
    assert ids[0] == "a" and ids[1:3] == ["b", "a"] and list(ids) == ["a", "b", "a", "b"]
