"""How a run's log is shown, and kept free of what an earlier attempt wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from llava.eval.controls import CONTROLS_FILE
from llava.train.monitor.run_monitor import ALARMS_FILE, keep_until


def short_logs(logs: dict[str, Any] | None) -> dict[str, Any]:
    """What fits a line; the values of groups (`grad_norm/projector`) go to TensorBoard and `trainer_state.json`."""
    return {name: value for name, value in (logs or {}).items() if "/" not in name}


class ShortPrinter(PrinterCallback):
    """As in transformers, without the values of groups."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        super().on_log(args, state, control, logs=short_logs(logs), **kwargs)


class ShortProgress(ProgressCallback):
    """As in transformers, without the values of groups."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        super().on_log(args, state, control, logs=short_logs(logs), **kwargs)


class FreshLogs(TrainerCallback):
    """At the start, drops what an earlier attempt in the folder wrote after the step that this one goes on from."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            for name in (ALARMS_FILE, CONTROLS_FILE):
                keep_until(Path(args.output_dir) / name, state.global_step)
