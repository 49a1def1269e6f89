"""Errors that are messages: what this package raises on purpose says all that a user needs, without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


def is_message(error: BaseException) -> bool:
    """Whether an error was raised by this package itself, and not by a library that it calls."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    package = Path(__file__).resolve().parent
    return frame is not None and Path(frame.tb_frame.f_code.co_filename).resolve().is_relative_to(package)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command line and exits with its status; a message is printed alone, other errors with their traceback."""
    try:
        status = main()
    except (ValueError, OSError, FloatingPointError, LookupError) as error:
        if not is_message(error):
            raise
        sys.exit(f"\n{type(error).__name__}: {error}")
    sys.exit(status)
