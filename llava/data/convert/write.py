"""Files of records, one for each split, and the lists of what was left out beside them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import IO, Any

from llava.data.convert.build import Tally
from llava.data.json_records import DatasetError
from llava.errors import counted, show


def part_path(output: Path, split: str) -> Path:
    """The file of a split: `train.json` for none, else its name before the extension."""
    name = re.sub(r"[^\w-]+", "_", split)
    return output.with_name(f"{output.stem}_{name}{output.suffix}") if split else output


class Writer:
    """Writes records to a file for each split, each put in its place when all are whole."""

    def __init__(self, output: Path, overwrite: bool, source: Path) -> None:
        self.output, self.overwrite, self.source = output, overwrite, source.resolve()
        self.files: dict[Path, IO[str]] = {}

    def write(self, split: str, record: dict[str, Any]) -> None:
        path = part_path(self.output, split)
        if path not in self.files:
            if path.exists() and not self.overwrite:
                raise DatasetError(f"{show(path)}: exists already: choose another --output, or add --overwrite")
            if path.resolve() == self.source:
                raise DatasetError(
                    f"{show(path)}: is the source itself, which is never replaced: choose another --output"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            self.files[path] = _aside(path).open("w", encoding="utf-8")
            self.files[path].write("[\n" if path.suffix == ".json" else "")
        elif path.suffix == ".json":
            self.files[path].write(",\n")
        self.files[path].write(json.dumps(record, ensure_ascii=False) + ("" if path.suffix == ".json" else "\n"))

    def finish(self) -> None:
        """Puts the files in their places."""
        for path, file in self.files.items():
            file.write("\n]\n" if path.suffix == ".json" else "")
            file.close()
            _aside(path).replace(path)

    def discard(self) -> None:
        """Removes what was not finished."""
        for path, file in self.files.items():
            file.close()
            _aside(path).unlink(missing_ok=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def write_lists(output: Path, tally: Tally) -> list[str]:
    """Writes what was left out beside the output, and says where; lists of an earlier conversion go."""
    lines = []
    lists = {
        "missing": [
            f"{show(clip)}\t{show(why)}\t{counted(n, 'caption')}" for clip, (why, n) in sorted(tally.missing.items())
        ],
        "left_out": [str(fault) for fault in tally.faults],
    }
    for name, content in lists.items():
        path = output.with_name(f"{output.stem}.{name}.txt")
        path.unlink(missing_ok=True)
        if content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(content) + "\n", encoding="utf-8")
            lines.append(f"listed in {path}")
    return lines
