"""A file of captions that grows by a row a clip, so that an interrupted command leaves what it had."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from llava.config.commands import check_output
from llava.errors import UserError

COLUMNS = (
    "clip", "caption", "ended", "tokens", "references", "error", "prompt", "seed", "temperature", "top_p", "top_k",
    "num_beams", "repetition_penalty", "max_new_tokens", "coordinate_choice", "model",
)  # fmt: skip
"""What a row says. `ended` is false for a caption that was cut; `error` says why a clip has none."""
BETWEEN = " | "
"""Between the references of a clip in a CSV."""


def check_caption_file(flag: str, path: Path | None) -> None:
    """Refuses a file that could not be written.

    Raises:
        ValueError: naming the flag, for another ending than .jsonl and .csv, and from `check_output`.
    """
    if path is not None and path.suffix.lower() not in (".jsonl", ".csv"):
        raise UserError(f"{flag} {path}: name a file that ends in .jsonl or .csv")
    check_output(flag, path)


class CaptionFile:
    """Writes rows of `COLUMNS` as JSON lines or CSV, by the file's ending; a context manager.

    Args:
        common: what is the same in every row.

    Raises:
        OSError: naming the file, when it cannot be written, at once or later.
    """

    def __init__(self, path: Path, common: Mapping[str, Any]) -> None:
        self.path, self.common, self.rows = path, common, 0
        self.is_csv = path.suffix.lower() == ".csv"
        try:
            # A name that is not UTF-8 is kept by its escape.
            self.file = path.open("w", encoding="utf-8", errors="backslashreplace", newline="")
        except OSError as error:
            raise self._named(error) from error
        if self.is_csv:
            self._put(lambda: csv.DictWriter(self.file, COLUMNS).writeheader())

    def __enter__(self) -> CaptionFile:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.file.close()

    def add(self, **row: Any) -> None:
        """Writes a row; what it leaves out is null, or empty in a CSV."""
        whole = dict.fromkeys(COLUMNS) | dict(self.common) | row
        if self.is_csv:
            whole["references"] = BETWEEN.join(whole["references"] or ())
            self._put(lambda: csv.DictWriter(self.file, COLUMNS).writerow(whole))
        else:
            self._put(lambda: self.file.write(json.dumps(whole, ensure_ascii=False) + "\n"))
        self.rows += 1

    def _put(self, write: Any) -> None:
        try:
            write()
            self.file.flush()
        except OSError as error:
            raise self._named(error) from error

    def _named(self, error: OSError) -> OSError:
        return OSError(f"{self.path}: cannot be written ({error.strerror or error})")
