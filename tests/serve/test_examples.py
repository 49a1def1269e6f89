"""Which clips a page offers."""

from __future__ import annotations

import json
import shutil

import pytest

from llava.data.records import spread
from llava.serve.examples import HELD_OUT, MOST, TRAINED, examples_in, examples_of_run
from llava.train.run_data import HELD_OUT_FILE
from tests.conftest import CAPTIONS, record


def test_a_folder_gives_its_readable_clips(assets, tmp_path):
    (tmp_path / "deep").mkdir()
    shutil.copy(assets.clips / "clip0.mp4", tmp_path / "deep" / "a.mp4")
    (tmp_path / "b.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"--examples .*/gone: no such folder"):
        examples_in(str(tmp_path / "gone"))
    (found,) = examples_in(str(tmp_path))
    assert found.name == "a.mp4" and found.caption == found.note == "" and found.frame.shape == (64, 64, 3)
    (tmp_path / "deep" / "a.mp4").unlink()
    with pytest.raises(ValueError, match=r"--examples .*: none of 1 videos could be read"):
        examples_in(str(tmp_path))
    (tmp_path / "b.mp4").unlink()
    with pytest.raises(ValueError, match=r"^--examples .*: a folder without videos"):
        examples_in(str(tmp_path))


def test_clips_are_evenly_spread():
    assert spread(range(5), MOST) == [0, 1, 2, 3, 4]
    assert spread(range(100), MOST) == [0, 14, 28, 42, 57, 71, 85, 99] and len(spread(range(100), MOST)) == MOST


def write_run(folder, **flags):
    folder.mkdir(exist_ok=True)
    (folder / "llava_run.json").write_text(json.dumps({"flags": flags}))


def test_a_run_gives_the_clips_that_it_was_evaluated_on_before_those_that_it_was_trained_on(assets, tmp_path):
    held_out = tmp_path / "held_out.json"
    segment = record("c", "Un pezzo.", "clip5.mp4") | {"meta": {"split": [0, 3]}}
    held_out.write_text(
        json.dumps([record("a", CAPTIONS[5], "clip5.mp4"), record("b", "Altro.", "clip5.mp4"), segment])
    )
    data = {"data_path": str(assets.video_json), "video_folder": str(assets.clips)}
    write_run(tmp_path / "run", **data, eval_data_path=str(held_out))
    found, why = examples_of_run(str(tmp_path / "run" / "checkpoint-2"))
    assert why == ""
    assert [(e.name, e.split, e.caption, e.note) for e in found] == [
        ("clip5.mp4", None, CAPTIONS[5], HELD_OUT), ("clip5.mp4", (0, 3), "Un pezzo.", HELD_OUT),
    ]  # fmt: skip
    write_run(tmp_path / "run", **data, eval_data_path=None)
    found, _ = examples_of_run(str(tmp_path / "run"))
    assert [(e.name, e.caption, e.note) for e in found] == [
        (f"clip{i}.mp4", text, TRAINED) for i, text in enumerate(CAPTIONS)
    ]
    # What a run held out by itself lies in its folder.
    shutil.copy(held_out, tmp_path / "run" / HELD_OUT_FILE)
    assert {e.note for e in examples_of_run(str(tmp_path / "run"))[0]} == {HELD_OUT}


def test_a_run_without_clips_here_says_why(assets, tmp_path):
    assert "has no llava_run.json" in examples_of_run(str(tmp_path))[1]
    write_run(tmp_path, data_path=str(assets.video_json), video_folder=str(tmp_path))
    assert examples_of_run(str(tmp_path)) == ([], f"no clip of {assets.video_json} is there")
    write_run(tmp_path, data_path=str(tmp_path / "gone.json"))
    assert "gone.json" in examples_of_run(str(tmp_path))[1]
    for text in ("[]", "{", '{"flags": null}', '{"flags": {}}'):
        (tmp_path / "llava_run.json").write_text(text)
        found, why = examples_of_run(str(tmp_path))
        assert found == [] and "cannot be read" in why
