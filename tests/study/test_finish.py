"""Which commands test a run, each once, and what is said where nothing can be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llava.study import finish
from llava.study.design import StudyRun, runs_of

FLAGS = {"video_folder": "clips", "feature_cache": "cache", "image_folder": None}


@pytest.fixture
def run(tmp_path: Path) -> StudyRun:
    """A run of the arm V that held captions out."""
    found = runs_of(tmp_path, 1)[0]
    found.folder.mkdir(parents=True)
    (found.folder / "llava_run.json").write_text(json.dumps({"flags": {}, "split": {"held_out": 2}}))
    (found.folder / "held_out.json").write_text("[]")
    return found


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finish, "find_spec", lambda name: object())


def test_every_arm_is_tested_blind_and_those_that_see_sighted(run, there):
    told = ["--data_path", str(run.folder / "held_out.json"), "--video_folder", "clips", "--feature_cache", "cache"]
    assert finish.tests_of(run, FLAGS) == {
        "blind_words": ["-m", "llava.eval.surprisal", str(run.folder), *told],
        "sighted_captions": ["-m", "llava.eval.sighted", str(run.folder), *told],
    }
    assert set(finish.tests_of(StudyRun(0, "T", run.folder), FLAGS)) == {"blind_words"}
    (run.folder / "llava_run.json").write_text(json.dumps({"flags": {"eval_data_path": "new.json"}}))
    assert finish.tests_of(run, FLAGS)["blind_words"][4] == "new.json"


def test_a_test_is_made_once_for_a_model(run, there):
    asked: list[str] = []

    def command(words, what):
        asked.append(what)
        results = run.folder / "tests"
        results.mkdir(exist_ok=True)
        (results / f"{'blind_words' if 'surprisal' in words[2] else 'sighted_captions'}.json").write_text("{}")

    for _ in range(2):
        finish.test_run(run, FLAGS, command)
    assert asked == [f"the test {name} of seed 0, V (each clip's own video)" for name in finish.MODULES]
    assert finish.tested(run, FLAGS) == "blind_words, sighted_captions"
    later = (run.folder / "tests" / "blind_words.json").stat().st_mtime + 10
    os.utime(run.folder / "llava_run.json", (later, later))
    assert finish.tested(run, FLAGS) == "blind_words (not yet), sighted_captions (not yet)", "the model is newer"


def test_without_held_out_captions_nothing_can_be_shown(run, tmp_path):
    (run.folder / "llava_run.json").write_text(json.dumps({"flags": {}, "split": {"held_out": 0}}))
    assert finish.tests_of(run, FLAGS) == {} and finish.tested(run, FLAGS) == "none"
    assert "Nothing can be shown: no captions were held out" in finish.write_answer(tmp_path, [run])
    assert "seed0/V/report.html" in (tmp_path / finish.PAGE).read_text()
