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

from tests.train.runs import alarms, flags, losses, train

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
    assert alarms(tmp_path / "two") == [], "an epoch of two processes serves every record once"
    assert losses(tmp_path / "two") == pytest.approx(one, abs=1e-4)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)


def test_two_processes_measure_what_one_measures(assets, tmp_path):
    """Evaluation, controls, pre-flight and monitor of two processes; three samples, so that one rank has fewer."""
    path = tmp_path / "three.json"
    path.write_text(json.dumps(json.loads(assets.video_json.read_text())[:3]))
    options = {"eval_data_path": path, "max_steps": 2}
    torchrun(2, flags(assets, tmp_path / "two", per_device_train_batch_size=1, **options))
    train(assets, tmp_path / "one", per_device_train_batch_size=2, **options)
    found = {}
    for name in ("one", "two"):
        folder = tmp_path / name
        log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        assert json.loads((folder / "preflight.json").read_text())["passed"]
        found[name] = {
            "evaluation": json.loads((folder / "eval_results.json").read_text()),
            "captions": [e["caption_loss"] for e in log if "caption_loss" in e],
            "norms": [e["grad_norm/projector"] for e in log if "grad_norm/projector" in e],
        }
        lines = (folder / "controls.jsonl").read_text().splitlines()
        assert len(lines) == 1
        controls = json.loads(lines[0])
        assert (controls["captions"], controls["clips"]) == (3, 3)
        found[name]["losses"] = [v["per_caption"] for c, v in controls["losses"].items() if c != "shuffled"]
    for key in ("captions", "norms", "losses"):
        assert found["two"][key] == pytest.approx(found["one"][key], abs=1e-3), key
    for key in ("eval_loss", "eval_common_loss", "eval_common_accuracy", "eval_tokens", "eval_samples"):
        assert found["two"]["evaluation"][key] == pytest.approx(found["one"]["evaluation"][key], abs=1e-3), key


def test_a_failing_preflight_stops_every_process(assets, tmp_path):
    command = flags(assets, tmp_path / "run", learning_rate=0.0, per_device_train_batch_size=1)
    with pytest.raises(AssertionError, match="pre-flight found 1 reason"):
        torchrun(2, command)


def test_a_rank_without_video_neither_hangs_nor_changes_the_result(assets, tmp_path):
    """Batches of one sample: in most steps one rank has a video and the other has text. Both take the same of a
    mixture, and its samples are counted over both.
    """
    entries = [f"{{json_path: {path}, sampling_strategy: random:3}}" for path in (assets.video_json, assets.text_json)]
    path = tmp_path / "mixed.yaml"
    path.write_text(f"datasets: [{', '.join(entries)}]")
    options = {"data_path": path, "max_steps": 6, "group_by_modality_length": False}
    torchrun(2, flags(assets, tmp_path / "two", per_device_train_batch_size=1, **options))
    one = train(assets, tmp_path / "one", per_device_train_batch_size=2, **options)
    assert losses(tmp_path / "two") == pytest.approx(one, abs=1e-4)
    sources = [
        json.loads((tmp_path / n / "llava_run.json").read_text())["data"]["train"]["sources"] for n in ("one", "two")
    ]
    assert sources[0] == sources[1] and [source["seen"] for source in sources[0]] == [6, 6]
