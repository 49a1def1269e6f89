"""A run that is cut and goes on is the run that never was: weights, optimiser, order, random numbers, logs, metrics."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, GPT2LMHeadModel

from llava.errors import Stopped
from llava.train.stop import Stop
from tests.conftest import record
from tests.train.runs import train

TIMES = ("runtime", "per_second", "data_wait_share", "monitor_share")


def history(folder: Path) -> list[dict[str, Any]]:
    """The log of a run without what tells of time."""
    entries = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [{k: v for k, v in entry.items() if not k.endswith(TIMES)} for entry in entries]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def assert_same_run(a: Path, b: Path, step: int | None = None) -> None:
    """Everything that two finished runs wrote, times apart, and their checkpoints of a step."""
    assert history(a) == history(b)
    assert equal(load_file(a / "model.safetensors"), load_file(b / "model.safetensors"))
    for name in ("eval_results.json", "controls.jsonl"):
        texts = [(folder / name).read_text() if (folder / name).exists() else None for folder in (a, b)]
        assert texts[0] == texts[1], name
    if step is not None:
        safe = [np._core.multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            with torch.serialization.safe_globals(safe):
                first, second = (torch.load(f / f"checkpoint-{step}" / name, weights_only=True) for f in (a, b))
            assert equal(first, second), name


class StopAt:
    """Asks a run to stop when it looks for the n-th time; one look follows each step and precedes each batch of an
    evaluation.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, look: int) -> None:
        self.looks = 0

        def requested(stop: Stop) -> bool:
            self.looks += 1
            if self.looks >= look:
                stop.reason = "the test"
            return stop.reason is not None

        monkeypatch.setattr(Stop, "requested", requested)


@pytest.fixture(scope="module")
def lively(assets: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The assets with a model that drops out, so that random numbers count, and with seven records."""
    root = tmp_path_factory.mktemp("lively")
    config = AutoConfig.from_pretrained(assets.gpt2)
    config.resid_pdrop = config.embd_pdrop = 0.2
    torch.manual_seed(1)
    GPT2LMHeadModel(config).save_pretrained(root / "gpt2")
    AutoTokenizer.from_pretrained(assets.gpt2).save_pretrained(root / "gpt2")
    paths = {"gpt2": root / "gpt2"}
    for kind in ("video", "text"):
        records = json.loads(getattr(assets, f"{kind}_json").read_text())
        records.append(record("seventh", "Una nave lenta.", "clip0.mp4" if kind == "video" else None))
        path = paths[f"{kind}_json"] = root / f"{kind}.json"
        path.write_text(json.dumps(records))
    return SimpleNamespace(**{**vars(assets), **paths})


OPTIONS = {
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 10, "logging_steps": 3,
    "save_strategy": "steps", "save_steps": 5, "eval_strategy": "steps", "eval_steps": 4,
    "resume_from_checkpoint": "auto",
    "preflight": "off", "controls_samples": 4, "per_device_eval_batch_size": 3,
}  # fmt: skip


def evaluated(assets: SimpleNamespace, experiment: int) -> dict[str, Any]:
    return OPTIONS | {"eval_data_path": assets.video_json if experiment == 2 else assets.text_json}


@pytest.mark.parametrize(("workers", "looks"), [(0, (2, 3, 5)), (2, (4, 7))])
@pytest.mark.parametrize("experiment", [1, 2])
def test_stopped_again_and_again(lively, tmp_path, monkeypatch, experiment, workers, looks):
    """Seven records in steps of two: four steps an epoch, the last one uneven. Stopped after steps, at the end of an
    epoch and in evaluations, later and later, so that the run advances.
    """
    options = evaluated(lively, experiment) | {"dataloader_num_workers": workers}
    train(lively, tmp_path / "whole", experiment, **options)
    reasons = []
    for attempt in range(60):
        with monkeypatch.context() as patch:
            # The first look comes before training.
            StopAt(patch, looks[attempt % len(looks)] + attempt // 4)
            try:
                train(lively, tmp_path / "cut", experiment, **options)
                break
            except Stopped:
                note = json.loads((tmp_path / "cut" / "stopped.json").read_text())
                progress = json.loads((Path(note["checkpoint"]) / "progress.json").read_text())
                reasons.append((note["step"], progress["evaluation_due"]))
    assert not (tmp_path / "cut" / "stopped.json").exists()
    assert len(reasons) > 2 and {due for _, due in reasons} == {False, True}
    assert {4, 8} & {step for step, _ in reasons}, "the end of an epoch"
    assert_same_run(tmp_path / "whole", tmp_path / "cut", 10)
