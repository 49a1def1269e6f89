"""`study.json`: what a study was begun with; one that goes on with other settings is an error that names them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from llava.constants import RUN_RECORD
from llava.errors import MissingFile, UserError
from llava.train.checkpoint.files import list_checkpoints
from llava.train.checkpoint.lock import LOCK_FILE, is_held

STUDY_FILE = "study.json"


def open_study(output: Path, settings: Mapping[str, Any], seeds: int) -> int:
    """Writes the settings of a new study, or compares them with those that it was begun with.

    A study of which no run has begun (a folder of clips was named wrongly, say) takes the new ones.

    Args:
        settings: `llava.study.design.settings_of`.
        seeds: how many; more than before are added, and fewer leave the others as they are.

    Returns:
        The number of seeds of the study, those of before included.

    Raises:
        UserError: naming every setting that changed, with both values.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / STUDY_FILE
    wanted = json.loads(json.dumps({**settings, "seeds": seeds}))
    # Of several jobs that begin at once one writes it: a link is there with all of its content, or not.
    aside = output / f".{STUDY_FILE}.{os.getpid()}"
    aside.write_text(json.dumps(wanted, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    try:
        with suppress(FileExistsError):
            os.link(aside, path)
            return seeds
        before = read_study_file(output)
        if not _has_begun(output):
            os.replace(aside, path)
            return seeds
        if changed := differences(before, wanted):
            width = max(map(len, changed))
            rows = "\n".join(f"  {n.ljust(width)}: was {a}, is {b}" for n, (a, b) in changed.items())
            raise UserError(
                f"--output {output} holds a study with other settings:\n{rows}\nits runs could not be compared with "
                "those that come: give the same settings, or choose another --output"
            )
        if seeds > before["seeds"]:
            # What was named before the study stays what it was.
            kept = wanted | {"primary": before.get("primary")}
            aside.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(aside, path)
        return max(seeds, before["seeds"])
    finally:
        aside.unlink(missing_ok=True)


def recorded(output: Path) -> dict[str, Any]:
    """The settings of a study; empty where its results were put together by hand."""
    return read_study_file(output) if (output / STUDY_FILE).is_file() else {}


def _has_begun(output: Path) -> bool:
    """Whether a run is being trained, or has kept anything that it trained."""
    folders = [folder for folder in output.glob("seed*/*") if folder.is_dir()]
    return any((f / RUN_RECORD).is_file() or list_checkpoints(f) or is_held(f / LOCK_FILE) for f in folders)


def read_study_file(output: Path) -> dict[str, Any]:
    """The settings of a study.

    Raises:
        MissingFile: when there is none in the folder.
        UserError: when its file is not one.
    """
    path = output / STUDY_FILE
    if not path.is_file():
        raise MissingFile(f"--output {output} holds no study ({STUDY_FILE}): start it first, without --status")
    remedy = "it is not what a study wrote; choose another --output"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: {error}; {remedy}") from error
    if not isinstance(found, dict) or not {"seeds", "arms", "blind_share", "flags"} <= found.keys():
        raise UserError(f"{path}: settings are missing; {remedy}")
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The settings that differ, by their names as flags where they are flags, with both values."""
    found = {}
    for name in ("arms", "blind_share", "words"):
        if before.get(name) != now.get(name):
            found[f"--{name}"] = before.get(name), now.get(name)
    flags = before["flags"], now["flags"]
    for name in sorted(flags[0].keys() | flags[1].keys()):
        a, b = (values.get(name, "not given") for values in flags)
        if a != b:
            found[f"--{name}"] = a, b
    return {name: (written(a), written(b)) for name, (a, b) in found.items()}


def written(value: Any) -> str:
    """A value as it is typed: whole numbers without a point, lists as one word."""
    if isinstance(value, list):
        return ",".join(map(written, value))
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)
