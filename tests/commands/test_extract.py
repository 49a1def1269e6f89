"""Extraction ahead of training, from its command line, and that training then decodes nothing."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import signal
from multiprocessing.connection import Connection

import numpy as np
import pytest

from llava.commands.extract import main
from llava.data.features import extract as features
from llava.data.features import store as feature_store
from llava.data.features.store import FeatureCache
from llava.data.features.workers import WorkerFailure
from llava.errors import Stopped
from llava.model.multimodal_encoder.builder import load_vision_tower
from tests.conftest import CAPTIONS, record, save_tower
from tests.train.runs import train


@pytest.fixture
def flags(assets, tmp_path):
    """The flags of a tiny extraction into `tmp_path / feature_cache`, where `train` looks."""
    return [
        "--data_path", str(assets.video_json), "--video_folder", str(assets.clips), "--vision_tower",
        str(assets.tower), "--feature_cache", str(tmp_path / "feature_cache"), "--num_frames", "2",
        "--force_sample", "True", "--num_workers", "1", "--vision_precision", "fp32",
    ]  # fmt: skip


def rows(folder) -> int:
    return sum(len(np.load(path, mmap_mode="r")) for path in folder.rglob("*.npy"))


def test_training_finds_every_feature(assets, tmp_path, flags, monkeypatch, capsys):
    assert main(flags) == 0
    assert rows(tmp_path / "feature_cache") == 6
    assert "0 problem(s)" in capsys.readouterr().out

    def never(*args, **kwargs):
        raise AssertionError("nothing is left to extract")

    monkeypatch.setattr(features, "run_tasks", never)
    assert main(flags) == 0
    cached = train(assets, tmp_path / "a", preflight="off")
    monkeypatch.undo()
    assert cached == pytest.approx(train(assets, tmp_path / "b", feature_cache="off"), abs=2e-3)


def test_parts_and_ranks_share_the_clips(tmp_path, flags, monkeypatch):
    folder = tmp_path / "feature_cache"
    assert main([*flags, "--shard", "0/2"]) == 0
    assert rows(folder) == 3
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        assert main([*flags, "--shard", "1/2"]) == 0
        assert rows(folder) == 4 + rank
    with pytest.raises(SystemExit):
        main([*flags, "--shard", "2/2"])


def test_bad_clips_are_listed_and_the_others_extracted(assets, tmp_path, flags, capsys):
    clips = tmp_path / "clips"
    shutil.copytree(assets.clips, clips)
    (clips / "garbage.mp4").write_text("no video")
    records = [*json.loads(assets.video_json.read_text()), record("bad", CAPTIONS[0], "garbage.mp4"),
               record("gone", CAPTIONS[0], "gone.mp4")]  # fmt: skip
    path = tmp_path / "some.json"
    path.write_text(json.dumps(records))
    bad = tmp_path / "bad.jsonl"
    argv = [*flags, "--data_path", str(path), "--video_folder", str(clips), "--bad_list", str(bad)]
    assert main(argv) == 1
    assert rows(tmp_path / "feature_cache") == 6
    assert {json.loads(line)["record_id"] for line in bad.read_text().splitlines()} == {"bad", "gone"}
    assert "garbage.mp4" in capsys.readouterr().out


def test_a_clip_that_takes_too_long_is_a_problem_of_its_records(flags, tmp_path, monkeypatch, capsys):
    run = features.run_tasks

    def one_hangs(work, tasks, *args):
        for task, result in run(work, tasks, *args):
            hangs = task[0].endswith("clip2.mp4")
            yield task, WorkerFailure("took too long", "no result after 120 s") if hangs else result

    monkeypatch.setattr(features, "run_tasks", one_hangs)
    assert main(flags) == 1
    assert rows(tmp_path / "feature_cache") == 5
    shown = capsys.readouterr().out
    assert "clip2.mp4: no result after 120 s" in shown and "took too long" in shown


def test_verify_finds_what_differs(assets, tmp_path, flags, capsys):
    with pytest.raises(LookupError, match="extract first"):
        main([*flags, "--verify", "4"])
    main(flags)
    assert main([*flags, "--verify", "4"]) == 0
    assert "4 cached clips computed again, 0 problem(s)" in capsys.readouterr().out
    index = next(p for p in (tmp_path / "feature_cache").glob("*/*.json") if p.parent.name != "contents"
                 and p.name != "settings.json")  # fmt: skip
    entries = json.loads(index.read_text())["entries"]
    settings = json.loads((index.parent / "settings.json").read_text())
    index.unlink()
    cache = FeatureCache(tmp_path / "feature_cache", settings)
    cache.write([(e["key"], e["path"]) for e in entries], np.ones((6, 2, 16, 24), np.float16))
    assert main([*flags, "--verify", "6"]) == 1
    assert "its cached features differ" in capsys.readouterr().out


def test_another_tower_has_another_cache(tmp_path, flags):
    main(flags)
    save_tower(tmp_path / "tower", seed=5)
    assert load_vision_tower(str(tmp_path / "tower")) is not None
    main([*flags, "--vision_tower", str(tmp_path / "tower")])
    assert len(list((tmp_path / "feature_cache").glob("*/settings.json"))) == 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_stops_with_what_is_finished_and_the_same_command_goes_on(flags, tmp_path, monkeypatch, name):
    before = signal.getsignal(getattr(signal, name))
    run = features.run_tasks

    def signalled(*args):
        for number, pair in enumerate(run(*args)):
            if number == 4:
                os.kill(os.getpid(), getattr(signal, name))
            yield pair

    monkeypatch.setattr(features, "run_tasks", signalled)
    with pytest.raises(Stopped, match="4 of 6 clips were read"):
        main([*flags, "--batch_size", "3"])
    assert signal.getsignal(getattr(signal, name)) == before
    assert rows(tmp_path / "feature_cache") == 3
    monkeypatch.undo()
    assert main(flags) == 0
    assert rows(tmp_path / "feature_cache") == 6


def extract_until_half_a_file(argv: list[str], suffix: str, number: int, reached: Connection) -> None:
    """Extracts up to the middle of the `number`-th file of features with this suffix, says so, and waits."""
    real, written = feature_store.replace_file, []

    def halts(path, write):
        if path.suffix != suffix or path.name == "settings.json":
            return real(path, write)
        written.append(path)

        def half(file):
            whole = io.BytesIO()
            write(whole)
            file.write(whole.getvalue()[: whole.tell() // 2])
            file.flush()
            reached.send(path.name)
            signal.pause()

        return real(path, half if len(written) == number else write)

    feature_store.replace_file = halts
    features.SHARD_BYTES = 1  # A file for each batch.
    main(argv)


def test_a_third_completes_what_two_extractions_killed_while_writing_left(assets, tmp_path, flags, monkeypatch):
    """One dies in the middle of an array, the other in that of an index, both in the same folder."""
    run = features.run_tasks
    # Without decoding processes, which take seconds to start.
    monkeypatch.setattr(features, "run_tasks", lambda work, tasks, *_: run(work, tasks, 0))
    argv = [*flags, "--batch_size", "2"]
    context = multiprocessing.get_context("fork")
    running = []
    try:
        # The first leaves one of three batches behind, and the second has two to go.
        for suffix, number in ((".npy", 2), (".json", 2)):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=extract_until_half_a_file, args=(argv, suffix, number, theirs))
            process.start()
            running.append(process)
            assert ours.poll(60) and ours.recv().endswith(suffix)
    finally:
        for process in running:
            process.kill()
            process.join()
    (folder,) = (p.parent for p in (tmp_path / "feature_cache").glob("*/settings.json"))
    assert len(list(folder.glob(".*"))) == 2, "two files are half written"

    assert main(argv) == 0
    assert main([*argv, "--verify", "6"]) == 0
    alone = tmp_path / "alone"
    assert main([*argv, "--feature_cache", str(alone)]) == 0
    settings = json.loads((folder / "settings.json").read_text())
    found, expected = FeatureCache(folder.parent, settings), FeatureCache(alone, settings)
    assert found.folder.name == expected.folder.name and len(found) == len(expected) == 6
    for clip in assets.clips.glob("*.mp4"):
        assert found.read(str(clip), None).equal(expected.read(str(clip), None)), clip


def test_repair_from_the_command_line(flags, tmp_path, capsys):
    main(flags)
    (array,) = (tmp_path / "feature_cache").rglob("*.npy")
    array.write_bytes(array.read_bytes()[:-1] + b"\x3f")
    assert main([*flags, "--verify", "6"]) == 1
    assert "are damaged (checksum" in capsys.readouterr().out
    assert main([*flags, "--repair_features"]) == 0
    assert main([*flags, "--verify", "6"]) == 0
    assert rows(tmp_path / "feature_cache") == 7, "one of them was computed again"


def test_training_and_extraction_agree_on_precision_and_storage(assets, tmp_path, flags, monkeypatch):
    chosen = {"vision_precision": "bf16", "feature_dtype": "int8"}
    assert main([*flags, *(word for name, value in chosen.items() for word in (f"--{name}", value))]) == 0

    def never(*args, **kwargs):
        raise AssertionError("nothing is left to extract")

    monkeypatch.setattr(features, "run_tasks", never)
    assert train(assets, tmp_path / "run", **chosen)
