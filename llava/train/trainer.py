"""`transformers.Trainer` with parts: learning rates for each, grouped batches, complete checkpoints."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import Sampler
from transformers import PrinterCallback, ProgressCallback
from transformers.integrations import TensorBoardCallback

from llava.config.commands import quiet_libraries
from llava.constants import RUN_RECORD
from llava.data.arms import entropies_of
from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.columns import RecordIds
from llava.data.handover import HandingOver
from llava.data.packing import TrainingCollator
from llava.data.sampler import ModalityLengthSampler
from llava.data.sources import Seen
from llava.errors import NotFinite, UserError
from llava.eval.loss import SUMS, set_metrics, sums_of_samples
from llava.train import sight
from llava.train.checkpoint.reload import check_saved
from llava.train.checkpoint.resumable import ResumableTrainer
from llava.train.checkpoint.resume import recorded
from llava.train.checkpoint.sharding import (
    kinds_in_step,
    not_finite,
    pickle_stage_by_value,
    weights_are_spread,
    without_tied,
)
from llava.train.console import LogLines
from llava.train.half_weights import half_weights
from llava.train.monitor.alarms import Alarm
from llava.train.monitor.finite_guard import FiniteGuard
from llava.train.monitor.invariants import Invariants
from llava.train.monitor.logs import FreshLogs
from llava.train.monitor.replay import Replay
from llava.train.monitor.run_monitor import RunMonitor
from llava.train.monitor.served import ServedSamples
from llava.train.optimizer import make_optimizer, part_learning_rates
from llava.train.unwrap import spare_deepspeed

logger = logging.getLogger(__name__)

BAD_BATCH_FILE = "nonfinite_batch.json"


class LlavaTrainer(ResumableTrainer):
    """Args beyond `Trainer`'s: `training_collator`, which lays training batches out for speed, while `data_collator`
    makes all others, one sample a row; `lengths` and `modalities` of the training samples; and what every checkpoint
    keeps, `run_record` as `llava_run.json` and `record_digests`.
    """

    def __init__(
        self,
        *args: Any,
        training_collator: TrainingCollator,
        lengths: Sequence[int],
        modalities: Sequence[Any],
        run_record: dict[str, Any],
        record_digests: np.ndarray | None = None,
        **kwargs: Any,
    ) -> None:
        self.training_collator, self.lengths, self.modalities = training_collator, lengths, modalities
        self.run_record, self.record_digests = run_record, record_digests
        super().__init__(*args, **kwargs)
        self.model.keeps_names = True
        if self.args.log_level == "passive":
            quiet_libraries()  # transformers has just set what processes other than the first say.
        # The model smooths the labels itself: transformers would take the logits of every position.
        self.label_smoother = None
        for printer in (PrinterCallback, ProgressCallback):
            self.pop_callback(printer)
        self.add_callback(LogLines("samples" if self.model.config.mm_hidden_size is None else "clips"))
        self.add_callback(FreshLogs)
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            self.model.in_step = kinds_in_step(self.model, self.train_dataset, self.eval_dataset)
        if self.is_deepspeed_enabled:
            pickle_stage_by_value()
        self.monitor = None
        self.invariants: Invariants | None = None
        self.loaded_again = False
        self.replay: Replay | None = None
        self.guard: FiniteGuard | None = None
        self.half = half_weights(self.model, self.args, self.is_deepspeed_enabled or self.is_fsdp_enabled)
        self.last_batches: deque[tuple[int, list[dict[str, Any]]]] = deque(maxlen=2)
        self.entropies = entropies_of(run_record, self.train_dataset)
        self.seen = Seen(getattr(self.train_dataset, "records", ()), run_record)
        if self.args.run_monitor:
            records = getattr(self.train_dataset, "records", None)
            self.monitor = monitor = RunMonitor(
                self.model,
                self.args.output_dir,
                reduce=lambda sums: self.accelerator.reduce(sums, "sum"),
                write_text=self._write_text,
                is_main=self.is_world_process_zero(),
                sharded=self.is_deepspeed_enabled or self.is_fsdp_enabled,
                entropies=self.entropies,
            )
            self.add_callback(self.monitor)
            self.invariants = Invariants(
                self.model,
                self.args,
                part_learning_rates(self.args),
                None if records is None else RecordIds(records),
                sound=monitor.sound,
                reduce=lambda values: self.accelerator.reduce(values, "sum"),
                gather=gather_object,
                told=lambda: monitor.rules.sounded,
                step_losses=lambda: (float(self.accelerator.reduce(self._tr_loss, "mean")), monitor.observed_loss),
                sharded=self.is_deepspeed_enabled or self.is_fsdp_enabled,
                samples=None if records is None else ServedSamples(self.train_dataset, self.processing_class),
            )
            self.add_callback(self.invariants)
            if self.args.replay_every is not None:
                every, rank = self.args.replay_every, self.args.process_index
                self.replay = Replay(self.model, every, monitor, gather_object, rank)
                self.add_callback(self.replay)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        spare_deepspeed(self.accelerator)

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        """What collates the batches of a loader: transformers asks for each, by what it is for."""
        collate = self.training_collator if description == "Training" else data_collator
        pins = self.args.dataloader_pin_memory and self.args.device.type == "cuda"
        hands_over = self.args.dataloader_num_workers or pins
        is_ours = isinstance(collate, DataCollatorForSupervisedDataset)
        return HandingOver(collate, pins) if hands_over and is_ours else collate

    def _write_text(self, tag: str, text: str, step: int) -> None:
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_text(tag, text, step)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; the time it takes is time spent waiting for data."""
        start = time.perf_counter()
        if self.half is not None:
            self.half.forget()
        batches, items = super().get_batch_samples(*args, **kwargs)
        kept = [{key: batch[key] for key in ("sample_ids", "input_ids")} for batch in batches]
        self.last_batches.append((self.state.global_step + 1, kept))
        self.seen.add(self.state.global_step + 1, [name for batch in kept for name in batch["sample_ids"]])
        if self.monitor is not None and self.invariants is not None:
            self.monitor.waiting(time.perf_counter() - start, self.state.global_step)
            with self.monitor.timed():
                self.invariants.add_batches(batches, self.sampler.epoch)
        return batches, items

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As in transformers; the monitor sees the loss of every token, and labels are smoothed in training alone."""
        if self.is_in_train:
            inputs["label_smoothing"] = self.args.label_smoothing_factor
        with self.half.used() if self.half is not None and self.is_in_train else nullcontext():
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.monitor is not None and self.is_in_train and not (self.replay and self.replay.rehearsing):
            self.monitor.add_batch(outputs["token_losses"], inputs)
        return (loss, outputs) if return_outputs else loss

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """As in transformers, which for DeepSpeed rounds all numbers to half precision; coordinates stay whole."""
        kept = {k: v.to(self.args.device) for k, v in inputs.items() if k == "coordinates"}
        return {**super()._prepare_inputs(inputs), **kept}

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As in transformers; the monitor sees the gradients of the whole step, before they are clipped."""
        replayed = self.replay is not None and self.replay.due(self.state.global_step + 1)
        step = super().training_step

        def run() -> torch.Tensor:
            if replayed and self.half is not None:
                self.half.forget()  # Each pass casts for itself: what goes wrong there is not in both.
            return step(model, *args, **kwargs)

        if self.replay is not None and replayed:
            loss = self.replay.twice(run, lambda: self.accelerator.no_sync(model))
        else:
            loss = run()
        if self.monitor is not None and self.accelerator.sync_gradients:
            scaler = self.accelerator.scaler
            self.monitor.measure_gradients(scaler.get_scale() if scaler is not None else 1.0)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """As in transformers; a norm that is not finite ends the run before the weights are touched.

        Raises:
            FloatingPointError: naming the step, the checkpoint of the weights before it, and the batch.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        if self.monitor is not None:
            self.monitor.grad_norm = norm
        # Loss scaling meets infinite gradients on purpose and skips those steps itself.
        if norm is None or self.args.fp16:
            return norm
        if self.guard is None:
            self.guard = FiniteGuard(getattr(self.optimizer, "optimizer", self.optimizer))
        bad = self.guard.bad_step(norm, self.state.global_step + 1)
        if bad is not None:
            self._stop_at(bad, model)
        return norm

    def _stop_at(self, step: int, model: nn.Module) -> None:
        """Ends a run at a step whose gradient is not finite: saves the weights from before it and the batch's ids."""
        folder = Path(self.args.output_dir)
        batches = next((b for s, b in self.last_batches if s == step), [])
        ids = [name for batch in batches for name in batch["sample_ids"]]
        if self.is_world_process_zero():
            folder.mkdir(parents=True, exist_ok=True)
            dump = {
                "step": step,
                "sample_ids": ids,
                "input_ids": [row.tolist() for batch in batches for row in batch["input_ids"]],
            }
            (folder / BAD_BATCH_FILE).write_text(json.dumps(dump, ensure_ascii=False) + "\n", encoding="utf-8")
        saved = ""
        if self.is_deepspeed_enabled:
            saved = "; DeepSpeed has updated the weights with it, so go on from the checkpoint before"
        elif self.state.global_step > 0:
            self._save_checkpoint(model, trial=None)
            saved = f"; the weights from before it are in checkpoint-{self.state.global_step}"
        message = f"the gradient of step {step} is not finite (samples {', '.join(ids[:4])}, all in {BAD_BATCH_FILE})"
        remedy = "lower --learning_rate or --max_grad_norm, or train in --bf16 or fp32 instead of --fp16"
        if self.monitor is not None:
            self.monitor.sound(Alarm(step, "not finite", message + saved + ".", remedy + "."))
        raise NotFinite(f"{message}{saved}: {remedy}")

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        args = self.args
        seed = args.seed if args.data_seed is None else args.data_seed
        step_samples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        share = args.train_batch_size * args.world_size if args.world_size > 1 else 1
        self.sampler = ModalityLengthSampler(
            self.lengths, self.modalities, step_samples, seed, args.group_by_modality_length, share,
            args.dataloader_drop_last, getattr(self.train_dataset, "blind", None),
        )  # fmt: skip
        return self.sampler

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """Groups of one part and one weight decay each, so that every part has its own learning rate."""
        if self.optimizer is not None:
            return self.optimizer
        model = self.model if model is None else model
        decayed = set(self.get_decay_parameter_names(model))
        self.optimizer = make_optimizer(
            model, self.args, decayed, lambda: self.get_optimizer_cls_and_kwargs(self.args, model)
        )
        return self.optimizer

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss of the evaluation set in nats per supervised token: the sum over all tokens of all samples, each
        counted once, over their number; not a mean of batch means.
        """
        loader = self.get_eval_dataloader(eval_dataset)
        self.model.eval()
        visual_ids = (self.model.config.visual_token_ids or {}).values()
        sums, samples = torch.zeros(len(SUMS), dtype=torch.float64), 0
        for batch in self.until_stopped(loader):
            batch = self._prepare_inputs(batch)
            with self.compute_loss_context_manager():
                rows = sums_of_samples(self.model, batch, visual_ids)
            gathered = self.accelerator.gather_for_metrics(rows)
            sums, samples = sums + gathered.sum(dim=0).cpu(), samples + len(gathered)
        metrics = set_metrics(sums.tolist(), samples, metric_key_prefix)
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        metrics |= sight.measure(self, dataset, metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in transformers; a loss or gradient norm that is not finite ends the run.

        Raises:
            FloatingPointError: naming the step and the remedy.
        """
        if self.monitor is not None and self.invariants is not None and "loss" in logs:
            logs |= self.monitor.metrics()
            self.invariants.check_log(self.state.global_step, logs["loss"])
        super().log(logs, *args, **kwargs)
        # Under fp16 the loss scaler skips steps whose gradients overflow, so their norm may be infinite.
        for name in ("loss", "train_loss", "eval_loss", *([] if self.args.fp16 else ["grad_norm"])):
            value = logs.get(name)
            if value is not None and not math.isfinite(float(value)):
                raise NotFinite(
                    f"{name} is {value} at step {self.state.global_step}: lower --learning_rate or --max_grad_norm, "
                    "or train in --bf16 or fp32 instead of --fp16"
                )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As in transformers, with the run's record; weights that are not finite are never written.

        Raises:
            FloatingPointError: naming the step and the weights, whose last good values are in an earlier checkpoint.
        """
        broken = not_finite(self.model, state_dict)
        if broken:
            raise NotFinite(
                f"step {self.state.global_step}: {', '.join(broken[:3])} are not finite and were not saved: lower "
                "--learning_rate or --max_grad_norm, or train in --bf16 or fp32 instead of --fp16"
            )
        super()._save(output_dir, without_tied(self.model, state_dict))
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / RUN_RECORD).write_text(
                json.dumps(self.run_record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )

    def restore(self, progress: dict[str, Any]) -> None:
        """As in `ResumableTrainer`; goes on counting the samples of each source."""
        self.seen.go_on(recorded(str(self.resumed_from)))
        super().restore(progress)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As in `ResumableTrainer`; the first one is loaded again."""
        self.seen.write(gather_object([self.seen.counts(self.state.global_step)]))
        super()._save_checkpoint(model, trial)
        self._load_again(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in `ResumableTrainer`; loaded again in a run that saved no checkpoint."""
        if not _internal_call:
            self.seen.write(gather_object([self.seen.counts(self.state.global_step)]))
        super().save_model(output_dir, _internal_call)
        if not _internal_call:
            self._load_again(Path(output_dir or self.args.output_dir))

    def _load_again(self, folder: Path) -> None:
        """Compares the first checkpoint of the run with the live model, on the first process.

        Raises:
            ReloadError: when it is another model.
        """
        if self.loaded_again or self.invariants is None or (self.stop is not None and self.stop.reason is not None):
            return
        self.loaded_again = True
        if weights_are_spread(self.args) or self.invariants.sharded:
            logger.info("%s was not loaded again to compare it: its weights are spread over the processes", folder)
        elif self.is_world_process_zero():
            batch = [self.train_dataset[i] for i in range(min(2, len(self.train_dataset)))]
            check_saved(
                folder, self.model, self._prepare_inputs(self.data_collator(batch)), self.compute_loss_context_manager
            )

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A checkpoint that lacks weights, or has others, is not resumed from.

        Raises:
            ValueError: naming the keys; a tower kept by reference and tied weights may be absent.
        """
        tied = (
            set(self.model.all_tied_weights_keys)
            if hasattr(self.model, "all_tied_weights_keys")
            else {"lm_head.weight"}
        )
        apart = "vision_tower." if self.model.config.mm_vision_tower_storage == "reference" else ()
        missing = [k for k in load_result.missing_keys if not k.startswith(apart) and k not in tied]
        if missing or load_result.unexpected_keys:
            raise UserError(
                f"the checkpoint does not fit the model: missing {missing[:5]}, unexpected "
                f"{load_result.unexpected_keys[:5]}; resume with the flags that the run was started with"
            )
        self.model.tie_weights()
