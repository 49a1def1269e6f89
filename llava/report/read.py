"""The files of a run's folder, read and checked for the report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.constants import ALARMS_FILE, RUN_RECORD
from llava.errors import MissingFile, UserError
from llava.eval.grounding_table import table_of
from llava.report.plots import number
from llava.report.tokens import DUMP_FILE, TokenSample, read_dump

MAKE = {
    RUN_RECORD: "training writes it into its output folder",
    "trainer_state.json": "training writes it at its end and into every checkpoint",
    ALARMS_FILE: "training with --run_monitor True writes a line into it for each alarm, so there was none",
    "preflight.json": "training writes it before its first step, with --preflight quick or full",
    "controls.jsonl": "training with --controls True writes a line into it at each evaluation "
    "(--eval_data_path) and at its end",
    DUMP_FILE: "pre-flight writes it, with --preflight quick or full",
    "grounding.json": "python -m llava.eval.grounding RUN --data_path FILE --video_folder DIR --image_folder DIR "
    "--feature_cache DIR writes it into RUN/tests",
    "captions.json": "python -m llava.eval.captioning --model-path RUN --data_path FILE --video_folder DIR "
    "--feature_cache DIR --control --output RUN/captions.json",
}
"""The files of a run and what makes them."""
OBJECTS = ("flags", "batch", "hardware", "versions", "data", "tokenizer", "split")
"""What is an object in `llava_run.json`, where it is there."""


@dataclass(frozen=True)
class Run:
    """The files of a run's folder; None (or an empty dict) stands for a file that is not there.

    `outdated` names files that are there and were made of the model after another step than the run's last, as a run
    that went on leaves them; they are not read.
    """

    folder: Path
    record: dict[str, Any]
    state: dict[str, Any] | None
    alarms: list[dict[str, Any]] | None
    preflight: dict[str, Any] | None
    controls: list[dict[str, Any]] | None
    captions: dict[str, Any] | None
    tokens: list[TokenSample] | None = None
    grounding: dict[str, Any] | None = None
    outdated: tuple[str, ...] = ()

    @property
    def flags(self) -> dict[str, Any]:
        return self.record.get("flags") or {}

    @property
    def log(self) -> list[dict[str, Any]]:
        return (self.state or {}).get("log_history") or []

    def values(self, key: str) -> list[tuple[float, float]]:
        """(step, value) of each entry of the log that has `key`; values may be NaN."""
        return [(number(e.get("step")), number(e[key])) for e in self.log if key in e]


def read_run(folder: str | Path) -> Run:
    """Reads what there is in a run's folder.

    Raises:
        FileNotFoundError: when the folder is no run.
        ValueError: for a malformed file, naming it and the line.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in (RUN_RECORD, "trainer_state.json")):
        raise MissingFile(
            f"{folder}: no run (neither llava_run.json nor trainer_state.json); name the --output_dir of a training run"
        )
    dump = folder / DUMP_FILE
    state, outdated = _read_json(folder / "trainer_state.json"), []

    def made_of_model(path: Path) -> dict[str, Any] | None:
        content = _read_json(path)
        steps = [(values or {}).get(key) for values, key in ((content, "step"), (state, "global_step"))]
        if None in steps or steps[0] == steps[1]:  # Files of earlier commits do not say.
            return content
        outdated.append(path.name)
        return None

    run = Run(
        folder,
        _read_json(folder / RUN_RECORD) or {},
        state,
        _read_lines(folder / ALARMS_FILE),
        _read_json(folder / "preflight.json"),
        _read_lines(folder / "controls.jsonl"),
        made_of_model(folder / "captions.json"),
        read_dump(dump.read_text(encoding="utf-8", errors="replace")) if dump.is_file() else None,
        made_of_model(folder / "tests" / "grounding.json"),
        tuple(outdated),
    )
    _check_shapes(run)
    return run


def _parse(text: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); mend the file, or remove it and make it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: a JSON object was expected, found {type(value).__name__}; make the file again")
    return value


def _read_json(path: Path) -> dict[str, Any] | None:
    return _parse(path.read_bytes(), str(path)) if path.is_file() else None


def _read_lines(path: Path) -> list[dict[str, Any]] | None:
    if not path.is_file():
        return None
    lines = path.read_bytes().split(b"\n")
    return [_parse(line, f"{path}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]


def _check_shapes(run: Run) -> None:
    """Refuses JSON that is well formed but not what the page reads."""

    def objects(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(v, dict) for v in value)

    def gains(line: dict[str, Any]) -> bool:
        named = line.get("gains") or {}
        units = [g or {} for g in named.values()] if isinstance(named, dict) else [None]
        return all(isinstance(u, dict) and all(not v or len(v) == 3 for v in u.values()) for u in units)

    def less(line: dict[str, Any]) -> bool:
        named = line.get("help_less")
        return not named or (
            isinstance(named, dict)
            and all(isinstance(named.get(k), int) for k in ("clips", "less"))
            and objects(named.get("listed"))
            and all(isinstance(clip.get("ids"), list) for clip in named["listed"])
        )

    def sources(data: Any) -> bool:
        parts = [p or {} for p in data.values()] if isinstance(data, dict) else []
        return all(isinstance(p, dict) and objects(p.get("sources") or []) for p in parts) and all(
            isinstance(counted, dict) and objects(list(counted.values()))
            for counted in (p.get("supervised") or {} for p in parts)
        )

    def scores(captions: dict[str, Any]) -> bool:
        rows, bounds, found = (captions.get(key) or {} for key in ("scores", "intervals", "retrieval"))
        return (
            all(isinstance(v, dict) and all(isinstance(row, dict) for row in v.values()) for v in (rows, bounds, found))
            and all(not ends or len(ends) == 2 for row in bounds.values() for ends in row.values())
            and all({"clips", "scores", "chance"} <= row.keys() for row in found.values())
            and all(len(triple) == 3 for row in found.values() for triple in row["scores"].values())
        )

    def tables(grounding: dict[str, Any] | None) -> bool:
        try:
            summary = {"tasks": {}} if grounding is None else grounding["summary"]
            for task, found in summary["tasks"].items():
                table_of(task, found)
            return objects(summary.get("examples") or []) and isinstance((grounding or {}).get("files") or [], list)
        except (KeyError, TypeError, ValueError, AttributeError):
            return False

    sets = (run.captions or {}).get("captions") or {}
    found = {
        RUN_RECORD: all(isinstance(run.record.get(k) or {}, dict) for k in OBJECTS)
        and isinstance(run.record.get("commit") or "", str)
        and objects(run.record.get("parameters") or [])
        and sources(run.record.get("data")),
        "trainer_state.json": objects(run.log),
        "preflight.json": objects((run.preflight or {}).get("checks", [])),
        "controls.jsonl": all(gains(line) and less(line) for line in run.controls or []),
        "captions.json": isinstance(sets, dict) and all(map(objects, sets.values())) and scores(run.captions or {}),
        "tests/grounding.json": tables(run.grounding),
    }
    for name, good in found.items():
        if not good:
            raise UserError(f"{run.folder / name}: the fields are not a run's; remove the file or make it again")
