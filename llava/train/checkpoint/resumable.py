"""`transformers.Trainer` that loses nothing: atomic checkpoints, a stop at the step boundary, exact resumption.

What `transformers` does not keep in a checkpoint stands in `progress.json`: the loss since the last log, the sums
behind `train_loss`, the seconds that training has taken, the monitor's sums and the evaluation that a stop cut short.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn
from transformers import Trainer, TrainerCallback, set_seed
from transformers.trainer_utils import SaveStrategy

from llava.constants import ASIDE, RUN_RECORD
from llava.data.watch import end_on_lost_batch
from llava.train.checkpoint.files import move_into, publish, remove, rotate, write_errors_explained
from llava.train.checkpoint.milestones import Milestones, parse_words
from llava.train.checkpoint.stop import Stop, ignore_stop_signals
from llava.train.monitor.served import shared_out

logger = logging.getLogger(__name__)

PROGRESS_FILE = "progress.json"
DIGESTS_FILE = "train_records.npy"
TRAINER_STATE_FILE = "trainer_state.json"


class GoOn(TrainerCallback):
    """Restores what `progress.json` holds; the last of the callbacks, so that the others are ready."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.progress is not None:
            self.trainer.restore(self.trainer.progress)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.loss_before_step = self.trainer._tr_loss.clone()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.epoch_ended = True


