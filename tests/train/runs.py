"""Flags of tiny runs, shared by the end-to-end tests."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llava.train.train import main


def flags(assets: SimpleNamespace, output: Path, experiment: int = 2, **overrides: Any) -> list[str]:
    """Flags of a run of six steps on the fixtures' clips (`experiment` 2) or their captions (1).

    Nothing is held out, however many clips a test brings, unless `val_fraction` says so (None: the default).
    """
    values = {
        "model_name_or_path": assets.gpt2, "output_dir": output, "use_cpu": True, "model_max_length": 64,
        "per_device_train_batch_size": 2, "max_steps": 6, "learning_rate": 1e-3, "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "run_report": False,
        "data_path": assets.text_json, "val_fraction": 0,
    }  # fmt: skip
    if experiment == 2:
        values |= {
            "data_path": assets.video_json, "video_folder": assets.clips, "vision_tower": assets.tower,
            "vision_precision": "fp32",
            "num_frames": 2, "mm_perceiver_latents": 4, "mm_perceiver_latents_fast": 1, "force_sample": True,
        }  # fmt: skip
    values |= overrides
    return [part for name, value in values.items() if value is not None for part in (f"--{name}", str(value))]


def train(assets: SimpleNamespace, output: Path, experiment: int = 2, **overrides: Any) -> list[float]:
    """Runs `main` and returns the logged losses."""
    main(flags(assets, output, experiment, **overrides))
    return losses(output)


def losses(output: Path) -> list[float]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def alarms(output: Path) -> list[dict[str, Any]]:
    """The alarms that a run sounded."""
    path = output / "alarms.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
