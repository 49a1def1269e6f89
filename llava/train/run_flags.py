"""The flags of a run: parsed, checked all at once, and recorded."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.distributed.distributed_c10d import _set_pg_timeout
from transformers import get_scheduler
from transformers.integrations import get_available_reporting_integrations

import llava
from llava.config import llava_st
from llava.config.flags import MUON, DataArguments, ModelArguments, Settings, TrainingArguments, video_spec
from llava.config.known_flags import given
from llava.config.ranges import out_of_range
from llava.config.recipe import as_arguments, with_recipe
from llava.config.stages import take_stage
from llava.config.trainer_parser import TrainerParser, unknown_choices
from llava.data import arms
from llava.data.chat_formats import PLAIN, resolve
from llava.data.features.store import TOLERANCES
from llava.data.mixture import path_problems
from llava.data.text_start import EOS, TEXT_STARTS
from llava.data.video import FRAME_RULE, decoder_problem, reader_versions
from llava.errors import UserError
from llava.model.adapter import ADAPTER, RESAMPLER, file_problems
from llava.model.builder import VISION_PARTS, select_parts
from llava.model.multimodal_encoder.base import PRECISIONS, resolve_precision
from llava.model.packed_attention import WAYS
from llava.train import coordinates
from llava.train.checkpoint import milestones, sharding
from llava.train.experiments import parse_faults
from llava.train.lora_flags import lora_notes, lora_problems
from llava.train.monitor import replay
from llava.train.provenance import code_commit, hardware

logger = logging.getLogger(__name__)

LIBRARY_ERRORS = (ValueError, TypeError, KeyError, ImportError, OSError, NotImplementedError)
"""What transformers raises for flags that it cannot take."""


def parse_arguments(argv: Sequence[str] | None, pending: Collection[str] = ()) -> Settings:
    """The flags of a run: arguments, then its recipe, then defaults.

    Args:
        pending: flags that name what is not made yet.

    Raises:
        ValueError: with all wrong flags at once, each with its remedy; or for a wrong recipe.
        FileNotFoundError: for a recipe that is not there.
        SystemExit: from the parser, for `--help`.
    """
    parser = TrainerParser()
    words, recipe = with_recipe(sys.argv[1:] if argv is None else argv)
    stage = take_stage(given(words))
    values, problems = parser.read([*as_arguments(stage.values), *words])
    problems += [stage.problem] if stage.problem else []

    def refuse(found: Mapping[str, str]) -> None:
        """Has the rest be looked at as if these flags were right, so that all is said at once."""
        problems.extend(found.values())
        for name in found:
            setattr(values, name, parser.get_default(name))

    refuse(out_of_range(vars(values)))
    taken = llava_st.take(vars(values), parser.added, {name: parser.get_default(name) for name in vars(values)})
    problems += taken.problems
    vars(values).update(taken.values)
    refuse(unknown_choices(vars(values)))
    settings = {name: getattr(values, name) for name in TrainingArguments._VALID_DICT_FIELDS}
    refuse({name: f"--{name} {value}: {said}" for name, value in settings.items() if (said := settings_problem(value))})
    if values.fp16 and values.bf16:
        problems.append("--fp16 True --bf16 True: one of them, or neither")
        values.fp16 = False
    try:
        model_args, data_args, training_args = (
            _made(kind, values) for kind in (ModelArguments, DataArguments, TrainingArguments)
        )
        training_args.recipe_values = recipe
        problems += flag_problems(model_args, data_args, training_args, pending, stage.values)
    except LIBRARY_ERRORS as error:
        if isinstance(error, UserError):
            raise
        problems.append(_said(error))
    if problems:
        raise UserError("wrong flags:\n" + "\n".join(f"  - {p}" for p in problems))
    keep_timeout(training_args)
    notes = taken.notes + lora_notes(model_args)
    if stage.note and training_args.process_index == 0:
        logger.warning("%s", stage.note)
    if notes and training_args.process_index == 0:
        logger.warning("flags without effect here:\n%s", "\n".join(f"  - {note}" for note in notes))
    choose_format(model_args, data_args, is_main=training_args.process_index == 0)
    if model_args.vision_tower is not None:
        # The run's record holds what it was, so that a run that goes on on another machine computes in the same.
        model_args.vision_precision = resolve_precision(model_args.vision_precision, training_args.device)
    return Settings(model_args, data_args, training_args)


def plain_by_environment() -> bool:
    """Whether `USE_PLAIN_LM`, which LLaVA-ST's scripts set, asks for plain language modelling."""
    return os.environ.get("USE_PLAIN_LM", "").strip().lower() in ("1", "true")


def format_problems(model_args: ModelArguments, data_args: DataArguments) -> list[str]:
    """What is wrong with the flags that choose the format of the text."""
    try:
        version = resolve(model_args.version)
    except ValueError as error:
        return [str(error)]
    if data_args.use_plain_lm and version != PLAIN:
        return [f"--use_plain_lm True --version {version}: one of them"]
    if model_args.text_start == EOS and version != PLAIN and not plain_by_environment():
        return [f"--text_start eos --version {version}: a chat format writes its own beginning: leave the first out"]
    if data_args.use_plain_lm is False and version == PLAIN:
        return [
            "--use_plain_lm False: there is no chat mode without a format: name one with --version, or leave the flag "
            "out"
        ]
    return []


