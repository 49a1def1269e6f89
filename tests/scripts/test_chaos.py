"""Random kills of the demo's runs, a few of them; and the comparison that judges them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts import chaos
from tests.train.runs import train

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.long
def test_a_few_random_kills(tmp_path):
    # In a process of its own, since the script forks.
    command = [
        sys.executable,
        "scripts/chaos.py",
        "--output_dir",
        str(tmp_path / "chaos"),
        "--seed",
        "2",
        "--kills",
        "3",
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "3 of 3 kills left a run that ended as if untouched" in done.stdout


def test_tensors_of_two_devices_differ():
    """Where the states of a resumed run lay on the GPU and the others on the CPU, the comparison raised."""
    state = {"step": torch.ones(2), "names": ["a"]}
    assert chaos.same(state, {"step": torch.ones(2), "names": ["a"]})
    for other in (torch.ones(2, device="meta"), 1.0):
        assert not chaos.same(state, state | {"step": other})


def test_what_differs_is_named(assets, tmp_path):
    whole = tmp_path / "whole"
    train(assets, whole, 1, save_strategy="steps", save_steps=3, preflight="off", eval_data_path=assets.text_json)

    def changed(name: str, change) -> list[str]:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        change(copy / name)
        return chaos.differences(whole, copy)

    def weights(path: Path) -> None:
        tensors = load_file(path)
        tensors["transformer.wte.weight"][3, 3] += 1e-7
        save_file(tensors, path)

    def log(path: Path) -> None:
        state = json.loads(path.read_text())
        state["log_history"][2]["loss"] += 1e-12
        path.write_text(json.dumps(state))

    assert changed("trainer_state.json", lambda path: None) == []
    assert changed("model.safetensors", weights) == ["weights"]
    assert changed("trainer_state.json", log) == ["log"]
    assert changed("eval_results.json", lambda path: path.write_text("{}")) == ["eval_results.json"]
    assert changed("checkpoint-6", shutil.rmtree) == ["last checkpoint (6 and 3)"]
    swap = lambda path: shutil.copy(path.parents[1] / "checkpoint-3" / path.name, path)  # noqa: E731
    assert changed("checkpoint-6/optimizer.pt", swap) == ["optimizer.pt"]
