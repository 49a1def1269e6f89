"""Weights, gradients and optimiser states spread over the processes by DeepSpeed or FSDP."""

from __future__ import annotations

import copyreg
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from llava.config.flags import TrainingArguments
from llava.data.columns import representatives


@contextmanager
def built_whole(args: TrainingArguments) -> Iterator[None]:
    """Models that are built inside have whole weights in every process, until the trainer spreads them.

    transformers would cut the weights of ZeRO-3 while it loads them. Here they are still resized, hashed and checked,
    which a cut tensor would answer wrongly, and a model of this size fits.
    """
    config = getattr(args, "hf_deepspeed_config", None)
    if config is None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(config)


def pickle_stage_by_value() -> None:
    """Has DeepSpeed's checkpoints name the ZeRO stage by its number.

    Python 3.11.0 to 3.11.3 pickle an enum as a call of `getattr`, which `resume.refuse_pickles` cannot allow: with it a
    file reaches any attribute of whatever it may name.
    """
    from deepspeed.runtime.zero.config import ZeroStageEnum

    copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))


def flag_problems(args: TrainingArguments) -> list[str]:
    """What is wrong with the settings of `--deepspeed` and `--fsdp`."""
    problems = []
    if args.deepspeed:
        zero = args.hf_deepspeed_config.config.get("zero_optimization", {})
        if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
            problems.append(
                f"--deepspeed {args.deepspeed}: with stage 3, model.safetensors would hold no weights; set "
                '"stage3_gather_16bit_weights_on_model_save": true under "zero_optimization"'
            )
    if args.fsdp:
        config = cast("dict[str, Any]", args.fsdp_config)
        if args.device.type == "cpu":
            problems.append("--fsdp has no effect on CPU, where accelerate leaves the weights whole: leave it out")
        if int(config.get("version", 2)) != 2:
            problems.append('--fsdp_config: FSDP1 is not supported; set "fsdp_version": 2')
        if config.get("state_dict_type", "FULL_STATE_DICT") != "FULL_STATE_DICT":
            problems.append(
                '--fsdp_config: model.safetensors would not be written; set "state_dict_type": "FULL_STATE_DICT"'
            )
    return problems


def weights_are_spread(args: TrainingArguments) -> bool:
    """Whether no process has the whole weights, so that every forward pass needs all processes."""
    if args.deepspeed:
        return args.hf_deepspeed_config.is_zero3()
    return bool(args.fsdp)


def kinds_in_step(model: nn.Module, *datasets: Any) -> dict[str, bool]:
    """The kinds of vision that a run's data have, and whether they come as pixels: what `LlavaMetaForCausalLM.in_step`
    takes.
    """
    found = [dataset for dataset in datasets if dataset is not None]
    pixels = any(dataset.cache is None for dataset in found)
    records = [record for dataset in found for record in representatives(dataset.records)[0]]
    kinds = {"image": any(r.images for r in records), "video": any(r.videos for r in records)}
    return {kind: pixels for kind, there in kinds.items() if there and model.mm_projector is not None}


def not_finite(model: nn.Module, state_dict: Mapping[str, torch.Tensor] | None) -> list[str]:
    """Names of the weights that train and are not finite; taken from `state_dict`, the gathered ones, when given."""
    trains = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if state_dict is not None:
        trains = {name: state_dict[name] for name in trains if name in state_dict}
    return [name for name, p in trains.items() if not bool(torch.isfinite(p).all())]


def without_tied(model: nn.Module, state_dict: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor] | None:
    """A gathered `state_dict` without the weights that are another's: gathered, they are copies, and would be saved."""
    if state_dict is None:
        return None
    tied = set(model.all_tied_weights_keys)
    return {name: tensor for name, tensor in state_dict.items() if name not in tied}
