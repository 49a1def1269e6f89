"""`transformers.Trainer` with parts: learning rates for each, grouped batches, complete checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import Trainer

from llava.eval.loss import caption_losses
from llava.model.builder import MM_PARTS, part_of
from llava.train.sampler import ModalityLengthSampler

RUN_RECORD = "llava_run.json"


def part_learning_rates(args: Any) -> dict[str, float]:
    """The learning rate of each part; one that has none of its own takes `learning_rate`."""
    own = {
        "mm_mlp_adapter": args.mm_projector_lr,
        "mm_vision_resampler": args.mm_vision_resampler_lr,
        "mm_vision_tower": args.mm_vision_tower_lr,
    }
    return {part: args.learning_rate if own.get(part) is None else own[part] for part in MM_PARTS}


def parameter_table(model: nn.Module, args: Any) -> str:
    """What trains and what is frozen: parameters and learning rate of each part, as text."""
    rates = part_learning_rates(args)
    rows = [("part", "trainable", "frozen", "learning rate")]
    for part in MM_PARTS:
        parameters = [p for n, p in model.named_parameters() if part_of(n) == part]
        if parameters:
            trainable = sum(p.numel() for p in parameters if p.requires_grad)
            frozen = sum(p.numel() for p in parameters if not p.requires_grad)
            rows.append((part, f"{trainable:,}", f"{frozen:,}", f"{rates[part]:g}" if trainable else "-"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


class LlavaTrainer(Trainer):
    """Args beyond `Trainer`'s: `lengths` and `modalities` of the training samples, and `run_record`, which every
    checkpoint keeps as `llava_run.json`.
    """

    def __init__(
        self, *args: Any, lengths: list[int], modalities: list[str], run_record: dict[str, Any], **kwargs: Any
    ) -> None:
        self.lengths, self.modalities, self.run_record = lengths, modalities, run_record
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        args = self.args
        seed = args.seed if args.data_seed is None else args.data_seed
        step_samples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return ModalityLengthSampler(
            self.lengths, self.modalities, step_samples, seed, grouped=args.group_by_modality_length
        )

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """Groups of one part and one weight decay each, so that every part has its own learning rate."""
        if self.optimizer is not None:
            return self.optimizer
        model = self.model if model is None else model
        rates = part_learning_rates(self.args)
        decayed = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((part_of(name), name in decayed), []).append(parameter)
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer = optimizer_class(
            [
                {
                    "params": parameters,
                    "lr": rates[part],
                    "weight_decay": self.args.weight_decay if decay else 0.0,
                    "name": f"{part}{'' if decay else ', no decay'}",
                }
                for (part, decay), parameters in groups.items()
            ],
            **options,
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
        nats = tokens = samples = 0.0
        for batch in loader:
            batch = self._prepare_inputs(batch)
            with self.compute_loss_context_manager():
                pair = caption_losses(self.model, batch)
            losses, counts = (t.double() for t in self.accelerator.gather_for_metrics(pair))
            nats, tokens, samples = nats + losses.sum().item(), tokens + counts.sum().item(), samples + len(losses)
        metrics = {
            f"{metric_key_prefix}_loss": nats / tokens,
            f"{metric_key_prefix}_nats_per_caption": nats / samples,
            f"{metric_key_prefix}_tokens": int(tokens),
            f"{metric_key_prefix}_samples": int(samples),
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in transformers; a loss or gradient norm that is not finite ends the run.

        Raises:
            FloatingPointError: naming the step and the remedy.
        """
        super().log(logs, *args, **kwargs)
        # Under fp16 the loss scaler skips steps whose gradients overflow, so their norm may be infinite.
        for name in ("loss", "train_loss", "eval_loss", *([] if self.args.fp16 else ["grad_norm"])):
            value = logs.get(name)
            if value is not None and not math.isfinite(float(value)):
                raise FloatingPointError(
                    f"{name} is {value} at step {self.state.global_step}: lower --learning_rate or --max_grad_norm, "
                    "or train in --bf16 or fp32 instead of --fp16"
                )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As in transformers, with the run's record; weights that are not finite are never written.

        Raises:
            FloatingPointError: naming the step and the weights, whose last good values are in an earlier checkpoint.
        """
        named = self.model.named_parameters()
        broken = [n for n, p in named if p.requires_grad and not bool(torch.isfinite(p).all())]
        if broken:
            raise FloatingPointError(
                f"step {self.state.global_step}: {', '.join(broken[:3])} are not finite and were not saved: lower "
                "--learning_rate or --max_grad_norm, or train in --bf16 or fp32 instead of --fp16"
            )
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / RUN_RECORD).write_text(json.dumps(self.run_record, indent=2, ensure_ascii=False) + "\n")

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
        missing = [k for k in load_result.missing_keys if not k.startswith("vision_tower.") and k not in tied]
        if missing or load_result.unexpected_keys:
            raise ValueError(
                f"the checkpoint does not fit the model: missing {missing[:5]}, unexpected "
                f"{load_result.unexpected_keys[:5]}; resume with the flags that the run was started with"
            )
        self.model.tie_weights()
