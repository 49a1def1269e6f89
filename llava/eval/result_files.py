"""What a test of a run leaves in its folder: `tests/NAME.csv`, a row an item or a word, and `tests/NAME.json` beside
it, which says what was measured, on what and by what."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llava
from llava.config.groups import ModelFlags
from llava.data.features.content import replace_file
from llava.errors import UnwritableFile

FOLDER = "tests"
NO_NAME = frozenset("*?[]:\\/")


@dataclass
class RunFlags(ModelFlags):
    """The run, or a checkpoint of it, that is tested, and where its results go."""

    model_path: str = field(
        kw_only=True,
        metadata={"positional": True, "metavar": "RUN", "help": "Folder of a finished run or a checkpoint."},
    )
    output: Path | None = field(default=None, metadata={"help": f"Folder for the results; {FOLDER} in RUN by default."})


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as RFC 4180 with one header: numbers as `repr` gives them, nothing for None and NaN."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)


@dataclass
class Results:
    """Collects what is known of one test and writes its two files.

    Args:
        folder: where they go; run: the folder of the checkpoint.
    """

    folder: Path
    run: Path
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, flags: RunFlags) -> Results:
        """Of a run that is there: the folder is made, so that nothing is measured that could not be written.

        Raises:
            UnwritableFile: where it cannot be made.
        """
        folder = flags.output or Path(flags.model_path) / FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnwritableFile(f"{folder}: {error.strerror}; name another folder with --output") from error
        return cls(folder, Path(flags.model_path))

    def write(
        self,
        name: str,
        columns: Sequence[str],
        rows: Sequence[Mapping[str, Any]],
        files: Sequence[str | Path],
        summary: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
    ) -> Path:
        """Writes NAME.csv and NAME.json, each whole or not at all, and returns the path of the first.

        Args:
            files: what was measured on; their hashes are kept.
        """
        table = self.folder / f"{name}.csv"
        facts = {
            "test": name,
            "checkpoint": str(self.run),
            "step": step_of(self.run),
            "files": [{"path": str(path), "sha256": sha256(path)} for path in files],
            "rows": len(rows),
            "seconds": round(time.monotonic() - self.started, 2),
            "versions": versions(),
            "settings": dict(settings or {}),
            "summary": clean(summary),
        }
        for path, text in ((table, csv_text(columns, rows)), (table.with_suffix(".json"), _json(facts))):
            _write(path, text)
        return table


def _write(path: Path, text: str) -> None:
    # A name that is not UTF-8 is kept by its escape.
    replace_file(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def clean(value: Any) -> Any:
    """A value for JSON, which has no NaN: null in its place."""
    if isinstance(value, Mapping):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def step_of(run: str | Path) -> int | None:
    """The optimiser step of a run or checkpoint, by its trainer's state; None where there is none."""
    try:
        return int(json.loads((Path(run) / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    packages = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    return {"python": platform.python_version(), "llava": llava.__version__, **packages}


def sha256(path: str | Path) -> str:
    """Of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_name(path: str | Path) -> str:
    """What a test on a file is called: its name without its ending, and nothing that a file name cannot have."""
    return "".join("_" if c in NO_NAME or c.isspace() else c for c in Path(path).stem)
