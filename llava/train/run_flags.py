"""The flags of a run: parsed, checked all at once, and recorded."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import HfArgumentParser

import llava
from llava.config import DataArguments, ModelArguments, TrainingArguments, video_spec
from llava.data.feature_store import TOLERANCES
from llava.data.video import FRAME_RULE, decoder_problem, reader_versions
from llava.model.builder import select_parts
from llava.model.multimodal_encoder.dinov2_encoder import PRECISIONS, resolve_precision
from llava.train import sharding
from llava.train.experiments import parse_faults

Arguments = tuple[ModelArguments, DataArguments, TrainingArguments]

# Flags that may differ between a run and its resumption: they change where and how it runs, not what it computes.
FREE_FLAGS = {
    "output_dir", "logging_dir", "run_name", "report_to", "resume_from_checkpoint", "logging_steps", "logging_strategy",
    "save_steps", "save_strategy", "save_total_limit", "eval_steps", "eval_strategy", "eval_data_path",
    "per_device_eval_batch_size", "dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_pin_memory",
    "dataloader_persistent_workers", "disable_tqdm", "log_level", "feature_cache", "clip_timeout", "local_rank",
    "ddp_timeout", "ddp_find_unused_parameters", "image_folder", "video_folder", "project", "trackio_space_id",
    "preflight", "show_samples", "run_monitor", "run_report", "controls", "controls_samples", "repair_features",
    "confirm_changes", "video_decoder",
}  # fmt: skip


def parse_arguments(argv: Sequence[str] | None) -> Arguments:
    """The flags of a run.

    Raises:
        ValueError: with all wrong flags at once, each with its remedy.
        SystemExit: from the parser, for an unknown flag.
    """
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments), allow_abbrev=False)
    model_args, data_args, training_args = parser.parse_args_into_dataclasses(list(argv) if argv is not None else None)
    problems = flag_problems(model_args, data_args, training_args)
    if problems:
        raise ValueError("wrong flags:\n" + "\n".join(f"  - {p}" for p in problems))
    if model_args.vision_tower is not None:
        # The run's record holds what it was, so that a run that goes on on another machine computes in the same.
        model_args.vision_precision = resolve_precision(model_args.vision_precision, training_args.device)
    return model_args, data_args, training_args


def flag_problems(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> list[str]:
    """What is wrong with the flags, as far as they alone can tell."""
    problems = []
    for name, path in (("data_path", data_args.data_path), ("eval_data_path", data_args.eval_data_path)):
        if path is not None and not Path(path).is_file():
            problems.append(f"--{name} {path}: no such file")
    for name in ("image_folder", "video_folder"):
        folder = getattr(data_args, name)
        if folder and not Path(folder).is_dir():
            problems.append(f"--{name} {folder}: no such folder")
    for name in ("model_name_or_path", "vision_tower"):
        value = getattr(model_args, name)
        is_path = value is not None and (value.startswith((".", "/", "~")) or value.count("/") > 1)
        if is_path and not Path(value).is_dir():
            problems.append(f"--{name} {value}: no such folder")
    if not data_args.use_plain_lm:
        problems.append("--use_plain_lm False: there is no chat mode; leave the flag out")
    for name, value, known in (
        ("on_bad_sample", data_args.on_bad_sample, ("stop", "skip")),
        ("vision_precision", model_args.vision_precision, PRECISIONS),
        ("feature_dtype", data_args.feature_dtype, tuple(TOLERANCES)),
    ):
        if value not in known:
            problems.append(f"--{name} {value}: use {', '.join(known[:-1])} or {known[-1]}")
    unusable = decoder_problem(data_args.video_decoder)
    if unusable:
        problems.append(unusable)
    if training_args.logging_nan_inf_filter:
        problems.append("--logging_nan_inf_filter True would hide a NaN loss; leave the flag out")
    if training_args.remove_unused_columns:
        problems.append("--remove_unused_columns True would drop the videos; leave the flag out")
    if training_args.fp16 and training_args.device.type == "cpu":
        problems.append("--fp16 True has no effect on CPU: use --bf16 True, or neither")
    if not 0 <= training_args.label_smoothing_factor < 1:
        problems.append(f"--label_smoothing_factor {training_args.label_smoothing_factor}: from 0 to below 1")
    if training_args.preflight not in ("quick", "full", "off"):
        problems.append(f"--preflight {training_args.preflight}: use quick, full or off")
    for name, least in (("show_samples", 0), ("controls_samples", 2)):
        if getattr(training_args, name) < least:
            problems.append(f"--{name} {getattr(training_args, name)}: {least} or more")
    if training_args.experiment_faults and not training_args.experiment_faults_confirmed:
        problems.append(
            f"--experiment_faults {training_args.experiment_faults} breaks the training on purpose; the experiment of "
            "docs/masking.md confirms it with --experiment_faults_confirmed True, and nothing else should"
        )
    if training_args.eval_strategy != "no" and data_args.eval_data_path is None:
        problems.append(f"--eval_strategy {training_args.eval_strategy} needs --eval_data_path")
    problems += sharding.flag_problems(training_args)
    parts: list[str] = []
    for check in (
        lambda: video_spec(model_args, data_args),
        lambda: parts.extend(tunable_parts(model_args)),
        lambda: parse_faults(training_args.experiment_faults),
    ):
        try:
            check()
        except ValueError as error:
            problems.append(str(error))
    if data_args.text_only and model_args.vision_tower is not None:
        problems.append("--text_only True leaves the videos out: leave --vision_tower out too")
    if model_args.vision_tower is None:
        asked = [p for p in parts if p != "mm_language_model"]
        if asked and model_args.mm_tunable_parts is not None:
            problems.append(f"--mm_tunable_parts names {', '.join(asked)}, but there is no --vision_tower")
    if "mm_vision_tower" in parts and model_args.mm_vision_tower_storage == "reference":
        problems.append(
            "mm_vision_tower trains, so its weights must be saved: add --mm_vision_tower_storage checkpoint"
        )
    for part, flag in (
        ("mm_mlp_adapter", "mm_projector_lr"),
        ("mm_vision_resampler", "mm_vision_resampler_lr"),
        ("mm_vision_tower", "mm_vision_tower_lr"),
    ):
        if getattr(training_args, flag) is not None and parts and part not in parts:
            problems.append(f"--{flag} is set, but {part} does not train: add it to --mm_tunable_parts")
    return problems


def tunable_parts(model_args: ModelArguments) -> list[str]:
    """The parts that train: those of the flag, or all but the tower."""
    if model_args.mm_tunable_parts is not None:
        return select_parts(model_args.mm_tunable_parts)
    vision = ["mm_mlp_adapter", "mm_vision_resampler"] if model_args.vision_tower else []
    return ["mm_language_model", *vision]


def make_run_record(args: Arguments) -> dict[str, Any]:
    """The resolved flags, the division of the global batch and the versions that a run is made with."""
    flags: dict[str, Any] = {}
    for group in args:
        flags |= group.to_dict() if isinstance(group, TrainingArguments) else asdict(group)
    training_args = args[2]
    size, accumulation = training_args.train_batch_size, training_args.gradient_accumulation_steps
    processes = training_args.world_size
    return {
        "flags": flags,
        "batch": {
            "global": size * accumulation * processes,
            "per_device": size,
            "accumulation": accumulation,
            "processes": processes,
        },
        "versions": {
            "llava": llava.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "frames": FRAME_RULE,
            "decoders": reader_versions(args[1].video_decoder),
        },
    }
