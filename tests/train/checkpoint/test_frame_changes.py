"""A resumed run says when it sees its clips in another way."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from llava.config.video import VideoSpec
from llava.data.records import Record
from llava.data.video import FRAME_RULE, reader_versions
from llava.train.checkpoint import frame_changes
from llava.train.checkpoint.frame_changes import report_frame_changes
from llava.train.trainer import RUN_RECORD
from tests.data.video.clips import write_gray

SPEC = VideoSpec()
NOW = {"versions": {"frames": FRAME_RULE, "decoders": reader_versions()}}


def records(folder: Path) -> list[Record]:
    """Three clips; the first has a pause."""
    paths = [
        write_gray(folder / f"clip{i}.mp4", milliseconds=[0, 100, 200, 5000, 5100] if i == 0 else None)
        for i in range(3)
    ]
    return [
        Record(id=f"r{i}", conversations=[], videos=(str(p),), images=(), split=None, meta={}, source=f"r{i}")
        for i, p in enumerate(paths)
    ]


def lines(caplog: pytest.LogCaptureFixture, folder: Path, before: dict, **options) -> list[str]:
    (folder / RUN_RECORD).write_text(json.dumps(before))
    with caplog.at_level(logging.INFO):
        report_frame_changes(folder, NOW, options.get("records", records(folder)), options.get("spec", SPEC))
    return [record.getMessage() for record in caplog.records]


def test_a_checkpoint_of_the_first_rule_says_how_many_clips_changed(tmp_path: Path, caplog) -> None:
    (line,) = lines(caplog, tmp_path, {"versions": {"llava": "0.1.0"}})
    assert "of 3 clips, 1 are seen in other frames" in line


def test_many_clips_are_sampled(tmp_path: Path, caplog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_changes, "MOST_CLIPS", 2)
    (line,) = lines(caplog, tmp_path, {"versions": {}})
    assert "of 2 clips looked at (of 3), 1 are" in line


def test_another_decoder_is_named(tmp_path: Path, caplog) -> None:
    before = {"versions": {"frames": FRAME_RULE, "decoders": {**reader_versions(), "decord": "none", "av": "1.2.3"}}}
    (line,) = lines(caplog, tmp_path, before)
    assert "was made with av 1.2.3, pillow" in line and f"av {reader_versions()['av']}" in line


def test_nothing_is_said_when_nothing_changed(tmp_path: Path, caplog) -> None:
    assert lines(caplog, tmp_path, NOW) == []
    assert lines(caplog, tmp_path, {"versions": {}}, spec=None) == []
    assert lines(caplog, tmp_path, {"versions": {}}, records=[]) == []
