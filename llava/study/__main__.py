"""python -m llava.study: does seeing help? Trains all arms over several seeds, tests them, and says what they show.

The same command goes on wherever it was: finished runs are kept, one that was cut goes on from its last checkpoint.
"""

from __future__ import annotations

import difflib
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from inspect import cleandoc
from pathlib import Path
from typing import Any

import llava
from llava.config.commands import Parser, refuse
from llava.config.hardware import hardware
from llava.config.known_flags import given, known_flags
from llava.config.ranges import COUNT, Range, out_of_range
from llava.config.recipe import as_arguments
from llava.errors import FLAGS, UserError, counted, run_command, show
from llava.eval.data import held_out_of
from llava.study import finish
from llava.study.answer import CAPTIONS
from llava.study.corpus import corpus_of
from llava.study.design import (
    ARMS,
    OTHER,
    OWN,
    TEXT,
    SeedPlan,
    StudyRun,
    chosen,
    flags_of,
    planned,
    runs_of,
    settings_of,
)
from llava.study.jobs import Jobs, trainer_command
from llava.study.progress import (
    FINISHED,
    RUNNING,
    check_paired,
    planned_steps,
    state_of,
    step_seconds,
    table,
)
from llava.study.settings import open_study, read_study_file

PROG = "python -m llava.study"
REPOSITORY = Path(llava.__file__).parents[1]
TRIAL, TRIAL_STEPS = ".trial", 12
"""Folder of the study in which a few steps are timed, and how many."""
TRIAL_FLAGS = {
    "max_steps": TRIAL_STEPS, "logging_steps": TRIAL_STEPS // 2, "save_strategy": "no", "eval_strategy": "no",
    "controls": "False", "run_report": "False", "preflight": "off", "report_to": "none",
    "resume_from_checkpoint": "none",
}  # fmt: skip


@dataclass
class StudyFlags:
    """The study's own flags. All flags of the trainer may be given besides, and are those of every run."""

    ranges = {"seeds": COUNT, "blind_share": Range(0, 1, below=True)}

    output: Path = field(default=Path("output/study"), metadata={"help": "Folder of all runs and of the answer."})
    seeds: int = field(
        default=5, metadata={"help": "Seeds, from 0. Five are a pilot, eight or more make a claim; more may be added."}
    )
    blind_share: float = field(
        default=0.5,
        metadata={
            "help": "Share of the captions that V and M are shown without video, drawn anew each epoch; without it "
            "there is no verdict."
        },
    )
    arms: str = field(
        default=",".join(ARMS),
        metadata={"help": "T: text alone; V: each clip's own video; M: another clip's. V and M are needed."},
    )
    only: str | None = field(
        default=None,
        metadata={"help": "One run, or those of a seed or an arm: seed=0,arm=V. A SLURM array does one a task."},
    )
    text_corpus: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Text that all arms read beside the captions: plain text, JSON lines, or what python -m "
            "llava.data.corpus made of it, which names source and licence."
        },
    )
    words: str = field(default="all", metadata={"help": "Words of it, such as 10M; all takes everything."})
    status: bool = field(default=False, metadata={"help": "Print how far all runs are, and start nothing."})

    def __post_init__(self) -> None:
        listed = self.arms.replace(" ", "").split(",")
        self.listed = [arm for arm in ARMS if arm in listed]
        if set(listed) - set(ARMS) or not {OWN, OTHER} <= set(listed):
            raise UserError(f"--arms {self.arms}: write V,M,T, or V,M without text alone, as one word")


