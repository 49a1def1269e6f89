"""The files of a run: read where they are there, and named where they are malformed."""

from __future__ import annotations

import pytest

from llava.report.page import write_report
from llava.report.read import read_run
from tests.report.made import control_line, record, write_run


def test_captions_of_another_step_are_not_shown(tmp_path):
    """A run that goes on after its end leaves those of its earlier model in its folder."""
    captions = {"scores": {"old, true video": {"exact match": 0.5}}, "captions": {}}
    for step, shown in ((300, True), (None, True), (200, False)):
        files = {"trainer_state": {"global_step": 300, "log_history": []}, "captions": {"step": step, **captions}}
        run = write_run(tmp_path / "run", llava_run=record(), **files)
        read = read_run(run)
        assert (read.captions is not None) == shown and read.outdated == (() if shown else ("captions.json",))
        page = write_report([run]).read_text()
        assert ("old, true video" in page) == shown and ("is of the model after another step" in page) != shown


@pytest.mark.parametrize("name", ["none", "empty"])
def test_a_folder_that_is_no_run(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"{name}: no run .*--output_dir"):
        write_report([tmp_path / name])


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("llava_run.json", "{", r"llava_run\.json: not JSON"),
        ("llava_run.json", '{"data": {"train": {"sources": ["a.json"]}}}', r"llava_run\.json: the fields"),
        ("llava_run.json", '{"data": {"train": [1]}}', r"llava_run\.json: the fields"),
        ("llava_run.json", '{"data": {"train": {"supervised": {"captions": 3}}}}', r"llava_run\.json: the fields"),
        ("llava_run.json", '{"hardware": "a big one"}', r"llava_run\.json: the fields"),
        ("llava_run.json", '{"commit": 3}', r"llava_run\.json: the fields"),
        ("trainer_state.json", "[]", r"trainer_state\.json: a JSON object was expected, found list"),
        ("trainer_state.json", '{"log_history": [1]}', r"trainer_state\.json: the fields"),
        ("alarms.jsonl", '{"step": 1}\n\n{"step"', r"alarms\.jsonl, line 3: not JSON"),
        ("controls.jsonl", '{"gains": {"video": {"per_caption": [1, 2]}}}', r"controls\.jsonl: the fields"),
        ("controls.jsonl", '{"gains": [1]}', r"controls\.jsonl: the fields"),
        ("preflight.json", "\xff", r"preflight\.json: not JSON"),
        ("captions.json", '{"captions": {"a": ["b"]}}', r"captions\.json: the fields"),
        ("captions.json", '{"scores": {"a": {}}, "intervals": {"a": {"b": [1]}}}', r"captions\.json: the fields"),
        ("captions.json", '{"retrieval": {"a": {"clips": 2}}}', r"captions\.json: the fields"),
    ],
)
def test_a_malformed_file_is_named(tmp_path, name, content, where):
    run = write_run(tmp_path / "run", llava_run=record())
    (run / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=where):
        write_report([run])


def test_read_run_reads_every_file(tmp_path):
    run = read_run(write_run(tmp_path, llava_run=record(seed=1), controls=[control_line(None, (1, 0, 2))], alarms=[]))
    assert (run.flags["seed"], run.alarms, run.preflight, run.log) == (1, [], None, [])
    assert run.controls[0]["step"] is None and run.tokens is None
