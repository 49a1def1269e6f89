"""The command line, on files."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
from PIL import Image

from llava.data.video import frames_to_pixels, read_image
from llava.errors import show
from llava.eval.captioning import Captioner
from llava.serve.cli import GenerationFlags, main


def test_it_prints_a_caption_for_each_file_and_reports_bad_ones(assets, run, tmp_path, capsys):
    (tmp_path / "bad.mp4").write_text("no video")
    (tmp_path / "note.txt").write_text("no video either")
    shutil.copy(assets.clips / "clip1.mp4", tmp_path)
    videos = [str(assets.clips / "clip0.mp4"), str(tmp_path / "bad.mp4"), str(tmp_path / "clip1.mp4")]
    output = tmp_path / "captions.jsonl"
    argv = ["--model-path", str(run), "--device", "cpu", "--output", str(output)]
    status = main([*argv, "--video", videos[0], str(tmp_path), str(tmp_path / "cl*.mp4")])
    captured = capsys.readouterr()
    assert status == 1
    assert [line.split("\t")[0] for line in captured.out.splitlines()] == [videos[0], videos[2]]
    assert "bad.mp4: cannot be opened" in captured.err
    assert "2 videos; left out are 1 other files" in captured.err
    assert captured.err.endswith("1 of 3 clips could not be read, see above\n")
    rows = list(map(json.loads, output.read_text().splitlines()))
    assert [row["clip"] for row in rows] == videos
    assert f"{rows[0]['clip']}\t{rows[0]['caption']}\n" in captured.out
    assert rows[0]["error"] is None and 1 <= rows[0]["tokens"] <= 64 and rows[0]["seed"] == 42
    assert rows[1]["caption"] is None and "bad.mp4" in rows[1]["error"] and rows[1]["model"] == str(run)


def test_a_wrong_folder_is_one_message(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--model-path", str(tmp_path), "--video", "a.mp4"])
    assert stop.value.code == 2
    assert "config.json" in capsys.readouterr().err


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
        (["--prompt", "Dove in {<TEMP-INPUT><TEMP-INPUT>}?"], "a number is written as one of <TEMP-000> to <TEMP-099>"),
        (["--prompt", "Dove in {<TEMP-020><TEMP-050>}?"], "contains <TEMP-020>, which is a word of models"),
        (["--prompt", "molto " * 600], "give a shorter prompt"),
        (["--device", "toaster"], "--device toaster: torch knows no such device"),
        (["--top_p", "1.5", "--temperature", "1"], "--top_p 1.5: a number above 0 to 1"),
        (["--top-k", "0", "--temperature", "1"], "--top_k 0: a whole number, 1 or more"),
        (["--top-k", "5"], "--top_k 5: has an effect with --temperature only"),
        (["--repetition-penalty", "0"], "--repetition_penalty 0: a number above 0"),
        (["--seed", "-1"], "--seed -1: a whole number from 0"),
        (["--output", "captions.txt"], "--output captions.txt: name a file that ends in .jsonl or .csv"),
        (["--video_folder", "clips"], "--video_folder clips: has an effect with --references only"),
        (["--references", "gone.json"], "gone.json"),
        (["--video", "no/such/*.mp4"], "--video no/such/*.mp4: no file matches"),
    ],
)
def test_odd_options_are_one_message(assets, run, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        main(["--model-path", str(run), "--device", "cpu", "--video", str(assets.clips / "clip0.mp4"), *options])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_a_missing_file_and_a_cut_caption_are_told(assets, run, tmp_path, capsys):
    videos = [str(tmp_path / "gone.mp4"), str(assets.clips / "clip0.mp4")]
    argv = ["--model-path", str(run), "--device", "cpu", "--video", *videos, "--max-new-tokens", "1"]
    assert main([*argv, "--num-beams", "2", "--temperature", "0.5"]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith(videos[1])
    assert "gone.mp4: cannot be opened" in captured.err
    assert "clip0.mp4: the caption was cut at --max_new_tokens 1" in captured.err


def test_an_image_is_asked_about_as_an_image(assets, run, tmp_path, capsys):
    path, page = tmp_path / "foto.PNG", tmp_path / "page.html"
    Image.new("RGB", (40, 24), (200, 30, 30)).save(path)
    argv = ["--model-path", str(run), "--device", "cpu", "--show", str(page)]
    assert main([*argv, "--video", str(path), "--prompt", "Un"]) == 0
    captioner = Captioner.from_pretrained(run, "cpu")
    pixels = frames_to_pixels(read_image(path), captioner.model.processor_spec, captioner.spec.image_aspect_ratio)
    turns = [[{"from": "human", "value": "<image>\nUn"}]]
    said = captioner.answer(turns, {"max_new_tokens": 64}, pixel_values=pixels)[0].text
    assert capsys.readouterr().out == f"{path}\t{show(said)}\n"
    assert page.read_text().count("<image") == 1


def test_a_caption_stops_at_the_last_position(assets, run, capsys):
    argv = ["--model-path", str(run), "--device", "cpu", "--video", str(assets.clips / "clip0.mp4")]
    assert main([*argv, "--max-new-tokens", "100000", "--prompt", "molto " * 60]) == 0
    assert "clip0.mp4" in capsys.readouterr().out


def test_a_seed_gives_the_same_captions_whatever_is_captioned_beside(assets, run, tmp_path, capsys):
    def captions(seed: int, *clips: str) -> list[str]:
        argv = ["--model-path", str(run), "--device", "cpu", "--temperature", "3", "--max_new_tokens", "8"]
        main([*argv, "--seed", str(seed), "--video", *(str(assets.clips / clip) for clip in clips)])
        return capsys.readouterr().out.splitlines()

    both = captions(1, "clip0.mp4", "clip1.mp4")
    assert captions(1, "clip1.mp4", "clip0.mp4") == both[::-1]
    assert captions(2, "clip0.mp4")[0] != both[0]


def test_sampling_takes_the_models_own_probabilities_unless_a_flag_says_otherwise():
    assert "do_sample" not in GenerationFlags().options()
    whole = GenerationFlags(temperature=0.5).options()
    assert (whole["do_sample"], whole["temperature"], whole["top_p"], whole["top_k"]) == (True, 0.5, 1.0, 0)
    cut = GenerationFlags(temperature=0.5, top_p=0.9, top_k=3).options()
    assert (cut["top_p"], cut["top_k"]) == (0.9, 3)


def test_true_captions_stand_beside_and_are_scored(assets, run, tmp_path, capsys):
    videos, output = [str(assets.clips / f"clip{i}.mp4") for i in range(2)], tmp_path / "captions.csv"
    argv = ["--model-path", str(run), "--device", "cpu", "--video", *videos, "--output", str(output)]
    assert main([*argv, "--references", str(assets.video_json)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].endswith("\tUn gatto nero dorme sul divano.")
    assert "scores on 2 clips (not known whether trained on) with 2 true captions" in printed
    assert "another clip's caption" in printed
    with output.open(encoding="utf-8", newline="") as file:
        assert [row["references"] for row in csv.DictReader(file)][0] == "Un gatto nero dorme sul divano."


def test_scores_of_clips_that_were_trained_on_say_so(assets, run, tmp_path, capsys):
    trained, references = tmp_path / "run", tmp_path / "references.json"
    shutil.copytree(run, trained)
    flags = {"data_path": str(assets.video_json), "video_folder": str(assets.clips)}
    (trained / "llava_run.json").write_text(json.dumps({"flags": flags}))
    references.write_text(assets.video_json.read_text())
    video = str(assets.clips / "clip0.mp4")
    argv = ["--model-path", str(trained), "--device", "cpu", "--video", video, "--references", str(references)]
    assert main([*argv, "--max_new_tokens", "2"]) == 0
    assert "scores on 1 clips (training clips) with 1 true captions" in capsys.readouterr().out


def test_an_error_in_the_middle_keeps_what_there_was(assets, run, tmp_path, capsys, monkeypatch):
    caption = Captioner.caption

    def fail_on_the_second(self, path, *args, **options):
        if str(path).endswith("clip1.mp4"):
            raise RuntimeError("a defect")
        return caption(self, path, *args, **options)

    monkeypatch.setattr(Captioner, "caption", fail_on_the_second)
    videos, output = [str(assets.clips / f"clip{i}.mp4") for i in range(3)], tmp_path / "captions.jsonl"
    with pytest.raises(RuntimeError, match="a defect"):
        main(["--model-path", str(run), "--device", "cpu", "--video", *videos, "--output", str(output)])
    assert [json.loads(line)["clip"] for line in output.read_text().splitlines()] == videos[:1]
    assert f"1 of 3 clips are in {output}" in capsys.readouterr().err
