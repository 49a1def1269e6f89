"""Which commands test a run, each once, and what is said where nothing can be."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from llava.errors import UserError
from llava.study import finish, testing
from llava.study.design import StudyRun, runs_of
from llava.study.finish import TestFlags

FLAGS = {"video_folder": "clips", "feature_cache": "cache", "image_folder": None, "use_cpu": "True"}
CAPTIONS_ALONE = TestFlags()


@pytest.fixture
def run(tmp_path: Path) -> StudyRun:
    """A run of the arm V that held captions out."""
    found = runs_of(tmp_path, 1)[0]
    found.folder.mkdir(parents=True)
    (found.folder / "llava_run.json").write_text(json.dumps({"flags": {}, "split": {"held_out": 2}}))
    (found.folder / "held_out.json").write_text("[]")
    return found


def test_every_arm_is_tested_blind_and_those_that_see_sighted(run):
    about = [str(run.folder), "--data_path", str(run.folder / "held_out.json"), "--video_folder", "clips",
             "--feature_cache", "cache"]  # fmt: skip
    assert finish.tests_of(run, FLAGS, CAPTIONS_ALONE) == {
        "blind_words": ["-m", "llava.eval.surprisal", *about, "--device", "cpu"],
        "sighted_captions": ["-m", "llava.eval.sighted", *about, "--device", "cpu"],
    }
    assert set(finish.tests_of(StudyRun(0, "T", run.folder), FLAGS, CAPTIONS_ALONE)) == {"blind_words"}
    (run.folder / "llava_run.json").write_text(json.dumps({"flags": {"eval_data_path": "new.json"}}))
    assert finish.tests_of(run, FLAGS | {"feature_cache": "off"}, CAPTIONS_ALONE)["blind_words"][4:9:4] == [
        "new.json", str(run.folder.parent / "feature_cache"),
    ]  # fmt: skip


def test_texts_norms_and_pairs_are_asked_of_every_arm(run, tmp_path):
    for name in ("prosa.txt", "norms.tsv", "a.jsonl", "b.csv"):
        (tmp_path / name).touch()
    named = {"text": ["prosa.txt"], "norms": ["norms.tsv"], "pairs": ["a.jsonl", "b.csv"]}
    asked = TestFlags(
        **{k: [str(tmp_path / f) for f in v] for k, v in named.items()}, column=["AoA"], primary="pairs_b"
    )
    found = finish.tests_of(StudyRun(0, "T", run.folder), FLAGS, asked)
    assert list(found) == ["blind_words", "pairs_a", "pairs_b"]
    assert found["blind_words"][9:] == ["--text", str(tmp_path / "prosa.txt"), "--norms", str(tmp_path / "norms.tsv"),
                                        "--column", "AoA", "--device", "cpu"]  # fmt: skip
    assert found["pairs_a"][3:] == [str(tmp_path / "a.jsonl"), "--device", "cpu"], "nothing is shown to it"
    sees = finish.tests_of(run, FLAGS, asked)["pairs_a"]
    assert sees[4:] == ["--video_folder", "clips", "--feature_cache", "cache", "--device", "cpu"]
    for wrong, words in (({"primary": "pairs_c"}, "use captions$"), ({"text": ["none.txt"]}, "none.txt: no such file")):
        with pytest.raises(UserError, match=words):
            TestFlags(**wrong)


def test_the_commands_of_tests_know_their_flags(run, tmp_path):
    """As their parsers read them; what they find in the run is another matter."""
    (tmp_path / "a.jsonl").touch()
    asked = TestFlags(text=[str(tmp_path / "a.jsonl")], pairs=[str(tmp_path / "a.jsonl")])
    for name, (_, module, *words) in finish.tests_of(run, FLAGS, asked).items():
        with pytest.raises((UserError, OSError, ValueError)) as error:
            import_module(module).main(words)
        assert "flag" not in str(error.value), (name, error.value)


def made_in_this_process(run: StudyRun, made: list[str]) -> finish.Command:
    """Runs what a study asks for, with tests that write nothing but that they were made."""

    def command(words, what):
        assert words[1:3] == ["-m", "llava.study.testing"]
        made.append(what)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(testing, "import_module", lambda module: SimpleNamespace(main=lambda _: write(module)))
            testing.main(words[3:])

    def write(module: str) -> None:
        name = {"surprisal": "blind_words", "sighted": "sighted_captions"}.get(module.split(".")[-1], "milestones")
        results = run.folder / ("milestones" if name == "milestones" else "tests")
        results.mkdir(exist_ok=True)
        (results / f"{name}.csv").write_text("item,nats\n")
        (results / f"{name}.json").write_text("{}")

    return command


def test_a_test_is_made_once_for_a_model_a_command_and_its_files(run, tmp_path):
    made: list[str] = []
    command = made_in_this_process(run, made)
    for _ in range(2):
        finish.test_run(run, FLAGS, CAPTIONS_ALONE, command)
    both = "the tests blind_words, sighted_captions of seed 0, V (each clip's own video)"
    assert made == [both], "one process for both"
    (tmp_path / "prosa.txt").write_text("Una volta.")
    asked = TestFlags(text=[str(tmp_path / "prosa.txt")])
    blind = "the test blind_words of seed 0, V (each clip's own video)"
    for _ in range(2):
        finish.test_run(run, FLAGS, asked, command)
    assert made[1:] == [blind], "another file is another test"
    (tmp_path / "prosa.txt").write_text("Due volte.")
    finish.test_run(run, FLAGS, asked, command)
    assert made[2:] == [blind], "and so is another content"
    later = (run.folder / "tests" / "blind_words.json").stat().st_mtime + 10
    os.utime(run.folder / "llava_run.json", (later, later))
    finish.test_run(run, FLAGS, asked, command)
    assert made[3:] == [both], "the model is newer"
    os.utime(run.folder / "llava_run.json", (0, 0))
    (run.folder / "tests" / "blind_words.json").write_text(json.dumps({"settings": {"limit": 10}}))
    finish.test_run(run, FLAGS, asked, command)
    assert made[4:] == [blind], "somebody has tested it in another way"
    facts = {"csv_sha256": testing.sha256(run.folder / "tests" / "blind_words.csv"), "model": "another"}
    for changed, why in (("model", "of another model"), ("csv_sha256", "its table was cut")):
        (run.folder / "tests" / "blind_words.json").write_text(json.dumps({**facts, changed: "0"}))
        noted = testing.noted(run.folder)
        noted["blind_words"]["result"] = testing.sha256(run.folder / "tests" / "blind_words.json")
        (run.folder / "tests" / testing.COMMANDS_FILE).write_text(json.dumps(noted))
        finish.test_run(run, FLAGS, asked, command)
        assert made.pop() == blind and len(made) == 5, why


def test_models_that_a_run_kept_are_tested_as_its_last_one_is(run):
    kept = run.folder / "chck_1M"
    kept.mkdir()
    assert finish.MILESTONES not in finish.tests_of(run, FLAGS, CAPTIONS_ALONE)
    (kept / "milestone.json").write_text("{}")
    asked = TestFlags(text=[__file__], pairs=[__file__])
    found = finish.tests_of(run, FLAGS, asked)
    assert list(found) == ["blind_words", "sighted_captions", "pairs_test_finish", "milestones"], "after the last one's"
    assert found["milestones"] == ["-m", "llava.eval.milestones", *found["blind_words"][2:-2], "--pairs", __file__,
                                   "--device", "cpu"]  # fmt: skip
    made: list[str] = []
    for _ in range(2):
        finish.test_run(run, FLAGS, CAPTIONS_ALONE, made_in_this_process(run, made))
    assert made == ["the tests blind_words, sighted_captions, milestones of seed 0, V (each clip's own video)"]
    (run.folder / "llava_run.json").write_text(json.dumps({"flags": {}, "split": {"held_out": 0}}))
    assert not finish.tests_of(run, FLAGS, CAPTIONS_ALONE), "nothing was held out to test them on"


def test_without_held_out_captions_nothing_can_be_shown(run, tmp_path):
    (run.folder / "llava_run.json").write_text(json.dumps({"flags": {}, "split": {"held_out": 0}}))
    assert finish.tests_of(run, FLAGS, CAPTIONS_ALONE) == {}
    assert "Nothing can be shown: no captions were held out" in finish.give_answer(tmp_path, [run], CAPTIONS_ALONE)
    assert "seed0/V/report.html" in (tmp_path / finish.MARKDOWN).read_text()
