"""Extraction into shards, in folders and buckets, and by several jobs, from its command line."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal

import pytest

from llava.commands.extract import main
from llava.data.features import extract as features
from llava.data.features import jobs, parts
from llava.data.features.store import FeatureCache
from llava.data.features.workers import Pool
from llava.errors import NotCached, Stopped
from tests.bucket import served_bucket
from tests.conftest import CAPTIONS, record
from tests.train.runs import train

LEASE = "0.2"


@pytest.fixture
def flags(assets):
    return [
        "--data_path", str(assets.video_json), "--video_folder", str(assets.clips), "--vision_tower",
        str(assets.tower), "--num_frames", "2", "--force_sample", "True", "--num_workers", "1",
        "--vision_precision", "fp32",
    ]  # fmt: skip


@pytest.fixture
def in_this_process(monkeypatch):
    """Decoding without processes, which take seconds to start; parts of two clips."""
    run = features.run_tasks
    monkeypatch.setattr(features, "run_tasks", lambda work, tasks, *_: run(work, tasks, 0))
    monkeypatch.setattr(parts, "Pool", lambda work, *_: Pool(work, 0))
    monkeypatch.setattr(parts.extract_parts, "__defaults__", (2,))


def clips_of(root) -> list[str]:
    """The clips that the tars or arrays of a folder have, copies of them too."""
    indexes = [p for p in root.glob("*/*.json") if p.parent.name != "contents" and p.name != "settings.json"]
    return sorted(e["path"] for p in indexes for e in json.loads(p.read_text())["entries"])


def test_extraction_finds_its_shards_again(tmp_path, flags, in_this_process, monkeypatch):
    argv = [*flags, "--shards", str(tmp_path / "shards")]
    assert main(argv) == 0
    assert list((tmp_path / "shards").glob("*/*.tar")) and not list((tmp_path / "shards").glob("*/*.npy"))
    monkeypatch.setattr(features, "run_tasks", None)
    assert main(argv) == 0, "nothing is left to extract"
    assert main([*argv, "--verify", "6"]) == 0


def test_training_reads_a_bucket_as_it_reads_a_folder(assets, tmp_path, flags, in_this_process, monkeypatch):
    """In its data workers, to the bit; a clip that is not there is named before the first step."""
    with served_bucket("clips"):
        root = "s3://clips/features"
        for folder in (root, str(tmp_path / "shards")):
            assert main([*flags, "--shards", folder]) == 0
        monkeypatch.setattr(features, "run_tasks", None)
        options = {"preflight": "off", "max_steps": 2, "dataloader_num_workers": 1}
        far = train(assets, tmp_path / "a", feature_cache=root, **options)
        assert far == train(assets, tmp_path / "b", feature_cache=tmp_path / "shards", **options)

        shutil.copytree(assets.clips, tmp_path / "clips")
        (tmp_path / "clips" / "new.mp4").write_bytes((assets.clips / "clip0.mp4").read_bytes() + bytes(8))
        records = [*json.loads(assets.video_json.read_text()), record("new", CAPTIONS[0], "new.mp4")]
        (tmp_path / "more.json").write_text(json.dumps(records))
        with pytest.raises(
            NotCached, match=r"lacks the features of 1 clips \(.*new\.mp4\).*extract --shards s3://clips"
        ):
            train(assets, tmp_path / "c", feature_cache=root, data_path=tmp_path / "more.json",
                  video_folder=tmp_path / "clips", **options)  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--feature_cache, a folder on disk, or --shards"),
        (["--feature_cache", "a", "--shards", "b"], "--feature_cache, a folder on disk, or --shards"),
        (["--feature_cache", "s3://bucket/a"], "by --shards"),
        (["--feature_cache", "a", "--work", "w", "--shard", "1/2"], "share the clips by themselves"),
        (["--feature_cache", "a", "--work", "w", "--lease", "0"], "--lease"),
    ],
)
def test_flags_that_do_not_go_together(flags, words, said, capsys):
    with pytest.raises(SystemExit):
        main([*flags, *words])
    assert said in capsys.readouterr().err


def killed_at_its_fourth_clip(argv: list[str]) -> None:
    """Extracts one part and dies in the next: SIGKILL, so that nothing is cleaned up."""
    read, seen = features.read_pixels, []

    def dies(clip, **options):
        seen.append(clip)
        if len(seen) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(clip, **options)

    parts.read_pixels = dies
    main(argv)


def test_what_a_killed_job_left_is_taken_over_and_nothing_is_done_twice(
    assets, tmp_path, flags, in_this_process, monkeypatch, capsys
):
    root, work = tmp_path / "shards", tmp_path / "work"
    argv = [*flags, "--shards", str(root), "--work", str(work), "--lease", LEASE]
    job = multiprocessing.get_context("fork").Process(target=killed_at_its_fourth_clip, args=(argv,))
    job.start()
    job.join()
    assert job.exitcode == -signal.SIGKILL
    assert len(clips_of(root)) == 2, "one part of two clips was finished"
    assert main(["--status", str(work)]) == 0
    assert "2 of 6 (33.3%), 0 problem(s)" in capsys.readouterr().out

    read, again = parts.read_pixels, []
    monkeypatch.setattr(parts, "read_pixels", lambda clip, **options: again.append(clip) or read(clip, **options))
    assert main(argv) == 0
    assert len(again) == 4, "what was finished is not repeated"
    assert clips_of(root) == sorted(str(p) for p in assets.clips.glob("*.mp4"))
    assert main(argv) == 0 and len(again) == 4, "nor is anything by a third"
    capsys.readouterr()
    main(["--status", str(work)])
    shown = capsys.readouterr().out
    assert "6 of 6 (100.0%), 0 problem(s)" in shown and "3 finished, 0 claimed, 0 free, of 3" in shown
    (settings,) = root.glob("*/settings.json")
    assert len(FeatureCache(root, json.loads(settings.read_text()))) == 6


def test_problems_of_all_parts_are_those_of_every_job(assets, tmp_path, flags, in_this_process):
    shutil.copytree(assets.clips, tmp_path / "clips")
    (tmp_path / "clips" / "garbage.mp4").write_text("no video")
    records = [record("bad", CAPTIONS[0], "garbage.mp4"), *json.loads(assets.video_json.read_text())]
    (tmp_path / "some.json").write_text(json.dumps(records))
    argv = [*flags, "--data_path", str(tmp_path / "some.json"), "--video_folder", str(tmp_path / "clips"),
            "--feature_cache", str(tmp_path / "cache"), "--work", str(tmp_path / "work")]  # fmt: skip
    for name in ("first.jsonl", "second.jsonl"):
        assert main([*argv, "--bad_list", str(tmp_path / name)]) == 1
        assert "garbage.mp4" in (tmp_path / name).read_text()


def test_a_job_that_is_stopped_gives_its_part_back(tmp_path, flags, in_this_process, monkeypatch):
    argv = [*flags, "--feature_cache", str(tmp_path / "cache"), "--work", str(tmp_path / "work")]
    read, seen = parts.read_pixels, []

    def signalled(clip, **options):
        seen.append(clip)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(clip, **options)

    monkeypatch.setattr(parts, "read_pixels", signalled)
    with pytest.raises(Stopped):
        main(argv)
    monkeypatch.setattr(jobs.WorkList, "_alive", lambda *_: True)
    assert main(argv) == 0, "without waiting for a lease"
    assert len(clips_of(tmp_path / "cache")) == 6
