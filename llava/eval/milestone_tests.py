"""The models that a run has kept, which tests of each are there, and how they are made: for `llava.eval.milestones`.

The results of a milestone lie in `RUN/chck_7M/tests/`, those of the last model in `RUN/tests/`, as the tests' own
commands leave them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llava.config.ranges import COUNT
from llava.constants import MILESTONE_FILE, RUN_RECORD
from llava.errors import UserError, show
from llava.eval import pairs, surprisal
from llava.eval.data import held_out_of
from llava.eval.pair_files import Columns, read_pairs
from llava.eval.result_files import FOLDER, RunFlags, file_name, kept_results, stamps, step_of
from llava.eval.surprisal import BLIND, BlindTest, SurprisalFlags

END = "end"
TOLD = ("video_folder", "image_folder", "allow_absolute_paths", "feature_cache")
"""Flags of a run that say where the files of its own held-out records lie."""


@dataclass(frozen=True)
class Kept:
    """A model that a run kept: after how many words, at which optimiser step; `END` is the last one."""

    folder: Path
    name: str
    words: int
    step: int


@dataclass
class MilestoneFlags(SurprisalFlags):
    """The command's own flags; without --data_path, --text and --pairs the run's own held-out captions are measured."""

    ranges = {**SurprisalFlags.ranges, "least_occurrences": COUNT}

    runs: list[str] = field(
        kw_only=True,
        metadata={"positional": True, "metavar": "RUN", "help": "Folders of runs that were trained with --save_words."},
    )
    pairs: list[str] = field(
        default_factory=list, metadata={"help": "Files of minimal pairs, measured without a video."}
    )
    target: list[float] = field(
        default_factory=list, metadata={"help": "Nats a word: after how many words of training they are reached."}
    )
    least_occurrences: int = field(
        default=5, metadata={"help": "Words that occur more seldom in a test get no age of acquisition."}
    )
    share: str | None = field(
        default=None,
        metadata={"help": "K/N: measure the Kth of N shares of the models. A SLURM array does one a task."},
    )
    status: bool = field(default=False, metadata={"help": "Print what is measured, and measure nothing."})
    device: str | None = field(default=None, metadata={"help": "cuda, cpu, ...; the first GPU by default."})

    def __post_init__(self) -> None:
        if self.data_path is not None or self.text:
            super().__post_init__()
        names = [file_name(path) for path in self.pairs]
        if twice := [n for n in names if names.count(n) > 1]:
            raise UserError(f"two files of --pairs are called {twice[0]}, and their results would be too: rename one")
        if self.share is not None:
            share_of(self.share, {})


def share_of(share: str | None, environ: Mapping[str, str]) -> tuple[int, int]:
    """Which share of the models is measured here, from 0, and of how many: `--share 2/8`, or the SLURM array's task.

    Raises:
        UserError: for a share that is none.
    """
    if share is not None:
        first, _, of = share.partition("/")
        if not (first.isdecimal() and of.isdecimal() and 1 <= int(first) <= int(of)):
            raise UserError(f"--share {share}: write K/N, K from 1 to N, such as 2/8")
        return int(first) - 1, int(of)
    task = environ.get("SLURM_ARRAY_TASK_ID", "")
    if not task.isdecimal():
        return 0, 1
    least, step, count = (
        int(environ.get(f"SLURM_ARRAY_TASK_{name}") or default)
        for name, default in (("MIN", 0), ("STEP", 1), ("COUNT", 1))
    )
    return (int(task) - least) // max(step, 1) % count, count


def kept_models(run: Path) -> tuple[list[Kept], list[str]]:
    """The models of a run, fewest words first, and what is to be said of others.

    Of milestones that one step passed, which are one model, the last is taken; the end is left out where it is one of
    them.

    Raises:
        UserError: for a folder without a milestone, and a `milestone.json` that is none.
    """
    found: dict[int, Kept] = {}
    remarks = []
    for path in sorted(run.glob(f"chck_*/{MILESTONE_FILE}"), key=lambda p: _facts(p)["milestone"] or 0):
        facts, folder = _facts(path), path.parent
        if facts["step"] in found:
            remarks.append(f"{found[facts['step']].name} and {folder.name} are the same model: the latter is measured")
        found[facts["step"]] = Kept(folder, folder.name, facts["words"], facts["step"])
    if not found:
        raise UserError(
            f"{run}: has no milestone (chck_7M/{MILESTONE_FILE} or the like); name the --output_dir of a run that was "
            "trained with --save_words"
        )
    last, step = run / MILESTONE_FILE, step_of(run)
    if (run / RUN_RECORD).is_file() and step not in found:
        if last.is_file() and _facts(last)["step"] == step:
            found[_facts(last)["step"]] = Kept(run, END, _facts(last)["words"], _facts(last)["step"])
        else:
            remarks.append(f"the last model is left out: {MILESTONE_FILE} does not say how many words it was served")
    return sorted(found.values(), key=lambda k: k.words), remarks


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return {"milestone": facts["milestone"], "words": int(facts["words"]), "step": int(facts["step"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: does not say words and step ({show(error)}); train the run again") from error


@dataclass
class RunTests:
    """The tests of one run's models.

    Args:
        flags: of the command; `run`: the folder; `kept`: its models.

    Raises:
        ValueError: for files that cannot be read, and where there is nothing to measure.
    """

    flags: MilestoneFlags
    columns: Columns
    run: Path
    kept: Sequence[Kept]

    def __post_init__(self) -> None:
        flags = self.flags
        if flags.data_path is None and not flags.text and not flags.pairs:
            flags = self._held_out()
        self.blind = BlindTest(flags, str(self.kept[-1].folder)) if flags.data_path or flags.text else None
        self.pair_flags = pairs.PairFlags(
            files=flags.pairs, conditions=[pairs.NONE], batch_size=flags.batch_size, context=flags.context
        )
        self.pair_stamps = stamps(flags.pairs)
        self.pair_files = {path: read_pairs(path, self.columns) for path in flags.pairs}
        self._blind_settings = self.blind.settings if self.blind else {}

    def _held_out(self) -> MilestoneFlags:
        """The flags with the run's own held-out records."""
        model = self.kept[-1].folder
        records = held_out_of(self.run, model)
        if records is None:
            raise UserError(
                f"{self.run}: held no captions out; say what is measured with --data_path, --text or --pairs"
            )
        told = json.loads((model / RUN_RECORD).read_text(encoding="utf-8"))["flags"]
        more = {n: told[n] for n in TOLD if told.get(n) not in (None, "", "off") and not getattr(self.flags, n)}
        return replace(self.flags, data_path=str(records), **more)

    @property
    def pair_names(self) -> list[str]:
        """Names of the results of pairs."""
        return [f"pairs_{file_name(path)}" for path in self.pair_files]

    def lacking(self, model: Kept) -> list[str]:
        """Names of the results that a model does not have: not there, older than the model, or of something else."""
        names = []
        if self.blind is not None:
            wanted = {"files": [made["sha256"] for made in self.blind.files], **self._blind_settings}
            if not covers(facts_of(model, BLIND), wanted):
                names.append(BLIND)
        settings = pairs.settings_of(self.pair_flags, self.columns)
        for made, name in zip(self.pair_stamps, self.pair_names, strict=True):
            if not covers(facts_of(model, name), {"files": [made["sha256"]], **settings}):
                names.append(name)
        return names

    def measure(self, model: Kept) -> None:
        """Makes the results that a model lacks."""
        lacking = self.lacking(model)
        run = RunFlags(model_path=str(model.folder), device=self.flags.device)
        if self.blind is not None and BLIND in lacking:
            surprisal.measure(run, self.blind)
        names = zip(self.pair_files.items(), self.pair_names, strict=True)
        if files := {path: found for (path, found), name in names if name in lacking}:
            pairs.measure(run, self.pair_flags, self.columns, files, self.pair_stamps)


def facts_of(model: Kept, name: str) -> dict[str, Any] | None:
    """What the file beside a model's results says; None where there are none of this model."""
    return kept_results(model.folder / FOLDER, name, model.folder)


def covers(facts: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> bool:
    """Whether results are of all that is wanted, and made alike; they may be of more files, columns and conditions."""
    if facts is None:
        return False
    made = {**(facts.get("settings") or {}), "files": [f.get("sha256") for f in facts.get("files") or []]}
    for name, value in wanted.items():
        has = made.get(name)
        more = name in ("files", "tests", "columns", "norms", "conditions") and isinstance(has, list)
        if not (set(value) <= set(has) if more else name in made and has == value):
            return False
    return True
