"""Which file each process reads, and for how long: a file that hangs or crashes the decoder can then be named.

Extraction and checks decode in processes of their own (`llava.data.features.workers`). Training without a feature cache
decodes in the workers of a DataLoader, which have no time limit for a file and cannot say what they were at when they
died.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from typing import Any

import torch
from torch.utils.data import get_worker_info

from llava.errors import WATCHES, exhausted, show

SLOTS = 256
PATH_BYTES = 4096


class ClipWatch:
    """What the data workers of one data set read, in memory that all of them share.

    Args:
        timeout: seconds for a file; a process that takes longer says so and ends itself, since a decoder that hangs
            cannot be interrupted.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.pids = torch.zeros(SLOTS, dtype=torch.int64).share_memory_()
        self.paths = torch.zeros(SLOTS, PATH_BYTES, dtype=torch.uint8).share_memory_()
        WATCHES.add(self)

    @contextmanager
    def reading(self, path: str) -> Iterator[None]:
        """Around the reading of a file."""
        worker = get_worker_info()
        # More workers than slots share them: a name may then be missing, and is never wrong, since the pid is kept.
        slot = 0 if worker is None else worker.id % (SLOTS - 1) + 1
        name = os.fsencode(path)[:PATH_BYTES]
        self.paths[slot, : len(name)] = torch.frombuffer(bytearray(name), dtype=torch.uint8)
        self.paths[slot, len(name) :] = 0
        self.pids[slot] = os.getpid()
        timer = threading.Timer(self.timeout, _give_up, (path, self.timeout))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self.pids[slot] = 0

    def path_of(self, pid: int) -> str | None:
        """The file that a process reads, or read when it died; None when it read none."""
        slots = (self.pids == pid).nonzero()
        return os.fsdecode(bytes(self.paths[slots[0, 0]].tolist()).rstrip(b"\0")) if len(slots) else None


def end_on_lost_batch(worker_id: int, then: Callable[[int], Any] | None = None) -> None:
    """Start of a data worker: it ends itself when a batch cannot be handed over.

    Batches leave it in a thread, which otherwise prints the error (no shared memory, too many open files), drops the
    batch and goes on, while the run waits for that batch for ever.

    Args:
        then: the `worker_init_fn` that the worker would have had.
    """
    setattr(Queue, "_on_queue_feeder_error", staticmethod(_lost_batch))  # noqa: B010
    if then is not None:
        then(worker_id)


def _lost_batch(error: Exception, batch: object) -> None:
    text = f"{type(error).__name__}: {error}"
    sys.stderr.write(f"\na data worker cannot hand over its batch: {show(exhausted(text) or text)}\n")
    sys.stderr.flush()
    os._exit(1)


def _give_up(path: str, timeout: float) -> None:
    sys.stderr.write(
        f"\n{show(path)}: reading took longer than --clip_timeout {timeout:g} s, so process {os.getpid()} ends; "
        "re-encode the file, leave it out with --on_bad_sample skip, or raise --clip_timeout\n"
    )
    sys.stderr.flush()
    os._exit(1)
