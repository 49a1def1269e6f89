"""Captions after their own videos."""

from __future__ import annotations

import csv
import json

import pytest

from llava.errors import UserError
from llava.eval.sighted import main
from tests.conftest import CAPTIONS, record
from tests.eval.test_pairs import written


@pytest.fixture
def run(build, tokenizer, tmp_path):
    return written(build(), tokenizer, tmp_path / "run")


def flags(assets, tmp_path):
    return ["--video_folder", str(assets.clips), "--feature_cache", str(tmp_path / "cache"), "--num_workers", "0"]


def test_captions_have_the_nats_of_the_controls(assets, run, tmp_path, capsys):
    """The loss with the true video, as the controls measure it, whatever the batch."""
    from llava.eval.controls import main as controls

    output = tmp_path / "controls.json"
    argv = ["--data_path", str(assets.video_json), *flags(assets, tmp_path)]
    controls(["--model-path", str(run), *argv, "--output", str(output)])
    expected = json.loads(output.read_text())["losses"]["true"]["per_caption"]
    capsys.readouterr()
    measured = []
    for size in ("1", "4"):
        assert main([str(run), *argv, "--batch_size", size]) == 0
        with open(run / "tests" / "sighted_captions.csv", newline="") as file:
            measured.append(list(csv.DictReader(file)))
    for one, other in zip(*measured, strict=True):
        assert float(one["nats"]) == pytest.approx(float(other["nats"]), abs=1e-4) and one["item"] == other["item"]
    assert sum(float(r["nats"]) for r in measured[0]) / 6 == pytest.approx(expected, abs=1e-3)
    assert [int(r["words"]) for r in measured[0]] == [len(c.split()) for c in CAPTIONS]
    assert len({r["cluster"] for r in measured[0]}) == 6
    assert "6 captions of 6 clips, each after its own video" in capsys.readouterr().out
    assert json.loads((run / "tests" / "sighted_captions.json").read_text())["summary"]["captions"] == 6


def test_a_text_that_does_not_fit_is_not_cut(assets, run, tmp_path):
    data = tmp_path / "long.json"
    data.write_text(json.dumps([record("a", " ".join(CAPTIONS * 9), "clip0.mp4")]))
    with pytest.raises(UserError, match=r"record 'a' .*positions with its video, and the model has 512; shorten"):
        main([str(run), "--data_path", str(data), *flags(assets, tmp_path)])


def test_what_shows_nothing_is_refused(assets, run, build, tokenizer, tmp_path):
    with pytest.raises(UserError, match="no record has a video"):
        main([str(run), "--data_path", str(assets.text_json), *flags(assets, tmp_path)])
    text = written(build(vision=False), tokenizer, tmp_path / "text")
    with pytest.raises(UserError, match="text alone and sees nothing"):
        main([str(text), "--data_path", str(assets.video_json), *flags(assets, tmp_path)])
