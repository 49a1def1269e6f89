"""Sound runs, of which nothing may be said: no failure, no warning, no alarm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from tests.audit.running import Fault
from tests.conftest import CAPTIONS, REAL_CLIPS, colour_frames, record, write_clip
from tests.train.runs import train

SEEDS = 10
SEEING = 180
"""Steps after which a run on six clips has learned to see. After 60 the gain of three of the ten seeds is not shown to
be above 0, and they are told so."""


def sound(name: str, **values: Any) -> Fault:
    return Fault(name, "none", "silent", "", **values)


SAVED = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


def half_way(scene: SimpleNamespace) -> dict[str, Any]:
    """A run that ended after its first checkpoint, and goes on from it."""
    train(scene.assets, scene.run, **SAVED)
    shutil.rmtree(scene.run / "checkpoint-4")
    return {**SAVED, "resume_from_checkpoint": str(scene.run / "checkpoint-2")}


def images(records: list[dict], folder: Path) -> list[dict]:
    made = []
    for i, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (64, 64), colour).save(folder / f"{i}.png")
        turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": CAPTIONS[i]}]
        made.append({"id": f"i{i}", "image": f"{i}.png", "conversations": turns})
    return made


def real(scene: SimpleNamespace) -> dict[str, Any]:
    return {"data_path": REAL_CLIPS / "clips_vi_it.json", "video_folder": REAL_CLIPS, "model_max_length": 256}


def two_held_out(scene: SimpleNamespace) -> dict[str, Any]:
    """An evaluation on two clips that are not trained on."""
    held = scene.folder / "held_out"
    held.mkdir()
    captions = ["Il gatto rosso corre nel lago.", "Una palla azzurra dorme in piazza."]
    for i in range(2):
        write_clip(held / f"{i}.mp4", colour_frames(100 + i))
    records = [record(f"h{i}", text, str(held / f"{i}.mp4")) for i, text in enumerate(captions)]
    (held / "data.json").write_text(json.dumps(records), encoding="utf-8")
    return {"eval_data_path": held / "data.json", "allow_absolute_paths": True}


def of_all_kinds(records: list[dict], folder: Path) -> list[dict]:
    texts = [{"id": f"t{i}", "conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": text}]}
             for i, text in enumerate(CAPTIONS)]  # fmt: skip
    return [*json.loads(json.dumps(records)), *images(records, folder), *texts]


SOUND = [
    *(sound(f"seed {seed}", flags={"seed": seed, "max_steps": SEEING, "learning_rate": 1e-2}, quick=seed == 1)
      for seed in range(SEEDS)),
    sound("packed", flags={"per_device_train_batch_size": 6, "max_steps": 20}, quick=True),
    sound("resumed", prepare=half_way),
    sound("images", data=images),
    sound("text alone", experiment=1, flags={"max_steps": 60, "learning_rate": 1e-2}),
    sound("video, images and text", data=of_all_kinds, flags={"max_steps": 20}),
    sound("longer than the patience with a plateau",
          flags={"max_steps": 260, "logging_steps": 10, "learning_rate": 1e-3}),
    sound("two clips held out", prepare=two_held_out, flags={"max_steps": 20}),
    sound("pre-flight in full", flags={"preflight": "full", "learning_rate": 1e-2}),
    *([sound("real clips", prepare=real, flags={"max_steps": 20})] if REAL_CLIPS.is_dir() else []),
]  # fmt: skip