def parse(argv: Sequence[str] | None) -> tuple[StudyFlags, finish.TestFlags, list[str]]:
    """The study's own flags, those of its tests, and the words that are the trainer's.

    Raises:
        SystemExit: after a message for wrong flags, and after `--help`.
    """
    about = cleandoc(__doc__ or "") + "\n\nVariables and recipes are those of train_italian_video.sh."
    kinds = StudyFlags, finish.TestFlags
    parser = Parser(kinds, prog=PROG, description=about)
    values, rest = parser.parse_known_args(None if argv is None else list(argv))
    FLAGS.update(f"--{name}" for name in known_flags())  # Messages may name these too.
    stray = [f"{word}: belongs to no flag" for word in rest[:1] if not word.startswith("--")]
    given = vars(values)
    try:
        own = StudyFlags(**{f.name: given[f.name] for f in fields(StudyFlags)})
        # After the arms, which say more of a word that stands there by mistake.
        if problems := [*stray, *_nearly(rest), *out_of_range(given, StudyFlags.ranges).values()]:
            refuse(problems[0], PROG)
        return own, finish.TestFlags(**{f.name: given[f.name] for f in fields(finish.TestFlags)}), rest
    except UserError as error:
        refuse(error, PROG)


def _nearly(rest: Sequence[str]) -> list[str]:
    """Of the words that are not the study's own, those that are no flag of the trainer and nearly one of the study."""
    own, known = [f.name for kind in (StudyFlags, finish.TestFlags) for f in fields(kind)], known_flags()
    names = [name for name in given(rest) if name not in known and name.removeprefix("no_") not in known]
    near = {name: difflib.get_close_matches(name, own, 1, 0.75) for name in names}
    return [f"--{name}: there is no such flag; did you mean --{close[0]}?" for name, close in near.items() if close]


