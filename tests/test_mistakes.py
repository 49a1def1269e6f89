"""What a user gets wrong costs a few lines, which end in the cause and the remedy, in every command."""

from __future__ import annotations

import errno
import json
import logging

import pytest

from llava.commands.extract import main as extract
from llava.commands.make_model import main as make_model
from llava.data.check import main as check
from llava.data.convert.__main__ import main as convert
from llava.data.split.__main__ import main as split
from llava.errors import FLAGS, fitted, run_command
from llava.eval.captioning import main as caption
from llava.eval.controls import main as controls
from llava.export import main as export
from llava.report.page import main as report
from llava.serve.cli import main as cli
from llava.train.preflight.run import main as preflight
from llava.train.train import main as train
from tests.train.runs import flags

MOST_LINES = 12


def said(main, argv, capfd) -> str:
    """All that a command writes, in a process of its own as far as its logs go; it must fail in few lines."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    for handler in handlers:
        root.removeHandler(handler)
    try:
        with pytest.raises(SystemExit) as stop:
            run_command(lambda: main([str(word) for word in argv]))
    finally:
        for handler in root.handlers[:]:
            root.removeHandler(handler)
        for handler in handlers:
            root.addHandler(handler)
        root.setLevel(level)
    written = "".join(capfd.readouterr())
    text = written if stop.value.code in (1, 2) else f"{written}{stop.value.code}\n"
    assert stop.value.code not in (None, 0)
    assert 0 < len(text.splitlines()) <= MOST_LINES and "Traceback" not in text, text
    return text


@pytest.mark.parametrize(
    "main", [train, preflight, extract, check, convert, split, caption, controls, export, report, cli, make_model]
)
def test_an_unknown_flag(main, capfd):
    assert "--learing_rate: there is no such flag" in said(main, ["--learing_rate", "1"], capfd)


def test_a_hub_name_that_cannot_be_reached(assets, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = said(train, flags(assets, tmp_path / "run", vision_tower="nobody/tower"), capfd)
    assert text.splitlines()[-1].startswith("ERROR: --vision_tower nobody/tower: neither a folder with a model nor a ")
    assert "hf download nobody/tower" in text
    text = said(train, flags(assets, tmp_path / "run", model_name_or_path="nobody/model"), capfd)
    assert "--model_name_or_path nobody/model: neither" in text.splitlines()[-1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"video_folder": "nowhere"}, "--video_folder nowhere: no such folder"),
        ({"data_path": "nowhere.json"}, "--data_path nowhere.json: no such file"),
        ({"model_name_or_path": "./nowhere"}, "--model_name_or_path ./nowhere: no such folder"),
        ({"learning_rate": "fast"}, "--learning_rate: invalid float value: 'fast'"),
        ({"learning_rate": -1}, "--learning_rate -1"),
        ({"num_frames": 0}, "--num_frames 0"),
    ],
)
def test_a_wrong_value(assets, tmp_path, capfd, wrong, message):
    assert message in said(train, flags(assets, tmp_path / "run", **wrong), capfd)


def test_a_folder_without_the_clips_and_one_without_a_model(assets, tmp_path, capfd):
    text = said(train, flags(assets, tmp_path / "run", video_folder=tmp_path), capfd)
    assert "no such file" in text and "correct the path or --video_folder" in text
    assert text.splitlines()[-1].startswith("mend the data (python -m llava.data.check")
    (tmp_path / "empty").mkdir()
    text = said(train, flags(assets, tmp_path / "run", vision_tower=tmp_path / "empty"), capfd)
    assert f"--vision_tower {tmp_path / 'empty'}: neither a folder with a model" in text
    assert "it holds no config.json" in text
    text = said(train, flags(assets, tmp_path / "run", model_name_or_path=tmp_path / "empty"), capfd)
    assert f"{tmp_path / 'empty'}: holds no tokenizer that transformers can read" in text


def test_a_record_that_is_broken(assets, tmp_path, capfd):
    records = json.loads(assets.video_json.read_text())
    del records[1]["conversations"]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records))
    text = said(train, flags(assets, tmp_path / "run", data_path=path), capfd)
    assert f"{path}[1]" in text and text.splitlines()[-1].endswith("leave these records out with --on_bad_sample skip")


def test_a_disk_that_is_full_at_a_checkpoint(assets, tmp_path, capfd, monkeypatch):
    def full(written, final):
        raise OSError(errno.ENOSPC, "No space left on device", str(written))

    monkeypatch.setattr("llava.train.checkpoint.resumable.publish", full)
    argv = flags(assets, tmp_path / "run", 1, save_strategy="steps", save_steps=1, preflight="off")
    text = said(train, argv, capfd)  # What the run had said before it included.
    assert text.splitlines()[-1].startswith("ERROR: checkpoint-1 in ") and "No space left on device" in text
    assert "free space on its disk" in text and text.endswith("then give the same command\n")


def test_remedies_are_those_of_the_command_at_hand(capfd):
    message = "a.mp4: is cut short; copy it again, or leave it out with --on_bad_sample skip. --resume_x auto goes on"
    FLAGS.clear()
    assert fitted(message) == message, "Python users have no flags to leave out"
    said(cli, ["--x"], capfd)
    assert fitted(message) == "a.mp4: is cut short; copy it again"
    assert fitted("--data_path d.json: no such file; see python -m llava.data.check --data_path d.json") == (
        "--data_path d.json: no such file; see python -m llava.data.check --data_path d.json"
    )
    said(preflight, ["--x"], capfd)
    assert "--on_bad_sample skip" in fitted(message) and "--resume_x" not in fitted(message)
