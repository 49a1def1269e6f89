"""What is made once of data files: by one process, for all runs beside each other, and the same training with it."""

from __future__ import annotations

import json

import pytest

from llava.data.record_table import RecordTable
from llava.train import prepared_data
from llava.train.prepared_data import PREPARED_FOLDER, first_makes
from llava.train.run_flags import parse_arguments
from llava.train.setup import prepare
from tests.train.runs import flags, train


def test_runs_beside_each_other_share_what_was_made(assets, tmp_path, monkeypatch):
    data = tmp_path / "data.json"
    data.write_text(assets.video_json.read_text())
    first = train(assets, tmp_path / "runs" / "a", data_path=data)
    folders = sorted((tmp_path / "runs" / PREPARED_FOLDER).iterdir())
    assert [path.name.partition("-")[0] for path in folders] == ["records", "tokens"]
    assert train(assets, tmp_path / "runs" / "b", data_path=data) == first
    assert sorted((tmp_path / "runs" / PREPARED_FOLDER).iterdir()) == folders
    rows = json.loads(data.read_text())
    rows[0]["conversations"][-1]["value"] += " E poi dorme."
    data.write_text(json.dumps(rows))
    run = prepare(parse_arguments(flags(assets, tmp_path / "runs" / "c", data_path=data)))
    assert isinstance(run.trainer.train_dataset.records, RecordTable)
    assert run.trainer.train_dataset.records[0].conversations[-1]["value"].endswith(" E poi dorme.")
    assert not set((tmp_path / "runs" / PREPARED_FOLDER).iterdir()) & set(folders), "what is stale is deleted"


def test_training_on_prepared_data_is_that_on_a_list(assets, tmp_path, monkeypatch):
    with_table = train(assets, tmp_path / "a" / "run")

    monkeypatch.setattr("llava.train.run_data.load_prepared", lambda *args: _as_list(load(*args)))
    assert train(assets, tmp_path / "b" / "run") == with_table


load = prepared_data.load_prepared


def _as_list(found):
    return list(found[0]), found[1]


def test_the_first_process_makes_and_the_others_open(assets, tmp_path, monkeypatch):
    args = parse_arguments(flags(assets, tmp_path / "run")).training
    assert first_makes(lambda is_first: ["made", is_first], args) == ["made", True]
    monkeypatch.setattr(prepared_data, "on_first_process", lambda work, args: None)
    assert first_makes(lambda is_first: ["opened", is_first], args) == ["opened", False]
    monkeypatch.undo()
    with pytest.raises(ValueError, match="wrong data"):
        first_makes(lambda is_first: int("x") if not is_first else _fail(), args)


def _fail():
    raise ValueError("wrong data")
