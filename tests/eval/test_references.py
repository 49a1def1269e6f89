"""What a record asks and answers, and the references of its clip."""

from __future__ import annotations

import json

from llava.data.records import load_records
from llava.eval.references import answer_of, is_captioned_clip, prompt_of, reference_of, references_of
from tests.conftest import record


def test_all_records_of_a_clip_are_its_references(tmp_path):
    path = tmp_path / "r.json"
    parts = [
        {**record(str(i), t, "a"), "meta": {"split": s}} for i, (t, s) in enumerate([("Sì.", [0, 9]), ("No.", [9, 20])])
    ]
    path.write_text(
        json.dumps([record("x", "Uno.", "a", "Guarda"), record("y", "Due.", "b"), record("z", "Uno.", "a"), *parts])
    )
    records, problems = load_records(path)
    assert problems == []
    assert (answer_of(records[0]), prompt_of(records[0]), reference_of(records[0])) == (1, "<video> Guarda", "Uno.")
    found = references_of(records)
    assert list(found.values()) == [["Uno.", "Uno."], ["Due."], ["Sì."], ["No."]], "a segment is a clip of its own"


def test_records_that_answer_with_numbers_are_not_captioned(tmp_path):
    numbers = {"variables": {"temporal_output_locations": [0.5]}}
    rows = [record("words", "Un gatto.", "a"), record("numbers", "A <TEMP-OUTPUT>", "a") | numbers]
    (tmp_path / "r.json").write_text(json.dumps(rows))
    records, problems = load_records(tmp_path / "r.json")
    assert problems == [] and [is_captioned_clip(r) for r in records] == [True, False]
