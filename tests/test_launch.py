"""The launch script, as a user calls it, with settings small enough for a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def launch(folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs the script with its output under `folder`, in the environment of this interpreter."""
    try:
        distribution("llava-italian-video")
    except PackageNotFoundError:
        pytest.skip("the package is not installed in this environment, so the script would make one of its own")
    small = {
        "DEMO_DIR": str(folder / "demo"), "OUTPUT_ROOT": str(folder / "output"), "DEMO_CLIPS": "64", "MAX_STEPS": "4",
        "SAVE_STEPS": "2", "LOGGING_STEPS": "1", "PRECISION": "fp32", "REPORT_TO": "none",
        "VIRTUAL_ENV": sys.prefix, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k not in ("VENV", "PYTHONPATH", "SLURM_SUBMIT_DIR")}
    return subprocess.run(
        ["bash", str(ROOT / "train_italian_video.sh")],
        env=environment | small | settings,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_both_experiments_and_a_second_call(tmp_path):
    video = launch(tmp_path)
    assert video.returncode == 0, video.stderr[-3000:]
    assert "DATA_PATH is not set: running the built-in demo" in video.stdout
    for expected in ("heldout_combinations_vi_it, true video", "heldout_clips_vi_it, other video", "reference: "):
        assert expected in video.stdout
    scores = json.loads((tmp_path / "output" / "demo_exp2_seed0" / "captions.json").read_text())["scores"]
    assert set(next(iter(scores.values()))) >= {"shape", "colour", "size", "background", "direction", "all"}

    run = tmp_path / "output" / "demo_exp2_seed0"
    page = (run / "report.html").read_text()
    assert "data:image/jpeg;base64," in page, "captions stand beside frames of their clips"
    assert json.loads((run / "preflight.json").read_text())["passed"]

    again = launch(tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "resuming from" in again.stdout + again.stderr

    text = launch(tmp_path, EXP_ID="1")
    assert text.returncode == 0, text.stderr[-3000:]
    results = json.loads((tmp_path / "output" / "demo_exp1_seed0" / "eval_results.json").read_text())
    assert results["eval_samples"] == 240


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"EXP_ID": "3"}, "EXP_ID=3; use 1 (text only) or 2 (video and text)"),
        ({"DATA_PATH": "/nowhere.json"}, "DATA_PATH=/nowhere.json: no such file"),
        ({"SLURM_SUBMIT_DIR": "/tmp"}, "/tmp is not the repository"),
    ],
)
def test_wrong_settings_are_one_message(tmp_path, settings, message):
    result = launch(tmp_path, **settings)
    assert result.returncode == 1
    assert message in result.stderr
