"""Which results are of what is asked for, and which models a run has."""

from __future__ import annotations

import json
import os

import pytest

from llava.eval.milestone_tests import Kept, covers, facts_of, kept_models

MADE = {"files": [{"sha256": "a"}, {"sha256": "b"}],
        "settings": {"columns": ["AOA", "VISUAL"], "norms": ["n"], "limit": None, "classes": []}}  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "enough"),
    [
        ({"files": ["a"], "columns": ["AOA"], "norms": [], "limit": None, "classes": []}, True),
        ({"files": ["a", "b"], "columns": ["VISUAL", "AOA"], "norms": ["n"]}, True),
        ({"files": ["c"]}, False),
        ({"files": ["a"], "columns": ["CONCRETENESS"]}, False),
        ({"files": ["a"], "norms": ["other content"]}, False),
        ({"files": ["a"], "limit": 3}, False),
        ({"files": ["a"], "classes": ["x"]}, False),
        ({"files": ["a"], "unheard_of": None}, False),
    ],
)
def test_results_of_more_are_kept_and_of_other_things_not(wanted, enough):
    assert covers(MADE, wanted) is enough
    assert not covers(None, wanted)
    assert not covers({"files": None, "settings": None}, wanted)


def test_results_that_are_older_than_the_model_or_broken_are_none(tmp_path):
    model = Kept(tmp_path, "chck_1", 1, 1)
    (tmp_path / "tests").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"")
    facts, table = (tmp_path / "tests" / f"blind_words.{e}" for e in ("json", "csv"))
    facts.write_text(json.dumps(MADE))
    assert facts_of(model, "blind_words") is None, "no table"
    table.write_text("")
    assert facts_of(model, "blind_words") == MADE
    os.utime(facts, (1, 1))
    assert facts_of(model, "blind_words") is None
    facts.write_text("{")
    assert facts_of(model, "blind_words") is None


def test_models_are_in_the_order_of_words_and_each_once(tmp_path):
    for name, milestone, words, step in (("chck_10k", 10_000, 10_400, 9), ("chck_9k", 9_000, 9_100, 8),
                                         ("chck_9.1k", 9_100, 9_100, 8)):  # fmt: skip
        (tmp_path / name).mkdir()
        facts = {"milestone": milestone, "words": words, "step": step}
        (tmp_path / name / "milestone.json").write_text(json.dumps(facts))
    kept, remarks = kept_models(tmp_path)
    assert [(k.name, k.words) for k in kept] == [("chck_9.1k", 9_100), ("chck_10k", 10_400)]
    assert len(remarks) == 1 and "chck_9k and chck_9.1k are the same model" in remarks[0], "the run goes on: no end yet"
