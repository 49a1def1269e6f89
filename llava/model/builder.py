"""Making and loading models: token registration, what trains, and checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from llava.constants import VISUAL_TOKENS
from llava.data.prompt import visual_token_ids
from llava.foreign import config_values, load_tokenizer
from llava.model.language_model.llava_gpt2 import LlavaGPT2Config, LlavaGPT2ForCausalLM
from llava.model.multimodal_encoder.dinov2_encoder import DINOv2VisionTower

MM_PARTS = {
    "mm_language_model": ("transformer.", "lm_head."),
    "mm_mlp_adapter": ("mm_projector.",),
    "mm_vision_resampler": ("vision_resampler.",),
    "mm_vision_tower": ("vision_tower.",),
}
"""What `mm_tunable_parts` may name, and the parameters of each; together they hold every parameter."""


GROUPS = {
    "embeddings": ("transformer.wte.", "transformer.wpe."),
    "language model blocks": ("transformer.h.", "transformer.ln_f."),
    "head": ("lm_head.",),
    "projector": ("mm_projector.",),
    "resampler fast": ("vision_resampler.fast.",),
    "resampler slow": ("vision_resampler.slow.",),
    "tower": ("vision_tower.",),
}
"""The groups that gradients are watched by, finer than `MM_PARTS`. A head that is tied belongs to the embeddings."""


def add_visual_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> dict[str, int]:
    """Registers the eight visual tokens on any tokenizer and grows the model's embeddings to hold them.

    Calling it again changes nothing. Tied input and output embeddings stay tied, and both keep their
    `requires_grad`. Returns the ids, which are also written into the model's config.

    Raises:
        ValueError: when the tokenizer has no end-of-text token, which plain-LM training must learn, or when it has more
            words than the model has embeddings.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token: set one, since a caption must learn to end")
    words = len(tokenizer) - len(set(VISUAL_TOKENS) & set(tokenizer.get_vocab()))
    # A model that knows the visual tokens has embeddings for them already; another one gets them below.
    check_embeddings(words + len(getattr(model.config, "visual_token_ids", None) or ()), model)
    tokens = [AddedToken(t, special=True, normalized=False) for t in VISUAL_TOKENS]
    tokenizer.add_tokens(tokens, special_tokens=True)
    grow_embeddings(tokenizer, model)
    ids = visual_token_ids(tokenizer)
    model.config.visual_token_ids = ids
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
        raise ValueError(
            f"the tokenizer has {entries} entries and the model {rows} embeddings, so they do not belong together: put "
            "the model's own tokenizer into its folder, or make a model with this one (scripts/make_model.py)"
        )


def check_stored_tower(model: LlavaGPT2ForCausalLM, name_or_path: str) -> None:
    """Refuses another tower for a model whose checkpoint holds its own, which would be used in its place.

    The stored one may have been trained since, so what is compared is the tower that it began as.

    Raises:
        ValueError: naming both towers and their checksums.
    """
    config = model.config
    other = DINOv2VisionTower.from_pretrained(
        name_or_path, config.mm_vision_select_layer, config.mm_vision_select_feature
    )
    checksum = other.checksum()
    if not other.has_checksum(config.mm_vision_tower_checksum):
        raise ValueError(
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
    unknown = sorted(set(parts) - set(MM_PARTS))
    if unknown or not parts:
        raise ValueError(
            f"mm_tunable_parts: {'unknown ' + ', '.join(unknown) if unknown else 'nothing to train'}; "
            f"use a comma-separated list of {', '.join(MM_PARTS)}"
        )
    return list(dict.fromkeys(parts))


def set_trainable(model: nn.Module, parts: Iterable[str]) -> None:
    """Lets exactly the parameters of `parts` train and freezes all others.

    Raises:
        ValueError: when a part is unknown, or a parameter belongs to none.
    """
    chosen = tuple(prefix for part in select_parts(parts) for prefix in MM_PARTS[part])
    for name, parameter in model.named_parameters():
        part_of(name)
        parameter.requires_grad_(name.startswith(chosen))


def part_of(parameter_name: str) -> str:
    """The part of `MM_PARTS` that a parameter belongs to; ValueError when there is none."""
    for part, prefixes in MM_PARTS.items():
        if parameter_name.startswith(prefixes):
            return part
    raise ValueError(f"parameter {parameter_name!r} belongs to no part of {tuple(MM_PARTS)}")


def group_of(parameter_name: str) -> str:
    """The group of `GROUPS` that a parameter belongs to; ValueError when there is none."""
    for group, prefixes in GROUPS.items():
        if parameter_name.startswith(prefixes):
            return group
    raise ValueError(f"parameter {parameter_name!r} belongs to no group of {tuple(GROUPS)}")


def load_language_model(
    name_or_path: str, from_scratch: bool = False, attn_implementation: str = "sdpa", load_vision_tower: bool = True
) -> LlavaGPT2ForCausalLM:
    """A `LlavaGPT2ForCausalLM` from a GPT-2 or llava_gpt2 folder, in fp32.

    Args:
        from_scratch: keep the folder's config and draw fresh weights (from torch's global generator).
        load_vision_tower: False leaves a llava checkpoint's tower out.

    Raises:
        ValueError: when the folder holds another kind of model, or incomplete weights.
    """
    config = config_values(name_or_path, f"--model_name_or_path {name_or_path}")
    kind = config.get("model_type")
    if kind not in ("gpt2", "llava_gpt2"):
        raise ValueError(f"--model_name_or_path {name_or_path}: model type {kind!r}, expected gpt2 or llava_gpt2")
    config.pop("model_type")
    llava_config = LlavaGPT2Config(**config)
    if from_scratch:
        # The vision modules of an earlier model are not part of a fresh one, nor is the format of its text.
        others = ("video_spec", "text_format")
        language_only = {k: v for k, v in config.items() if not k.startswith("mm_") and k not in others}
        fresh = LlavaGPT2Config(**language_only)
        fresh._attn_implementation = attn_implementation
        return LlavaGPT2ForCausalLM(fresh).float()
    return LlavaGPT2ForCausalLM.from_pretrained(
        name_or_path,
        config=llava_config,
        dtype=torch.float32,
        attn_implementation=attn_implementation,
        load_vision_tower=load_vision_tower,
    )


def load_pretrained_model(
    model_path: str | Path, device: str | torch.device = "cpu", vision_tower: str | None = None
) -> tuple[PreTrainedTokenizerBase, LlavaGPT2ForCausalLM]:
    """Tokenizer and model of a finished run or checkpoint, in evaluation mode.

    Raises:
        FileNotFoundError: when the folder is not a checkpoint.
        ValueError: when weights are missing, or tokenizer or tower are not those of training.
    """
    path = Path(model_path)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path}: no config.json; --model-path is the folder of a finished run or a checkpoint")
    config_values(str(path), str(path))
    tokenizer = load_tokenizer(str(path))
    model = LlavaGPT2ForCausalLM.from_pretrained(path, dtype=torch.float32, vision_tower=vision_tower)
    check_embeddings(len(tokenizer), model)
    if vision_tower is not None and model.config.mm_vision_tower_storage == "checkpoint":
        check_stored_tower(model, vision_tower)
    return tokenizer, model.to(device).eval()