class ResumableTrainer(Trainer):
    """Attributes beyond `Trainer`'s: `stop`, and `record_digests`, (N,) uint64 of the training records, which every
    checkpoint keeps.
    """

    stop: Stop | None = None
    record_digests: np.ndarray | None = None
    monitor: Any = None
    invariants: Any = None
    progress: dict[str, Any] | None = None
    resumed_from: str | None = None
    sampler: Any = None
    milestones: Milestones | None = None
    epoch_ended = False
    evaluation_due = False
    save_due = False
    saved_step: int | None = None
    loss_before_step: torch.Tensor | None = None
    started = 0.0
    seconds_before: float | None = 0.0
    """Of training before the run was resumed; None where a checkpoint of an earlier commit did not count."""
    _aside: str | None = None

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; `resume_from_checkpoint` is a folder or None."""
        if resume_from_checkpoint:
            path = Path(resume_from_checkpoint) / PROGRESS_FILE
            self.progress, self.resumed_from = json.loads(path.read_text(encoding="utf-8")), resume_from_checkpoint
        self.add_callback(GoOn(self))
        if self.args.save_words is not None:
            self.milestones = Milestones(self, parse_words(self.args.save_words))
            self.add_callback(self.milestones)
        self.started = time.perf_counter()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def restore(self, progress: dict[str, Any]) -> None:
        """Goes on counting where the checkpoint stopped, and does the evaluation that was cut short."""
        self.saved_step = self.state.global_step
        self._reschedule()
        self.seconds_before = progress.get("seconds")
        ranks, losses = progress["ranks"], [rank["loss"] for rank in progress["ranks"]]
        same = len(ranks) == self.args.world_size
        # The logged loss is the mean over the processes.
        self._tr_loss.fill_(losses[self.args.process_index] if same else sum(losses) / len(losses))
        self._total_loss_scalar = progress["total_loss"]
        self._globalstep_last_logged = progress["last_logged"]
        if self.monitor is not None and progress["monitor"] is not None:
            sums = [rank["sums"] for rank in ranks if rank["sums"] is not None]
            if same:
                self.monitor.restore(progress["monitor"], ranks[self.args.process_index]["sums"])
            else:
                total = torch.tensor(sums).sum(0).tolist() if sums else None
                self.monitor.restore(progress["monitor"], total if self.args.process_index == 0 else None)
        if self.invariants is not None:
            served = shared_out([rank.get("served") for rank in ranks], self.args.world_size)
            # Where data is not skipped, nobody knows what this epoch will have served.
            self.invariants.served.restore(None if self.args.ignore_data_skip else served[self.args.process_index])
        if progress["evaluation_due"]:
            self._load_rng_state(self.resumed_from)
            logger.info("step %d: the evaluation that was cut short is done again", self.state.global_step)
            is_best = self._determine_best_metric(metrics=self._evaluate(None, None), trial=None)
            if is_best if self.args.save_strategy == SaveStrategy.BEST else progress["save_due"]:
                self._save_checkpoint(self.model_wrapped, trial=None)

    def _reschedule(self) -> None:
        """Gives the next step the rate of this run's schedule: the optimiser has that of the checkpoint's, which
        is 0 at the end of a run that goes on for more steps.
        """
        schedule = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)  # Accelerate's wrapper, or none.
        if not hasattr(schedule, "lr_lambdas"):
            return
        rates = [b * f(schedule.last_epoch) for b, f in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
        for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        schedule._last_lr = rates

    def _progress(self) -> dict[str, Any]:
        loss = float(self._tr_loss)
        if not math.isfinite(loss) and self.loss_before_step is not None:
            loss = float(self.loss_before_step)  # Saved in the middle of a step that went wrong, without it.
        sums = self.monitor.sums.tolist() if self.monitor is not None and self.monitor.sums is not None else None
        served = self.invariants.served.state() if self.invariants is not None else None
        return {
            "ranks": gather_object([{"loss": loss, "sums": sums, "served": served}]),
            "total_loss": self._total_loss_scalar,
            "seconds": None
            if self.seconds_before is None
            else self.seconds_before + time.perf_counter() - self.started,
            "last_logged": self._globalstep_last_logged,
            "evaluation_due": self.evaluation_due,
            "save_due": self.save_due,
            "monitor": self.monitor.state() if self.monitor is not None else None,
            "words": self.milestones.served if self.milestones is not None else None,
        }

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in transformers; the mean loss of the run counts all its steps, also those before it was resumed, and so
        does `total_train_runtime`, in seconds, where that is known.
        """
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        if "train_runtime" in logs and self.seconds_before is not None:
            logs["total_train_runtime"] = round(self.seconds_before + logs["train_runtime"], 4)
        super().log(logs, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers, but a run that is resumed at its end takes no further step."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        self.epoch_ended = False
        if self.sampler is not None:
            # With several processes and batches to skip, the loader's wrappers hide the sampler from `transformers`.
            self.sampler.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, which with `--save_total_limit 1` would remove the last checkpoint when another is the
        best.
        """
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, epoch: int, *args: Any, **kwargs: Any
    ) -> None:
        """As in transformers, once a step, and after it the place where a run stops.

        The last step of an epoch waits for what the end of the epoch asks for: a checkpoint between the two would be
        resumed from without it.
        """
        ends = self.state.epoch == epoch + 1 or self.control.should_training_stop
        if ends and not self.epoch_ended:
            return
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, epoch, *args, **kwargs)
        if self.stop is not None and self.stop.agreed():
            self.stop_here()

    def until_stopped(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches of an evaluation, abandoned when the run is told to stop: nothing of it is recorded."""
        for batch in batches:
            self.stop_evaluation(self.stop is not None and self.stop.agreed(wait=True))
            yield batch

    def stop_evaluation(self, stops: bool) -> None:
        """Ends the run in an evaluation, which is done again when it goes on."""
        if stops:
            self.evaluation_due, self.save_due = self.is_in_train, self.control.should_save
            self.stop_here()

    def collate_until_stopped(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of the controls. Several processes have different numbers of them and cannot agree here."""
        self.stop_evaluation(self.args.world_size == 1 and self.stop is not None and self.stop.requested())
        return self.data_collator(samples)

    def stop_here(self) -> None:
        """Writes a checkpoint of this step, unless there is one, and ends the run.

        Raises:
            Stopped: always.
        """
        step = self.state.global_step
        if self.saved_step != step:
            if not self.is_in_train:  # The summary of the training is logged again when the run goes on.
                self.state.log_history = [entry for entry in self.state.log_history if "train_loss" not in entry]
            self.args.save_only_model = False  # A run goes on from this one.
            self._save_checkpoint(self.model_wrapped, trial=None)
        self.stop.leave(step)

    def _get_output_dir(self, trial: Any) -> str:
        return self._aside or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As in transformers, into a folder aside that gets its name when all processes have written and it is checked.

        Raises:
            OSError: when the disk is full or the folder cannot be written; the checkpoints before are whole.
        """
        step, output = self.state.global_step, Path(self.args.output_dir)
        final, aside = output / f"checkpoint-{step}", output / f"{ASIDE}checkpoint-{step}"
        is_main = self.is_world_process_zero()
        try:
            with write_errors_explained(output, final.name, self.args.save_total_limit):
                if is_main:
                    remove(aside)
                    aside.mkdir(parents=True)
                self.accelerator.wait_for_everyone()
                self._aside = str(aside)
                super()._save_checkpoint(model, trial)
                self._aside = None
                progress = self._progress()
                best = output / f"checkpoint-{self.state.best_global_step}"
                if self.state.best_global_step and (best == final or best.exists()):
                    self.state.best_model_checkpoint = str(best)
                self.accelerator.wait_for_everyone()
                if is_main:
                    written = aside / final.name
                    self.state.save_to_json(str(written / TRAINER_STATE_FILE))
                    (written / PROGRESS_FILE).write_text(json.dumps(progress) + "\n", encoding="utf-8")
                    if self.record_digests is not None:
                        np.save(written / DIGESTS_FILE, self.record_digests, allow_pickle=False)
                    publish(written, final)
                    aside.rmdir()
                    kept = {final} | ({Path(p)} if (p := self.state.best_model_checkpoint) else set())
                    rotate(output, self.args.save_total_limit, kept)
                self.accelerator.wait_for_everyone()
        except BaseException:
            if is_main:
                shutil.rmtree(aside, ignore_errors=True)
            raise
        finally:
            self._aside = None
        self.saved_step = step
        if self.stop is not None:
            self.stop.checkpoint = str(final)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in transformers; the model of a run is written aside, and its files get their places whole, the run's
        record last.
        """
        if _internal_call:
            return super().save_model(output_dir, _internal_call)
        final = Path(output_dir or self.args.output_dir)
        aside = final / f"{ASIDE}model"
        with write_errors_explained(final, "the model", self.args.save_total_limit):
            super().save_model(str(aside), _internal_call=True)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                move_into(aside, final, last=RUN_RECORD)
            self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As in transformers; with another number of processes each draws afresh, from seed, step and rank."""
        if checkpoint is not None and self.progress is not None:
            before = len(self.progress["ranks"])
            if before != self.args.world_size:
                step, rank = self.state.global_step, self.args.process_index
                set_seed((self.args.seed * 1_000_003 + step * 1_009 + rank) % 2**32)
                logger.info(
                    "%d processes before, %d now: random numbers are drawn afresh", before, self.args.world_size
                )
                return
        super()._load_rng_state(checkpoint)

    def get_train_dataloader(self) -> Any:
        return self._undisturbed(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        return self._undisturbed(super().get_eval_dataloader(eval_dataset))

    def _undisturbed(self, loader: Any) -> Any:
        """Workers leave signals to the run, and a generator of its own keeps loading out of the training's numbers."""
        base = getattr(loader, "base_dataloader", loader)
        base.worker_init_fn = partial(end_on_lost_batch, then=base.worker_init_fn)
        if self.stop is not None:
            base.worker_init_fn = partial(ignore_stop_signals, then=base.worker_init_fn)
        base.generator = torch.Generator().manual_seed(self.args.seed)
        return loader
