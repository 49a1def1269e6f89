"""Records, words and seen samples of each source."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from llava.constants import FILLER_ID
from llava.data.records import Record, load_records
from llava.data.sources import Seen, count_sources, format_sources


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """Three of four records of one file, and the two of another."""
    monkeypatch.chdir(tmp_path)
    for name, number, words in (("a", 4, "Un gatto."), ("b", 2, "Il cane corre.")):
        turns = [{"from": "human", "value": "<video>\nChi?"}, {"from": "gpt", "value": words}]
        rows = [{"id": f"{name}{i}", "conversations": turns, "video": f"{name}.mp4"} for i in range(number)]
        Path(f"{name}.json").write_text(json.dumps(rows))
    Path("mix.yaml").write_text(
        "datasets: [{json_path: a.json, sampling_strategy: 'end:75%'}, {json_path: b.json, sampling_strategy: first:9}]"
    )
    return load_records("mix.yaml")[0]


def test_counts(records: list[Record]) -> None:
    """Placeholders are no words; what is dropped after reading no longer counts."""
    assert [(c.name, c.strategy, c.in_file, c.records, c.words) for c in count_sources(records)] == [
        ("a.json", "end:75%", 4, 3, 9), ("b.json", "first:9", 2, 2, 8)
    ]  # fmt: skip
    assert [(c.records, c.words) for c in count_sources(records[2:])] == [(1, 3), (2, 8)]
    assert [line.split() for line in format_sources(count_sources(records)).splitlines()] == [
        line.split()
        for line in (
            "5 records from 2 sources:",
            "a.json 60.0% 3 of 4 records (end:75%), 9 words",
            "b.json 40.0% 2 of 2 records (first:9), 8 words; 9 were asked for",
        )
    ]


def run_record(records: list[Record]) -> dict:
    return {"data": {"train": {"sources": [asdict(c) for c in count_sources(records)]}}}


def seen_of(record: dict) -> list[int | None]:
    return [source["seen"] for source in record["data"]["train"]["sources"]]


def test_seen_samples_of_all_processes_and_of_the_run_before(records: list[Record]) -> None:
    record = run_record(records)
    seen = Seen(records, record)
    seen.add(1, ["a1", "b0", "a3", FILLER_ID])
    seen.add(2, ["a1", "a2"])
    assert seen.counts(1) == [2, 1], "the second step is not made"
    assert seen.counts(2) == seen.counts(2) == [4, 1]
    seen.write([[4, 1], [0, 5]])
    assert seen_of(record) == [4, 6]
    later = run_record(records)
    resumed = Seen(records, later)
    resumed.go_on(json.loads(json.dumps(record)))
    resumed.add(3, ["b1"])
    resumed.write([resumed.counts(3)])
    assert seen_of(later) == [4, 7]


@pytest.mark.parametrize("before", [{}, {"data": {"train": {"records": 5}}}])
def test_what_an_earlier_commit_did_not_count_is_not_made_up(records: list[Record], before: dict) -> None:
    record = run_record(records)
    seen = Seen(records, record)
    seen.go_on(before)
    seen.add(3, ["b1"])
    seen.write([seen.counts(3)])
    assert seen_of(record) == [None, None]


def test_without_records_nothing_is_counted() -> None:
    seen = Seen((), {})
    seen.add(1, ["a"])
    seen.write([seen.counts(1)])
