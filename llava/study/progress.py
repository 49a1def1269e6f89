"""How far the runs of a study are, read from their folders, and how long the rest takes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.constants import REPORT_FILE, RUN_RECORD
from llava.errors import UserError
from llava.eval.result_files import FOLDER
from llava.study.design import ABOUT, StudyRun
from llava.train.checkpoint.files import list_checkpoints
from llava.train.checkpoint.finished import EVALUATION_FILE
from llava.train.checkpoint.lock import LOCK_FILE, is_held
from llava.train.checkpoint.resumable import TRAINER_STATE_FILE
from llava.train.console import duration

NOT_BEGUN, BEGUN, RUNNING, FINISHED = "not begun", "cut", "running", "finished"
CUT = "records that --model_max_length cuts"


@dataclass(frozen=True)
class State:
    """How far a run is: `kind` is one of the names above; `seconds` of training, where they are known."""

    kind: str
    step: int = 0
    steps: int = 0
    seconds: float = math.nan

    def __str__(self) -> str:
        if self.kind == FINISHED:
            return FINISHED if math.isnan(self.seconds) else f"{FINISHED}, {duration(self.seconds)}"
        at = f" at step {self.step:,} of {self.steps:,}" if self.steps else ""
        return self.kind + at


def state_of(folder: Path) -> State:
    """How far the run in a folder is; a file that is damaged counts as not there."""
    state = _json(folder / TRAINER_STATE_FILE) if (folder / RUN_RECORD).is_file() else {}
    step, steps = int(state.get("global_step", 0)), int(state.get("max_steps", 0))
    if steps and step >= steps and _is_whole(folder):
        return State(FINISHED, step, steps, _seconds(state))
    last = list_checkpoints(folder)[-1:]
    state = _json(last[0][1] / TRAINER_STATE_FILE) if last else {}
    at = int(state.get("global_step", 0)), int(state.get("max_steps", 0))
    kind = RUNNING if is_held(folder / LOCK_FILE) else BEGUN if last or folder.is_dir() else NOT_BEGUN
    return State(kind, *at)


def _is_whole(folder: Path) -> bool:
    """Whether a run has written all that it writes after its last step."""
    record = _json(folder / RUN_RECORD)
    evaluated = (record.get("data") or {}).get("eval") is not None
    reported = (record.get("flags") or {}).get("run_report", True)
    return (not evaluated or (folder / EVALUATION_FILE).is_file()) and (
        not reported or (folder / REPORT_FILE).is_file()
    )


def _seconds(state: Mapping[str, Any]) -> float:
    """Of training, the parts before a resumption included."""
    entries = [e for e in state.get("log_history", []) if "train_runtime" in e]
    return float(entries[-1].get("total_train_runtime", entries[-1]["train_runtime"])) if entries else math.nan


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def table(runs: Sequence[StudyRun]) -> str:
    """A line for each run: its number in a SLURM array, seed, arm, how far it is, and its tests."""
    rows = [("run", "seed", "arm", "training", "tests")]
    for number, run in enumerate(runs):
        state = state_of(run.folder)
        # What stands between the words belongs to the test of the words.
        found = {path.stem for path in (run.folder / FOLDER).glob("*.csv")} - {"blind_marks"}
        tests = ", ".join(sorted(found))
        rows.append((str(number), str(run.seed), f"{run.arm}  {ABOUT[run.arm]}", str(state), tests))
    widths = [max(len(row[k]) for row in rows) for k in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    done = sum(state_of(run.folder).kind == FINISHED for run in runs)
    return "\n".join([*lines, f"{done} of {len(runs)} runs are finished"])


def step_seconds(folder: Path) -> float:
    """Seconds of a step of a run that has taken some, from its last log; NaN where that does not say."""
    last = list_checkpoints(folder)[-1:]
    place = folder if (folder / RUN_RECORD).is_file() or not last else last[0][1]
    record, state = _json(place / RUN_RECORD), _json(place / TRAINER_STATE_FILE)
    rates = [e["samples_per_second"] for e in state.get("log_history", []) if e.get("samples_per_second")]
    size = (record.get("batch") or {}).get("global")
    return float(size) / float(rates[-1]) if size and rates else math.nan


def planned_steps(folder: Path, flags: Mapping[str, Any]) -> int:
    """Optimiser steps of a run with these flags on the records that a trial of it in a folder had."""
    steps = int(flags.get("max_steps", -1))
    if steps > 0:
        return steps
    record = _json(folder / RUN_RECORD)
    records, size = record["data"]["train"]["records"], record["batch"]["global"]
    return math.ceil(float(flags.get("num_train_epochs", 3)) * math.ceil(records / size))


def check_paired(runs: Sequence[StudyRun]) -> None:
    """Finished runs of a study must have had the same records in one order, equally many steps and one evaluation set.

    Raises:
        UserError: naming the first two runs that differ, and in what.
    """
    first: dict[str, tuple[StudyRun, Any]] = {}
    for run in runs:
        if state_of(run.folder).kind != FINISHED:
            continue
        record, state = _json(run.folder / RUN_RECORD), _json(run.folder / TRAINER_STATE_FILE)
        data = record.get("data") or {}
        for what, value in {
            "the training records, in their order": (data.get("train") or {}).get("ids"),
            "the number of training records": (data.get("train") or {}).get("records"),
            CUT: (data.get("train") or {}).get("cut"),
            "the words of the evaluation set": (data.get("eval") or {}).get("targets"),
            "samples of a step": (record.get("batch") or {}).get("global"),
            "steps": state.get("global_step"),
        }.items():
            other, expected = first.setdefault(what, (run, value))
            if value != expected:
                remedy = (
                    "a text alone keeps more of its words: raise --model_max_length (and the model's positions), or "
                    "split the captions, in a new --output"
                    if what == CUT
                    else "the data have changed since the first: remove the folder of the one that is wrong, and the "
                    "same command trains it again"
                )
                raise UserError(
                    f"{other.folder} and {run.folder} are no pair: {what} differ ({expected} and {value}); {remedy}"
                )
