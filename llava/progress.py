"""Progress of long loops: a bar in a terminal, and elsewhere a plain line every few seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SECONDS = 10.0
"""Between two lines; what is done before the first one is due writes none."""


class Lines(tqdm):
    """tqdm for files and pipes, where a bar would be written anew for every update."""

    def __init__(self, *args: Any, **options: Any) -> None:
        known = options.get("total") is not None or hasattr(args[0] if args else None, "__len__")
        form = "{desc}: {n_fmt}, {rate_noinv_fmt}"
        if known:
            form = "{desc}: {n_fmt} of {total_fmt}, {rate_noinv_fmt}, {remaining} left"
        super().__init__(*args, mininterval=SECONDS, maxinterval=SECONDS, delay=SECONDS, bar_format=form, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        print(" ".join(str(self).split()) if msg is None else msg, file=self.fp, flush=True)
        return True

    def close(self) -> None:
        """As in tqdm; the last line says that all is done, where others came before it."""
        if self.disable:
            return
        self.disable = True
        self._decr_instances(self)
        if self.last_print_t >= self.start_t + self.delay:
            print(f"{self.desc.removesuffix(': ')}: {self.n} in {self.format_interval(self._time() - self.start_t)}",
                  file=self.fp, flush=True)  # fmt: skip


def progress(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """tqdm of the kind that standard error asks for, with tqdm's arguments."""
    kind = tqdm if sys.stderr.isatty() else Lines
    return kind(iterable, **options)