class Study:
    """A study that is under way.

    Attributes:
        plans: what the runs of a seed have in common, by seed, as far as it was looked at.
    """

    def __init__(
        self,
        flags: StudyFlags,
        tests: finish.TestFlags,
        rest: Sequence[str],
        environ: Mapping[str, str],
        jobs: Jobs,
    ) -> None:
        self.flags, self.tests, self.rest, self.environ, self.jobs = flags, tests, list(rest), environ, jobs
        self.plans: dict[int, SeedPlan] = {}
        first = self.plan(0)
        finish.check_tests(tests, first.flags)
        if flags.text_corpus or flags.words != "all":
            if first.data:
                raise UserError("--text_corpus: belongs to data of one's own, not to the demo: name them (--data_path)")
            made = corpus_of(flags.text_corpus, flags.words, flags.output, self.command)
            self.rest += ["--data_path", ",".join([first.flags["data_path"], *made])]
            self.plans.clear()
            first = self.plan(0)
        for note in first.notes:
            say(note)
        settings = settings_of(first, flags.listed, flags.blind_share) | {
            "words": flags.words,
            "primary": tests.primary,
        }
        self.seeds = open_study(flags.output, settings, flags.seeds)
        self.runs = runs_of(flags.output, self.seeds, flags.listed)

    def plan(self, seed: int) -> SeedPlan:
        if seed not in self.plans:
            output = self.flags.output
            self.plans[seed] = planned(self.environ, self.rest, output, seed, hardware, REPOSITORY)
        return self.plans[seed]

    def flags_of(self, run: StudyRun) -> dict[str, Any]:
        return flags_of(run, self.plan(run.seed), self.flags.blind_share)

    def command(self, words: Sequence[str], what: str) -> None:
        self.jobs.run(words, what)

    def make(self, seed: int) -> None:
        """The demo's clips, where there are no data, and the initial model of a seed."""
        plan, demo = self.plan(seed), REPOSITORY / "scripts" / "make_demo_data.py"
        if plan.data and not demo.is_file():
            raise UserError(
                "no data are named (DATA_PATH, VIDEO_FOLDER), and the demo is not part of an installed package: take a "
                "checkout of the repository for it"
            )
        if plan.data:
            self.command([sys.executable, str(demo), *plan.data], "the demo")
        if plan.make:
            words = [sys.executable, "-m", "llava.commands.make_model", "--exist_ok", *plan.make]
            self.command(words, f"the initial model of seed {seed}")

    def train(self, run: StudyRun, flags: Mapping[str, Any]) -> None:
        plan, folder = self.plan(run.seed), Path(flags["output_dir"])
        words, variables = trainer_command(plan.gpus, plan.needs_launcher, self.environ)
        self.jobs.run([*words, *as_arguments(flags)], str(run), folder, variables)

    def estimate(self) -> None:
        """Says about how long all runs take, from those that there are, or from a few steps of one of each kind.

        Raises:
            UserError: when these few steps show that the runs would be no pair.
        """
        seconds: dict[str, float] = {}
        steps, how = 0, "the runs so far"
        for run in self.runs:
            state = state_of(run.folder)
            if state.steps and run.arm not in seconds:
                seconds[run.arm], steps = step_seconds(run.folder), state.steps
        kinds = [arm for arm in (OWN, TEXT) if arm in self.flags.listed]
        if not set(seconds) & {OWN, OTHER}:
            how = f"{TRIAL_STEPS} steps of {' and of '.join(kinds)}"
            folder = self.flags.output / TRIAL
            try:
                self.make(0)
                trials = runs_of(folder, 1, kinds)
                for run in trials:
                    say(f"timing {TRIAL_STEPS} steps: {run}")
                    self.train(run, {k: v for k, v in self.flags_of(run).items() if k != "save_words"} | TRIAL_FLAGS)
                    seconds[run.arm] = step_seconds(run.folder)
                    steps = planned_steps(run.folder, self.flags_of(run))
                check_paired(trials)
                if self.tests.primary == CAPTIONS and held_out_of(trials[0].folder) is None:
                    say(f"WARNING, before a run is trained: {finish.NOTHING}")
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        sees = seconds.get(OWN, seconds.get(OTHER, math.nan))
        of = {OWN: sees, OTHER: sees, TEXT: seconds.get(TEXT, sees)}
        rest = [run for run in self.runs if state_of(run.folder).kind != FINISHED]
        hours = sum(of[run.arm] * (steps - state_of(run.folder).step) for run in rest) / 3600
        say(
            f"{counted(len(rest), 'run')} of {steps:,} steps left: {about(hours)} of training (measured on {how}; "
            "starts, checks and evaluation come on top)"
        )

    def go(self) -> int:
        """Trains and tests what is asked for; says what all show once all are there."""
        flags = self.flags
        task = self.environ.get("SLURM_ARRAY_TASK_ID") if flags.only is None else None
        mine = chosen(self.runs, flags.only, task)
        say(
            f"{len(self.runs)} runs in {flags.output}: {counted(self.seeds, 'seed')} of {', '.join(flags.listed)}"
            + ("" if len(mine) == len(self.runs) else f"; this command makes {len(mine)} of them")
        )
        if len(mine) == len(self.runs) and any(state_of(run.folder).kind != FINISHED for run in mine):
            self.estimate()
        for run in mine:
            state = state_of(run.folder)
            if state.kind == RUNNING:
                say(f"{run}: another process trains it")
                continue
            if state.kind != FINISHED:
                say(f"{self.runs.index(run) + 1} of {len(self.runs)}: {run}, {state}")
                self.make(run.seed)
                self.train(run, self.flags_of(run))
                check_paired(self.runs)
            finish.test_run(run, self.flags_of(run), self.tests, self.command)
        if any(state_of(run.folder).kind != FINISHED for run in self.runs):
            say(table(self.runs))
            return 0
        check_paired(self.runs)
        for run in self.runs:
            finish.test_run(run, self.flags_of(run), self.tests, self.command)
        say(f"\n{finish.give_answer(flags.output, self.runs, self.tests)}\n\nwritten to {flags.output}")
        return 0


def about(hours: float) -> str:
    """How long something takes, in the unit that people would say it in."""
    if math.isnan(hours):
        return "nobody knows how many hours"
    if hours < 1.65:
        return f"about {max(round(hours * 60), 1)} min"
    return f"about {hours:,.0f} hours" if hours >= 10 else f"about {hours:.1f} hours"


def say(text: str) -> None:
    """A line of the study among those of its runs."""
    print(show(text, keep="\n"), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Does seeing help?"""
    flags, tests, rest = parse(argv)
    if flags.status:
        found = read_study_file(flags.output)
        say(table(runs_of(flags.output, found["seeds"], found["arms"])))
        return 0
    with Jobs() as jobs:
        return Study(flags, tests, rest, os.environ, jobs).go()


if __name__ == "__main__":
    run_command(main)
