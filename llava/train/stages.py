"""The stages of a training run, in the order in which `train.main` calls them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llava import foreign
from llava.config.flags import DataArguments, ModelArguments, Settings, TrainingArguments, video_spec
from llava.config.video import VideoSpec
from llava.data.chat_formats import PLAIN, reserved
from llava.data.check import check_files
from llava.data.dataset import LazySupervisedDataset, Preprocess, length_problems, sequence_lengths
from llava.data.features.extract import FeatureCache, describe_cache, extract_features, open_cache
from llava.data.mixture import DEFAULT_SEED
from llava.data.prompt import reserved_tokens
from llava.data.records import (
    Problem,
    Record,
    apply_policy,
    format_problems,
    load_records,
    missing_files,
    modality,
    text_alone,
    without,
)
from llava.data.sources import SourceCount, count_sources, format_sources
from llava.data.text_format import TextFormat
from llava.errors import Stopped
from llava.model.adapter import load_adapter
from llava.model.builder import add_visual_tokens, check_stored_tower, load_language_model, set_trainable
from llava.model.capabilities import keeps_samples_apart, max_positions
from llava.model.language_model.causal_lm import language_type
from llava.model.lora import adapt
from llava.model.multimodal_encoder.base import resolve_precision
from llava.model.multimodal_encoder.builder import load_vision_tower
from llava.model.vlm import VisionCausalLM
from llava.train.run_flags import lora_settings, tunable_parts
from llava.train.text_format import prepare_tokenizer

logger = logging.getLogger(__name__)


def load_tokenizer(model_args: ModelArguments, training_args: TrainingArguments) -> PreTrainedTokenizerBase:
    """The model's tokenizer, padding on the right.

    Raises:
        FileNotFoundError: when there is none.
    """
    name = model_args.model_name_or_path
    try:
        tokenizer = foreign.load_tokenizer(name)
    except OSError as error:
        raise FileNotFoundError(
            f"--model_name_or_path {name}: neither a folder with a model and tokenizer nor a hub name that can be "
            f"reached; scripts/make_model.py makes a fresh one ({error})"
        ) from error
    tokenizer.model_max_length = training_args.model_max_length
    tokenizer.padding_side = "right"
    return prepare_tokenizer(model_args.version, tokenizer)


def read_records(
    path: str,
    data_args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    seed: int = DEFAULT_SEED,
    version: str = PLAIN,
) -> tuple[list[Record], list[Problem]]:
    """Records of a `--data_path` and the problems that need no file of theirs to be opened.

    Args:
        seed: of what a mixture takes at random.
    """
    records, problems = load_records(
        path,
        data_args.image_folder,
        data_args.video_folder,
        (*reserved_tokens(tokenizer), *reserved(version)),
        data_args.allow_absolute_paths,
        seed,
        version != PLAIN,
    )
    if data_args.text_only:
        return [text_alone(r) for r in records], problems
    return records, problems + missing_files(records)


def make_model(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> VisionCausalLM:
    """The language model with the visual tokens registered, and with vision when a tower is named; parts frozen.

    Raises:
        ValueError: when flags and model disagree, each disagreement named.
    """
    model_args, data_args, training_args = settings
    model = load_language_model(
        model_args.model_name_or_path, model_args.from_scratch, model_args.attn_implementation, load_vision_tower=False
    )
    positions = max_positions(model)
    if training_args.model_max_length > positions:
        raise ValueError(
            f"--model_max_length {training_args.model_max_length} is beyond the model's {positions} positions: "
            "lower it, or make a model with more positions"
        )
    add_visual_tokens(tokenizer, model)
    if model_args.vision_tower is None and model.config.mm_hidden_size is not None:
        raise ValueError(
            f"--model_name_or_path {model_args.model_name_or_path} has vision, but there is no --vision_tower: name "
            "its tower, or start from a model without vision"
        )
    if model_args.vision_tower is not None:
        spec = video_spec(model_args, data_args)
        if model.config.mm_hidden_size is None:
            tower = load_vision_tower(
                model_args.vision_tower, model_args.mm_vision_select_layer, model_args.mm_vision_select_feature
            )
            logger.info("%s", tower.describe(tower.processor.image_size))
            # An absolute path, so that the checkpoint finds its tower from any folder.
            place = Path(model_args.vision_tower)
            model.initialize_vision_modules(
                tower,
                str(place.resolve()) if place.is_dir() else model_args.vision_tower,
                spec,
                tower.processor,
                model_args.mm_projector_type,
                model_args.mm_resampler_type,
                model_args.mm_perceiver_depth,
                model_args.mm_vision_tower_storage,
            )
        else:
            _check_same_vision(model, model_args, spec)
            if model.vision_tower is None:
                model.attach_vision_tower(model_args.vision_tower)
            else:
                check_stored_tower(model, model_args.vision_tower)
            model.config.video_spec = spec.to_dict()
        if model_args.pretrain_mm_mlp_adapter:
            logger.info("%s", load_adapter(model, model_args.pretrain_mm_mlp_adapter))
    adapt(model, lora_settings(model_args), f"--model_name_or_path {model_args.model_name_or_path}")
    set_trainable(model, tunable_parts(model_args))
    if training_args.packing and not keeps_samples_apart(model):
        training_args.packing = False
        name = language_type(model.config.model_type)
        logger.info("one sample a row: those of a row would see each other with %s", name)
    return model


def _check_same_vision(model: VisionCausalLM, model_args: ModelArguments, spec: VideoSpec) -> None:
    built = model.video_spec
    pairs = [
        ("num_frames", built.num_frames, spec.num_frames),
        ("mm_perceiver_latents", built.slow_latents, spec.slow_latents),
        ("mm_perceiver_latents_fast", built.fast_latents, spec.fast_latents),
    ] + [
        (name, getattr(model.config, name), getattr(model_args, name))
        for name in (
            "mm_perceiver_depth", "mm_projector_type", "mm_resampler_type", "mm_vision_select_layer",
            "mm_vision_select_feature", "mm_vision_tower_storage",
        )
    ]  # fmt: skip
    wrong = [f"--{name} {flag} (the model has {has})" for name, has, flag in pairs if has != flag]
    if wrong:
        raise ValueError("flags do not fit the vision modules of --model_name_or_path: " + ", ".join(wrong))


def make_cache(settings: Settings, model: VisionCausalLM) -> FeatureCache | None:
    """The feature cache that the flags ask for; none without a tower, or when the tower trains.

    A frozen tower computes in the precision of the flags from here on, with a cache or without, and the model's config
    keeps it for those who load the model.

    Raises:
        ValueError: when a cache is asked for by folder while the tower trains.
    """
    model_args, data_args, training_args = settings
    tower = model.vision_tower
    if tower is not None and tower.frozen:
        tower.precision = model.config.mm_vision_precision = resolve_precision(
            model_args.vision_precision, training_args.device
        )
        model.config.mm_feature_dtype = data_args.feature_dtype
    if tower is None or data_args.feature_cache == "off":
        return None
    if not tower.frozen:
        if data_args.feature_cache != "auto":
            raise ValueError("--feature_cache: the vision tower trains, so its features change; use auto or off")
        return None
    beside = Path(training_args.output_dir).absolute().parent / "feature_cache"
    root = beside if data_args.feature_cache == "auto" else Path(data_args.feature_cache)
    cache = open_cache(root, model, data_args.repair_features)
    logger.info("%s", describe_cache(cache))
    return cache


def fill_cache(
    cache: FeatureCache,
    records: Sequence[Record],
    model: VisionCausalLM,
    training_args: TrainingArguments,
    timeout: float,
    should_stop: Callable[[], bool] | None = None,
) -> list[Problem]:
    """Extracts what the cache lacks, divided over the ranks; every rank gets the problems of all.

    Raises:
        Stopped: on all ranks, when `should_stop` said so on one; what it had computed is written.
    """
    tower = model.vision_tower.to(training_args.device)
    problems, stopped = [], None
    try:
        problems = extract_features(
            records,
            cache,
            tower,
            model.video_spec,
            model.processor_spec,
            training_args.device,
            num_workers=max(training_args.dataloader_num_workers, 1),
            timeout=timeout,
            rank=training_args.process_index,
            world_size=training_args.world_size,
            show_progress=training_args.process_index == 0,
            should_stop=should_stop,
        )
    except Stopped as stop:
        stopped = str(stop)
    if training_args.world_size > 1:
        gathered: list[Any] = [None] * training_args.world_size
        torch.distributed.all_gather_object(gathered, (problems, stopped))
        problems = [p for part, _ in gathered for p in part]
        stopped = next((message for _, message in gathered if message), None)
        cache.reload()
    if stopped:
        raise Stopped(stopped)
    return problems


def check_batches(num_samples: int, training_args: TrainingArguments) -> None:
    """Refuses samples that give no batch at all: such a run would take no step and end as if it had trained.

    Raises:
        ValueError: with both numbers.
    """
    size = training_args.train_batch_size * training_args.world_size
    if training_args.dataloader_drop_last and num_samples < size:
        raise ValueError(
            f"--dataloader_drop_last True leaves nothing to train on: {num_samples} samples are fewer than one batch "
            f"of {size} ({training_args.train_batch_size} a device x {training_args.world_size} processes): leave it "
            "out, or lower --per_device_train_batch_size"
        )


def check_modalities(records: Sequence[Record], model: VisionCausalLM) -> None:
    """Data and model must both have vision, or both be text alone.

    Raises:
        ValueError: naming the flag that is missing or superfluous.
    """
    visual = sum(bool(r.videos or r.images) for r in records)
    if visual and model.config.mm_hidden_size is None:
        raise ValueError(f"{visual} records have a video or image, but there is no --vision_tower")
    trains = any(p.requires_grad for n, p in model.named_parameters() if n.startswith(("mm_", "vision_")))
    if trains and not visual:
        raise ValueError(
            "no record has a video or image, so projector and resampler would never learn: leave --vision_tower out, "
            "or freeze them with --mm_tunable_parts mm_language_model"
        )


def freeze_unused(records: Sequence[Record], model: VisionCausalLM) -> dict[str, str]:
    """Freezes parameters that the flags let train but that this run could never reach; returns them with the reason.

    The fast stream serves videos alone, and of a tower that trains only the layers up to the selected one are used.
    """
    reasons: dict[str, str] = {}
    if model.vision_resampler is not None and not any(r.videos for r in records):
        reasons |= {
            f"vision_resampler.fast.{name}": "the fast stream, since no record has a video"
            for name, _ in model.vision_resampler.fast.named_parameters()
        }
    if model.vision_tower is not None:
        layer = model.vision_tower.select_layer
        reasons |= {
            f"vision_tower.{name}": f"what follows the tower's selected layer ({layer})"
            for name in model.vision_tower.unused_parameters()
        }
    parameters = dict(model.named_parameters())
    frozen = {name: reason for name, reason in reasons.items() if parameters[name].requires_grad}
    for name in frozen:
        parameters[name].requires_grad_(False)
    return frozen


def summarise(records: Sequence[Record], lengths: Sequence[int]) -> dict[str, Any]:
    """Counts of a data set for the run's record: records by modality and source, distinct clips, longest sample."""
    kinds = [modality(r) for r in records]
    return {
        "records": len(records),
        "by_modality": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "clips": len({(r.videos, r.images, r.split) for r in records if r.videos or r.images}),
        "longest": max(lengths, default=0),
        "sources": [asdict(count) for count in count_sources(records)],
    }


