"""Errors that are messages: what this package raises on purpose says all that a user needs, without a traceback."""

from __future__ import annotations

import re
import sys
import unicodedata
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Protocol

OUT_OF_MEMORY = (
    "lower --per_device_train_batch_size and raise --gradient_accumulation_steps by the same factor, which gives the "
    "same training (--per_device_eval_batch_size for evaluation, --batch_size for other commands); or add "
    "--gradient_checkpointing True, --bf16 True, or fewer --dataloader_num_workers, or lower --model_max_length"
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
        r"Timed out waiting \d+ms|collective operation timeout",
        "another process did not answer for --ddp_timeout seconds: it hangs or is stopped, or its node is lost; "
        f"torchrun's last lines name it where it was killed. {RESUME}",
    ),
)
"""What libraries say when something ran out (a pattern), and the cause with its remedy."""
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


JOINERS = "\u200c\u200d"
"""Zero-width characters that spell words (Persian, Hindi) and join emoji."""


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


class Stopped(RuntimeError):
    """The work was told to stop, wrote down what was finished, and goes on when the same command is given again."""


def is_message(error: BaseException) -> bool:
    """Whether an error was raised by this package itself, and not by a library that it calls."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and _is_ours(frame.tb_frame.f_code.co_filename)


def _is_ours(file: str) -> bool:
    return Path(file).resolve().is_relative_to(Path(__file__).resolve().parent)


def message_of(error: BaseException) -> str | None:
    """What there is to say of an error without its traceback; None for one that nobody foresaw."""
    name, text = type(error).__name__, str(error)
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or "can't allocate memory" in text:
        return f"out of memory ({(text.strip() or name).splitlines()[0]}): {OUT_OF_MEMORY}"
    if isinstance(error, RuntimeError) and (dead := _dead_worker(text)):
        return dead
    if isinstance(error, (RuntimeError, OSError)) and not is_message(error) and (cause := exhausted(text)):
        return cause
    if isinstance(error, RuntimeError):
        own = type(error).__module__.startswith("llava.")
        return f"{name}: {text}" if own and is_message(error) else None
    if isinstance(error, (EOFError, ConnectionError)):
        return _dead_worker(_ended_worker(error))
    if not isinstance(error, (ValueError, OSError, FloatingPointError, LookupError)):
        return None
    if text.startswith(f"Caught {name} in DataLoader worker"):
        # torch raises an error of a data worker again with the worker's traceback as its text, and its lines matter.
        text = str(error.args[0])
        files = re.findall(r'^ +File "(.+)", line \d+', text, re.MULTILINE)
        return f"{name}: {text.rpartition(f'{name}: ')[2].strip()}" if files and _is_ours(files[-1]) else None
    return f"{name}: {text}" if is_message(error) else None


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
    """Runs a command line and exits with its status; a message is printed alone, other errors with their traceback.

    What was told to stop exits with `STOPPED_STATUS`.
    """
    try:
        status = main()
    except Stopped as stop:
        print(show(f"\n{stop}", keep="\n"), file=sys.stderr)
        sys.exit(STOPPED_STATUS)
    except Exception as error:
        message = message_of(error)
        if message is None:
            raise
        sys.exit(show(f"\n{message}", keep="\n\t"))
    sys.exit(status)
