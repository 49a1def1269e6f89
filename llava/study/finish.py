"""What a study does with finished runs: `test_run` measures one, `write_answer` says what all of them show."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llava.config.recipe import as_arguments
from llava.constants import HELD_OUT_FILE, RUN_RECORD
from llava.study.design import TEXT, StudyRun

BLIND, SIGHTED = "blind_words", "sighted_captions"
MODULES = {BLIND: "llava.eval.surprisal", SIGHTED: "llava.eval.sighted"}
"""Each test by the name of its results, `RUN/tests/NAME.csv` and `NAME.json`, and the command that makes it."""
PAGE, ANSWER = "study.md", "llava.study.answer"
TOLD = ("video_folder", "image_folder", "allow_absolute_paths", "feature_cache")
"""Flags of a run that its tests are told too."""

Command = Callable[[Sequence[str], str], None]
"""Runs a command, which is named in words for messages."""


def held_out_of(folder: Path) -> Path | None:
    """The records that a finished run was evaluated on: those that it was given, or held out; None without any."""
    record = json.loads((folder / RUN_RECORD).read_text(encoding="utf-8"))
    if record["flags"].get("eval_data_path"):
        return Path(record["flags"]["eval_data_path"])
    file = folder / HELD_OUT_FILE
    return file if (record.get("split") or {}).get("held_out") and file.is_file() else None


def tests_of(run: StudyRun, flags: Mapping[str, Any]) -> dict[str, list[str]]:
    """The commands that test a finished run, by the name of their results: blind words of every arm, and captions with
    their own videos of those that see.

    Args:
        flags: of the run, as it was trained.
    """
    records = held_out_of(run.folder)
    if records is None:
        return {}
    told = as_arguments({name: flags[name] for name in TOLD if flags.get(name) not in (None, "", "off")})
    words = [str(run.folder), "--data_path", str(records), *told]
    found = {BLIND: words} if run.arm == TEXT else {BLIND: words, SIGHTED: words}
    return {name: ["-m", MODULES[name], *words] for name, words in found.items() if find_spec(MODULES[name])}


def is_tested(run: StudyRun, name: str) -> bool:
    """Whether a test's results are there, and newer than the model."""
    result, record = run.folder / "tests" / f"{name}.json", run.folder / RUN_RECORD
    return result.is_file() and result.stat().st_mtime >= record.stat().st_mtime


def test_run(run: StudyRun, flags: Mapping[str, Any], command: Command) -> None:
    """Makes the tests of a finished run that are not there yet."""
    for name, words in tests_of(run, flags).items():
        if not is_tested(run, name):
            command([sys.executable, *words], f"the test {name} of {run}")


def tested(run: StudyRun, flags: Mapping[str, Any]) -> str:
    """Which tests of a finished run are there, in words for the table of progress."""
    names = tests_of(run, flags)
    return ", ".join(f"{name}{'' if is_tested(run, name) else ' (not yet)'}" for name in names) or "none"


def write_answer(output: Path, runs: Sequence[StudyRun]) -> str:
    """What a study shows, in words, written into its folder; all runs are finished and tested."""
    nothing = [run for run in runs if held_out_of(run.folder) is None]
    if nothing:
        text = (
            "Nothing can be shown: no captions were held out, since there are too few clips, so that neither what was "
            "learned about language nor whether V saw was measured on clips that are new to the models. Bring more "
            "clips (ten or more; a claim takes hundreds), or captions of others with --eval_data_path."
        )
    elif find_spec(ANSWER) is not None:
        return str(import_module(ANSWER).write_answer(output).text)
    else:
        text = "No verdict: this version has no blind test of language. Each run has its own report.html."
    listed = "\n".join(f"- {run}: {run.folder.relative_to(output)}/report.html" for run in runs)
    (output / PAGE).write_text(f"# Does seeing help?\n\n{text}\n\n{listed}\n", encoding="utf-8")
    return text
