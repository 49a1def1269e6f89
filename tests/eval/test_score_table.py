"""Exact match, and the table of scores."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llava.data.records import load_records
from llava.eval.score_table import ScoreTable, exact_match, format_table
from tests.conftest import record


def read(tmp_path, *texts_of_clips):
    path = tmp_path / "r.json"
    path.write_text(json.dumps([record(str(i), text, clip) for i, (clip, text) in enumerate(texts_of_clips)]))
    return load_records(path)[0]


def test_exact_match_takes_any_reference_of_the_clip(tmp_path):
    records = read(tmp_path, ("a", "Uno."), ("a", "Due."), ("b", "Tre."))
    assert exact_match(["Due.", "Due.", "Due."], records) == pytest.approx(2 / 3)


def test_exact_match_does_not_depend_on_how_accents_are_typed(tmp_path):
    records = read(tmp_path, ("a", "Va giù."), ("b", "Due."))
    turns = [{"from": "human", "value": "<video>"}, {"from": "gpt", "value": "E\u0300 qui."}]
    records[1] = replace(records[1], conversations=turns)
    assert exact_match(["Va giu\u0300.", "È qui."], records) == 1


def test_the_table_lines_up():
    table = format_table({"a": {"x": 1.0}, "longer": {"x": 0.5, "shape": 0.25}})
    assert table.splitlines() == ["        x  shape", "a       1.00       ", "longer  0.50   0.25"]


def test_intervals_stand_beside_their_scores():
    table = format_table({"a": {"x": 1.0, "CIDEr-D": 0.5}, "b": {"x": 0.0, "CIDEr-D": 0.25}},
                         {"a": {"CIDEr-D": [0.4, 0.6]}, "b": {"CIDEr-D": [None, None]}})  # fmt: skip
    assert table.splitlines() == ["   x            CIDEr-D", "a  1.00  0.50 [0.40, 0.60]", "b  0.00    0.25 [one clip]"]


def test_the_file_has_scores_and_intervals_without_nan(tmp_path):
    one = ScoreTable(["CIDEr-D"])
    one.add("one", ["Uno."], read(tmp_path, ("a", "Uno.")))
    assert one.as_json() == {"scores": {"one": {"exact match": 1.0}}, "intervals": {"one": {}}}
    two = ScoreTable(["CIDEr-D"])
    two.add("two", ["Uno.", "Tre."], read(tmp_path, ("a", "Uno."), ("b", "Due.")))
    assert two.rows["two"]["CIDEr-D"] == pytest.approx(1.25), "of one clip 10 / 4, for its one word; of the other 0"
    assert two.intervals["two"]["CIDEr-D"] == [0, 2.5]
    json.dumps(two.as_json(), allow_nan=False)
