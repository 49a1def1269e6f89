"""The flags of LoRA: what they ask for, what is wrong with them, and which have no effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields

from llava.config.flags import ModelArguments, TrainingArguments
from llava.model.lora import BIASES, MISSING, LoraSettings, is_installed


def lora_settings(model_args: ModelArguments) -> LoraSettings | None:
    """The adapters that the flags ask for, if they do."""
    if not model_args.lora_enable:
        return None
    return LoraSettings(model_args.lora_r, model_args.lora_alpha, model_args.lora_dropout, model_args.lora_bias)


def lora_problems(model_args: ModelArguments, training_args: TrainingArguments, parts: Sequence[str]) -> list[str]:
    """What is wrong with the flags of LoRA."""
    problems = []
    if model_args.lora_bias not in BIASES:
        problems.append(f"--lora_bias {model_args.lora_bias}: use {', '.join(BIASES[:-1])} or {BIASES[-1]}")
    if not model_args.lora_enable:
        return problems
    if not is_installed():
        problems.append(f"--lora_enable True: {MISSING}")
    if model_args.from_scratch:
        problems.append(
            "--from_scratch True --lora_enable True: weights that were just drawn would stay as they are, and adapters "
            "cannot make up for it: one of the two"
        )
    if training_args.deepspeed or training_args.fsdp:
        problems.append(
            "--lora_enable True with --deepspeed or --fsdp has not been tried, and might train something else: leave "
            "one of the two out (adapters need little memory for gradients and optimiser)"
        )
    if parts and "mm_language_model" not in parts:
        problems.append(
            "--lora_enable True adapts the language model, which --mm_tunable_parts freezes: add mm_language_model to "
            "it, or leave --lora_enable out"
        )
    return problems


def lora_notes(model_args: ModelArguments) -> list[str]:
    """The flags of LoRA that have no effect because it is off."""
    given, default = asdict(model_args), {f.name: f.default for f in fields(ModelArguments)}
    names = [name for name in given if name.startswith("lora_") and given[name] != default[name]]
    return [] if model_args.lora_enable else [f"--{name} {given[name]}: belongs to --lora_enable" for name in names]
