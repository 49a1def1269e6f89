"""What a study does with finished runs: `test_run` measures one, `give_answer` says what all of them show."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.config.known_flags import is_on
from llava.config.recipe import as_arguments
from llava.constants import MILESTONE_FILE, RUN_RECORD
from llava.data.records import apply_policy, missing_files
from llava.errors import UserError
from llava.eval.data import held_out_of
from llava.eval.pair_files import Columns, read_pairs
from llava.eval.pairs import PairFlags, records_of
from llava.eval.result_files import file_name, kept_results, sha256
from llava.eval.surprisal import SurprisalFlags, read_texts
from llava.eval.word_tables import read_classes, read_norms
from llava.study import testing
from llava.study.answer import CAPTIONS, MARKDOWN, write_answer
from llava.study.design import TEXT, StudyRun
from llava.study.results import BLIND, PAIRS, SIGHTED
from llava.study.testing import MILESTONES, made_by, noted, result_of

CLIP_FOLDERS = ("video_folder", "image_folder", "allow_absolute_paths")
NOTHING = (
    "Nothing can be shown: no captions were held out, since there are too few clips or --val_fraction is 0, so that "
    "neither what was learned about language nor whether V saw was measured on what is new to the models. Bring more "
    "clips (ten or more; a claim takes hundreds), or captions of others with --eval_data_path."
)

Command = Callable[[Sequence[str], str], None]
"""Runs a command, which is named in words for messages."""


@dataclass
class TestFlags:
    """What every run is tested on, beside held-out captions; more may be added to a finished study."""

    __test__ = False
    _argument_group_name = "tests"

    text: list[str] = field(
        default_factory=list, metadata={"help": "Plain text files, whose words are measured without a video."}
    )
    pairs: list[str] = field(default_factory=list, metadata={"help": "Files of minimal pairs (docs/pairs.md)."})
    norms: list[str] = field(default_factory=list, metadata={"help": "Tables of words with columns of numbers."})
    column: list[str] = field(default_factory=list, metadata={"help": "The columns of --norms that are taken."})
    classes: str | None = field(default=None, metadata={"help": "Table of words with a column class."})
    primary: str = field(
        default=CAPTIONS,
        metadata={"help": "The test that answers, named beforehand: captions, the name of a file of --text, or "
                  "pairs_NAME of one of --pairs."},
    )  # fmt: skip

    def __post_init__(self) -> None:
        named = {"text": self.text, "pairs": self.pairs, "norms": self.norms, "classes": [self.classes or __file__]}
        if missing := [f"--{flag} {f}" for flag, files in named.items() for f in files if not Path(f).is_file()]:
            raise UserError(f"{missing[0]}: no such file, which every run is to be tested on")
        known = [CAPTIONS, *map(file_name, self.text), *(PAIRS + file_name(path) for path in self.pairs)]
        if self.primary not in known:
            raise UserError(f"--primary {self.primary}: no such test; use {' or '.join(known)}")


def check_tests(asked: TestFlags, flags: Mapping[str, Any]) -> None:
    """Reads all that runs are to be tested on, so that a wrong column is not found after hours of training.

    Args:
        flags: of the arm V: where its clips are.

    Raises:
        UserError, DatasetError: as the tests themselves.
    """
    SurprisalFlags(data_path="held out", text=asked.text, column=asked.column)
    read_norms(asked.norms, asked.column)
    if asked.classes:
        read_classes(asked.classes)
    for path in asked.text:
        read_texts(path)
    PairFlags(files=asked.pairs)
    told = {name: flags.get(name) for name in CLIP_FOLDERS}
    anywhere = is_on(told["allow_absolute_paths"])
    for path in asked.pairs:
        pairs = [pair for pair in read_pairs(path, Columns())[0] if pair.clip]
        if pairs and told["video_folder"]:
            records = records_of(pairs, told["video_folder"], anywhere)
            apply_policy(records, missing_files(records[::2]), "stop")


def tests_of(run: StudyRun, flags: Mapping[str, Any], asked: TestFlags) -> dict[str, list[str]]:
    """The commands that test a finished run, by the name of their results: words without a video of every arm, and
    captions with their own videos of those that see.

    Args:
        flags: of the run, as it was trained.
    """
    records = held_out_of(run.folder)
    device = ["--device", "cpu"] if is_on(flags.get("use_cpu")) else []
    told = as_arguments({name: flags[name] for name in CLIP_FOLDERS if flags.get(name)})
    kept = str(flags.get("feature_cache") or "off")
    cache = ["--feature_cache", str(run.folder.parent / "feature_cache") if kept in ("off", "auto") else kept]
    about = [] if records is None else ["--data_path", str(records), *told, *cache]

    def command(module: str, *words: str) -> list[str]:
        return ["-m", f"llava.eval.{module}", str(run.folder), *words, *device]

    found: dict[str, list[str]] = {}
    about_words: list[str] = []
    if about or asked.text:
        more = as_arguments({name: values for name in ("text", "norms", "column") if (values := getattr(asked, name))})
        about_words = [*about, *more, *(["--classes", asked.classes] if asked.classes else [])]
        found[BLIND] = command("surprisal", *about_words)
    if about and run.arm != TEXT:
        found[SIGHTED] = command("sighted", *about)
    # Pairs that name a video are also asked after it, and after another's.
    sees = run.arm != TEXT and bool(flags.get("video_folder"))
    shown = {name: flags[name] for name in CLIP_FOLDERS if flags.get(name) and name != "image_folder"}
    for path in asked.pairs:
        found[PAIRS + file_name(path)] = command("pairs", path, *([*as_arguments(shown), *cache] if sees else []))
    if about_words and any(run.folder.glob(f"chck_*/{MILESTONE_FILE}")):
        found[MILESTONES] = command("milestones", *about_words, *(["--pairs", *asked.pairs] if asked.pairs else []))
    return found


def is_tested(run: StudyRun, name: str, words: Sequence[str]) -> bool:
    """Whether a test's results are there as this command made them, of these files and of the model that is there."""
    result = result_of(run.folder, name)
    if not result.is_file() or result.stat().st_mtime < (run.folder / RUN_RECORD).stat().st_mtime:
        return False
    if noted(run.folder).get(name) != {**made_by(words), "result": sha256(result)}:
        return False
    return name == MILESTONES or kept_results(result.parent, name, run.folder) is not None


def test_run(run: StudyRun, flags: Mapping[str, Any], asked: TestFlags, command: Command) -> None:
    """Makes the tests of a finished run that are not there yet."""
    found = tests_of(run, flags, asked)
    if left := {name: words for name, words in found.items() if not is_tested(run, name, words)}:
        words = [sys.executable, "-m", testing.__name__, str(run.folder), json.dumps(left)]
        command(words, f"the test{'s' * (len(left) > 1)} {', '.join(left)} of {run}")


def give_answer(output: Path, runs: Sequence[StudyRun], asked: TestFlags) -> str:
    """What a study shows, in words, written into its folder; all runs are finished and tested."""
    if asked.primary != CAPTIONS or all(held_out_of(run.folder) is not None for run in runs):
        return write_answer(output, primary=asked.primary).text
    listed = "\n".join(f"- {run}: {run.folder.relative_to(output)}/report.html" for run in runs)
    (output / MARKDOWN).write_text(f"# Does seeing help?\n\n{NOTHING}\n\n{listed}\n", encoding="utf-8")
    return NOTHING
