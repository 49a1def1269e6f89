"""One run at a time in an output folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from llava.train.checkpoint.files import WriteError

logger = logging.getLogger(__name__)

LOCK_FILE = ".run.lock"
UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}


@contextlib.contextmanager
def only_run(output_dir: str | Path, process_index: int = 0, world_size: int = 1) -> Iterator[None]:
    """Holds the lock of an output folder; the first process takes it and the others hear the verdict.

    The operating system holds the lock for the process: it ends with it, however the process ends, and no clock takes
    part. A POSIX record lock, since one of `flock` would live on in the workers that a killed process leaves behind.

    Raises:
        BlockingIOError: when another run holds it, naming host, process and start.
        WriteError: when the folder cannot be made or written.
    """
    verdict: list[Any] = [None]
    handle: int | None = None
    if process_index == 0:
        try:
            handle = _take(Path(output_dir))
        except OSError as error:
            verdict = [error]
    if world_size > 1:
        torch.distributed.broadcast_object_list(verdict, src=0)
    if verdict[0] is not None:
        raise verdict[0]
    try:
        yield
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):  # A full disk, or one that is gone: the lock ends with its handle.
                os.ftruncate(handle, 0)
            os.close(handle)


def is_held(file: Path) -> bool:
    """Whether a lock file is held by a run that lives; in doubt (a file system without locks), whether one wrote there
    that did not end.
    """
    try:
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in UNSUPPORTED or os.fstat(handle).st_size > 0
    finally:
        os.close(handle)
    return False


def _take(folder: Path) -> int:
    """The open lock file, locked."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO)
        raise WriteError(
            error.errno, f"--output_dir {folder} cannot be written: {reason}; make it writable, or choose another"
        ) from error
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            logger.warning("%s: its file system has no locks, so a second run here would not be noticed", folder)
            return handle
        holder = _holder(handle)
        os.close(handle)
        raise BlockingIOError(
            f"--output_dir {folder} belongs to a run that still lives ({holder}): wait for it, end it, or choose "
            "another folder"
        ) from error
    me = {"host": socket.gethostname(), "pid": os.getpid(), "started": _now()}
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(me).encode() + b"\n", 0)
    return handle


def _holder(handle: int) -> str:
    try:
        run = json.loads(os.pread(handle, 4096, 0))
        return f"host {run['host']}, pid {run['pid']}, started {run['started']}"
    except (ValueError, KeyError):
        return "it has just started"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
