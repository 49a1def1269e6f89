"""Errors that are messages: what this package raises on purpose says all that a user needs, without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

STOPPED_STATUS = 85
"""Exit status of what stopped because it was told to, and goes on when it is started again."""


class Stopped(RuntimeError):
    """The work was told to stop, wrote down what was finished, and goes on when the same command is given again."""


def is_message(error: BaseException) -> bool:
    """Whether an error was raised by this package itself, and not by a library that it calls."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    package = Path(__file__).resolve().parent
    return frame is not None and Path(frame.tb_frame.f_code.co_filename).resolve().is_relative_to(package)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command line and exits with its status; a message is printed alone, other errors with their traceback.

    What was told to stop exits with `STOPPED_STATUS`.
    """
    try:
        status = main()
    except Stopped as stop:
        print(f"\n{stop}", file=sys.stderr)
        sys.exit(STOPPED_STATUS)
    except (ValueError, OSError, FloatingPointError, LookupError) as error:
        if not is_message(error):
            raise
        sys.exit(f"\n{type(error).__name__}: {error}")
    sys.exit(status)
