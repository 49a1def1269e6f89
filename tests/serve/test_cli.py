"""The command line, on files."""

from __future__ import annotations

import pytest

from llava.serve.cli import main
from tests.train.runs import train


def test_it_prints_a_caption_for_each_file_and_reports_bad_ones(assets, tmp_path, capsys):
    train(assets, tmp_path / "run", max_steps=2)
    (tmp_path / "bad.mp4").write_text("no video")
    videos = [str(assets.clips / "clip0.mp4"), str(tmp_path / "bad.mp4"), str(assets.clips / "clip1.mp4")]
    capsys.readouterr()
    status = main(["--model-path", str(tmp_path / "run"), "--device", "cpu", "--video", *videos])
    captured = capsys.readouterr()
    assert status == 1
    assert [line.split("\t")[0] for line in captured.out.splitlines()] == [videos[0], videos[2]]
    assert "bad.mp4" in captured.err


def test_a_wrong_folder_is_one_message(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--model-path", str(tmp_path), "--video", "a.mp4"])
    assert stop.value.code == 2
    assert "config.json" in capsys.readouterr().err
