"""Sight is measured at the end of every run that has vision, and what it was measured on is said everywhere."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import torch

from llava.data.features.content import ContentHashes
from llava.data.records import Record
from llava.train.sight import measured_on
from tests.audit.sound import two_held_out
from tests.conftest import CAPTIONS, record
from tests.data.features.changed import change_features
from tests.train.runs import train


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def answers(folder):
    page = re.sub(
        r"<style.*?</style>|<svg.*?</svg>|<[^>]*>", " ", (folder / "report.html").read_text(), flags=re.DOTALL
    )
    return re.sub(r"\s+", " ", page)


def test_captions_of_wrong_clips_do_not_pass_for_sound(assets, tmp_path, caplog):
    """The README's own command has no evaluation set; a fixed derangement of all pairs is learned by heart."""
    count = len(CAPTIONS)
    wrong = [record(f"v{i}", text, f"clip{(i + 1) % count}.mp4") for i, text in enumerate(CAPTIONS)]
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(wrong))
    folder = tmp_path / "run"
    caplog.set_level("INFO")
    train(assets, folder, data_path=path, run_report=True, max_steps=60, learning_rate=1e-2, logging_steps=10)
    (line,) = lines(folder / "controls.jsonl")
    assert (line["step"], line["measured_on"], line["clips"]) == (60, "training clips", count)
    assert line["gains"]["video"]["per_caption"][1] > 0, "learned by heart: nothing here can tell that it is wrong"
    assert "6 clips (training clips)" in caplog.text
    page = answers(folder)
    assert "Did it see? ? Not measured on new clips" in page and "Nothing found" not in page
    assert "Sight was measured on training clips alone, which cannot tell right pairs from wrong ones" in page


def test_a_run_that_does_not_see_its_training_clips_is_blind(assets, tmp_path, monkeypatch):
    change_features(monkeypatch, lambda cache, path, features: torch.ones_like(features))
    train(assets, tmp_path / "run", preflight="off", max_steps=50, learning_rate=1e-2)
    (alarm,) = [a for a in lines(tmp_path / "run" / "alarms.jsonl") if a["kind"] == "blind"]
    assert "on 6 training clips" in alarm["message"] and "does not depend on the video" in alarm["message"]
    assert "So far: the caption loss still falls" in alarm["message"]


def test_two_clips_that_were_held_out_accuse_no_run(assets, tmp_path):
    """Of so few clips the report says that sight was not measured."""
    train(assets, tmp_path / "run", preflight="off", **two_held_out(SimpleNamespace(folder=tmp_path)))
    (line,) = lines(tmp_path / "run" / "controls.jsonl")
    assert (line["clips"], line["measured_on"]) == (2, "evaluation clips")
    assert line["gains"]["video"]["per_caption"][1] < 0, "what would be blind, were it of more clips"
    assert not (tmp_path / "run" / "alarms.jsonl").exists()


def test_a_trial_of_a_few_steps_is_measured_and_not_blamed(assets, tmp_path):
    train(assets, tmp_path / "run", preflight="off", max_steps=2, learning_rate=1e-6)
    assert (tmp_path / "run" / "controls.jsonl").exists() and not (tmp_path / "run" / "alarms.jsonl").exists()


def test_text_alone_has_nothing_to_see(assets, tmp_path):
    train(assets, tmp_path / "run", 1)
    assert not (tmp_path / "run" / "controls.jsonl").exists()


def clip(path, split=None):
    return Record("r", [], (str(path),), (), split, {}, "here")


def test_evaluation_clips_that_were_trained_on_are_training_clips(tmp_path):
    for name, content in {"a": b"1", "b": b"2", "copy of a": b"1", "c": b"3", "d": b"4"}.items():
        (tmp_path / name).write_bytes(content)
    trained = [clip(tmp_path / "a"), clip(tmp_path / "b")]
    contents = ContentHashes(tmp_path / "contents")
    assert measured_on([clip(tmp_path / "c"), clip(tmp_path / "d")], trained, contents) == "evaluation clips"
    assert measured_on([clip(tmp_path / "copy of a"), clip(tmp_path / "c")], trained, contents) == "training clips"
    assert measured_on([clip(tmp_path / "copy of a")], trained) == "evaluation clips", "by path alone"
    assert measured_on([clip(f"{tmp_path}/./a")], trained) == "training clips"
    assert measured_on([clip(tmp_path / "a", (0, 3))], trained, contents) == "evaluation clips", "another segment"
