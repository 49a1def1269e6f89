"""The model of a run, from its flags: tokenizer, weights, vision, text format, and what of it trains."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from llava import foreign
from llava.config.flags import ModelArguments, Settings, TrainingArguments, video_spec
from llava.config.video import VideoSpec
from llava.data.columns import representatives
from llava.data.records import MODALITIES, Record, modality_codes
from llava.data.text_format import TextFormat
from llava.data.text_start import recorded_text
from llava.errors import MissingFile, UserError
from llava.model.adapter import load_adapter, load_resampler
from llava.model.builder import (
    VISION_PARTS,
    add_visual_tokens,
    check_stored_tower,
    load_language_model,
    set_trainable,
)
from llava.model.capabilities import keeps_samples_apart, max_positions
from llava.model.language_model.causal_lm import language_type
from llava.model.lora import adapt, merge_adapters
from llava.model.multimodal_encoder.base import resolve_precision
from llava.model.multimodal_encoder.builder import load_vision_tower
from llava.model.packed_attention import choose_way, take_way
from llava.model.vlm import VisionCausalLM
from llava.train.checkpoint.sharding import built_whole
from llava.train.coordinates import give_coordinates, unread_tables
from llava.train.lora_flags import lora_settings
from llava.train.run_flags import tunable_parts
from llava.train.text_format import make_format, prepare_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunModel:
    """A model as its run trains it, and what was decided with it.

    Attributes:
        parts: those that train, but for the parameters in `exempt`.
        exempt: parameters of these parts that no gradient of the run's data could reach, frozen, with the reason of
            each.
        packs: whether samples share rows: as `--packing` asks, where the model keeps them apart.
        flat: whether all of a batch share one.
    """

    model: VisionCausalLM
    tokenizer: PreTrainedTokenizerBase
    text_format: TextFormat
    parts: list[str]
    exempt: dict[str, str]
    packs: bool
    flat: bool


def load_tokenizer(settings: Settings) -> PreTrainedTokenizerBase:
    """The model's tokenizer, padding on the right.

    Raises:
        FileNotFoundError: when there is none.
    """
    name = settings.model.model_name_or_path
    try:
        tokenizer = foreign.load_tokenizer(name)
    except OSError as error:
        raise MissingFile(
            f"--model_name_or_path {name}: neither a folder with a model and tokenizer nor a hub name that can be "
            f"reached; llava-make-model makes a fresh one ({foreign.said(error)})"
        ) from error
    tokenizer.model_max_length = settings.training.model_max_length
    tokenizer.padding_side = "right"
    return prepare_tokenizer(settings.model.version, tokenizer)


def make_model(
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    resumed: Mapping[str, Any] | None = None,
) -> RunModel:
    """The language model with the visual tokens registered, and with vision when a tower is named; parts frozen.

    Args:
        tokenizer: gets the visual tokens and those of the text format.
        records: what it will train on.
        resumed: `text_format` of the run that is resumed.

    Raises:
        ValueError: when flags, model and records disagree, each disagreement named.
    """
    model_args, _, training_args = settings
    check_modalities(records, model_args)
    name, parts = f"--model_name_or_path {model_args.model_name_or_path}", tunable_parts(model_args)
    with built_whole(training_args):
        model = load_language_model(
            model_args.model_name_or_path,
            model_args.from_scratch,
            model_args.attn_implementation,
            load_vision_tower=False,
        )
        positions = max_positions(model)
        if training_args.model_max_length > positions:
            raise UserError(
                f"--model_max_length {training_args.model_max_length} is beyond the model's {positions} positions: "
                "lower it, or make a model with more positions"
            )
        add_visual_tokens(tokenizer, model)
        give_coordinates(model, tokenizer, model_args, name)
        if model_args.vision_tower is not None:
            give_vision(model, settings)
        elif model.config.mm_hidden_size is not None:
            raise UserError(
                f"{name} has vision, but there is no --vision_tower: name its tower, or start from a model without "
                "vision"
            )
        if model_args.merge_lora:
            logger.info("%s: %d adapters merged", name, merge_adapters(model))
        adapt(model, lora_settings(model_args), name)
        set_trainable(model, parts)
        exempt = freeze_unused(records, model)
        set_precision(model, settings)
        packs = training_args.packing and keeps_samples_apart(model)
        if packs != training_args.packing:
            kind = language_type(model.config.model_type)
            logger.info("one sample a row: those of a row would see each other with %s", kind)
        flat = packs and keep_apart(model, training_args)
        recorded = None
        if not model_args.from_scratch:
            recorded = recorded_text(foreign.config_values(model_args.model_name_or_path, name))
        text_format = make_format(model_args.version, tokenizer, model, recorded, model_args.text_start, resumed)
    return RunModel(model, tokenizer, text_format, parts, exempt, packs, flat)


def keep_apart(model: VisionCausalLM, training_args: TrainingArguments) -> bool:
    """Has the model keep samples of a row apart as `--packed_attention` says; returns whether all share one row.

    Raises:
        ValueError: when the model, the device or torch cannot take that way.
    """
    half = training_args.bf16 or training_args.fp16
    way, problem = choose_way(training_args.packed_attention, model, training_args.device, half)
    if problem:
        logger.info("samples that share rows are kept apart by a mask: %s", problem)
    take_way(model, way)
    return way != "mask"


def check_modalities(records: Sequence[Record], model_args: ModelArguments) -> None:
    """Data and model must both have vision, or both be text alone.

    Raises:
        ValueError: naming the flag that is missing or superfluous.
    """
    visual = int((modality_codes(records) != MODALITIES.index("text")).sum())
    if visual and model_args.vision_tower is None:
        raise UserError(f"{visual} records have a video or image, but there is no --vision_tower")
    if not visual and set(tunable_parts(model_args)) & set(VISION_PARTS):
        raise UserError(
            "no record has a video or image, so projector and resampler would never learn: leave --vision_tower out, "
            "or freeze them with --mm_tunable_parts mm_language_model"
        )


def give_vision(model: VisionCausalLM, settings: Settings) -> None:
    """The tower, projector and resampler of the flags: fresh ones, or those that the model has, with its own tower.

    Raises:
        ValueError: when the flags describe other ones than the model has.
    """
    model_args, data_args, _ = settings
    spec = video_spec(model_args, data_args)
    if model_args.mm_resampler_type == "stp" and model_args.mm_perceiver_depth != ModelArguments.mm_perceiver_depth:
        logger.info("--mm_perceiver_depth %d has no effect: a packer has one block", model_args.mm_perceiver_depth)
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
            model_args.mm_perceiver_width,
            model_args.mm_perceiver_heads,
            model_args.mm_perceiver_row_std,
        )
    else:
        _check_same_vision(model, model_args, spec)
        if model_args.mm_perceiver_row_std is not None:
            logger.info("--mm_perceiver_row_std has no effect: the model brings its resampler")
        if model.vision_tower is None:
            model.attach_vision_tower(model_args.vision_tower)
        else:
            check_stored_tower(model, model_args.vision_tower)
        model.config.video_spec = spec.to_dict()
    if model_args.pretrain_mm_mlp_adapter:
        logger.info("%s", load_adapter(model, model_args.pretrain_mm_mlp_adapter))
    if model_args.mm_perceiver_pretrained:
        logger.info("%s", load_resampler(model, model_args.mm_perceiver_pretrained))


def _check_same_vision(model: VisionCausalLM, model_args: ModelArguments, spec: VideoSpec) -> None:
    built = model.video_spec
    pairs = [
        ("num_frames", built.num_frames, spec.num_frames),
        ("mm_perceiver_latents", built.slow_latents, spec.slow_latents),
        ("mm_perceiver_latents_fast", built.fast_latents, spec.fast_latents),
        ("mm_perceiver_temporal_factor", built.temporal_factor, spec.temporal_factor),
        *_given_attention(model, model_args),
    ] + [
        (name, getattr(model.config, name), getattr(model_args, name))
        for name in (
            "mm_perceiver_depth", "mm_projector_type", "mm_resampler_type", "mm_vision_select_layer",
            "mm_vision_select_feature", "mm_vision_tower_storage",
        )
    ]  # fmt: skip
    wrong = [f"--{name} {flag} (the model has {has})" for name, has, flag in pairs if has != flag]
    if wrong:
        raise UserError("flags do not fit the vision modules of --model_name_or_path: " + ", ".join(wrong))


def _given_attention(model: VisionCausalLM, model_args: ModelArguments) -> list[tuple[str, Any, Any]]:
    """The flags of STP's attention that are given, beside what the model has."""
    names = ("mm_perceiver_width", "mm_perceiver_heads")
    flags = [(name, getattr(model.config, name), getattr(model_args, name)) for name in names]
    return [entry for entry in flags if entry[2] is not None]


