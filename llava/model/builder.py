"""Making and loading models: token registration, what trains, and checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from transformers import AddedToken, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from llava.constants import VISUAL_TOKENS
from llava.data.coordinates import CoordinateTokens, register
from llava.data.prompt import visual_token_ids
from llava.errors import MissingFile, UserError
from llava.foreign import check_sizes, config_values, load_tokenizer
from llava.model.capabilities import attention_for, embedding_names, embedding_std, head_std
from llava.model.coordinates import TABLES
from llava.model.language_model.causal_lm import OWN_FILES, PREFIX, causal_lm_class, language_type
from llava.model.lora import adapter_parameters
from llava.model.multimodal_encoder.builder import load_vision_tower
from llava.model.vlm import VisionCausalLM

logger = logging.getLogger(__name__)

VISION_PARTS = {
    "mm_mlp_adapter": ("mm_projector.",),
    "mm_vision_resampler": ("vision_resampler.",),
    "mm_vision_tower": ("vision_tower.",),
}
COORDINATE_PART = "mm_coordinates"
PART_PREFIXES = {**VISION_PARTS, COORDINATE_PART: ("coordinates.",)}
MM_PARTS = ("mm_language_model", *PART_PREFIXES)
"""What `mm_tunable_parts` may name; together they hold every parameter."""
EMBEDDING_PART = "mm_embeddings"
"""The word embeddings within the language model, which a run may train alone, or beside adapters. A head that is tied
to them trains with them."""
VISION_GROUPS = {
    "projector": ("mm_projector.",),
    "resampler base": ("vision_resampler.base.",),
    "resampler fast": ("vision_resampler.fast.",),
    "resampler slow": ("vision_resampler.slow.",),
    "tower": ("vision_tower.",),
}
COORDINATE_GROUPS = {
    f"coordinates {way}": tuple(f"coordinates.{name}" for name in TABLES if f"_{way}_" in name)
    for way in ("input", "output")
}
PART_GROUPS = {**VISION_GROUPS, **COORDINATE_GROUPS}
LANGUAGE_GROUPS = ("embeddings", "language model blocks", "head")
GROUPS = (*LANGUAGE_GROUPS, *PART_GROUPS)
"""The groups that gradients are watched by, finer than `MM_PARTS`. A head that is tied belongs to the embeddings."""
KEY_BIASES = tuple(f"{key}.{layer}bias" for key in ("key", "k_proj") for layer in ("", "base_layer."))
"""Ends of the names of parameters whose gradient is 0 but for rounding: softmax does not change with a key's bias."""


