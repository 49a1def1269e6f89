"""Whether a run has nothing left to do, which its folder tells before models are loaded."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from llava.config.flags import TrainingArguments
from llava.constants import REPORT_FILE
from llava.train.checkpoint.files import checkpoint_problems, list_checkpoints
from llava.train.checkpoint.resumable import TRAINER_STATE_FILE
from llava.train.checkpoint.resume import changed_flags, recorded

logger = logging.getLogger(__name__)

EVALUATION_FILE = "eval_results.json"
EVALUATED = ("eval_data_path", "val_fraction")
"""Flags that may change when a run goes on, and that say what it is evaluated on."""


def is_finished(training_args: TrainingArguments, run_record: dict[str, Any]) -> bool:
    """Whether the run that is asked to go on was made with the same flags to its last step, evaluation and report;
    says so, with how to go on.
    """
    folder = Path(training_args.output_dir)
    if str(training_args.resume_from_checkpoint).lower() not in ("auto", "true"):
        return False
    try:
        before = recorded(folder)
        state = json.loads((folder / TRAINER_STATE_FILE).read_text(encoding="utf-8"))
        steps, planned, flags = state["global_step"], state["max_steps"], before["flags"]
        evaluated = before["data"]["eval"] is not None
    except (OSError, ValueError, LookupError, TypeError):
        return False  # What is damaged or of another form is for the run to look at.
    now = json.loads(json.dumps(run_record["flags"]))
    same = all(flags.get(name, now.get(name)) == now.get(name) for name in EVALUATED) and not changed_flags(before, now)
    lacking = [
        name
        for name, wanted in ((REPORT_FILE, training_args.run_report), (EVALUATION_FILE, evaluated))
        if wanted and not (folder / name).is_file()
    ]
    if steps < planned or not same or lacking or not _last_is_whole(folder, steps):
        return False
    report = f"; its report: {folder / REPORT_FILE}" if (folder / REPORT_FILE).is_file() else ""
    logger.info("already finished: %s, %s steps%s\n%s", folder, f"{steps:,}", report, how_to_go_on(steps))
    return True


def _last_is_whole(folder: Path, steps: int) -> bool:
    """Whether the newest checkpoint, where there is one, is that of the last step and as it was written: one that was
    damaged or taken away is trained again.
    """
    return all(step == steps and not checkpoint_problems(path) for step, path in list_checkpoints(folder)[-1:])


def how_to_go_on(steps: int) -> str:
    """What to type to train longer, or anew."""
    return (
        f"To train on, give the same command with --max_steps above {steps} (or more --num_train_epochs where "
        "--max_steps is not set); to train anew, choose another --output_dir."
    )
