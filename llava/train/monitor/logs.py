"""Logs of a run, kept free of what an earlier attempt wrote."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from llava.constants import ALARMS_FILE
from llava.eval.controls import CONTROLS_FILE
from llava.train.monitor.run_monitor import keep_until

logger = logging.getLogger(__name__)


class FreshLogs(TrainerCallback):
    """At the start, drops what an earlier attempt in the folder wrote after the step that this one goes on from."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            for name in (ALARMS_FILE, CONTROLS_FILE):
                path, step = Path(args.output_dir) / name, state.global_step
                if dropped := keep_until(path, step):
                    logger.info("%s: %d line(s) of an earlier attempt, after step %d, left out", path, dropped, step)
