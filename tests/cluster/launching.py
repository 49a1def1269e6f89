"""The launch script with a model and data small enough for a test."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "train_italian_video.sh"


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
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
