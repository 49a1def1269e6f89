"""A run that is finished says so before models are loaded, and goes on when it is asked for more steps."""

from __future__ import annotations

import json
import logging

import pytest

from llava.train import setup
from llava.train.train import main
from tests.train.runs import alarms, flags, losses, train


@pytest.fixture(scope="module")
def finished(assets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "preflight": "off"}
    train(assets, folder, 1, **options)
    return folder, options


def test_it_is_said_before_models_are_loaded(assets, finished, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    folder, options = finished

    def loads(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(setup, "load_tokenizer", loads)
    main(flags(assets, folder, 1, **options, resume_from_checkpoint="auto"))
    assert f"already finished: {folder}, 2 steps" in caplog.text and "--max_steps above 2" in caplog.text
    for change in ({"run_report": True}, {"eval_data_path": assets.text_json}):  # something is left to do
        with pytest.raises(AssertionError, match="a model was loaded"):
            main(flags(assets, folder, 1, **{**options, **change}, resume_from_checkpoint="auto"))
    with pytest.raises(ValueError, match="learning_rate: was 0.001, is 0.1"):
        main(flags(assets, folder, 1, **options, learning_rate=0.1, resume_from_checkpoint="auto"))
    with pytest.raises(FileExistsError, match=r"holds a finished run \(checkpoint-2\)"):
        main(flags(assets, folder, 1, **options))


def test_it_goes_on_when_more_steps_are_asked_for(assets, finished, caplog):
    caplog.set_level(logging.INFO)
    folder, options = finished
    before = losses(folder)
    with pytest.raises(ValueError, match="max_steps: was 2, is 1"):
        main(flags(assets, folder, 1, **{**options, "max_steps": 1}, resume_from_checkpoint="auto"))
    main(flags(assets, folder, 1, **{**options, "max_steps": 3}, resume_from_checkpoint="auto"))
    assert "--max_steps was 2, is 3. The learning rate" in caplog.text
    assert losses(folder)[:2] == before and len(losses(folder)) == 3
    assert alarms(folder) == [], "its steps have the rates of the longer schedule, and its epoch is served to the end"
    assert json.loads((folder / "llava_run.json").read_text())["flags"]["max_steps"] == 3
