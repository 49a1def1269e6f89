"""Runs of several processes by torchrun, and how to find their ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN = "llava/train/train.py"
SEVERAL = "tests/train/one_after_another.py"


def start(arguments: list[str], processes: int = 2, script: str = TRAIN) -> subprocess.Popen[str]:
    return _start(
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), script, *arguments]
    )


def _start(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "DS_BUILD_OPS": "0"}
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def torchrun(arguments: list[str], processes: int = 2, script: str = TRAIN) -> str:
    return _output(start(arguments, processes, script))


def run_script(script: str, *arguments: str) -> str:
    """The output of a script of this repository that must end well."""
    return _output(_start([script, *arguments]))


def _output(process: subprocess.Popen[str]) -> str:
    try:
        output, _ = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == 0, output[-4000:]
    return output


def torchrun_all(runs: list[list[str]], processes: int = 2) -> str:
    """`torchrun` of several lists of flags, in the same processes."""
    return torchrun([json.dumps(runs)], processes, SEVERAL)


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def rank_of(pid: int) -> str:
    parts = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return next((p.removeprefix("RANK=") for p in parts if p.startswith("RANK=")), "")