def report_sources(what: str, summary: Mapping[str, Any]) -> None:
    """Logs the sources of a data set and what of them was seen, where there are several."""
    counts = [SourceCount(**values) for values in summary["sources"]]
    if len(counts) > 1:
        logger.info("%s: %s", what, format_sources(counts))


def make_dataset(
    records: list[Record],
    problems: list[Problem],
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase,
    model: VisionCausalLM,
    cache: FeatureCache | None,
    preprocess: Preprocess,
    bad_list: str = "bad_samples.jsonl",
    text_format: TextFormat | None = None,
) -> tuple[LazySupervisedDataset, list[int]]:
    """The dataset without bad samples, with the length of each sample; stops or skips as `--on_bad_sample` says.

    Raises:
        DatasetError: with all problems at once, or when nothing is left.
    """
    _, data_args, training_args = settings
    spec = model.video_spec if model.config.video_spec else None
    if cache is None and spec and data_args.on_bad_sample == "skip":
        # Extraction opens every file; without it, bad ones are found here and not in the middle of training.
        workers = max(training_args.dataloader_num_workers, 1)
        problems = problems + check_files(
            without(records, problems), spec, workers, min_frames=1, timeout=data_args.clip_timeout
        )
    good = without(records, problems)

    def build(chosen: list[Record]) -> LazySupervisedDataset:
        processor = model.processor_spec if spec else None
        return LazySupervisedDataset(
            chosen, tokenizer, preprocess, training_args.model_max_length, spec, processor, cache,
            data_args.clip_timeout, text_format,
        )  # fmt: skip

    lengths = sequence_lengths(good, tokenizer, spec, text_format)
    problems = problems + length_problems(good, lengths, build(good).tokens, training_args.model_max_length)
    if problems and training_args.process_index == 0:
        folder = Path(training_args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        listed = "\n".join(json.dumps(asdict(p), ensure_ascii=False) for p in problems)
        (folder / bad_list).write_text(listed + "\n", encoding="utf-8", errors="backslashreplace")
    kept = apply_policy(records, problems, data_args.on_bad_sample)
    if problems:
        bad = {p.source for p in problems}
        total = len(bad | {r.source for r in records})
        logger.warning(
            "left out %d of %d records, listed in %s:\n%s", len(bad), total, bad_list, format_problems(problems)
        )
    sources = {r.source for r in kept}
    limit = training_args.model_max_length
    kept_lengths = [n for r, (n, _) in zip(good, lengths, strict=True) if r.source in sources]
    dataset = build(kept)
    dataset.num_cut = sum(n > limit for n in kept_lengths)
    return dataset, [min(n, limit) for n in kept_lengths]
