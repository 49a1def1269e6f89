"""What a run was made of, and that what no file has is not made up."""

from __future__ import annotations

from typing import Any

from llava.report.facts import UNKNOWN, facts_of, seconds_text
from tests.report.made import record, run_of, words, worth


def named(known: dict[str, Any], log: list[dict[str, Any]] | None = None) -> dict[str, str]:
    return {fact.name: fact.value for group in facts_of(run_of(log, record=known)).values() for fact in group}


def test_a_run_that_recorded_nothing():
    found = named({})
    assert set(found.values()) == {UNKNOWN}
    assert {"Code", "Hardware", "Duration", "Files", "Held out", "Tokens a word", "Unknown"} <= found.keys()


def test_code_machine_and_time():
    known = record() | {"commit": "a" * 40 + "-dirty", "batch": {"processes": 2, "global": 64},
                        "hardware": {"device": "NVIDIA H100", "memory": 79.2, "cpu": "EPYC", "cores": 64},
                        "versions": {"llava": "0.1.0"}}  # fmt: skip
    found = named(known, [{"train_runtime": 50.0, "total_train_runtime": 3725.0}])
    assert found["Code"] == f"llava 0.1.0, commit {'a' * 40} with local changes"
    assert found["Hardware"] == "2 × NVIDIA H100 (79.2 GiB); EPYC, 64 CPU cores"
    assert found["Duration"] == "1 h 2 min of training"
    assert named(known | {"commit": None})["Code"] == "llava 0.1.0, installed, without a checkout"
    earlier = named(known, [{"train_runtime": 50.0}])["Duration"]
    assert earlier == f"50.0 s of training; what came before, if it was resumed, was {UNKNOWN}"
    assert [seconds_text(s) for s in (0.26, 59.7, 61, 86400)] == ["0.3 s", "59.7 s", "1 min 1 s", "24 h 0 min"]


def test_data_and_what_was_held_out():
    known = worth()
    known["data"]["train"] |= {
        "clips": 300,
        "sources": [{"name": "a.json", "words": 5000}, {"name": "b.json", "words": 1}],
    }
    found = named(known)
    assert (found["Files"], found["Records"], found["Clips"], found["Words"]) == (
        "a.json, b.json",
        "400",
        "300",
        "5,001",
    )
    assert found["Held out"] == "an evaluation file: 20 records of 20 clips"
    assert found["Evaluation texts that training has word by word"] == "1 of 20"
    alone = named(known | {"split": {"held_out": 9, "total": 90, "of": "clips", "captions": 12}})
    assert alone["Held out"] == "9 of 90 clips, 12 captions"
    assert named(worth(evaluation=None))["Held out"].startswith("nothing: what it says of new clips was not measured")


def test_the_tokenizer():
    found = named(worth())
    assert (found["Entries"], found["Tokens a word"], found["Unknown"]) == ("992", "1.25", "5 % of the targets")
    assert found["Unigram entropy of the targets"] == "3.00 nats" and found["ln V, the loss of guessing"] == "6.91 nats"
    two = worth()
    two["data"]["train"]["supervised"] = {"captions": words(), "text": words(4.0, unknown=None, tokens_per_word=None)}
    found = named(two)
    assert found["Unknown (text)"] == "the tokenizer has no such token" and found["Tokens a word (text)"] == UNKNOWN
    assert found["Unigram entropy of the targets (text)"] == "4.00 nats"
