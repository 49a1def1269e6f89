"""Errors that are messages: those of a user say all that is needed without a traceback, and are told by their class.

`UserError` and its kinds are what a flag, a file or a machine did wrong. Everything else that ends a command is a fault
of the program and keeps its traceback; a few errors of libraries are known to be the machine's, by their words.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import signal
import sys
import time
import unicodedata
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Protocol

MEMORY_LEVERS = (
    "lower --per_device_train_batch_size and raise --gradient_accumulation_steps by the same factor, which gives the "
    "same training",
    "lower --per_device_eval_batch_size where it evaluates",
    "lower --batch_size",
    "add --gradient_checkpointing True or --bf16 True",
    "lower --dataloader_num_workers",
    "lower --num_workers",
    "lower --model_max_length",
)
RESUME = "--resume_from_checkpoint auto goes on from the last checkpoint"
EXHAUSTED = (
    (
        r"shared memory|Bus error|/torch_\d+",
        "no shared memory is left, through which data workers hand over their batches: give /dev/shm more room (docker "
        "run --shm-size=8g), or lower --dataloader_num_workers (0 needs none) or --per_device_train_batch_size",
    ),
    (
        r"Too many open files|ancdata",
        "too many files are open: raise the limit (ulimit -n 4096), or lower --dataloader_num_workers",
    ),
    (
        r"No space left on device|Disk quota exceeded|os error (28|122)\b",
        "the disk is full: make room on it, or choose another folder; then give the same command",
    ),
    (
        r"Timed out waiting \d+ms|collective operation timeout",
        "another process did not answer for --ddp_timeout seconds: it hangs or is stopped, or its node is lost; "
        f"torchrun's last lines name it where it was killed. {RESUME}",
    ),
)
"""What libraries say when something ran out (a pattern), and the cause with its remedy."""
MACHINE_ERRORS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room on its disk"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it accessible to you, or name another"),
    errno.EIO: "look after its disk",
    errno.ENOTDIR: "one of the folders above it is a file: name another",
}
"""What the system says of a file that the program can do nothing about, and the remedy."""
TORCHRUN_FILE = "TORCHELASTIC_ERROR_FILE"
"""The variable in which torchrun tells a process where to write its error."""
LOST_PEER = r"Connection (closed|reset) by peer|Connection refused|Broken pipe|recvValue failed|remote process exited"
"""What torch says where another process of the run is gone."""
STOPPED_STATUS = 85
"""Exit status of what stopped because it was told to, and goes on when it is started again."""


class Watch(Protocol):
    """Knows which file the processes that it watches read."""

    def path_of(self, pid: int) -> str | None:
        """The file that a process reads, or read when it died; None when it read none."""


WATCHES: weakref.WeakSet[Watch] = weakref.WeakSet()
"""Those of the data workers of this process, which say what a worker was at when it died."""


def path_of(pid: int) -> str | None:
    """The file that a data worker of this process reads, or read when it died."""
    return next((path for watch in list(WATCHES) if (path := watch.path_of(pid))), None)


FLAGS: set[str] = set()
"""Of the command that this process runs, in one spelling (`--model_path`); its parser names them."""


def at_hand(text: str) -> bool:
    """Whether the command at hand has the flags that a text names; those of `python ...` are another command's."""
    names = {name.replace("-", "_").replace("__", "--", 1) for name in re.findall(r"--[a-z][\w-]+", text)}
    return not FLAGS or "python " in text or names <= FLAGS


def fitted(text: str) -> str:
    """A message without the remedies whose flags the command at hand lacks: what several commands share names them all.

    A remedy ends at `; `, `, or ` or `. `; what a message begins with is what it is about, and stays.
    """
    first, *rest = re.split(r"(; |, or |\. |\n)", text)
    kept = [first]
    for mark, part in zip(rest[::2], rest[1::2], strict=True):
        if mark == "\n" or at_hand(part) or part.count("(") != part.count(")"):
            kept += [mark, part]
        elif part.endswith("."):
            kept.append(".")
    return "".join(kept)


def out_of_memory() -> str:
    """The remedies that the command at hand has."""
    levers = [lever for lever in MEMORY_LEVERS if at_hand(lever)]
    return "; or ".join(levers) or "take a smaller model, or a machine with more memory"


JOINERS = "\u200c\u200d"
"""Zero-width characters that spell words (Persian, Hindi) and join emoji."""


