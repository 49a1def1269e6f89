"""What can go in folders of runs and caches, and what must stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llava import clean
from llava.data.features.store import FeatureCache
from llava.train.checkpoint.files import write_manifest
from llava.train.checkpoint.lock import LOCK_FILE

HOLD = """
import fcntl, os, sys
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(handle, fcntl.LOCK_EX)  # As a run does, in llava.train.checkpoint.lock.
print("held", flush=True)
sys.stdin.readline()
"""


def checkpoint(run: Path, step: int, size: int = 8192) -> Path:
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes([step % 256]) * size)
    write_manifest(folder)
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with checkpoints 2 to 8, of which 4 is the best, and a milestone."""
    run = tmp_path / "output" / "run"
    for step in (2, 4, 6, 8):
        checkpoint(run, step)
    (run / "chck_1M").mkdir()
    (run / "model.safetensors").write_bytes(b"final")
    (run / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": "elsewhere/output/run/checkpoint-4"}))
    (run / "llava_run.json").write_text("{}")
    return run


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {LOCK_FILE}


def old(path: Path) -> Path:
    os.utime(path, (0, 0), follow_symlinks=False)
    return path


def cleaned(capsys, *arguments: object) -> str:
    assert clean.main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def test_old_checkpoints_are_listed_and_deleted_on_request_alone(run, capsys):
    before = names(run)
    shown = cleaned(capsys, run.parent)
    assert "checkpoint-2: older than checkpoint-8" in shown and "checkpoint-6: older" in shown
    assert "checkpoint-4" not in shown and "checkpoint-8:" not in shown and "nothing was deleted" in shown
    assert names(run) == before
    shown = cleaned(capsys, run.parent, "--yes")
    assert names(run) == before - {"checkpoint-2", "checkpoint-6"}
    assert "deleted: " in shown and " kB" in shown
    assert "nothing to delete" in cleaned(capsys, run.parent, "--yes")


def test_more_checkpoints_are_kept_on_request(run, capsys):
    cleaned(capsys, run, "--keep", 3, "--yes")
    assert {"checkpoint-4", "checkpoint-6", "checkpoint-8"} <= names(run) and "checkpoint-2" not in names(run)


def test_leftovers_go_and_damaged_checkpoints_stay(run, capsys):
    for name in (".tmp-checkpoint-9", "invalid-checkpoint-3"):
        (run / name).mkdir()
    (run / "checkpoint-8" / "model.safetensors").write_bytes(b"cut")
    shown = cleaned(capsys, run, "--yes")
    assert "kept: " in shown and "checkpoint-8: model.safetensors has 3 bytes instead of 8192" in shown
    assert names(run) >= {"checkpoint-4", "checkpoint-6", "checkpoint-8", "chck_1M", "model.safetensors"}
    assert not names(run) & {"checkpoint-2", ".tmp-checkpoint-9", "invalid-checkpoint-3"}


def test_an_older_checkpoint_stays_where_the_newest_has_other_bytes_than_were_written(run, capsys):
    (run / "checkpoint-8" / "model.safetensors").write_bytes(b"x" * 8192)
    assert clean.main([str(run), "--yes"]) == 1
    assert "checkpoint-6: no newer checkpoint is whole" in capsys.readouterr().out
    assert {"checkpoint-2", "checkpoint-6"} <= names(run)


def test_a_run_that_lives_is_left_alone(run, capsys):
    before = names(run)
    found = clean.look([run])
    command = [sys.executable, "-c", HOLD, str(run / LOCK_FILE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdin and holder.stdout.readline() == "held\n"
        assert "a run lives here; left alone" in cleaned(capsys, run.parent, "--yes", "--caches")
        # One that started after the look.
        assert all("belongs to a run that still lives" in line for line in clean.delete(found.waste, [run])[1])
        holder.stdin.write("\n")
    assert names(run) == before
    cleaned(capsys, run, "--yes")
    assert "checkpoint-2" not in names(run)


def test_a_checkpoint_that_another_run_began_from_stays(run, capsys):
    other = run.parent / "other"
    other.mkdir()
    flags = {"flags": {"model_name_or_path": str(run / "checkpoint-2")}}
    (other / "llava_run.json").write_text(json.dumps(flags))
    assert "checkpoint-2: another run began from it" in cleaned(capsys, run.parent, "--yes")
    assert "checkpoint-2" in names(run) and "checkpoint-6" not in names(run)


def test_links_are_neither_followed_nor_deleted(run, tmp_path, capsys):
    elsewhere = tmp_path / "other disk"
    moved = elsewhere / "checkpoint-1"
    (run / "checkpoint-2").rename(checkpoint(elsewhere, 1) and elsewhere / "moved")
    (run / "checkpoint-2").symlink_to(elsewhere / "moved")
    checkpoint(elsewhere / "run", 1), checkpoint(elsewhere / "run", 2)
    (run.parent / "linked").symlink_to(elsewhere / "run")
    (run / ".tmp-link").symlink_to(elsewhere)
    shown = cleaned(capsys, run.parent, "--yes")
    assert "linked: a link; left alone" in shown and "checkpoint-2: a link; left alone" in shown
    assert moved.exists() and names(elsewhere / "moved") == names(moved)
    assert names(elsewhere / "run") == {"checkpoint-1", "checkpoint-2"}
    assert {"checkpoint-2", ".tmp-link"} <= names(run) and "checkpoint-6" not in names(run)
    # A link that took the place of a folder after the look.
    waste = clean.Waste(run / "swapped" / "checkpoint-1", 1, "older")
    (run / "swapped").symlink_to(elsewhere)
    assert clean.delete([waste], [run.parent])[1] == [f"{waste.path}: leads out of the folders that were named"]
    assert moved.exists()


def make_cache(root: Path, **settings: object) -> FeatureCache:
    known = {"tower": "v2:a", "select_layer": -2, "select_feature": "patch", "precision": "fp32", "dtype": "float16"}
    cache = FeatureCache(root, known | settings)
    cache.write([("key", "a.mp4")], np.zeros((1, 2, 4, 8), np.float16))
    return cache


@pytest.fixture
def caches(run) -> dict[str, FeatureCache]:
    """A cache that the run was trained on, one of another layer, one that the first borrows from."""
    root = run.parent / "feature_cache"
    found = {
        "used": make_cache(root),
        "other": make_cache(root, select_layer=-1),
        "lender": make_cache(root, tower="v2:b"),
    }
    entry = next(iter(found["lender"]._entries.values()))
    found["used"].adopt({"old": entry})
    config = {"mm_vision_tower_checksum": "v2:a", "mm_vision_select_layer": -2, "mm_feature_dtype": "float16"}
    (run / "config.json").write_text(json.dumps(config))
    return found


def test_features_that_no_run_uses_go_on_request(run, caches, capsys):
    assert "feature_cache" not in cleaned(capsys, run.parent)
    shown = cleaned(capsys, run.parent, "--caches", "--yes")
    assert "features (float16, fp32, layer -1) that fit no run in these folders" in shown
    assert [name for name, cache in caches.items() if cache.folder.exists()] == ["used", "lender"]
    caches["used"].reload()
    assert len(caches["used"]) == 2


def test_without_a_run_no_cache_is_called_unused(run, caches, capsys):
    shown = cleaned(capsys, run.parent / "feature_cache", "--caches", "--yes")
    assert "there is no run with vision in these folders" in shown and "nothing to delete" in shown
    (run / "config.json").write_text(json.dumps({"mm_vision_tower_checksum": "0" * 64}))
    assert "nothing to delete" in cleaned(capsys, run.parent / "feature_cache", "--caches"), "an earlier commit's"


def test_half_written_features_go_once_nobody_writes_them(run, caches, capsys):
    folder = caches["used"].folder
    temporary = folder / f".{'a' * 32}.npy.{'b' * 32}"
    orphan = folder / f"{'c' * 32}.npy"
    for path in (temporary, orphan):
        path.write_bytes(b"half")
    fresh = run.parent / f".gpt2-{'d' * 32}"
    fresh.mkdir()
    assert not {temporary, orphan, fresh} & {w.path for w in clean.look([run.parent]).waste}, "being written"
    for path in (temporary, orphan, fresh, *folder.glob("*.npy")):
        old(path)
    cleaned(capsys, run.parent, "--yes", "--keep", 9)
    assert not (temporary.exists() or orphan.exists() or fresh.exists())
    caches["used"].reload()
    assert len(caches["used"]) == 2


def test_a_folder_that_is_none_is_a_message(tmp_path, capsys):
    with pytest.raises(SystemExit):
        clean.main([str(tmp_path / "nowhere")])
    assert "nowhere: is no folder; name one with runs or caches" in capsys.readouterr().err
