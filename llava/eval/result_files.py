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
from llava.constants import MILESTONE_FILE
from llava.data.features.content import replace_file
from llava.errors import UnwritableFile

FOLDER = "tests"
TRAINER_STATE = "trainer_state.json"
NO_NAME = frozenset("*?[]:\\/")
MODEL_FILES = ("*.safetensors", "*.bin", "config.json", "tokenizer.json")
NO_WEIGHTS = "training_args.bin"
BLOCKS, BLOCK = 256, 4096
"""Places of a large file that are read to tell it from another, and bytes at each."""


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
        files: Sequence[Mapping[str, Any]],
        summary: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
        tables: Sequence[Mapping[str, Any]] = (),
    ) -> Path:
        """Writes NAME.csv and NAME.json, each whole or not at all, and returns the path of the first.

        Args:
            files: what was measured on, and `tables` what is said of its words: by `stamps`, from before they were
                read, so that a file that changes meanwhile is not taken for what was measured.
        """
        table = self.folder / f"{name}.csv"
        text = csv_text(columns, rows).encode("utf-8", "backslashreplace")
        facts = {
            "test": name,
            "checkpoint": str(self.run),
            "model": model_digest(self.run),
            "step": step_of(self.run),
            "files": list(files),
            "tables": list(tables),
            "rows": len(rows),
            "csv_sha256": hashlib.sha256(text).hexdigest(),
            "seconds": round(time.monotonic() - self.started, 2),
            "versions": versions(),
            "settings": dict(settings or {}),
            "summary": clean(summary),
        }
        # A name that is not UTF-8 is kept by its escape.
        said = _json(facts).encode("utf-8", "backslashreplace")
        replace_file(table, lambda file: file.write(text))
        replace_file(table.with_suffix(".json"), lambda file: file.write(said))
        return table


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
    """The optimiser step of a run, checkpoint or milestone, by its own files; None where there is none."""
    for name, key in ((TRAINER_STATE, "global_step"), (MILESTONE_FILE, "step")):
        try:
            return int(json.loads((Path(run) / name).read_text(encoding="utf-8"))[key])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def model_digest(run: str | Path) -> str:
    """A hash that tells the models of two folders apart: names and sizes of what is loaded from there, and blocks from
    all over each file. Training moves weights everywhere, so that a mebibyte of a file says as much as all of it.
    """
    digest = hashlib.sha256()
    paths = {p for pattern in MODEL_FILES for p in Path(run).glob(pattern) if p.name != NO_WEIGHTS}
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with open(path, "rb") as file:
            for start in range(0, size, max(size // BLOCKS, BLOCK)):
                file.seek(start)
                digest.update(file.read(BLOCK))
            file.seek(max(size - BLOCK, 0))
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def kept_results(folder: Path, name: str, run: Path) -> dict[str, Any] | None:
    """What is said of results, `NAME.json`.

    Returns:
        None where they are not there, where the table is not the one that was written with it (cut off, or edited), and
        where they are of another model than the one that is in `run` now. Results of earlier commits do not say which
        model they are of, and count when they are newer.
    """
    path = folder / f"{name}.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(facts, dict) or facts.get("csv_sha256", table := sha256(path.with_suffix(".csv"))) != table:
            return None
        if "model" in facts:
            return facts if facts["model"] == model_digest(run) else None
        weights = [p.stat().st_mtime_ns for pattern in MODEL_FILES[:2] for p in run.glob(pattern)]
        return facts if path.stat().st_mtime_ns >= max(weights, default=0) else None
    except (OSError, ValueError):
        return None


def stamps(paths: Iterable[str | Path | None]) -> list[dict[str, Any]]:
    """Paths with the hashes of their contents; None for the hash of a file that is not there, which its reader says."""
    return [{"path": str(path), "sha256": _sha256_if_there(path)} for path in paths if path is not None]


def changed_since(facts: Mapping[str, Any]) -> list[str]:
    """The paths of files that results were made from and that have other contents now, or are gone; of earlier commits,
    which kept no hashes, all.
    """
    made = [*(facts.get("files") or []), *(facts.get("tables") or [])]
    known = [(f["path"], f["sha256"]) if isinstance(f, Mapping) else (str(f), None) for f in made]
    return [path for path, digest in known if digest is None or _sha256_if_there(path) != digest]


def _sha256_if_there(path: str | Path) -> str | None:
    try:
        return sha256(path)
    except OSError:
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
