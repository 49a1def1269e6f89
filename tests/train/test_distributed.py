"""`torchrun` on CPU: two processes give the losses of one with twice the batch."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.processes import start, torchrun_all
from tests.train.runs import alarms, flags, losses, train

RUNS = ("text", "video", "three", "mixed")


@pytest.fixture(scope="module")
def options(assets: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Flags of each run."""
    folder = tmp_path_factory.mktemp("data")
    three = folder / "three.json"
    three.write_text(json.dumps(json.loads(assets.video_json.read_text())[:3]))
    entries = [f"{{json_path: {path}, sampling_strategy: random:3}}" for path in (assets.video_json, assets.text_json)]
    mixed = folder / "mixed.yaml"
    mixed.write_text(f"datasets: [{', '.join(entries)}]")
    return {
        "text": {"experiment": 1, "max_steps": 5},
        "video": {"max_steps": 5},
        "three": {"eval_data_path": three, "max_steps": 2},
        "mixed": {"data_path": mixed, "max_steps": 6, "group_by_modality_length": False},
    }


@pytest.fixture(scope="module")
def two(assets: SimpleNamespace, options: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all runs of two processes."""
    root = tmp_path_factory.mktemp("two")
    torchrun_all([flags(assets, root / name, per_device_train_batch_size=1, **options[name]) for name in RUNS])
    return root


@pytest.mark.parametrize("name", ["text", "video"])
def test_two_processes_equal_one_with_twice_the_batch(assets, options, two, tmp_path, name):
    one = train(assets, tmp_path, per_device_train_batch_size=2, **options[name])
    assert alarms(two / name) == [], "an epoch of two processes serves every record once"
    assert losses(two / name) == pytest.approx(one, abs=1e-4)
    a, b = (load_file(folder / "model.safetensors") for folder in (two / name, tmp_path))
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)


def test_two_processes_measure_what_one_measures(assets, options, two, tmp_path):
    """Evaluation, controls, pre-flight and monitor of two processes; three samples, so that one rank has fewer."""
    train(assets, tmp_path, per_device_train_batch_size=2, **options["three"])
    found = {}
    for name, folder in (("one", tmp_path), ("two", two / "three")):
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
    process = start(flags(assets, tmp_path / "run", learning_rate=0.0, per_device_train_batch_size=1))
    try:
        output, _ = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == 1 and "pre-flight found 1 reason" in output, output[-3000:]


def test_a_rank_without_video_neither_hangs_nor_changes_the_result(assets, options, two, tmp_path):
    """Batches of one sample: in most steps one rank has a video and the other has text. Both take the same of a
    mixture, and its samples are counted over both.
    """
    one = train(assets, tmp_path, per_device_train_batch_size=2, **options["mixed"])
    assert losses(two / "mixed") == pytest.approx(one, abs=1e-4)
    sources = [
        json.loads((folder / "llava_run.json").read_text())["data"]["train"]["sources"]
        for folder in (tmp_path, two / "mixed")
    ]
    assert sources[0] == sources[1] and [source["seen"] for source in sources[0]] == [6, 6]
