"""Which records a model was trained on, told by its run's record."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from llava.data.records import load_records
from llava.eval.data import trained_on, trained_share
from tests.conftest import record


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was started in `tmp_path` with relative paths, on ten clips of which it held out two."""
    records = [record(f"r{i}", f"Testo {i}.", f"{i}.mp4") for i in range(10)]
    (tmp_path / "clips.json").write_text(json.dumps(records))
    folder = tmp_path / "run"
    (folder / "checkpoint-4").mkdir(parents=True)
    values = {
        "flags": {"data_path": "clips.json", "video_folder": "clips"},
        "started_in": str(tmp_path),
        "split": {"held_out": 2},
    }
    for place in (folder, folder / "checkpoint-4"):
        (place / "llava_run.json").write_text(json.dumps(values))
    (folder / "held_out.json").write_text(json.dumps(records[:2]))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def share(run: Path, clips: list[str], model: Path | None = None) -> float:
    path = run.parent / "asked.json"
    path.write_text(json.dumps([record(f"a{c}", f"Di {c}.", f"{c}.mp4") for c in clips]))
    records, problems = load_records(path, video_folder=run.parent / "clips")
    assert not problems
    return trained_share(model or run, str(path), records)


def test_the_same_clips_in_another_file(run: Path) -> None:
    assert share(run, [str(i) for i in range(10)]) == 0.8
    assert share(run, ["0", "1"]) == share(run, ["new"]) == 0.0
    assert share(run, ["0", "1", "2", "new"], run / "checkpoint-4") == 0.25
    assert share(run, ["2", "3"], run / "checkpoint-4") == 1.0


def test_what_a_run_trained_on_is_read_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counted(path: str, *args: object, **options: bool) -> object:
        read.append(Path(path).name)
        return load_records(path, *args, **options)

    monkeypatch.setattr("llava.eval.data.load_records", counted)
    assert share(run, ["1"]) == 0.0 and share(run, ["2"]) == share(run, ["3"]) == 1.0
    assert read == ["clips.json", "held_out.json"]


def test_a_file_that_was_named_from_another_folder(run: Path) -> None:
    assert trained_on(run, str(run.parent / "clips.json")) and trained_on(run, "../clips.json")
    assert not trained_on(run, str(run / "held_out.json"))


def test_clips_that_links_lead_to(run: Path) -> None:
    (run.parent / "clips").mkdir()
    os.symlink(run.parent / "clips", run.parent / "link")
    path = run.parent / "linked.json"
    path.write_text(json.dumps([record("a", "Di 5.", "5.mp4")]))
    records, _ = load_records(path, video_folder=run.parent / "link")
    assert trained_share(run, str(path), records) == 1.0


def test_texts_without_clips_are_known_by_their_words(run: Path) -> None:
    texts = [record(f"t{i}", f"Testo {i}.") for i in range(4)]
    (run.parent / "clips.json").write_text(json.dumps(texts))
    (run / "held_out.json").write_text(json.dumps(texts[:1]))
    path = run.parent / "texts.json"
    path.write_text(json.dumps(texts))
    assert trained_share(run, str(path), load_records(path)[0]) == 0.75


def test_what_is_not_recorded_is_not_known(run: Path) -> None:
    (run.parent / "clips.json").unlink()
    assert math.isnan(share(run, ["5"]))
    (run / "llava_run.json").unlink()
    assert math.isnan(share(run, ["5"])) and not trained_on(run, "../clips.json")
