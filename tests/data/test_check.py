from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from llava.config.video import VIDEO_DECODERS, VideoSpec
from llava.data import check
from llava.data.check import FileReport, check_files, open_all
from llava.data.prompt import expand_placeholders
from llava.data.records import Record, load_records
from llava.data.video import decoder_problem
from tests.conftest import CAPTIONS, REAL_CLIPS, colour_frames, record, write_clip
from tests.data.video.clips import FASTSTART, cut, damage, write_audio, write_gray

SPEC = VideoSpec(num_frames=4, fast_latents=1, slow_latents=2, force_sample=True)


def write_records(folder: Path, *raw: dict) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(raw))
    return path


def load(folder: Path, *raw: dict) -> list[Record]:
    records, problems = load_records(write_records(folder, *raw), folder, folder)
    assert problems == []
    return records


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder with clips of every kind of trouble."""
    write_clip(tmp_path / "good.mp4", colour_frames(0))
    write_clip(tmp_path / "still.mp4", colour_frames(0)[:1])
    write_audio(tmp_path / "audio.mp4")
    cut(write_gray(tmp_path / "cut.mp4", muxer=FASTSTART), 0.7)
    (tmp_path / "text.mp4").write_text("Un gatto.")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.png").write_text("Un gatto.")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "good.png")
    return tmp_path


NAMES = ("good", "still", "audio", "cut", "text", "empty", "absent")


def test_numbers_of_a_frame_of_another_shape_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A photograph that its EXIF data turn is annotated as it was taken, and shown upright."""
    picture = Image.fromarray(np.zeros((48, 64, 3), np.uint8))
    exif = picture.getexif()
    exif[0x112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    picture.save(tmp_path / "good.jpg")
    write_clip(tmp_path / "clip.mp4", colour_frames(0))
    made = []
    for name in ("turned.jpg", "good.jpg", "clip.mp4"):
        kind = "video" if name.endswith("mp4") else "image"
        for size in ((640, 480), (480, 640), (100, 100)):
            turns = [{"from": "human", "value": f"<{kind}>"}, {"from": "gpt", "value": "a <WIDTH-OUTPUT>"}]
            numbers = {"spatial_width_output_locations": [0.5]}
            meta = {"width": size[0], "height": size[1]}
            made.append({"id": f"{name} {size[0]}", kind: name, "conversations": turns, "variables": numbers})
            made[-1]["meta"] = meta
    path = write_records(tmp_path, *made)
    argv = ["--data_path", str(path), "--video_folder", str(tmp_path), "--image_folder", str(tmp_path)]
    assert check.main([*argv, "--num_workers", "0"]) == 1
    said = capsys.readouterr().out
    named = {name for name in (row["id"] for row in made) if f"id {name!r}" in said}
    assert named == {"turned.jpg 640", "turned.jpg 100", "good.jpg 480", "good.jpg 100", "clip.mp4 640", "clip.mp4 480"}
    assert "meta.width and meta.height are 640 x 480, and its frames are shown in 48 x 64, of another shape" in said
    path = write_records(tmp_path, *(row for row in made if row["id"] not in named))
    assert check.main([*argv, "--num_workers", "0", "--image_aspect_ratio", "crop"]) == 0
    assert "not checked: boxes that --image_aspect_ratio crop cuts away" in capsys.readouterr().out


def test_every_kind_of_trouble_is_found(broken: Path) -> None:
    image = {"id": "i0", "image": "text.png", "conversations": record("", "Testo.")["conversations"]}
    image["conversations"][0]["value"] = "<image>"
    fine = {**image, "id": "i1", "image": "good.png"}
    records = load(broken, *[record(name, CAPTIONS[0], f"{name}.mp4") for name in NAMES], image, fine)
    problems = check_files(records, SPEC)
    assert {p.record_id: p.kind for p in problems} == {
        "still": "too few frames",
        "audio": "no video stream",
        "cut": "unreadable",
        "text": "unreadable",
        "empty": "missing file",
        "absent": "missing file",
        "i0": "unreadable",
    }
    assert len(problems) == 7
    for problem in problems:
        assert str(broken) in problem.message
    assert [p.record_id for p in check_files(records, SPEC, min_frames=1) if p.kind == "too few frames"] == []
    assert [p.record_id for p in check_files(records[:1], SPEC, min_frames=9)] == ["good"]


def test_every_record_of_a_bad_file_is_named_and_the_file_is_opened_once(
    broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = check.open_file
    monkeypatch.setattr(check, "open_file", lambda clip, **options: opened.append(clip[0]) or real(clip, **options))
    records = load(broken, *[record(f"r{i}", CAPTIONS[0], "audio.mp4") for i in range(3)])
    assert [p.record_id for p in check_files(records, SPEC)] == ["r0", "r1", "r2"]
    assert opened == [str(broken / "audio.mp4")]


def test_segment_outside_the_clip_and_short_segment(broken: Path) -> None:
    splits = {"fine": [2, 5], "outside": [8, 9], "one": [3, 3], "clipped": [7, 99]}
    raw = [{**record(name, CAPTIONS[0], "good.mp4"), "meta": {"split": split}} for name, split in splits.items()]
    problems = {p.record_id: p for p in check_files(load(broken, *raw), SPEC)}
    assert {name: p.kind for name, p in problems.items()} == {
        "outside": "unreadable",
        "one": "too few frames",
        "clipped": "too few frames",
    }
    assert "meta.split" in problems["outside"].message
    assert "frames 3 to 3" in problems["one"].message


def test_thorough_finds_damage_between_sampled_frames(tmp_path: Path) -> None:
    options = {"x264-params": "keyint=20:min-keyint=20:scenecut=0"}
    damage(write_gray(tmp_path / "clip.mp4", noise=True, options=options), 0.6)
    records = load(tmp_path, {**record("r", CAPTIONS[0], "clip.mp4"), "meta": {"split": [0, 3]}})
    assert [p.kind for p in check_files(records, SPEC, thorough=True)] == ["unreadable"]


def test_thorough_finds_a_decoder_that_gives_other_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gray(tmp_path / "clip.mp4")
    records = load(tmp_path, record("r", CAPTIONS[0], "clip.mp4"))
    assert check_files(records, SPEC, thorough=True) == []
    real = check.read_frames
    monkeypatch.setattr(
        check, "read_frames", lambda *args, full_decode=False: real(*args, full_decode=full_decode) + full_decode
    )
    assert "other frames than a full decode; train with --video_decoder pyav" in (
        check_files(records, SPEC, thorough=True)[0].message
    )


@pytest.mark.parametrize("pixels", ["yuv420p10le", "yuv422p", "yuvj420p"])
@pytest.mark.parametrize("decoder", VIDEO_DECODERS)
def test_thorough_finds_nothing_in_a_sound_file(tmp_path: Path, pixels: str, decoder: str) -> None:
    """decord, torchcodec and PyAV round 10 bits to 8 in other ways, by up to a third of the range."""
    if decoder_problem(decoder):
        pytest.skip(str(decoder_problem(decoder)))
    write_gray(tmp_path / "clip.mp4", noise=True, pixels=pixels)
    records = load(tmp_path, record("r", CAPTIONS[0], "clip.mp4"))
    assert check_files(records, replace(SPEC, video_decoder=decoder), thorough=True) == []


def dies_on(clip: check.Clip, marker: str) -> FileReport:
    """Stands for a decoder that crashes on one file."""
    if marker in clip[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return FileReport(distinct=1)


def test_a_worker_that_dies_is_a_problem_of_its_file_alone() -> None:
    clips: list[check.Clip] = [(f"{i}.mp4", None, False) for i in range(8)]
    reports = dict(open_all(clips, partial(dies_on, marker="3.mp4"), num_workers=2))
    assert set(reports) == set(clips)
    assert {clip[0]: report.kind for clip, report in reports.items() if report.kind} == {"3.mp4": "reader crashed"}
    assert reports[clips[3]].message.startswith("3.mp4: ")


def flags(folder: Path, data: Path) -> list[str]:
    return [
        "--data_path", str(data), "--video_folder", str(folder), "--image_folder", str(folder), "--num_workers", "0",
        "--num_frames", "2", "--mm_perceiver_latents_fast", "1", "--mm_perceiver_latents", "4",
    ]  # fmt: skip


def test_main_prints_all_problems_at_once(
    broken: Path, assets: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = [record(name, CAPTIONS[0], f"{name}.mp4") for name in NAMES]
    raw += [record("good", CAPTIONS[1], "good.mp4"), record("vuoto", "", "good.mp4")]
    raw += [record("riservato", "Un <vid_patch> gatto.", "good.mp4")]
    raw += [record("lungo", CAPTIONS[0], " ".join(["good.mp4"] * 2))]
    raw[-1]["video"] = ["good.mp4"] * 2
    raw[-1]["conversations"][0]["value"] = "<video> <video>"
    arguments = flags(broken, write_records(broken, *raw))
    arguments += ["--model_name_or_path", str(assets.gpt2), "--model_max_length", "16"]
    assert check.main(arguments) == 1
    output = capsys.readouterr().out
    for kind in ("duplicate id: 1", "empty caption: 1", "reserved token: 1", "missing file: 2", "unreadable: 2",
                 "no video stream: 1", "too few frames: 1", "too long: 1"):  # fmt: skip
        assert f"  {kind}" in output
    assert "'lungo'" in output and "--model_max_length" in output
    assert output.startswith("10 problems in 10 records")


def test_records_of_a_chat_have_its_rules_and_lengths(
    assets: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, late, marked = (record(name, CAPTIONS[0], "clip0.mp4", "Chi?") for name in ("good", "late", "marked"))
    late["conversations"] = [*reversed(late["conversations"])]
    marked["conversations"][1]["value"] = "Un <|im_end|> gatto."
    arguments = [*flags(assets.clips, write_records(tmp_path, good, late, marked)), "--version", "qwen_2"]
    assert check.main([*arguments, "--model_name_or_path", str(assets.gpt2)]) == 1
    output = capsys.readouterr().out
    assert "order of turns: 1" in output and "turn 0 is an answer where a chat has a question" in output
    assert "reserved token: 1" in output and "contains '<|im_end|>'" in output
    tokens = []
    for version in ("plain", "chatml"):
        arguments = [*flags(assets.clips, write_records(tmp_path, good)), "--version", version]
        assert check.main([*arguments, "--model_name_or_path", str(assets.gpt2)]) == 0
        tokens.append(int(re.search(r"(\d+) tokens", capsys.readouterr().out)[1]))
    assert tokens[1] > tokens[0]
    with pytest.raises(SystemExit):
        check.main([*arguments, "--version", "v0"])
    assert "there is no such format" in capsys.readouterr().err


def test_main_says_what_it_read(assets: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = flags(assets.clips, assets.video_json)
    assert check.main([*arguments, "--model_name_or_path", str(assets.gpt2), "--force_sample"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("no problem in 6 records: 6 videos, 0 images, 12 distinct frames read, ")
    summary, after = output.strip().splitlines()
    assert summary.endswith(" tokens")
    clips = f"VIDEO_FOLDER={assets.clips} IMAGE_FOLDER={assets.clips}"
    assert after == f"next: DATA_PATH={assets.video_json} {clips} bash train_italian_video.sh"
    assert check.main([*arguments, "--video_fps", "0.1"]) == 0
    assert "6 clips have fewer than 2 frames to choose from" in capsys.readouterr().out


def test_damage_between_the_frames_that_are_read_is_found_in_small_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every frame is a key frame, so that a decoder that seeks need not meet damage elsewhere."""
    path = damage(write_gray(tmp_path / "clip.mp4", noise=True, options={"g": "1"}), 0.5)
    # decord reads ahead, and meets it in one of six runs.
    monkeypatch.setattr(check, "read_frames", lambda *args, **options: np.zeros((4, 48, 64, 3), np.uint8))
    clip = (str(path), (0, 3), False)
    assert "damaged or cut short" in check.open_file(clip, SPEC).message
    monkeypatch.setattr(check, "CHEAP_PIXELS", 64 * 48 * 40 - 1)
    assert check.open_file(clip, SPEC) == FileReport(distinct=4, size=(64, 48))
    assert "damaged or cut short" in check.open_file(clip, SPEC, thorough=True).message


@pytest.mark.parametrize("name", ["006_trunc_h264.ts", "008_head_vp9.webm", "010_flip1_h264.mov", "015_trunc_mjpeg.avi",
                                  "024_trunc_x.gif", "028_trunc_h264.mkv"])  # fmt: skip
def test_each_damaged_file_is_reported(name: str) -> None:
    path = REAL_CLIPS.parent / "faulty" / "damaged" / name
    if not path.exists():
        pytest.skip("the shared data folder is not beside this checkout")
    for thorough in (False, True):
        assert check.open_file((str(path), None, False), SPEC, thorough).kind == "unreadable"


def test_main_says_what_it_did_not_check(
    assets: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check.main(flags(assets.clips, assets.video_json)) == 0
    assert "not checked" not in capsys.readouterr().out
    monkeypatch.setattr(check, "CHEAP_PIXELS", 0)
    assert check.main(flags(assets.clips, assets.video_json)) == 0
    assert "not checked: 6 videos were decoded only as far as" in capsys.readouterr().out
    assert check.main([*flags(assets.clips, assets.video_json), "--thorough"]) == 0
    assert "not checked" not in capsys.readouterr().out


def test_main_names_a_file_that_is_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--data_path", str(tmp_path / "absent.json")]) == 1
    assert "absent.json: no such file" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--num_frames", "0"], "--num_frames 0: a whole number from 1 to 65536"),
        (["--model_max_length", "9999"], "beyond the 512 positions"),
    ],
)
def test_wrong_flags_are_an_error(
    assets: SimpleNamespace, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as raised:
        check.main([*flags(assets.clips, assets.video_json), "--model_name_or_path", str(assets.gpt2), *extra])
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_lengths_are_those_of_training(assets: SimpleNamespace) -> None:
    from llava.data.prompt import preprocess_plain_lm

    records, _ = load_records(assets.video_json, video_folder=assets.clips)
    tokenizer, *_ = check._tokenizer(str(assets.gpt2), None)
    problems, tokens = check.check_lengths(records, tokenizer, SPEC, 512)
    expanded = [[{**t, "value": expand_placeholders(t["value"], SPEC)} for t in r.conversations] for r in records]
    samples = preprocess_plain_lm(expanded, tokenizer, has_image=True)
    assert problems == []
    assert tokens == sum(map(len, samples["input_ids"]))
    assert check.check_lengths(records, tokenizer, SPEC, 512, text_start="eos")[1] == tokens + len(records)
    # One word and EOS fit, so text is cut; less than that is a problem.
    assert check.check_lengths(records, tokenizer, SPEC, SPEC.rows + 2)[0] == []
    assert len(check.check_lengths(records, tokenizer, SPEC, SPEC.rows)[0]) == len(records)


def test_the_module_runs_with_worker_processes(assets: SimpleNamespace) -> None:
    command = [sys.executable, "-m", "llava.data.check", *flags(assets.clips, assets.video_json)]
    command[command.index("--num_workers") + 1] = "2"
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("no problem in 6 records")
    assert "Warning" not in result.stderr


def test_segments_that_end_beyond_their_clip_are_remarked_on_one_by_one(
    assets: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = json.loads(assets.video_json.read_text())
    for raw, split in zip(records, ([0, 7], [2, 8], [0, 50]), strict=False):
        raw["meta"] = {"split": split}
    (tmp_path / "data.json").write_text(json.dumps(records))
    argv = ["--data_path", str(tmp_path / "data.json"), "--video_folder", str(assets.clips), "--num_workers", "0"]
    assert check.main([*argv, "--num_frames", "2", "--force_sample"]) == 0
    shown = capsys.readouterr().out
    assert "2 remarks in 2 records" in shown and "segment beyond the end: 2" in shown
    assert "id 'v1'" in shown and "[2, 8] of frames 0 to 7" in shown and "id 'v0'" not in shown
    # Numbers are fractions of the segment that the record means.
    records[1]["conversations"][1]["value"] += " <TEMP-OUTPUT>"
    records[1]["variables"] = {"temporal_output_locations": [0.5]}
    (tmp_path / "data.json").write_text(json.dumps(records))
    assert check.main([*argv, "--num_frames", "2", "--force_sample"]) == 1
    shown = capsys.readouterr().out
    assert "1 remark in 1 record\n" in shown and "1 problem in 1 record\n" in shown
    assert "id 'v1'" in shown.partition("1 problem in")[2]


@pytest.mark.parametrize(("kind", "given", "found"), [("llama", None, 77), ("llava_llama", 50, 50), ("bloom", 60, 60)])
def test_positions_are_those_of_any_language_model(assets, tmp_path, kind, given, found):
    shutil.copytree(assets.gpt2, tmp_path / "model")
    values = {"model_type": kind, "max_position_embeddings": 77} if kind != "bloom" else {"model_type": kind}
    (tmp_path / "model" / "config.json").write_text(json.dumps(values))
    assert check._tokenizer(str(tmp_path / "model"), given)[1] == found
    if kind == "bloom":
        with pytest.raises(ValueError, match="takes sequences of any length; say how long yours may be"):
            check._tokenizer(str(tmp_path / "model"), None)
    else:
        with pytest.raises(ValueError, match="beyond the 77 positions"):
            check._tokenizer(str(tmp_path / "model"), 78)


def test_numbers_are_checked_with_the_frames_that_they_are_of(
    assets: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    placed = record("placed", "[<WIDTH-OUTPUT><HEIGHT-OUTPUT>]", "clip0.mp4") | {
        "variables": {"spatial_width_output_locations": [0.5], "spatial_height_output_locations": [0.5]},
        "meta": {"width": 64, "height": 64},
    }
    unsized = {k: v for k, v in placed.items() if k != "meta"} | {"id": "unsized"}
    wrong = placed | {"id": "wrong", "variables": {"spatial_width_output_locations": [0.5]}}
    model = ["--model_name_or_path", str(assets.gpt2), "--mm_coordinates", "True"]

    def checked(*raw: dict, more: list[str]) -> tuple[int, str]:
        return check.main([*flags(assets.clips, write_records(tmp_path, *raw)), *more]), capsys.readouterr().out

    for more in ([], model):
        code, output = checked(placed, more=more)
        assert code == 0
        assert "coordinates: 2 numbers in 1 records, which train with --mm_coordinates True" in output
        assert " MM_COORDINATES=True MM_TUNABLE_PARTS=" in output and ",mm_coordinates bash train_it" in output
    tokens = int(re.search(r"(\d+) tokens", output)[1])
    assert tokens <= 2 * 5 + 2 + 6, "streams of two frames, a token for each number, brackets and spaces, the end"
    code, output = checked(placed, unsized, wrong, more=model)
    assert code == 1 and output.startswith("2 problems in 2 records\n  coordinates: 2 (`variables` hold a number")
    assert "expected meta.width and meta.height in pixels" in output
    assert "1 <HEIGHT-OUTPUT> in the text, but 0 numbers" in output
    assert checked(placed, unsized, more=[*model, "--image_aspect_ratio", "square"])[0] == 0
    code, output = checked(placed, more=model[:2])
    assert code == 1 and "and there is no --mm_coordinates True" in output


def test_the_next_command_trains_what_its_recipe_does_and_the_coordinates(
    assets: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = record("timed", "{<TEMP-OUTPUT><TEMP-OUTPUT>}", "clip0.mp4") | {
        "variables": {"temporal_output_locations": [0.0, 1.0]}
    }
    argv = flags(assets.clips, write_records(tmp_path, timed))
    parts = yaml.safe_load((Path(__file__).parents[2] / "recipes" / "italian.yaml").read_text())["mm_tunable_parts"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    for trained in (parts, "mm_vision_resampler"):
        assert check.main(argv) == 0
        assert f" MM_TUNABLE_PARTS={trained},mm_coordinates bash train_italian" in capsys.readouterr().out
        (tmp_path / "recipes" / "italian.yaml").write_text("mm_tunable_parts: mm_vision_resampler\n")
