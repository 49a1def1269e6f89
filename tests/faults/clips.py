"""Clips with every fault, and readers that hang or crash on two of them as a decoder would."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from llava.data import check, video
from llava.data.features import extract as features
from tests.conftest import CAPTIONS, record
from tests.data.video.clips import cut, damage, write_gray

FAULTS = ("truncated", "empty", "renamed", "damaged", "garbage", "folder", "hang", "crash")


def write_data(assets: SimpleNamespace, folder: Path, faults: tuple[str, ...] = FAULTS) -> dict[str, Any]:
    """The flags of a data set of six good records and one for each fault, which its id and its clip are called by."""
    clips = folder / "clips"
    shutil.copytree(assets.clips, clips)
    records = json.loads(assets.video_json.read_text())
    for i, fault in enumerate(faults):
        path = clips / f"{fault}.mp4"
        # Of lengths of their own: clips of the same content are read once.
        write_gray(path, 40 + i, noise=True, options={"g": "1000", "preset": "ultrafast"})
        if fault == "truncated":
            cut(path, 0.6)
        elif fault == "empty":
            path.write_bytes(b"")
        elif fault == "renamed":
            path.rename(clips / "other.mp4")
        elif fault == "damaged":
            damage(path, 0.4, 8000)
        elif fault == "garbage":
            path.write_text("no video")
        elif fault == "folder":
            path.unlink()
            path.mkdir()
        records.append(record(fault, CAPTIONS[0], path.name))
    path = folder / "data.json"
    path.write_text(json.dumps(records))
    return {"data_path": path, "video_folder": clips}


def fail_on(path: str) -> None:
    """Hangs, or dies as by a segmentation fault, where the file's name says so."""
    if path.endswith("hang.mp4"):
        threading.Event().wait()
    if path.endswith("crash.mp4"):
        os.kill(os.getpid(), signal.SIGSEGV)


def read_pixels(clip: features.Clip, **options: Any) -> np.ndarray | str:
    """In the place of `features.read_pixels`, in a process of its own, where nothing is replaced."""
    fail_on(clip[0])
    return features.read_pixels(clip, **options)


def open_file(clip: features.Clip, **options: Any) -> check.FileReport:
    """In the place of `check.open_file`, likewise."""
    fail_on(clip[0])
    return check.open_file(clip, **options)


def read_frames(path: str, *args: Any) -> np.ndarray:
    """In the place of the data set's `read_frames`, in a data worker."""
    fail_on(path)
    return video.read_frames(path, *args)
