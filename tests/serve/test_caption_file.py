"""The rows of captions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from llava.serve.caption_file import COLUMNS, CaptionFile, check_caption_file


def fill(path: Path) -> None:
    with CaptionFile(path, {"seed": 3, "prompt": ""}) as file:
        file.add(clip='a,"b".mp4', caption="Un gatto\nnero, «là»", ended=True, tokens=4, references=["uno", "due"])
        file.add(clip="caf\udce9.mp4", references=[], error="no video")


def test_json_lines_say_everything_of_every_clip(tmp_path):
    fill(tmp_path / "x.jsonl")
    first, second = map(json.loads, (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines())
    assert list(first) == list(COLUMNS)
    assert first == dict.fromkeys(COLUMNS) | {
        "clip": 'a,"b".mp4', "caption": "Un gatto\nnero, «là»", "ended": True, "tokens": 4,
        "references": ["uno", "due"], "seed": 3, "prompt": "",
    }  # fmt: skip
    assert second["caption"] is None and second["error"] == "no video" and second["clip"] == "caf\udce9.mp4"


def test_a_csv_is_read_back(tmp_path):
    fill(tmp_path / "x.CSV")
    with (tmp_path / "x.CSV").open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert first["clip"] == 'a,"b".mp4' and first["caption"] == "Un gatto\nnero, «là»"
    assert (first["ended"], first["tokens"], first["seed"]) == ("True", "4", "3")
    assert first["references"] == "uno | due"
    assert second["caption"] == "" and second["error"] == "no video" and second["clip"] == "caf\\udce9.mp4"


def test_rows_are_on_disk_before_the_file_is_closed(tmp_path):
    for name in ("x.csv", "x.jsonl"):
        with CaptionFile(tmp_path / name, {}) as file:
            file.add(clip="a.mp4", caption="Uno.")
            assert "Uno." in (tmp_path / name).read_text()


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    for path, message in (
        (tmp_path / "x.txt", r"--output .*x\.txt: name a file that ends in \.jsonl or \.csv"),
        (tmp_path / "folder.csv", "is a folder"),
        (tmp_path / "gone" / "x.csv", "there is no folder"),
    ):
        with pytest.raises(ValueError, match=message):
            check_caption_file("--output", path)
    check_caption_file("--output", None)
    with pytest.raises(OSError, match=r"folder\.csv: cannot be written \(Is a directory\)"):
        CaptionFile(tmp_path / "folder.csv", {})


def test_a_full_disk_names_the_file():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match=r"^/dev/full: cannot be written \(No space left on device\)"):
        CaptionFile(Path("/dev/full"), {}).add(clip="a.mp4")
