"""Every fault that a clip can have, on every way by which clips are read: found, named, and no run hangs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.data import check, dataset
from llava.data.features import extract as features
from llava.data.records import DatasetError
from llava.data.video import VideoError
from llava.errors import run_command
from llava.eval import captioning
from llava.train.train import main
from tests.faults import clips
from tests.faults.clips import FAULTS, write_data
from tests.train.runs import flags, losses, train


@pytest.fixture
def bad_decoder(monkeypatch):
    monkeypatch.setattr(features, "read_pixels", clips.read_pixels)
    monkeypatch.setattr(check, "open_file", clips.open_file)
    monkeypatch.setattr(dataset, "read_frames", clips.read_frames)


def listed(folder: Path) -> dict[str, str]:
    rows = map(json.loads, (folder / "bad_samples.jsonl").read_text().splitlines())
    return {row["record_id"]: row["kind"] for row in rows}


KINDS = {
    **dict.fromkeys(("truncated", "damaged", "garbage"), "unreadable"),
    **dict.fromkeys(("empty", "renamed", "folder"), "missing file"),
    "hang": "took too long",
    "crash": "reader crashed",
}


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_training_leaves_out_every_bad_clip_and_none_else(assets, tmp_path, bad_decoder, cache):
    data = write_data(assets, tmp_path)
    seen = train(assets, tmp_path / "run", **data, on_bad_sample="skip", feature_cache=cache, clip_timeout=3)
    assert listed(tmp_path / "run") == KINDS
    assert seen == train(assets, tmp_path / "good", feature_cache=cache)


def test_training_stops_at_bad_clips_and_names_them_all(assets, tmp_path, bad_decoder):
    with pytest.raises(DatasetError) as error:
        train(assets, tmp_path / "run", **write_data(assets, tmp_path), clip_timeout=3)
    assert all(f"\n  {kind}: " in str(error.value) for kind in set(KINDS.values()))
    assert listed(tmp_path / "run") == KINDS, "the message is read at a glance, the list has all"


def test_the_check_names_them_all(assets, tmp_path, bad_decoder, capsys):
    data = write_data(assets, tmp_path)
    argv = ["--data_path", str(data["data_path"]), "--video_folder", str(data["video_folder"]), "--force_sample"]
    assert check.main([*argv, "--num_workers", "2", "--clip_timeout", "3"]) == 1
    shown = capsys.readouterr().out
    for fault in FAULTS:
        assert f"id '{fault}'" in shown
    assert shown.startswith("8 problems in 8 records")


def test_captioning_leaves_them_out(assets, tmp_path, bad_decoder, capsys):
    train(assets, tmp_path / "run", max_steps=1)
    data = write_data(assets, tmp_path, tuple(f for f in FAULTS if f != "hang"))
    argv = ["--model-path", str(tmp_path / "run"), "--data_path", str(data["data_path"]), "--video_folder",
            str(data["video_folder"]), "--feature_cache", str(tmp_path / "cache")]  # fmt: skip
    with pytest.raises(DatasetError, match=r"empty\.mp4") as error:
        captioning.main([*argv, "--num_workers", "1"])
    assert "missing file" in str(error.value)
    assert captioning.main([*argv, "--num_workers", "1", "--on_bad_sample", "skip"]) == 0
    shown = capsys.readouterr().out
    assert "6 of 13 records; left out" in shown and "reader crashed" in shown


@pytest.mark.parametrize("fault", ["hang", "crash"])
def test_a_data_worker_that_hangs_or_crashes_ends_the_run_and_names_the_clip(
    assets, tmp_path, bad_decoder, fault, capfd
):
    """Without a cache, and without the check of all files that `skip` makes."""
    data = write_data(assets, tmp_path, (fault,))
    argv = flags(assets, tmp_path / "run", **data, feature_cache="off", dataloader_num_workers=1, preflight="off",
                 clip_timeout=3)  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: main(argv))
    assert f"while it read {data['video_folder'] / fault}.mp4" in str(stop.value.code)
    assert "llava.data.check" in str(stop.value.code) and "--resume_from_checkpoint" in str(stop.value.code)
    if fault == "hang":
        assert "hang.mp4: reading took longer than --clip_timeout 3 s" in capfd.readouterr().err


def test_an_unreadable_clip_in_a_data_worker_is_one_message(assets, tmp_path):
    data = write_data(assets, tmp_path, ("garbage",))
    argv = flags(assets, tmp_path / "run", **data, feature_cache="off", dataloader_num_workers=1, preflight="off")
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: main(argv))
    assert str(stop.value.code).startswith(f"\nERROR: {data['video_folder']}/garbage.mp4: cannot be opened")
    assert "Traceback" not in str(stop.value.code)


def test_a_clip_that_is_deleted_while_training_ends_the_run(assets, tmp_path, monkeypatch):
    data = write_data(assets, tmp_path, ())
    real, reads = dataset.read_frames, []

    def deletes(path, *args):
        reads.append(path)
        if len(reads) == 3:
            Path(path).unlink()
        return real(path, *args)

    monkeypatch.setattr(dataset, "read_frames", deletes)
    with pytest.raises(VideoError, match="No such file.*correct the path") as error:
        train(assets, tmp_path / "run", **data, feature_cache="off", preflight="off")
    assert reads[2] in str(error.value)
    assert not (tmp_path / "run" / "trainer_state.json").exists() or len(losses(tmp_path / "run")) < 6
