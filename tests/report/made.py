"""Runs whose files are made up, for the tests of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llava.report.read import Run

EVIL = "<script>alert(1)</script>"
PASSED = {"passed": True}


def log_entries(steps: int = 12, **extra: float) -> list[dict[str, Any]]:
    losses = [
        {"step": s, "loss": 8.0 / s, "grad_norm": 1.0, "learning_rate": 1e-3, **extra} for s in range(1, steps + 1)
    ]
    return [*losses, {"step": steps, "eval_loss": 0.9}, {"step": steps, "train_runtime": 5.0, "train_loss": 2.0}]


def control_line(step: int | None, gain: tuple[float | None, ...]) -> dict[str, Any]:
    losses = {"true": {"per_caption": 10.0, "per_token": 0.5}, "other": {"per_caption": 14.25, "per_token": 0.7}}
    gains = {"video": {"per_caption": list(gain), "per_token": [None if g is None else g / 20 for g in gain]}}
    return {"step": step, "captions": 40, "clips": 20, "tokens": 800, "losses": losses, "gains": gains}


def write_run(folder: Path, **files: Any) -> Path:
    """A run's folder; `files` are contents by stem: a list of `jsonl` lines for alarms and controls, else JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, content in files.items():
        if stem in ("alarms", "controls"):
            (folder / f"{stem}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))
        else:
            (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder


def record(**flags: Any) -> dict[str, Any]:
    return {"flags": {"learning_rate": 5e-5, "seed": 42, **flags}, "versions": {"torch": "2.8.0"}}


def words(entropy: float = 3.0, tokens: int = 100, **more: Any) -> dict[str, Any]:
    """What a run records of the targets of one kind."""
    return {"tokens": tokens, "entropy": entropy, "unknown": 5, "words": 80, "tokens_per_word": 1.25, **more}


def worth(train: float = 3.0, evaluation: float | None = 2.5, outputs: int = 1000, **flags: Any) -> dict[str, Any]:
    """A run's record that says what its words are worth: their unigram entropies, and the outputs of the model."""
    held_out = {"records": 20, "clips": 20, "repeated": 1, "supervised": {"captions": words(evaluation or 0.0)}}
    return record(**flags) | {
        "tokenizer": {"entries": outputs - 8, "outputs": outputs},
        "data": {"train": {"records": 400, "supervised": {"captions": words(train)}},
                 "eval": None if evaluation is None else held_out},
    }  # fmt: skip


def preflight(start: float | None = None, **more: Any) -> dict[str, Any]:
    """A pre-flight that passed, and measured the loss before the first step."""
    checks = [{"check": "labels, video", "status": "ok", "finding": "all words", "remedy": ""}]
    if start is not None:
        checks.append({"check": "start of the loss, video", "status": "ok", "finding": "", "nats": start})
    return {"mode": "quick", "passed": True, "checks": checks, **more}


def alarm(step: int = 3, message: str = "spike of 14", remedy: str = "lower --max_grad_norm") -> dict[str, Any]:
    return {"step": step, "kind": "gradient spike", "message": message, "remedy": remedy, "time": "2025-03-01T02:11:09"}


def caption(name: str, video: str, text: str, nats: float | None = None) -> dict[str, Any]:
    sample = {"id": name, "video": video, "caption": text, "reference": "Una palla rossa."}
    return sample if nats is None else {**sample, "nats_per_token": nats}


def run_of(log: list[dict[str, Any]] | None = None, **options: Any) -> Run:
    values = {"record": {}, "alarms": None, "preflight": None, "controls": None, "captions": None, **options}
    return Run(Path("run"), state=None if log is None else {"log_history": log}, **values)
