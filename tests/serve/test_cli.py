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


@pytest.fixture(scope="module")
def run(assets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    train(assets, folder, max_steps=2)
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-beams", "0"], "--num_beams 0: a whole number, 1 or more"),
        (["--num-beams", "many"], "--num_beams: invalid int value: 'many'"),
        (["--max-new-tokens", "-1"], "--max_new_tokens -1: a whole number, 1 or more"),
        (["--temperature", "0"], "--temperature 0: a number above 0"),
        (["--temperature", "nan"], "--temperature nan: a number above 0"),
        (["--prompt", "<video> e <video>"], "contains <video>"),
        (["--prompt", "Un <|endoftext|>"], "contains <|endoftext|>"),
        (["--prompt", "Un <vid_patch>"], "contains <vid_patch>"),
        (["--prompt", "molto " * 600], "give a shorter prompt"),
        (["--device", "toaster"], "--device toaster: torch knows no such device"),
    ],
)
def test_odd_options_are_one_message(assets, run, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        main(["--model-path", str(run), "--device", "cpu", "--video", str(assets.clips / "clip0.mp4"), *options])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_file_and_a_cut_caption_are_told(assets, run, tmp_path, capsys):
    videos = [str(tmp_path / "gone.mp4"), str(tmp_path), str(assets.clips / "clip0.mp4")]
    argv = ["--model-path", str(run), "--device", "cpu", "--video", *videos, "--max-new-tokens", "1"]
    assert main([*argv, "--num-beams", "2", "--temperature", "0.5"]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith(videos[2])
    assert "gone.mp4: cannot be opened" in captured.err and f"{tmp_path}: is a folder" in captured.err
    assert "clip0.mp4: the caption was cut at --max_new_tokens 1" in captured.err


def test_a_caption_stops_at_the_last_position(assets, run, capsys):
    argv = ["--model-path", str(run), "--device", "cpu", "--video", str(assets.clips / "clip0.mp4")]
    assert main([*argv, "--max-new-tokens", "100000", "--prompt", "molto " * 60]) == 0
    assert "clip0.mp4" in capsys.readouterr().out
