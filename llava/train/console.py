"""What a run says in the terminal or the log file of a job: its plan, one line a log, and what came of it."""

from __future__ import annotations

import json
import logging
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from llava.config.flags import Settings, TrainingArguments
from llava.constants import ALARMS_FILE, REPORT_FILE
from llava.data.captions import MODEL_ROLES, without_placeholders
from llava.data.coordinates import spell
from llava.data.dataset import LazySupervisedDataset
from llava.data.features.extract import distinct_clips
from llava.data.prompt import join_turns
from llava.data.records import Record
from llava.data.variables import fill
from llava.eval.controls import CONTROLS_FILE
from llava.eval.references import answer_of
from llava.eval.statistics import LEAST_CLUSTERS
from llava.train.checkpoint.files import list_checkpoints

logger = logging.getLogger(__name__)

LOOKED = 100
"""Records that are looked at for a question to repeat."""
QUIET_SECONDS = 30.0
"""After so long without a line a run says at which step it is."""


def planned_steps(args: TrainingArguments, samples: int) -> int:
    """Optimiser steps of a run on so many samples."""
    if args.max_steps > 0:
        return args.max_steps
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return math.ceil(args.num_train_epochs * math.ceil(samples / per_step))


def plan(settings: Settings, train: Sequence[Record], evaluation: Sequence[Record] | None, features: bool) -> str:
    """The stages of a run, with what there is to do in each.

    Args:
        train: records to train on, and `evaluation` those to evaluate on, where there are any.
        features: whether vision features are kept in a cache.
    """
    args = settings.training
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = planned_steps(args, len(train))
    held_out = f"{len(evaluation):,} held-out records" if evaluation is not None else "none held out"
    clips = len(distinct_clips(train).keys() | distinct_clips(evaluation or ()).keys())
    stages = [f"data           {len(train):,} records to train on, {held_out}"]
    if features:
        stages.append(f"features       of {clips:,} clips, each computed once; those in the cache are taken from there")
    if args.preflight != "off":
        stages.append(f"pre-flight     {args.preflight}: what must hold before the first step")
    # Steps an epoch, and not samples: its last batch may be smaller.
    epochs = steps / math.ceil(max(len(train), 1) / per_step)
    stages.append(f"training       {steps:,} steps of {per_step} samples, {epochs:.3g} times over the data"
                  f"{_every('a checkpoint', args.save_strategy, args.save_steps, steps)}")  # fmt: skip
    if evaluation is not None:
        sight = f", controls on at most {args.controls_samples}" if features and args.controls else ""
        stages.append(f"evaluation     {len(evaluation):,} records at the end"
                      f"{_every('', args.eval_strategy, args.eval_steps, steps)}{sight}")  # fmt: skip
    if args.run_report:
        stages.append("report         report.html and a model card")
    listed = "\n".join(f"  {number}. {stage}" for number, stage in enumerate(stages, 1))
    return f"plan for {args.output_dir} (every log says how long training will take):\n{listed}"


def _every(what: str, strategy: Any, steps: float | None, total: int) -> str:
    """`, a checkpoint every 500 steps`; numbers below 1 are shares of the `total`, as the trainer takes them."""
    steps = math.ceil(total * steps) if steps and steps < 1 else steps
    name = str(getattr(strategy, "value", strategy))
    regular = f"every {steps:,.0f} steps" if steps else ""
    when = {"steps": regular, "epoch": "every epoch", "best": "when it is the best"}
    return ", ".join(("", f"{what} {when[name]}".strip())) if when.get(name) else ""


