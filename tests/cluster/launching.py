"""The launch script with a model and data small enough for a test."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "train_italian_video.sh"
PAUSE = '''
"""Has a Python process wait when it first calls a function, until the test opens a FIFO."""
import importlib.util, os, sys

module_name, _, place = os.environ["PAUSE_IN"].partition(":")

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != module_name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (execute(module), patch(module))
        return spec

def patch(owner):
    *owners, name = place.split(".")
    for part in owners:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    waited = []

    def call(*args, **kwargs):
        if not waited:
            waited.append(True)
            os.write(2, b"PAUSED\\n")
            open(os.environ["PAUSE_FIFO"]).close()
            # The run looks for the stop file twice a second, and its next steps may take less.
            if "llava.train.checkpoint.stop" in sys.modules:
                sys.modules["llava.train.checkpoint.stop"].LOOK_SECONDS = 0
        return original(*args, **kwargs)

    setattr(owner, name, call)

if os.environ.get("RANK", "0") == "0":
    sys.meta_path.insert(0, Finder())
'''


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 600) -> None:
    """Looks again and again, and fails when `condition` does not hold in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """Variables for the script, with its output under `folder`, in the environment of this interpreter."""
    try:
        distribution("llava-italian-video")
    except PackageNotFoundError:
        pytest.skip("the package is not installed in this environment, so the script would make one of its own")
    small = {
        "DEMO_DIR": str(folder / "demo"), "OUTPUT_ROOT": str(folder / "output"), "DEMO_CLIPS": "64", "MAX_STEPS": "4",
        "SAVE_STEPS": "2", "LOGGING_STEPS": "1", "PRECISION": "fp32", "REPORT_TO": "none", "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    left_out = ("VENV", "SLURM_SUBMIT_DIR", "SLURM_JOB_ID", "NNODES", "NODE_RANK")
    return {k: v for k, v in os.environ.items() if k not in left_out} | small | settings


def tiny(assets: SimpleNamespace, folder: Path, **settings: str) -> dict[str, str]:
    """As `environment`, for experiment 2 on the six clips and the models of the fixture `assets`."""
    small = {
        "DATA_PATH": assets.video_json, "EVAL_DATA_PATH": assets.video_json, "MODEL_PATH": assets.gpt2,
        "VIDEO_FOLDER": assets.clips, "VISION_MODEL": assets.tower, "BATCH_SIZE": 2, "MODEL_MAX_LENGTH": 64,
        "NUM_FRAMES": 2, "MM_PERCEIVER_LATENTS": 4, "MM_PERCEIVER_LATENTS_FAST": 1, "FORCE_SAMPLE": True,
        "NUM_GPUS": 1, "NUM_WORKERS": 0, "OMP_NUM_THREADS": 1,
    }  # fmt: skip
    return environment(folder, **{name: str(value) for name, value in small.items()} | settings)


def pause(folder: Path, place: str, fifo: Path) -> dict[str, str]:
    """Variables by which rank 0 says PAUSED and waits at its first call of `place` (`module:function`), until somebody
    opens `fifo`, which is made here, for writing.
    """
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(PAUSE)
    os.mkfifo(fifo)
    return {
        "PYTHONPATH": f"{folder / 'site'}:{ROOT}", "PYTHONUNBUFFERED": "1", "PAUSE_IN": place, "PAUSE_FIFO": str(fifo)
    }  # fmt: skip