def freeze_unused(records: Sequence[Record], model: VisionCausalLM) -> dict[str, str]:
    """Freezes parameters that the flags let train but that this run could never reach; returns them with the reason.

    The fast stream serves videos alone, what has one position to choose from chooses nothing, of a tower that trains
    only the layers up to the selected one are used, and without vision a table of coordinates is read where a text has
    its tokens.
    """
    reasons: dict[str, str] = {}
    resampler = model.vision_resampler
    if resampler is not None:
        reasons |= {f"vision_resampler.{name}": reason for name, reason in resampler.idle().items()}
        if not any(r.videos for r in representatives(records)[0]):
            unseen = "the fast stream, since no record has a video"
            reasons |= {f"vision_resampler.{name}": unseen for name in resampler.video_only()}
    if model.vision_tower is not None:
        layer = model.vision_tower.select_layer
        reasons |= {
            f"vision_tower.{name}": f"what follows the tower's selected layer ({layer})"
            for name in model.vision_tower.unused_parameters()
        }
    texts = (turn["value"] for record in records for turn in record.conversations)
    reasons |= unread_tables(model, texts)
    parameters = dict(model.named_parameters())
    frozen = {name: reason for name, reason in reasons.items() if parameters[name].requires_grad}
    for name in frozen:
        parameters[name].requires_grad_(False)
    return frozen


def set_precision(model: VisionCausalLM, settings: Settings) -> None:
    """A frozen tower computes in the precision of the flags, with a feature cache or without, and the model's config
    keeps it, and the type of cached features, for those who load the model.
    """
    model_args, data_args, training_args = settings
    if model.vision_tower is None or not model.vision_tower.frozen:
        return
    precision = resolve_precision(model_args.vision_precision, training_args.device)
    model.vision_tower.precision = model.config.mm_vision_precision = precision
    model.config.mm_feature_dtype = data_args.feature_dtype