def log_line(
    step: int, steps: int, logs: Mapping[str, Any], held_out: float | None, left: float | None, unit: str
) -> str:
    """A log as one line; the values of groups, rates and shares go to TensorBoard and `trainer_state.json` alone.

    Args:
        held_out: the last loss on held-out records.
        left: seconds.
        unit: of what is counted a second, `clips` or `samples`.
    """
    parts = [f"step {step:,}/{steps:,}"]
    if "loss" in logs:
        parts.append(f"loss {float(logs['loss']):.4g}")
    if held_out is not None:
        parts.append(f"held-out {held_out:.4g}")
    for prefix in ("eval", "train"):
        if (gain := logs.get(f"{prefix}_gain_video")) is not None:
            parts.append(f"gain of the video {gain:+.3g} nats a caption")
    if "samples_per_second" in logs:
        parts.append(f"{logs['samples_per_second']:.3g} {unit}/s")
    if left is not None:
        parts.append(f"{duration(left)} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """`3:40`, or `1:03:40`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class LogLines(TrainerCallback):
    """Says each log in one line, and that the run goes on where logs are far apart."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.held_out: float | None = None
        self.start = self.said = time.monotonic()
        self.first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = self.said = time.monotonic()
        self.first = state.global_step
        self.held_out = next((e["eval_loss"] for e in reversed(state.log_history) if "eval_loss" in e), None)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.monotonic() - self.said >= QUIET_SECONDS:
            self.say(state, {})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        logs = logs or {}
        self.held_out = logs.get("eval_loss", self.held_out)
        # What transformers counts of the whole training stands in the closing summary.
        if "train_runtime" not in logs:
            self.say(state, logs)

    def say(self, state: Any, logs: Mapping[str, Any]) -> None:
        if not state.is_world_process_zero:
            return
        self.said = time.monotonic()
        done, rest = state.global_step - self.first, state.max_steps - state.global_step
        left = (self.said - self.start) / done * rest if done > 0 and rest > 0 else None
        logger.info("%s", log_line(state.global_step, state.max_steps, logs, self.held_out, left, self.unit))


def closing(folder: Path, state: Any, seconds: float, sees: bool, asked: tuple[str, str] | None = None) -> str:
    """What came of a run, where it is, and what to type next.

    Args:
        state: transformers' `TrainerState` at the end.
        seconds: that this process took.
        sees: whether the model takes videos.
        asked: of `example_question`.
    """
    history = state.log_history
    losses = [(entry["loss"], entry["step"]) for entry in history if "loss" in entry]
    held_out = [(entry["eval_loss"], entry["step"]) for entry in history if "eval_loss" in entry]
    rows = [("time", f"{duration(seconds)}, {state.global_step:,} steps, {state.epoch or 0:.3g} times over the data")]
    for name, values in (("loss", losses), ("held-out loss", held_out)):
        if values:
            best, step = min(values, key=lambda value: value[0] if math.isfinite(value[0]) else math.inf)
            rows.append((name, f"{values[-1][0]:.4g} at the end; best {best:.4g} at step {step:,}"))
    if not held_out:
        rows.append(("held-out loss", "not measured: nothing was held out"))
    if sees:
        rows.append(("sight", _sight(history, folder / CONTROLS_FILE)))
    alarms = (folder / ALARMS_FILE).read_text(encoding="utf-8").count("\n") if (folder / ALARMS_FILE).is_file() else 0
    rows.append(("alarms", f"{alarms}, in {ALARMS_FILE} and the report" if alarms else "none"))
    rows.append(("model", f"{folder}{_checkpoints(folder)}"))
    if (folder / REPORT_FILE).is_file():
        rows.append(("report", f"{folder / REPORT_FILE}, to be opened in a browser"))
    typed = shlex.quote(str(folder))
    if sees:
        shown = "CLIP.mp4" if asked is None else f"{shlex.quote(asked[0])} --prompt {shlex.quote(asked[1])}"
        rows.append(("next", f"python -m llava.serve.cli --model-path {typed} --video {shown}"))
    rows.append(("" if sees else "next", f"python -m llava.export {typed} OUT   makes a folder to share"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(("finished", *(f"  {name.ljust(width)}  {text}" for name, text in rows)))


def example_question(dataset: LazySupervisedDataset) -> tuple[str, str] | None:
    """A file and a question about it, as `llava.serve.cli` takes them: of the first record that has one; None where
    records are captions, or none of the first `LOOKED` asks about one file.
    """
    for place in range(min(len(dataset.records), LOOKED)):
        record = dataset.records[place]
        files, turns = (*record.videos, *record.images), record.conversations[: answer_of(record)]
        if len(files) != 1 or any(turn["from"] in (*MODEL_ROLES, "system") for turn in turns):
            continue
        text = without_placeholders(join_turns(fill(turns, dataset.numbers(record), spell)), " ")
        if words := " ".join(text.split()):
            return files[0], words
    return None


def _sight(history: Sequence[Mapping[str, Any]], controls: Path) -> str:
    """The last gain of the video, with its interval and clips where the file of controls has them."""
    for entry in reversed(history):
        for prefix, where in (("eval", "held-out clips"), ("train", "training clips, which shows less")):
            if (gain := entry.get(f"{prefix}_gain_video")) is not None:
                try:
                    line = json.loads(controls.read_text(encoding="utf-8").splitlines()[-1])
                    (_, low, high), clips = line["gains"]["video"]["per_caption"], line["clips"]
                    of = f" [{low:+.3g}, {high:+.3g}] nats more with another clip's video ({clips} {where}"
                except (OSError, ValueError, LookupError, TypeError):
                    return f"a caption costs {gain:+.3g} nats more with another clip's video ({where})"
                few = ", too few to tell" if clips < LEAST_CLUSTERS else ""
                return f"a caption costs {gain:+.3g}{of}{few})"
    return "not measured"


def _checkpoints(folder: Path) -> str:
    names = [path.name for _, path in list_checkpoints(folder)]
    return f" ({', '.join(names[-2:])}{' and earlier ones' if len(names) > 2 else ''})" if names else ""
