"""Coordinates and the packer over two processes, one of which has neither in most steps."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import CAPTIONS, record
from tests.train.processes import torchrun_all
from tests.train.runs import alarms, flags, losses, train

BOX = "[" + "<WIDTH-OUTPUT><HEIGHT-OUTPUT>" * 2 + "]"
RUNS: dict[str, dict[str, Any]] = {
    "stp": {"mm_resampler_type": "stp", "mm_perceiver_temporal_factor": 2},
    "frozen eyes": {"mm_tunable_parts": "mm_language_model,mm_coordinates"},
    "text": {"experiment": 1, "text_only": True},
    "zero3": {"mm_resampler_type": "stp", "mm_perceiver_temporal_factor": 2, "gradient_accumulation_steps": 2},
}
SPREAD = {"zero3": {"deepspeed": "scripts/zero3.json"}}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A clip with numbers, one without, and text alone with and without them, one in a batch."""
    records = []
    for i, caption in enumerate(CAPTIONS[:6]):
        made = record(f"g{i}", caption, f"clip{i}.mp4")
        if i % 2:
            made["conversations"][0]["value"] = made["conversations"][0]["value"].replace("<video>", "").strip()
            del made["video"]
        if i in (0, 3):
            made["conversations"][1]["value"] += f" {BOX} <TEMP-OUTPUT>"
            made["variables"] = {
                "spatial_width_output_locations": [0.123, 0.5 + 0.1 * i], "temporal_output_locations": [0.37],
                "spatial_height_output_locations": [0.3, 0.777],
            }  # fmt: skip
            made["meta"] = {"width": 128, "height": 64}
        records.append(made)
    folder = tmp_path_factory.mktemp("data")
    path = folder / "data.json"
    path.write_text(json.dumps(records))
    return {
        "data_path": path, "eval_data_path": path, "mm_coordinates": True, "max_steps": 6, "model_max_length": 96,
        "controls_samples": 3, "group_by_modality_length": False, "feature_cache": folder / "cache",
    }  # fmt: skip


def test_two_processes_equal_one_with_twice_the_batch(
    assets: SimpleNamespace, options: dict[str, Any], tmp_path: Path
) -> None:
    torchrun_all([
        flags(assets, tmp_path / "two" / name, per_device_train_batch_size=1, **options | more | SPREAD.get(name, {}))
        for name, more in RUNS.items()
    ])  # fmt: skip
    for name, more in RUNS.items():
        two, one = tmp_path / "two" / name, tmp_path / "one" / name
        found = train(assets, one, per_device_train_batch_size=2, **options | more)
        assert losses(two) == pytest.approx(found, abs=1e-4), name
        assert [a["kind"] for a in alarms(two) if a["kind"] != "blind"] == [], name
        expected, measured = (json.loads((folder / "eval_results.json").read_text()) for folder in (one, two))
        names = [n for n in expected if n.startswith(("eval_loss", "eval_coordinate", "eval_gain"))]
        assert "eval_coordinate_loss" in names and expected["eval_coordinate_tokens"] == 10
        assert ("eval_gain_coordinate" in names) == (name != "text")
        assert [measured[n] for n in names] == pytest.approx([expected[n] for n in names], abs=1e-3), name
        a, b = (load_file(folder / "model.safetensors") for folder in (two, one))
        assert all(torch.allclose(a[key], b[key], atol=1e-4) for key in a), name