def add_visual_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> dict[str, int]:
    """Registers the eight visual tokens on any tokenizer and grows the model's embeddings to hold them.

    Calling it again changes nothing. Tied input and output embeddings stay tied, and both keep their
    `requires_grad`. Returns the ids, which are also written into the model's config.

    Raises:
        ValueError: when the tokenizer has no end-of-text token, which plain-LM training must learn, or when it has more
            words than the model has embeddings.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no eos_token: set one, since a caption must learn to end")
    words = len(tokenizer) - len(set(VISUAL_TOKENS) & set(tokenizer.get_vocab()))
    # A model that knows the visual tokens has embeddings for them already; another one gets them below.
    check_embeddings(words + len(getattr(model.config, "visual_token_ids", None) or ()), model)
    tokens = [AddedToken(t, special=True, normalized=False) for t in VISUAL_TOKENS]
    tokenizer.add_tokens(tokens, special_tokens=True)
    grow_embeddings(tokenizer, model)
    ids = visual_token_ids(tokenizer)
    model.config.visual_token_ids = ids
    return ids


def add_coordinate_tokens(tokenizer: PreTrainedTokenizerBase, model: VisionCausalLM) -> dict[str, int]:
    """Registers the coordinate tokens and placeholders, after the visual ones, and gives the model their tables.

    They are words, which `decode(skip_special_tokens=True)` keeps. The model's own embeddings grow to cover them and
    are used for none of them. Calling it again changes nothing. Returns the ids, which are also written into the
    config; fresh tables are drawn from torch's global generator.

    Raises:
        ValueError: when the tokenizer gives other ids than the model was trained with.
    """
    register(tokenizer)
    ids = dict(CoordinateTokens.of(tokenizer).ids)
    if model.coordinates is not None:
        other = [name for name in ids if ids[name] != model.coordinates.ids[name]]
        if other:
            raise UserError(
                f"the tokenizer gives {other[0]} the id {ids[other[0]]}, and the model was trained with "
                f"{model.coordinates.ids[other[0]]}: they do not belong together: put the model's own tokenizer into "
                "its folder"
            )
        return ids
    grow_embeddings(tokenizer, model)
    model.config.mm_coordinates, model.config.coordinate_token_ids = True, ids
    model.build_coordinates()
    assert model.coordinates is not None
    model.coordinates.draw(embedding_std(model), head_std(model))
    model.coordinates.to(device=model.device, dtype=model.dtype)
    return ids


def grow_embeddings(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Gives every entry of the tokenizer an embedding; never shrinks, keeps what is tied and what trains."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        trainable = model.get_input_embeddings().weight.requires_grad
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.get_input_embeddings().weight.requires_grad_(trainable)
        model.get_output_embeddings().weight.requires_grad_(trainable)


def check_embeddings(entries: int, model: PreTrainedModel) -> None:
    """Refuses a tokenizer with more `entries` than the model has embeddings, which belongs to another model.

    Raises:
        ValueError: with both numbers.
    """
    rows = model.get_input_embeddings().num_embeddings
    if entries > rows:
        raise UserError(
            f"the tokenizer has {entries} entries and the model {rows} embeddings, so they do not belong together: put "
            "the model's own tokenizer into its folder, or make a model with this one (llava-make-model)"
        )


def check_stored_tower(model: VisionCausalLM, name_or_path: str) -> None:
    """Refuses another tower for a model whose checkpoint holds its own, which would be used in its place.

    The stored one may have been trained since, so what is compared is the tower that it began as.

    Raises:
        ValueError: naming both towers and their checksums.
    """
    config = model.config
    other = load_vision_tower(name_or_path, config.mm_vision_select_layer, config.mm_vision_select_feature)
    checksum = other.checksum()
    if not other.has_checksum(config.mm_vision_tower_checksum):
        raise UserError(
            f"--vision_tower {name_or_path!r} (checksum {checksum[:12]}) is not the tower that the checkpoint holds, "
            f"which began as {config.mm_vision_tower!r} (checksum {config.mm_vision_tower_checksum[:12]}): name that "
            "one, or start from a model without vision"
        )


def select_parts(names: str | Iterable[str]) -> list[str]:
    """The parts that a comma-separated `mm_tunable_parts` names.

    Raises:
        ValueError: for an unknown name, or none at all.
    """
    parts = [p.strip() for p in (names.split(",") if isinstance(names, str) else names) if p.strip()]
    known = (*MM_PARTS, EMBEDDING_PART)
    unknown = sorted(set(parts) - set(known))
    if unknown or not parts:
        raise UserError(
            f"mm_tunable_parts: {'unknown ' + ', '.join(unknown) if unknown else 'nothing to train'}; "
            f"use a comma-separated list of {', '.join(known)}"
        )
    return list(dict.fromkeys(parts))


def set_trainable(model: nn.Module, parts: Iterable[str]) -> None:
    """Lets exactly the `trainable_names` of `parts` train and freezes all others.

    Raises:
        ValueError: when a part is unknown, or a parameter belongs to none.
    """
    names = trainable_names(model, select_parts(parts))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def trainable_names(model: nn.Module, parts: Iterable[str]) -> set[str]:
    """Names of the parameters of `parts`; of a language model with LoRA, those of its adapters alone, and its word
    embeddings where they are named.
    """
    parts, adapters = set(parts), adapter_parameters(model)
    names = {name for name, _ in model.named_parameters() if part_of(name) in parts}
    if adapters is not None:
        names = {name for name in names if part_of(name) != "mm_language_model" or name in adapters}
    return names | word_embeddings(model) if EMBEDDING_PART in parts else names


def word_embeddings(model: nn.Module) -> set[str]:
    """Names of the parameters of the table that words are looked up in."""
    table = set(map(id, model.get_input_embeddings().parameters()))
    return {name for name, parameter in model.named_parameters() if id(parameter) in table}


def part_of(parameter_name: str) -> str:
    """The part of `MM_PARTS` that a parameter belongs to; ValueError for one of vision that belongs to none."""
    for part, prefixes in PART_PREFIXES.items():
        if parameter_name.startswith(prefixes):
            return part
    if parameter_name.startswith(("mm_", "vision_")):
        raise ValueError(f"parameter {parameter_name!r} belongs to no part of {MM_PARTS}")
    return "mm_language_model"


def parameter_groups(model: PreTrainedModel) -> dict[str, str]:
    """The group of `GROUPS` that each parameter belongs to, by name; ValueError for one that belongs to none."""
    head, tables = model.get_output_embeddings(), embedding_names(model)
    of_head = tuple(f"{name}." for name, module in model.named_modules() if module is head)
    groups = {}
    for name, _ in model.named_parameters():
        if part_of(name) != "mm_language_model":
            groups[name] = next((g for g, prefixes in PART_GROUPS.items() if name.startswith(prefixes)), "")
            if not groups[name]:
                raise ValueError(f"parameter {name!r} belongs to no group of {GROUPS}")
        elif name.startswith(tables):
            groups[name] = "embeddings"
        else:
            groups[name] = "head" if name.startswith(of_head) else "language model blocks"
    return groups


def load_language_model(
    name_or_path: str, from_scratch: bool = False, attn_implementation: str = "sdpa", load_vision_tower: bool = True
) -> VisionCausalLM:
    """The vision-language model of any causal language model of transformers, or of a checkpoint of ours, in fp32.

    Args:
        from_scratch: keep the folder's config and draw fresh weights (from torch's global generator).
        attn_implementation: eager is taken instead of sdpa where the architecture has no sdpa.
        load_vision_tower: False leaves a llava checkpoint's tower out.

    Raises:
        ValueError: when the folder holds another kind of model, or incomplete weights.
    """
    where = f"--model_name_or_path {name_or_path}"
    values = config_values(name_or_path, where)
    kind = str(values.pop("model_type", None))
    try:
        model_class = causal_lm_class(kind)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    attention = attention_for(model_class, attn_implementation)
    if attention != attn_implementation:
        logger.info("%s has no %s: attention is %s", language_type(kind), attn_implementation, attention)
    if from_scratch:
        # The vision modules of an earlier model are not part of a fresh one, nor are its adapters and its text format.
        others = ("video_spec", "text_format", "lora", "coordinate_token_ids")
        values = {k: v for k, v in values.items() if not k.startswith("mm_") and k not in others}
    config = model_class.config_class.from_dict(values)
    check_sizes(config.to_dict(), where)  # With what the file leaves to the defaults of its type.
    if getattr(config, "output_router_logits", False):
        config.output_router_logits = False
        logger.warning("%s: the router's load-balancing loss is left out: the loss is that of the words alone", where)
    if from_scratch:
        config._attn_implementation = attention
        return model_class(config).float()
    if kind.startswith(PREFIX) or language_type(kind) in OWN_FILES:
        return model_class.from_pretrained(
            name_or_path,
            config=config,
            dtype=torch.float32,
            attn_implementation=attention,
            load_vision_tower=load_vision_tower,
        )
    return from_language_model(model_class, config, name_or_path, attention)


def from_language_model(
    model_class: type[VisionCausalLM], config: PreTrainedConfig, name_or_path: str, attn_implementation: str
) -> VisionCausalLM:
    """A model with the weights of a plain language model, bit for bit, and no vision yet.

    transformers loads them into its own class: it converts what older checkpoints call otherwise, or hold in pieces, by
    the model type, which ours does not share.

    Raises:
        ValueError: when weights are missing or have other shapes.
    """
    plain, info = AutoModelForCausalLM.from_pretrained(
        name_or_path,
        dtype=torch.float32,
        attn_implementation=attn_implementation,
        output_loading_info=True,
        trust_remote_code=False,
    )
    problems = {k: info[k] for k in ("missing_keys", "mismatched_keys") if info.get(k)}
    if problems:
        listed = "; ".join(f"{k.replace('_', ' ')}: {sorted(map(str, v))[:5]}" for k, v in problems.items())
        raise UserError(f"{name_or_path}: the weights do not fit the config ({listed})")
    if info.get("unexpected_keys"):
        names = sorted(map(str, info["unexpected_keys"]))
        logger.warning("%s: %d tensors that the model has no use for: %s", name_or_path, len(names), names[:5])
    config._attn_implementation = attn_implementation
    model = model_class(config).float()
    model.load_state_dict(plain.state_dict())
    model.generation_config = plain.generation_config
    return model.eval()


def open_checkpoint(folder: str | Path, called: str) -> tuple[type[VisionCausalLM], PreTrainedTokenizerBase]:
    """The class of the model that training wrote into a folder, and its tokenizer; no weights are read.

    Args:
        called: the flag or argument that names the folder, for the messages.

    Raises:
        FileNotFoundError: when the folder is not a checkpoint.
        ValueError: when it holds another kind of model.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise MissingFile(f"{path}: no config.json; {called} is the folder of a finished run or a checkpoint")
    kind = str(config_values(str(path), str(path)).get("model_type"))
    if not kind.startswith(PREFIX):
        raise UserError(f"{path}: model type {kind!r}, expected {PREFIX}<type>: {called} is what training wrote")
    return causal_lm_class(kind), load_tokenizer(str(path))


def load_pretrained_model(
    model_path: str | Path, device: str | torch.device = "cpu", vision_tower: str | None = None
) -> tuple[PreTrainedTokenizerBase, VisionCausalLM]:
    """Tokenizer and model of a finished run or checkpoint, in evaluation mode.

    Raises:
        FileNotFoundError: when the folder is not a checkpoint.
        ValueError: when weights are missing, or tokenizer or tower are not those of training.
    """
    model_class, tokenizer = open_checkpoint(model_path, "--model-path")
    model = model_class.from_pretrained(model_path, dtype=torch.float32, vision_tower=vision_tower)
    check_embeddings(len(tokenizer), model)
    if vision_tower is not None and model.config.mm_vision_tower_storage == "checkpoint":
        check_stored_tower(model, vision_tower)
    return tokenizer, model.to(device).eval()