def counted(number: int, noun: str) -> str:
    """A number of things as a sentence has it: "1 clip", "2,400 clips"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def show(text: object, keep: str = "") -> str:
    """Foreign text (a name, an id, a caption, a path) as one line that can stand in a message, a log or a page.

    What a terminal acts on or nobody sees is escaped as Python does it: line breaks (which could forge a line), control
    characters, marks that change the direction of writing, invisible characters, bytes of a name that is not UTF-8.
    Nothing that this returns fails to be written as UTF-8. To show where a text begins and ends, use `repr`, which
    escapes the same and more.

    Args:
        keep: characters that stay as they are, such as line breaks in a message that has its own.
    """
    whole = str(text)
    if whole.isprintable():
        return whole
    return "".join(
        c
        if c.isprintable() or c in keep or c in JOINERS or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape").decode("ascii")
        for c in whole
    )


class UserError(ValueError):
    """What is wrong with a flag, a file or the machine: names it, what was expected, what was found, and the remedy."""


class MissingFile(FileNotFoundError, UserError):
    """A file or folder that is not there."""


class FileIsThere(FileExistsError, UserError):
    """A file or folder that would be overwritten."""


class UnwritableFile(OSError, UserError):
    """What could not be written."""


class FolderInUse(BlockingIOError, UserError):
    """A folder that another process works in."""


class NotInstalled(ImportError, UserError):
    """A package that is not installed."""


class NotCached(LookupError, UserError):
    """Features that a cache lacks."""


class NotFinite(FloatingPointError, UserError):
    """A loss, gradient or weight that is NaN or infinite."""


class Stopped(RuntimeError):
    """The work was told to stop, wrote down what was finished, and goes on when the same command is given again."""


def message_of(error: BaseException) -> str | None:
    """What there is to say of an error without its traceback; None for a fault of the program."""
    name, text = type(error).__name__, str(error)
    if isinstance(error, UserError):
        if text.startswith(f"Caught {name} in DataLoader worker"):
            # torch raises an error of a data worker again with the worker's traceback as its text.
            return str(error.args[0]).rpartition(f"{name}: ")[2].strip()
        return (isinstance(error, OSError) and error.strerror) or text
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or "can't allocate memory" in text:
        return f"out of memory ({(text.strip() or name).splitlines()[0]}): {out_of_memory()}"
    if isinstance(error, RuntimeError) and (dead := _dead_worker(text)):
        return dead
    if isinstance(error, OSError) and error.errno in MACHINE_ERRORS and error.filename is not None:
        return f"{error.filename}: {error.strerror}; {MACHINE_ERRORS[error.errno]}, then give the same command"
    if (isinstance(error, (RuntimeError, OSError)) or name == "SafetensorError") and (cause := exhausted(text)):
        return cause
    if isinstance(error, (EOFError, ConnectionError)):
        return _dead_worker(_ended_worker(error))
    return None


def _ended_worker(error: BaseException) -> str:
    """What torch would say of a data worker that died while it handed over a batch: the queue fails first."""
    frame = error.__traceback__
    while frame is not None:
        for worker in getattr(frame.tb_frame.f_locals.get("self"), "_workers", ()):
            worker.join(1)
            if worker.exitcode is not None:
                return f"DataLoader worker (pid {worker.pid}) ended with status {worker.exitcode}"
        frame = frame.tb_next
    return ""


def exhausted(text: str) -> str | None:
    """The cause and remedy of a library's error that something of the machine ran out; None for other errors."""
    for pattern, cause in EXHAUSTED:
        if re.search(pattern, text):
            lines = [line for line in text.strip().splitlines() if re.search(pattern, line)]
            return f"{cause} ({lines[-1].strip()})"
    return None


def _dead_worker(text: str) -> str | None:
    """What to say when the DataLoader finds that one of its processes is gone."""
    found = re.match(r"DataLoader worker \(pid(?:\(s\))? (\d+)[\d, ]*\) (.*)", text, re.DOTALL)
    if found is None:
        return None
    path, how = path_of(int(found[1])), found[2].strip().splitlines()[0]
    if path:
        cause = (
            f" while it read {show(path)}: the file hangs or crashes the decoder, or memory ran out; `python -m "
            "llava.data.check` finds such files, and --on_bad_sample skip leaves them out"
        )
    elif cause := exhausted(text) or "":
        cause = f": {cause}"
    else:
        cause = (
            ": most often since memory ran out (the kernel's log says so, or a line above); lower "
            "--dataloader_num_workers or --per_device_train_batch_size, or ask for more memory"
        )
    return f"a data worker died (process {found[1]}, {how}){cause}. {RESUME}."


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command line and exits with its status; an error of the user is printed alone, as the last lines, and a
    fault of the program with its traceback.

    What was told to stop exits with `STOPPED_STATUS`; after Ctrl-C, or when nobody reads on, with the signal's. Of
    processes that torchrun started, one of a node says what all would.
    """
    try:
        status = main()
    except Stopped as stop:
        if _is_first_to_say(str(stop), after_others=False):
            print(show(f"\n{stop}", keep="\n"), file=sys.stderr)
        sys.exit(STOPPED_STATUS)
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(128 + signal.SIGPIPE)
        message = message_of(error)
        message = None if message is None else fitted(message)
        lost = os.environ.get(TORCHRUN_FILE) is not None and re.search(LOST_PEER, str(error)) is not None
        if message is None and lost:
            message = f"another process of the run ended: its own last lines say why. {RESUME}"
        first = _is_first_to_say(message, after_others=not lost)
        if message is None:
            raise
        _tell_torchrun(message)
        sys.exit(show(f"\nERROR: {message}", keep="\n\t") if first else 1)
    sys.exit(status)


def _nobody_reads() -> bool:
    """Whether what reads the output of this process is gone, as `head` goes; it is then written nowhere."""
    try:
        print(end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _is_first_to_say(message: str | None, after_others: bool) -> bool:
    """Whether no other process of this node, started by torchrun, has said a message; None is a traceback, which each
    process says.

    Args:
        after_others: it is said too when another process has said something else.
    """
    file = os.environ.get(TORCHRUN_FILE)
    if file is None:
        return True
    folder = Path(file).parent.parent  # .../attempt_0/<local rank>/error.json
    try:
        if not after_others and any(folder.glob("said-*")):
            return False
        said = os.getpid() if message is None else hashlib.sha256(message.encode(errors="replace")).hexdigest()[:16]
        (folder / f"said-{said}").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def _tell_torchrun(message: str) -> None:
    """What torchrun shows of a process that failed, in place of its traceback."""
    file = os.environ.get(TORCHRUN_FILE)
    if file is not None:
        said = {"message": message, "extraInfo": {"py_callstack": message, "timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps({"message": said}), encoding="utf-8")
