"""Models kept after so many words, `--save_words`: how a model's language grew with what it was served.

Words are those between white space of a record's text, prompts included, and a record that is served again counts
again: the measure of BabyLM (Charpentier et al. 2025), whose milestones `--save_words babylm` asks for. What a step
serves is known from the order of the samples alone, so that the count is exact whatever the number of processes, of
rows that samples share and of times that the run was resumed.

Letters in shapes: N records, S steps of an epoch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from transformers import TrainerCallback

from llava.config.ranges import amount
from llava.constants import FILLER_ID, FILLER_INDEX, MILESTONE_FILE
from llava.data.columns import RecordIds, RecordView
from llava.data.features.content import replace_file
from llava.data.records import Record
from llava.data.sources import words_of
from llava.errors import UserError

logger = logging.getLogger(__name__)

MILLION = 1_000_000
BABYLM = tuple(MILLION * n for n in (*range(1, 11), *range(20, 101, 10), *range(200, 1001, 100)))
"""Every million words to 10 million, ten million to 100 million, hundred million to a billion."""


def parse_words(text: str) -> tuple[int, ...]:
    """The milestones that `--save_words` asks for, rising: `babylm`, or numbers such as `100k,2.5M,10M`.

    Raises:
        ValueError: naming what is no number of words.
    """
    if text.strip().casefold() == "babylm":
        return BABYLM
    found = {amount(part, "--save_words") for part in filter(None, (p.strip() for p in text.split(",")))}
    if not found:
        raise UserError(f"--save_words {text}: names no number of words; write babylm, or 100k,2.5M,10M")
    return tuple(sorted(found))


def flag_problems(args: Any) -> list[str]:
    """Why `--save_words` cannot work with the other flags, if it cannot."""
    if args.save_words is None:
        return []
    try:
        parse_words(args.save_words)
    except UserError as error:
        return [str(error)]
    if args.ignore_data_skip:
        return ["--save_words counts what was served, and with --ignore_data_skip True nobody knows: leave one out"]
    return []


def milestone_name(words: int) -> str:
    """`chck_7M` of 7,000,000 words, as the BabyLM pipeline calls it; `chck_500k`, `chck_1234`."""
    for unit, size in (("M", MILLION), ("k", 1_000)):
        if words >= size and words % (size // 10 or 1) == 0:
            return f"chck_{words / size:.1f}".removesuffix(".0") + unit
    return f"chck_{words}"


def record_words(records: Sequence[Record]) -> np.ndarray:
    """(N,) words of each record between white space."""
    if isinstance(records, RecordView):
        return np.asarray(records.column("words"), dtype=np.int64)
    return np.fromiter((words_of(r) for r in records), dtype=np.int64, count=len(records))


def step_words(order: np.ndarray, words: np.ndarray, step_samples: int) -> np.ndarray:
    """(S,) words that each step of an epoch serves.

    Args:
        order: the samples of the epoch; `N + i` is record i without its video, `FILLER_INDEX` none.
        words: (N,) of each record.
        step_samples: samples of one optimiser step, over all ranks and accumulated batches.
    """
    each = np.where(order == FILLER_INDEX, 0, words[order % len(words)])
    steps = -(-len(each) // step_samples)
    return np.pad(each, (0, steps * step_samples - len(each))).reshape(steps, step_samples).sum(axis=1)


class Milestones(TrainerCallback):
    """Counts the words that a run has served and keeps the model where they pass a milestone.

    Args:
        trainer: a `ResumableTrainer`; its `sampler` is the order that is counted.
        asked: by `parse_words`.
    """

    def __init__(self, trainer: Any, asked: Sequence[int]) -> None:
        self.trainer, self.asked = trainer, asked
        self.served: int | None = None
        self.words = record_words(trainer.train_dataset.records)
        self._epoch = -1
        self._sums = np.zeros(0, dtype=np.int64)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes up the count of the checkpoint that the run goes on from."""
        progress = self.trainer.progress or {}
        self.served = progress.get("words")
        if self.served is None:
            self.served = sum(self._words_of(step) for step in range(1, state.global_step + 1))
        passed = [milestone_name(n) for n in self.asked if n <= self.served]
        gone = [name for name in passed if not (Path(args.output_dir) / name / MILESTONE_FILE).is_file()]
        if gone:
            logger.warning(
                "--save_words: the run had served %s words when it was resumed; there will be no %s",
                f"{self.served:,}", ", ".join(gone),
            )  # fmt: skip

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Counts the step, and keeps the model when it passed a milestone."""
        before = self.served or 0
        self.served = before + self._words_of(state.global_step)
        passed = [n for n in self.asked if before < n <= self.served]
        if passed:
            self._check_served(state.global_step)
        for milestone in passed:
            self._keep(milestone, state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Says beside the last model how many words it was served."""
        if self.trainer.is_world_process_zero():
            self._write(Path(args.output_dir), state)

    def _words_of(self, step: int) -> int:
        """Words that a step, from 1, serves."""
        sampler = self.trainer.sampler
        epoch, place = divmod(step - 1, -(-len(sampler) // sampler.batch_size))
        if epoch != self._epoch:
            self._epoch, self._sums = epoch, step_words(sampler.order(epoch), self.words, sampler.batch_size)
        return int(self._sums[place])

    def _check_served(self, step: int) -> None:
        """The order that words are counted by must be what came out of the loader.

        Raises:
            RuntimeError: when the step was made of other samples.
        """
        batches = dict(self.trainer.last_batches).get(step, [])
        names = gather_object([name for batch in batches for name in batch["sample_ids"] if name != FILLER_ID])
        sampler, ids = self.trainer.sampler, RecordIds(self.trainer.train_dataset.records)
        first = (step - 1) % -(-len(sampler) // sampler.batch_size) * sampler.batch_size
        planned = sampler.order(self._epoch)[first : first + sampler.batch_size]
        wanted = [ids[int(i) % len(ids)] for i in planned if i != FILLER_INDEX]
        if sorted(names) != sorted(wanted):
            raise RuntimeError(
                f"step {step} was made of other samples than the order says that words are counted by: "
                f"{sorted(set(names) ^ set(wanted))[:3]}; please report this"
            )

    def _keep(self, milestone: int, state: Any) -> None:
        trainer, folder = self.trainer, Path(self.trainer.args.output_dir) / milestone_name(milestone)
        if trainer.is_world_process_zero():
            # Of a run that passes here again: until it is whole, the folder is no milestone.
            (folder / MILESTONE_FILE).unlink(missing_ok=True)
        trainer.save_model(str(folder))
        if trainer.is_world_process_zero():
            self._write(folder, state, milestone)
            logger.info("%s: kept after %s words, at step %d", folder.name, f"{self.served:,}", state.global_step)

    def _write(self, folder: Path, state: Any, milestone: int | None = None) -> None:
        kept = {
            "milestone": milestone, "words": self.served, "step": state.global_step, "epoch": state.epoch,
            "words_of_an_epoch": int(self.words.sum()), "seed": self.trainer.args.seed,
        }  # fmt: skip
        text = (json.dumps(kept, indent=1) + "\n").encode()
        replace_file(folder / MILESTONE_FILE, lambda file: file.write(text))
