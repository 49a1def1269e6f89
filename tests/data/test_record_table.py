"""A table of records is the list that it stands for: in every record, in every answer about them, in every error."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava.data.columns import RecordIds, representatives, standing_at, take
from llava.data.features.extract import distinct_clips
from llava.data.features.names import clip_names
from llava.data.json_records import DatasetError
from llava.data.record_table import RecordTable, open_records
from llava.data.records import (
    Record,
    by_modality,
    is_hopeless,
    load_records,
    missing_files,
    modality_codes,
    remarks,
    text_alone,
    without,
)
from llava.data.sources import Seen, count_sources
from llava.data.split.holdout import plan
from llava.data.target_words import repeated_texts
from tests.data.test_captions import talk


def row(name: Any, caption: str = "Un gatto.", **keys: Any) -> dict[str, Any]:
    placeholders = "<video>" * bool(keys.get("video")) + "<image>" * bool(keys.get("image"))
    return {"id": name, "conversations": talk(placeholders, caption), **keys}


ROWS = [
    row("a", video="a.mp4", meta={"split": [0, 3], "clip": "a", "x": float("nan")}),
    row("b", "Perché no? \U0001f408", video="a.mp4", meta={"split": [0, 3], "clip": "a"}),
    row(3.5, video="a.mp4"),
    row(None, "Un cane.", image="c.png"),
    row("text", "  Un  gatto. "),
    row("clip of text", meta={"clip": "k"}),
    row("a", "Lo stesso nome.", video=["a.mp4", "b.mp4"]),
    {"conversations": [{**t, "more": 1} for t in talk("<video> Chi?", "Un gatto.", "Dove?", "Qui.")], "video": "b.mp4"},
    {"id": "roles", "messages": [{"role": "user", "content": "Chi?"}, {"role": "assistant", "content": "Un gatto."}]},
    row("numbers", "A <TEMP-OUTPUT> [<WIDTH-OUTPUT>", variables={
        "temporal_output_locations": [1 / 3], "spatial_width_output_locations": [0.1]}, video="a.mp4"),
    row("other numbers", "A <TEMP-OUTPUT> [<WIDTH-OUTPUT>", variables={
        "temporal_output_locations": [1 / 3], "spatial_width_output_locations": [0.2]}),
    row("too few", "A <TEMP-OUTPUT>", variables={"temporal_output_locations": []}),
    row("no file", video="gone.mp4", thumbnail="x.jpg"),
    row("wrong", video="../a.mp4"),
    row("count", "<video> Un gatto."),
    row("bad split", video="a.mp4", meta={"split": [3, 1]}),
    row("half", "\ud800"),
    {"id": "broken"},
    7,
]  # fmt: skip
LINES = [*(json.dumps(r) for r in (row("a", "Altro."), row("z", image="c.png"), row("b"))), "{", ""]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "b.mp4", "c.png"):
        Path(name).write_bytes(name.encode())
    Path("rows.json").write_text(json.dumps(ROWS))
    Path("lines.jsonl").write_text("\n".join(LINES))
    Path("mix.yaml").write_text(
        "datasets: [{json_path: lines.jsonl}, {json_path: rows.json, sampling_strategy: 'random:90%'},"
        f" {{json_path: rows.json, sampling_strategy: 'first:4', data_folder: {tmp_path}}}]"
    )
    return tmp_path


def both(path: str, **options: Any) -> tuple[list[Record], RecordTable]:
    """The list and the table of the same files, and the same problems of both."""
    listed, problems = load_records(path, **options)
    table, found = open_records(Path("cache"), path, **options)
    assert isinstance(table, RecordTable) and found == problems
    again, found = open_records(Path("cache"), path, **options)
    assert list(again) == list(table) and found == problems, "a table that was there is the same"
    return listed, table


def plain(records: Sequence[Record]) -> list[Any]:
    """Records with the names of their sources, which are objects of their own; NaN equals nothing."""
    return [(repr(r), r.origin and (r.origin.name, r.origin.total)) for r in records]


PATHS = ["rows.json", "lines.jsonl", "rows.json,lines.jsonl", "mix.yaml"]


@pytest.mark.parametrize("is_chat", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_a_table_is_its_list(folder, path, is_chat):
    listed, table = both(path, is_chat=is_chat)
    assert plain(table) == plain(listed) and len(table) == len(listed)
    assert plain(table[1::2]) == plain(listed[1::2]) and plain([table[-1]]) == plain([listed[-1]])
    assert table.with_coordinates().tolist() == [bool(r.coordinates) for r in listed]
    assert plain(table.as_text()) == plain([text_alone(r) for r in listed])
    assert plain(pickle.loads(pickle.dumps(table))) == plain(listed)
    with pytest.raises(IndexError):
        table[len(table)]


def test_a_record_is_made_once_for_all_who_ask_for_it_in_a_row(folder, monkeypatch):
    listed, table = both("rows.json")
    made, make = [], RecordTable._made
    monkeypatch.setattr(RecordTable, "_made", lambda self, rows: made.extend(rows.tolist()) or make(self, rows))
    assert table[1] is table[1] and table[1] is table[1 - len(table)]
    assert made == table.rows[[1]].tolist()
    assert plain([table[i] for i in (0, 1, 0)]) == plain([listed[i] for i in (0, 1, 0)])
    assert table.as_text()[0].videos == () != table[0].videos
    with pytest.raises(IndexError):
        table[len(table)]


@pytest.mark.parametrize("path", PATHS)
def test_answers_about_a_table_are_those_about_its_list(folder, path):
    everything = both(path)
    some = np.random.default_rng(0).permutation(len(everything[0]))[: len(everything[0]) * 2 // 3]
    for listed, table in (everything, tuple(take(r, some) for r in everything)):
        assert plain(table) == plain(listed)
        assert modality_codes(table).tolist() == modality_codes(listed).tolist()
        assert {k: v.tolist() for k, v in by_modality(table).items()} == {
            k: v.tolist() for k, v in by_modality(listed).items()
        }
        assert remarks(table) == remarks(listed) and missing_files(table) == missing_files(listed)
        assert count_sources(table) == count_sources(listed)
        assert clip_names(table) == clip_names(listed)
        clips = distinct_clips(table)
        assert {clip: plain(clips[clip]) for clip in clips} == {c: plain(r) for c, r in distinct_clips(listed).items()}
        assert list(clips) == list(distinct_clips(listed)) and ("x", None, True) not in clips
        for fraction in (0, 0.5):
            assert plan(table, fraction) == plan(listed, fraction)
        ids, names = RecordIds(table), RecordIds(listed)
        assert list(ids) == list(names) and ids[1:] == names[1:] and ids.hashes.tolist() == names.hashes.tolist()
        assert all(ids.places(name).tolist() == names.places(name).tolist() for name in {*names, "x"})
        assert repeated_texts(table, listed[2:]) == repeated_texts(listed, table.take(np.arange(2, len(table))))
        for problems in (missing_files(listed), []):
            assert plain(without(table, problems)) == plain(without(listed, problems))
            assert is_hopeless(table, problems) == is_hopeless(listed, problems)
        places = {listed[0].source, listed[-1].source, "rows.json[99]", "rows.json[x]", "rows.json:1", "elsewhere"}
        assert standing_at(table, places).tolist() == standing_at(listed, places).tolist()
        firsts, index = representatives(table)
        assert [firsts[i].videos for i in index] == [r.videos for r in listed]


def test_texts_are_held_out_as_of_a_list(folder):
    Path("texts.json").write_text(json.dumps([row(i, f"Un gatto {i % 30}.") for i in range(60)]))
    listed, table = both("texts.json")
    assert plan(table, 0.2) == plan(listed, 0.2) and plan(table, 0.2).captions > 0


def test_samples_seen_of_each_source(folder):
    listed, table = both("mix.yaml")
    for records in (listed, table):
        seen = Seen(records, {})
        seen.add(1, [*RecordIds(records), "nobody"])
        assert seen.counts(1) == [c.records for c in count_sources(records)] != [0]


def test_a_changed_file_or_rule_is_read_again(folder):
    def first(**options: Any) -> tuple[str, int]:
        records, problems = open_records(Path("cache"), "rows.json", **options)
        return records[1].conversations[1]["value"], len(problems)

    before = first()
    assert first(reserved=["gatto"])[1] > before[1] > first(allow_absolute_paths=True)[1]
    times = os.stat("rows.json")
    Path("rows.json").write_text(json.dumps([ROWS[0], row("b", "Un altro.")]))
    os.utime("rows.json", ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert first() == ("Un altro.", 0)


def test_a_file_that_changes_while_it_is_read_is_refused(folder, monkeypatch):
    from llava.data.record_table import Reading

    read = Reading.__iter__

    def reading(self):
        yield from read(self)
        Path("rows.json").write_text("[]")

    monkeypatch.setattr(Reading, "__iter__", reading)
    with pytest.raises(ValueError, match=r"rows\.json: changed while it was read"):
        open_records(Path("cache"), "rows.json")
    assert list(Path("cache").iterdir()) == []


@pytest.mark.parametrize("path", ["gone.json", "empty.json", "broken.json"])
def test_errors_are_those_of_the_list(folder, path):
    if path != "gone.json":
        Path(path).write_text("[]" if path == "empty.json" else "[{]")
    messages = []
    for read in (load_records, lambda path: open_records(Path("cache"), path)):
        with pytest.raises(DatasetError) as error:
            read(path)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
