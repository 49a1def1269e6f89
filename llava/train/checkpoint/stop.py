"""Stopping when told to: SIGTERM, SIGUSR1, Ctrl-C (SIGINT), or a file STOP in the output folder end a run at its next
step boundary.

A handler only notes the signal. The run looks at the note between steps, between batches of an evaluation and between
its stages; all processes agree before one acts, write a checkpoint together, and leave with `STOPPED_STATUS`.

torchrun ends its workers without notice on SIGUSR1, so the file is the way to stop a run that it started; SIGTERM and
SIGINT it passes on, and waits 30 s before it kills. A second Ctrl-C ends at once: torchrun then passes on SIGTERM.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from llava.errors import Stopped, show

logger = logging.getLogger(__name__)

STOP_FILE = "STOP"
STOPPED_FILE = "stopped.json"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
LOOK_SECONDS = 0.5
"""At most so often is the stop file looked for: a network file system is slow to answer."""


class Stop:
    """Notes and spreads the wish to stop; a context manager around a run.

    Entering installs the signal handlers and removes what an earlier stop left in the folder.

    Args:
        remedy: how the run goes on, for the message.

    Attributes:
        reason: why the run is to stop, in words; None while it is not.
        checkpoint: the newest one of this run, for the message.
    """

    def __init__(
        self,
        output_dir: str | Path,
        process_index: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
        remedy: str = "the same command goes on",
    ) -> None:
        self.output_dir, self.remedy = Path(output_dir), remedy
        self.is_main, self.world_size = process_index == 0, world_size
        self.device = device or torch.device("cpu")
        self.reason: str | None = None
        self.checkpoint: str | None = None
        self.told = False
        self.looked = -LOOK_SECONDS
        self.arriving: tuple[torch.Tensor, Any] | None = None
        self.handlers: dict[signal.Signals, Any] = {}
        self.children: list[Any] = []

    def __enter__(self) -> Stop:
        self.children = multiprocessing.active_children()
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        if self.is_main:
            for name in (STOP_FILE, STOPPED_FILE):
                if (self.output_dir / name).exists():
                    logger.info("%s: removed, the run goes on", self.output_dir / name)
                    (self.output_dir / name).unlink()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Stopped) and not self.told:
            self._tell(None)
        self._end_workers()
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _end_workers(self) -> None:
        """Ends what the run has started: workers that ignore SIGTERM would keep Python from ending."""
        started = [p for p in multiprocessing.active_children() if p not in self.children]
        if not started:
            return
        # torch takes the end of a worker for an error.
        handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if self.handlers else None
        for process in started:
            process.kill()
        for process in started:
            process.join()
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or f"signal {signal.Signals(number).name}"
        if number == signal.SIGINT:
            # The system ends the process at the next one, also in the middle of a computation that does not return.
            for again in (signal.SIGINT, signal.SIGTERM):
                signal.signal(again, signal.SIG_DFL)
            # Written past the logger and the buffers, which the signal may have interrupted.
            with contextlib.suppress(OSError):
                os.write(2, b"\nstopping at the next step, with a checkpoint; Ctrl-C once more ends at once\n")

    def requested(self) -> bool:
        """Whether this process was told to stop; asks no other and waits for nothing."""
        now = time.monotonic()
        if self.reason is None and now - self.looked >= LOOK_SECONDS:
            self.looked = now
            if (self.output_dir / STOP_FILE).exists():
                self.reason = self._said()
        return self.reason is not None

    def _said(self) -> str:
        """What the stop file says, which the launch script writes on a signal; the file itself where it is empty."""
        path = self.output_dir / STOP_FILE
        with contextlib.suppress(OSError, UnicodeDecodeError):
            said = show(path.read_text(encoding="utf-8").strip())
            if said:
                return said[:40]
        return f"the file {path}"

    def agreed(self, wait: bool = False) -> bool:
        """Whether a process was told to stop, the same answer in all of them; each must ask equally often.

        On CUDA the answer is that to the question before, which has arrived, so that the host does not wait.

        Args:
            wait: for the answer to this question.
        """
        if self.world_size == 1:
            return self.requested()
        flag = torch.tensor([float(self.requested())], device=self.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        if wait or self.device.type != "cuda":
            return bool(flag)
        arrived, answer = self.arriving, torch.empty(1, pin_memory=True)
        answer.copy_(flag, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self.arriving = (answer, event)
        if arrived is None:
            return False
        arrived[1].synchronize()
        return bool(arrived[0])

    def check(self) -> None:
        """Between two stages of a run, in all its processes.

        Raises:
            Stopped: when one of them was told to stop.
        """
        if self.agreed(wait=True):
            self.leave(None)

    def leave(self, step: int | None) -> None:
        """Ends all processes, once the first one has written `stopped.json` and said so.

        Args:
            step: that the run goes on from, when it has begun.

        Raises:
            Stopped: always.
        """
        message = self._tell(step)
        if self.world_size > 1:
            # torchrun ends the others as soon as the first has ended.
            torch.distributed.barrier()
        raise Stopped(message)

    def _tell(self, step: int | None) -> str:
        self.told = True
        where = f"{self.checkpoint} was written" if step is not None else "nothing was lost"
        if step is None and self.checkpoint is not None:
            where = f"{self.checkpoint} is the newest checkpoint"
        reason = self.reason or "another process was told to"
        if self.is_main:
            note = {"step": step, "checkpoint": self.checkpoint, "reason": reason}
            self.output_dir.mkdir(parents=True, exist_ok=True)
            (self.output_dir / STOPPED_FILE).write_text(json.dumps(note) + "\n", encoding="utf-8")
        return f"stopped ({reason}): {where}; {self.remedy}"


def ignore_stop_signals(worker_id: int, then: Callable[[int], Any] | None = None) -> None:
    """Start of a data worker: signals to the whole group of processes are for the run, which ends its workers itself.

    A worker that died of one would take the step with it that the run is about to finish.

    Args:
        then: the `worker_init_fn` that the worker would have had.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if then is not None:
        then(worker_id)