def choose_format(model_args: ModelArguments, data_args: DataArguments, is_main: bool) -> None:
    """Sets the format that counts, under the one name of it that runs are compared by."""
    version = resolve(model_args.version)
    if version != PLAIN and plain_by_environment():
        if is_main:
            logger.warning(
                "USE_PLAIN_LM=%s in the environment decides over --version %s: plain language modelling, no template, "
                "all text is learnt", os.environ["USE_PLAIN_LM"], model_args.version,
            )  # fmt: skip
        version = PLAIN
    model_args.version, data_args.use_plain_lm = version, version == PLAIN


def keep_timeout(training_args: TrainingArguments) -> None:
    """`--ddp_timeout` for processes on CPU too, where transformers leaves it at half an hour."""
    if training_args.device.type == "cpu" and torch.distributed.is_initialized():
        _set_pg_timeout(training_args.ddp_timeout_delta)


def _made(kind: Any, values: argparse.Namespace) -> Any:
    return kind(**{f.name: getattr(values, f.name) for f in fields(kind) if f.init})


def _said(error: Exception) -> str:
    """What a library says of a flag, on one line."""
    return " ".join(f"{error}".split()) or type(error).__name__


def settings_problem(value: Any) -> str | None:
    """What is wrong with the value of a flag that takes a JSON file or, in braces, JSON itself."""
    if not isinstance(value, str):
        return None
    if not value.startswith("{"):
        return None if Path(value).is_file() else "no such file; it is a JSON file, or JSON in braces"
    try:
        json.loads(value)
    except ValueError as error:
        return f"not JSON ({error})"
    return None


def library_problems(args: TrainingArguments) -> list[str]:
    """What transformers would say of optimiser, schedule and loggers once the model is built, or after an hour."""
    problems = []
    there = {*get_available_reporting_integrations(), "none"}
    for name in args.report_to:
        if name not in there:
            problems.append(
                f"--report_to {name}: not installed here, or unknown (pip install {name}); "
                f"use {', '.join(sorted(there))}"
            )

    def schedule() -> None:
        dummy = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
        get_scheduler(args.lr_scheduler_type, dummy, args.get_warmup_steps(100), 100, args.lr_scheduler_kwargs)

    def optimiser() -> None:
        if args.optim != MUON:
            transformers.Trainer.get_optimizer_cls_and_kwargs(args)
        elif args.deepspeed or args.fsdp:
            raise UserError(
                "it needs whole matrices, which --deepspeed and --fsdp spread over the processes: leave them out, or "
                "use --optim adamw_torch_fused"
            )
        elif args.optim_args:
            raise UserError(f"it takes no --optim_args ({args.optim_args}): leave them out")

    for flag, value, check in (
        ("optim", args.optim, optimiser),
        ("lr_scheduler_type", args.lr_scheduler_type, schedule),
    ):
        try:
            check()
        except (*LIBRARY_ERRORS, RuntimeError) as error:
            problems.append(f"--{flag} {getattr(value, 'value', value)}: {_said(error)}")
    return problems


def path_flag_problems(model_args: ModelArguments, data_args: DataArguments, pending: Collection[str]) -> list[str]:
    """Which flags name files and folders that are not there."""
    problems = []
    for name, path in (("data_path", data_args.data_path), ("eval_data_path", data_args.eval_data_path)):
        if path is not None and name not in pending:
            problems += [f"--{name} {problem}" for problem in path_problems(path)]
    for name in ("image_folder", "video_folder"):
        folder = getattr(data_args, name)
        if folder and name not in pending and not Path(folder).is_dir():
            problems.append(f"--{name} {folder}: no such folder")
    for name in ("model_name_or_path", "vision_tower"):
        value = getattr(model_args, name)
        is_path = value is not None and (value.startswith((".", "/", "~")) or value.count("/") > 1)
        if is_path and name not in pending and not Path(value).is_dir():
            problems.append(f"--{name} {value}: no such folder")
    return problems


