"""`torchrun` on CPU: two processes give the losses of one with twice the batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import CAPTIONS, record
from tests.train.runs import flags, losses, train

REPOSITORY = Path(__file__).resolve().parents[2]


def torchrun(processes: int, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes),
               "llava/train/train.py", *arguments]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize("experiment", [1, 2])
def test_two_processes_equal_one_with_twice_the_batch(assets, tmp_path, experiment):
    torchrun(2, flags(assets, tmp_path / "two", experiment, per_device_train_batch_size=1, max_steps=5))
    one = train(assets, tmp_path / "one", experiment, per_device_train_batch_size=2, max_steps=5)
    assert losses(tmp_path / "two") == pytest.approx(one, abs=1e-4)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)


def test_a_rank_without_video_neither_hangs_nor_changes_the_result(assets, tmp_path):
    """Batches of one sample: in most steps one rank has a video and the other has text."""
    mixed = [record(f"v{i}", CAPTIONS[i], f"clip{i}.mp4") for i in range(3)]
    mixed += [record(f"t{i}", CAPTIONS[i]) for i in range(3, 6)]
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps(mixed))
    options = {"data_path": path, "max_steps": 6, "group_by_modality_length": False}
    torchrun(2, flags(assets, tmp_path / "two", per_device_train_batch_size=1, **options))
    one = train(assets, tmp_path / "one", per_device_train_batch_size=2, **options)
    assert losses(tmp_path / "two") == pytest.approx(one, abs=1e-4)
