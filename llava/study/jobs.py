"""Commands that a study runs one after the other, each in a process of its own, and how it stops without loss.

A command has a session of its own: Ctrl-C in a terminal goes to all processes of the foreground, and torchrun would
pass it on and kill its workers 30 s later. A run is stopped by the file that it watches; it writes a checkpoint, and
the same command goes on from there. A second Ctrl-C ends everything at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import llava
from llava.errors import STOPPED_STATUS, Stopped, UserError
from llava.train.checkpoint.stop import STOP_FILE

TRAIN = Path(llava.__file__).parent / "train"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
LOOK_SECONDS = 0.2
AT_ONCE_SECONDS = 5.0
"""That processes have to end after the second Ctrl-C before they are killed."""


def trainer_command(gpus: int, needs_launcher: bool, environ: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """What trains, without the trainer's flags, and variables that it needs: python, or torchrun with a process for
    each GPU, as the launch script does.

    Args:
        environ: NUM_GPUS says how many processes; CUDA_VISIBLE_DEVICES and OMP_NUM_THREADS are kept.
    """
    processes = int(environ.get("NUM_GPUS") or max(gpus, 1))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    more = {
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "DS_BUILD_OPS": "0",
        "OMP_NUM_THREADS": str(max(cpus // processes, 1)),
    }
    more = {name: environ.get(name) or value for name, value in more.items()}
    script = str(TRAIN / "train.py")
    if processes == 1 and not needs_launcher:
        if gpus > 1:
            # One process would split its batches over all GPUs that it sees.
            more["CUDA_VISIBLE_DEVICES"] = (environ.get("CUDA_VISIBLE_DEVICES") or "0").split(",")[0]
        return [sys.executable, script], more
    torchrun = [sys.executable, str(TRAIN / "torchrun.py"), "--nproc_per_node", str(processes), "--standalone"]
    return [*torchrun, script], more


class Jobs:
    """Runs commands, and notes signals while it is entered.

    Attributes:
        reason: the signal that asks the study to stop; None while there is none.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.at_once = False
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Jobs:
        self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason is not None:
            self.at_once = True
        elif number == signal.SIGINT:
            with suppress(OSError):
                os.write(2, b"\nstopping without loss; Ctrl-C once more ends everything at once\n")
        self.reason = self.reason or signal.Signals(number).name

    def check(self) -> None:
        """Between two commands.

        Raises:
            Stopped: when a signal asked for it.
        """
        if self.reason is not None:
            raise Stopped(f"the study was stopped ({self.reason}): nothing was lost; the same command goes on")

    def run(self, command: Sequence[str], what: str, folder: Path | None = None, env: Any = None) -> None:
        """Runs a command to its end.

        Args:
            what: it does, for messages.
            folder: of the run that it trains, which stops by a file there; another command is ended by SIGTERM.
            env: variables besides those of this process.

        Raises:
            Stopped: when a signal asked for it, once the command has ended.
            UserError: when the command failed: it has said why.
        """
        self.check()
        if folder is not None:
            (folder / STOP_FILE).unlink(missing_ok=True)
        child = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})}, start_new_session=True
        )
        try:
            while child.poll() is None:
                if self.at_once:
                    _end_now(child)
                elif self.reason is not None:
                    self._ask(child, folder)
                with suppress(subprocess.TimeoutExpired):
                    child.wait(LOOK_SECONDS)
        except BaseException:
            _end_now(child)
            raise
        if folder is not None:
            (folder / STOP_FILE).unlink(missing_ok=True)
        self.check()
        if child.returncode == STOPPED_STATUS:
            raise Stopped(f"{what} was stopped from elsewhere; the same command goes on")
        if child.returncode:
            raise UserError(
                f"{what} ended with status {child.returncode}: what it said is above; the same command goes on once "
                "that is mended"
            )

    def _ask(self, child: subprocess.Popen[Any], folder: Path | None) -> None:
        """Again and again: a run that is just starting removes what an earlier stop left."""
        if folder is None:
            child.terminate()
            return
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / STOP_FILE).write_text(f"{self.reason}\n", encoding="utf-8")


def _end_now(child: subprocess.Popen[Any]) -> None:
    """Ends a command with all of its processes; torchrun passes the first SIGINT on to workers with sessions of their
    own, and ends them on the second.
    """
    last = time.monotonic() + AT_ONCE_SECONDS
    while child.poll() is None:
        number = signal.SIGINT if time.monotonic() < last else signal.SIGKILL
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(LOOK_SECONDS)