def flag_problems(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    pending: Collection[str] = (),
    by_stage: Collection[str] = (),
) -> list[str]:
    """What is wrong with the flags, as far as they alone can tell; `by_stage` are those that `--stage` has set."""
    problems = path_flag_problems(model_args, data_args, pending)
    problems += format_problems(model_args, data_args)
    problems += coordinates.flag_problems(model_args, training_args, by_stage)
    for name, value, known in (
        ("on_bad_sample", data_args.on_bad_sample, ("stop", "skip")),
        ("vision_precision", model_args.vision_precision, PRECISIONS),
        ("feature_dtype", data_args.feature_dtype, tuple(TOLERANCES)),
        ("text_start", model_args.text_start, TEXT_STARTS),
        ("packed_attention", training_args.packed_attention, WAYS),
    ):
        if value is not None and value not in known:
            problems.append(f"--{name} {value}: use {', '.join(known[:-1])} or {known[-1]}")
    unusable = decoder_problem(data_args.video_decoder)
    if unusable:
        problems.append(unusable)
    if training_args.logging_nan_inf_filter:
        problems.append("--logging_nan_inf_filter True would hide a NaN loss; leave the flag out")
    if training_args.remove_unused_columns:
        problems.append("--remove_unused_columns True would drop the videos; leave the flag out")
    if training_args.auto_find_batch_size:
        problems.append(
            "--auto_find_batch_size True goes on with another global batch after a step that ran out of memory, and "
            "counts from 0 on weights that have trained: leave it out, lower --per_device_train_batch_size and raise "
            "--gradient_accumulation_steps by the same factor"
        )
    problems += [
        f"--accelerator_config {name} True: the samples of a step would depend on the number of processes, and the "
        "global batch would not be what the run records: leave it out"
        for name in ("split_batches", "dispatch_batches")
        if getattr(training_args.accelerator_config, name)
    ]
    if training_args.n_gpu > 1:
        problems.append(
            f"one process sees {training_args.n_gpu} GPUs and would split every batch over them "
            "(torch.nn.DataParallel), which cuts packed samples and their videos in the wrong places: start a process "
            f"for each (torchrun --nproc_per_node {training_args.n_gpu} llava/train/train.py ..., or the launch "
            "script), or show it one (CUDA_VISIBLE_DEVICES=0)"
        )
    if training_args.fp16 and training_args.device.type == "cpu":
        problems.append("--fp16 True has no effect on CPU: use --bf16 True, or neither")
    if training_args.preflight not in ("quick", "full", "off"):
        problems.append(f"--preflight {training_args.preflight}: use quick, full or off")
    if training_args.experiment_faults and not training_args.experiment_faults_confirmed:
        problems.append(
            f"--experiment_faults {training_args.experiment_faults} breaks the training on purpose; the experiment of "
            "docs/masking.md confirms it with --experiment_faults_confirmed True, and nothing else should"
        )
    if training_args.warmup_ratio is not None and training_args.warmup_steps != training_args.warmup_ratio:
        problems.append(
            f"--warmup_ratio {training_args.warmup_ratio:g} and --warmup_steps {training_args.warmup_steps:g}: give one"
        )
    if training_args.eval_strategy != "no" and data_args.eval_data_path is None and not data_args.val_fraction:
        problems.append(
            f"--eval_strategy {training_args.eval_strategy} needs --eval_data_path, or a --val_fraction above 0"
        )
    problems += [p for room in (sharding, replay, milestones) for p in room.flag_problems(training_args)]
    problems += arms.flag_problems(data_args.other_clips, data_args.blind_share, model_args.vision_tower is not None)
    problems += library_problems(training_args)
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
    problems += lora_problems(model_args, training_args, parts)
    if data_args.text_only and model_args.vision_tower is not None:
        problems.append("--text_only True leaves the videos out: leave --vision_tower out too")
    files = {ADAPTER: model_args.pretrain_mm_mlp_adapter, RESAMPLER: model_args.mm_perceiver_pretrained}
    problems += file_problems(files, model_args.vision_tower is not None)
    if model_args.vision_tower is None:
        asked = [p for p in parts if p in VISION_PARTS]
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
        ("mm_embeddings", "mm_embeddings_lr"),
        ("mm_coordinates", "mm_coordinates_lr"),
    ):
        if getattr(training_args, flag) is not None and parts and part not in parts:
            problems.append(f"--{flag} is set, but {part} does not train: add it to --mm_tunable_parts")
    return problems


def tunable_parts(model_args: ModelArguments) -> list[str]:
    """The parts that train: those of the flag, or all but the tower."""
    if model_args.mm_tunable_parts is not None:
        return select_parts(model_args.mm_tunable_parts)
    vision = ["mm_mlp_adapter", "mm_vision_resampler"] if model_args.vision_tower else []
    return ["mm_language_model", *vision, *(["mm_coordinates"] if model_args.mm_coordinates else [])]


def make_run_record(settings: Settings) -> dict[str, Any]:
    """The resolved flags, the division of the global batch, and the code, versions and hardware that a run is made
    with.
    """
    flags: dict[str, Any] = {}
    for group in settings:
        flags |= group.to_dict() if isinstance(group, TrainingArguments) else asdict(group)
    training_args = settings.training
    size, accumulation = training_args.train_batch_size, training_args.gradient_accumulation_steps
    processes = training_args.world_size
    return {
        "flags": flags,
        "started_in": os.getcwd(),
        "recipe": training_args.recipe_values,
        "batch": {
            "global": size * accumulation * processes,
            "per_device": size,
            "accumulation": accumulation,
            "processes": processes,
        },
        "commit": code_commit(),
        "hardware": hardware(training_args.device),
        "versions": {
            "llava": llava.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "frames": FRAME_RULE,
            "decoders": reader_versions(settings.data.video_decoder),
        },
    }
