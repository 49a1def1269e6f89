"""Checkpoints on bad days: cut short, damaged, replaced, rotated; full and read-only disks; a second run."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llava.train.checkpoint import files as checkpoints
from llava.train.checkpoint.files import (
    WriteError,
    checkpoint_problems,
    clear_leftovers,
    newest_valid,
    publish,
    rotate,
    write_errors_explained,
)
from llava.train.checkpoint.lock import LOCK_FILE, only_run
from llava.train.monitor.alarms import Alarm, AlarmRules
from tests.train.runs import train

# The thread that writes for TensorBoard dies of the full disk that it is given.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

SAVE = {"save_strategy": "steps", "save_steps": 2, "resume_from_checkpoint": "auto", "preflight": "off"}


def make(folder: Path, step: int, value: float = 0.0) -> Path:
    """A checkpoint of one tensor and one text file, written as the trainer does."""
    written = folder / f".tmp-checkpoint-{step}" / f"checkpoint-{step}"
    written.mkdir(parents=True)
    save_file({"w": torch.full((64,), value)}, written / "model.safetensors")
    (written / "trainer_state.json").write_text("{}")
    publish(written, folder / f"checkpoint-{step}")
    written.parent.rmdir()
    return folder / f"checkpoint-{step}"


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda c: truncate(c / "model.safetensors"), "model.safetensors has 320 bytes instead of 328"),
        (lambda c: flip(c / "model.safetensors"), "model.safetensors has other contents"),
        (lambda c: (c / "trainer_state.json").unlink(), "trainer_state.json is missing"),
        (lambda c: (c / "manifest.json").unlink(), "no manifest.json"),
        (lambda c: truncate(c / "manifest.json"), "manifest.json is damaged"),
        (lambda c: (c / "manifest.json").write_text("[]"), "manifest.json is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_by_name_and_stays(tmp_path, caplog, damage, words):
    good, bad = make(tmp_path, 9), make(tmp_path, 10)
    assert newest_valid(tmp_path) == bad
    damage(bad)
    assert newest_valid(tmp_path) == good
    assert words in caplog.text and str(bad) in caplog.text
    assert bad.is_dir()


def test_a_checkpoint_has_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
    """Killed before any of the system calls that write, nothing half-written has a checkpoint's name."""
    for call in ("write_manifest", "_sync"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, call, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                make(tmp_path, 3)
        assert newest_valid(tmp_path) is None and names(tmp_path) == {".tmp-checkpoint-3"}
        clear_leftovers(tmp_path)
        assert names(tmp_path) == set()


def test_leftovers_are_removed_aloud(tmp_path, caplog):
    (tmp_path / ".tmp-checkpoint-4" / "checkpoint-4").mkdir(parents=True)
    clear_leftovers(tmp_path)
    assert ".tmp-checkpoint-4: removed" in caplog.text and names(tmp_path) == set()


def moved(folder: Path, elsewhere: Path) -> Path:
    """A checkpoint that was moved to another disk and linked from its place."""
    elsewhere.mkdir(exist_ok=True)
    folder.rename(elsewhere / folder.name)
    folder.symlink_to(elsewhere / folder.name)
    return elsewhere / folder.name


def test_links_are_followed_for_reading_and_removed_as_links(tmp_path):
    """`rmtree` refuses a link, so a run with one could neither rotate nor go on."""
    run, disk = tmp_path / "run", tmp_path / "disk"
    targets = [moved(make(run, step), disk) for step in (1, 2)]
    (run / ".tmp-checkpoint-3").symlink_to(disk)
    (run / ".tmp-removed-checkpoint-0").symlink_to(tmp_path / "nowhere")
    (run / ".tmp-file").touch()
    clear_leftovers(run)
    assert sorted(p.name for p in run.iterdir()) == ["checkpoint-1", "checkpoint-2"]
    assert newest_valid(run) == run / "checkpoint-2"
    rotate(run, 1, set())
    assert [p.name for p in run.iterdir()] == ["checkpoint-2"] and all(target.is_dir() for target in targets)


@pytest.mark.parametrize("leads", ["to a whole one", "nowhere"])
def test_a_link_makes_way_for_a_new_checkpoint(tmp_path, leads):
    run = tmp_path / "run"
    target = moved(make(run, 1), tmp_path / "disk")
    written = make(tmp_path / "aside", 1)
    if leads == "nowhere":
        target.rename(tmp_path / "gone")
    publish(written, run / "checkpoint-1")
    assert not (run / "checkpoint-1").is_symlink() and newest_valid(run) == run / "checkpoint-1"
    assert target.is_dir() == (leads != "nowhere")


def test_a_run_goes_on_from_checkpoints_that_were_moved(assets, tmp_path):
    run = tmp_path / "run"
    whole = train(assets, tmp_path / "whole", 1, **SAVE)
    train(assets, run, 1, **SAVE | {"save_total_limit": 1})
    kept = moved(next(run.glob("checkpoint-*")), tmp_path / "disk")
    (run / ".tmp-checkpoint-9").symlink_to(tmp_path / "disk")
    assert train(assets, run, 1, **SAVE | {"save_total_limit": 1}) == whole
    assert kept.is_dir()


def test_tensors_are_read_back(tmp_path):
    written = tmp_path / ".tmp-checkpoint-1" / "checkpoint-1"
    written.mkdir(parents=True)
    (written / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read back"):
        publish(written, tmp_path / "checkpoint-1")
    assert not (tmp_path / "checkpoint-1").exists()


def test_a_whole_one_is_replaced_and_a_damaged_one_kept(tmp_path):
    before = make(tmp_path, 5, 1.0)
    digest = checkpoints.checksum(before / "model.safetensors")
    make(tmp_path, 5, 2.0)
    assert checkpoints.checksum(before / "model.safetensors") != digest and names(tmp_path) == {"checkpoint-5"}
    (before / "trainer_state.json").unlink()
    make(tmp_path, 5, 1.0)
    assert not checkpoint_problems(before) and names(tmp_path) == {"checkpoint-5", "invalid-checkpoint-5"}


def test_rotation_keeps_the_newest_the_best_and_what_is_damaged(tmp_path):
    for step in (8, 9, 10, 11, 12):
        make(tmp_path, step)
    truncate(tmp_path / "checkpoint-11" / "model.safetensors")
    # By time the oldest would be the newest: the clock went backwards.
    os.utime(tmp_path / "checkpoint-12", (0, 0))
    rotate(tmp_path, 2, {tmp_path / "checkpoint-12", tmp_path / "checkpoint-8"})
    assert names(tmp_path) == {"checkpoint-8", "checkpoint-11", "checkpoint-12"}
    rotate(tmp_path, 1, {tmp_path / "checkpoint-12"})
    assert names(tmp_path) == {"checkpoint-11", "checkpoint-12"}
    rotate(tmp_path, None, set())
    assert names(tmp_path) == {"checkpoint-11", "checkpoint-12"}


@pytest.mark.parametrize("limit", [1, 2])
def test_a_run_rotates_and_keeps_its_best(assets, tmp_path, limit):
    options = SAVE | {
        "save_steps": 1, "save_total_limit": limit, "eval_strategy": "steps", "eval_steps": 1, "eval_data_path":
        assets.text_json, "metric_for_best_model": "eval_loss", "greater_is_better": False,
        "load_best_model_at_end": True,
    }  # fmt: skip
    # So high a rate that the first step is the best.
    train(assets, tmp_path, 1, learning_rate=10.0, lr_scheduler_type="constant", **options)
    kept = {p for p in names(tmp_path) if p.startswith("checkpoint-")}
    state = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    best = Path(state["best_model_checkpoint"])
    assert kept == {best.name, "checkpoint-6"} and best.name != "checkpoint-6" and best.parent == tmp_path
    assert not any(p.startswith(".tmp") for p in names(tmp_path))


def test_a_truncated_tensor_file_is_never_resumed_from(assets, tmp_path, caplog):
    whole = train(assets, tmp_path, 1, **SAVE)
    truncate(tmp_path / "checkpoint-6" / "model.safetensors")
    with pytest.raises(ValueError, match=r"checkpoint-6 is damaged: model\.safetensors has \d+ bytes instead of"):
        train(assets, tmp_path, 1, **SAVE | {"resume_from_checkpoint": tmp_path / "checkpoint-6"})
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert train(assets, tmp_path, 1, **SAVE | {"resume_from_checkpoint": True}) == whole
    assert "checkpoint-6 is not whole and is passed over: model.safetensors has" in caplog.text
    assert f"resuming from {tmp_path / 'checkpoint-4'}" in caplog.text
    assert "kept as invalid-checkpoint-6" in caplog.text and newest_valid(tmp_path) == tmp_path / "checkpoint-6"


def test_no_whole_checkpoint_is_said(assets, tmp_path, caplog):
    options = SAVE | {"max_steps": 2}
    train(assets, tmp_path, 1, **options)
    (tmp_path / "llava_run.json").unlink()
    (tmp_path / "checkpoint-2" / "optimizer.pt").unlink()
    with pytest.raises(FileNotFoundError, match="checkpoint-2 are damaged"):
        train(assets, tmp_path, 1, **options | {"resume_from_checkpoint": True})
    train(assets, tmp_path, 1, **options)
    assert "no checkpoint is whole, so the run starts anew" in caplog.text


@pytest.mark.parametrize("writer", ["torch", "system", "manifest"])
def test_a_full_disk_leaves_the_checkpoints_before_it_whole(assets, tmp_path, monkeypatch, writer):
    """The second checkpoint does not fit; what is written of it is removed, and the run goes on from the first."""
    whole = train(assets, tmp_path / "whole", 1, **SAVE)

    def failing(original):
        def call(*args, **kwargs):
            if (tmp_path / "run" / "checkpoint-2").exists():
                if writer == "torch":
                    raise RuntimeError("[enforce fail at inline_container.cc:862] . PytorchStreamWriter failed writing")
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        if writer == "manifest":
            patch.setattr(checkpoints, "write_manifest", failing(checkpoints.write_manifest))
        else:
            patch.setattr(torch, "save", failing(torch.save))
        with pytest.raises(
            WriteError, match=r"checkpoint-4 in .* could not be written.*checkpoint-2 is whole"
        ) as error:
            train(assets, tmp_path / "run", 1, **SAVE)
    assert "--save_total_limit (now unlimited)" in str(error.value) and "same command" in str(error.value)
    assert not list((tmp_path / "run").glob(".tmp-*"))
    assert train(assets, tmp_path / "run", 1, **SAVE) == whole


@pytest.fixture
def mount(tmp_path: Path) -> Iterator:
    """`mount(*options)` on a folder, for those who may."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    done: list[Path] = []

    def do(*options: str) -> Path:
        result = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
        if result.returncode:
            pytest.skip(f"mount is not permitted: {result.stderr.strip()}")
        done.append(folder)
        return folder

    yield do
    for place in reversed(done):
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("megabytes", [3, 4])
def test_a_disk_that_is_really_full(assets, mount, megabytes):
    """On a small file system of its own; a checkpoint has about 1.2 MB, and the limit decides what is cut."""
    folder = mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs") / "run"
    with pytest.raises(OSError, match="No space left on device") as error:
        train(assets, folder, 1, **SAVE | {"save_steps": 1, "max_steps": 20})
    assert "is whole and the run goes on from it" in str(error.value)
    assert newest_valid(folder) is not None and not list(folder.glob(".tmp-*"))


def test_a_file_system_without_inodes_is_named(mount):
    folder = mount("-t", "tmpfs", "-o", "size=4m,nr_inodes=20", "tmpfs")
    words = r"no inodes left, whatever its free space \([34] MB\).*many small ones"
    with pytest.raises(WriteError, match=words), write_errors_explained(folder, "checkpoint-1"):
        for number in range(40):
            (folder / f"{number}").touch()


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_alarms_that_cannot_be_written_are_one_message(assets, tmp_path, monkeypatch):
    monkeypatch.setattr(
        AlarmRules, "update", lambda rules, seen: [Alarm(seen.step, "blind", "m", "r")] * (seen.step == 5)
    )
    monkeypatch.setattr("llava.train.monitor.run_monitor.open", no_space, raising=False)
    with pytest.raises(WriteError, match="could not be written: No space left on device. checkpoint-4 is whole"):
        train(assets, tmp_path, 1, **SAVE)


def test_a_log_that_cannot_be_written_is_one_message(assets, tmp_path, monkeypatch):
    monkeypatch.setattr("llava.train.trainer.LlavaTrainer.save_state", no_space)
    with pytest.raises(WriteError, match="could not be written: No space left on device. checkpoint-6 is whole"):
        train(assets, tmp_path, 1, **SAVE)


def test_a_model_that_cannot_be_written_is_one_message(assets, tmp_path, monkeypatch):
    """The last checkpoint is written, and the model of the finished run is not; nothing half-written has its name."""
    save = torch.save

    def failing(thing, path, *args, **kwargs):
        if "checkpoint-" not in str(path):
            raise RuntimeError("[enforce fail at inline_container.cc:862] . PytorchStreamWriter failed writing file")
        return save(thing, path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", failing)
        with pytest.raises(WriteError, match="the model in .* could not be written.* checkpoint-6 is whole"):
            train(assets, tmp_path, 1, **SAVE)
    assert not {"model.safetensors", "llava_run.json"} & names(tmp_path)
    assert len(train(assets, tmp_path, 1, **SAVE)) == 6
    assert {"model.safetensors", "llava_run.json"} <= names(tmp_path) and not list(tmp_path.glob(".tmp-*"))


def test_tensorboard_on_a_full_disk_is_one_message(assets, tmp_path, monkeypatch):
    from tensorboard.summary.writer.record_writer import RecordWriter

    monkeypatch.setattr(RecordWriter, "write", no_space)
    with pytest.raises(WriteError, match="No space left on device"):
        train(assets, tmp_path, 1, **SAVE | {"report_to": "tensorboard", "max_steps": 40})


def test_a_read_only_output_folder_is_one_message(assets, tmp_path, mount):
    folder = tmp_path / "mounted"
    mount("--bind", str(folder))
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
    with pytest.raises(WriteError, match=r"--output_dir .*/mounted.*Read-only file system; make it writable"):
        train(assets, folder / "run", 1, **SAVE)
    with pytest.raises(WriteError, match=r"--output_dir .*/mounted.*Read-only file system; make it writable"):
        train(assets, folder, 1, **SAVE)


def test_errors_of_reading_keep_their_own_words(tmp_path):
    for error in (FileNotFoundError(errno.ENOENT, "x"), PermissionError(errno.EACCES, "no", "/data/clip.mp4")):
        with pytest.raises(type(error)) as caught, write_errors_explained(tmp_path):
            raise error
        assert caught.value is error
    ours = pytest.raises(WriteError, match=r"alarms\.jsonl could not be written: Permission denied")
    with ours, write_errors_explained(tmp_path):
        raise PermissionError(errno.EACCES, "no", str(tmp_path / "alarms.jsonl"))


HOLD = """
import sys
from llava.train.checkpoint.lock import only_run
with only_run(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder: Path) -> subprocess.Popen:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def test_a_second_run_in_the_folder_is_refused_while_the_first_lives(assets, tmp_path):
    first = hold(tmp_path)
    try:
        with pytest.raises(BlockingIOError, match=rf"still lives \(host .*, pid {first.pid}, started \d{{4}}-"):
            train(assets, tmp_path, 1, **SAVE)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    # Killed without a chance to tidy up: its note is still there, and stops nobody.
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == first.pid
    assert len(train(assets, tmp_path, 1, **SAVE)) == 6


def test_the_lock_is_not_inherited_by_workers(tmp_path):
    with only_run(tmp_path):
        child = os.fork()
        if child == 0:
            signal.pause()
    try:
        with only_run(tmp_path):  # The process that forked has let go; its child lives on.
            other = subprocess.run([sys.executable, "-c", HOLD, str(tmp_path)], capture_output=True, text=True)
            assert "still lives" in other.stderr
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("llava.train.checkpoint.lock.fcntl.lockf", refuse)
    with only_run(tmp_path):
        assert "has no locks" in caplog.text
