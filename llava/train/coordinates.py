"""Coordinates of a run: whether it has them, the tokens and tables of its model, and tables that no record reads."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from llava.config.flags import ModelArguments, TrainingArguments
from llava.constants import COORDINATE_AXES
from llava.errors import UserError
from llava.model.adapter import COORDINATES as TABLES
from llava.model.adapter import load_coordinates
from llava.model.builder import COORDINATE_GROUPS, COORDINATE_PART, add_coordinate_tokens
from llava.model.vlm import VisionCausalLM

logger = logging.getLogger(__name__)

SWITCHES = ("mm_coordinates_in_vision", "mm_coordinates_reparameterized")
"""Ingredients that a run may leave out, to see what each is worth; flags and fields of the config."""


def kept(model_args: ModelArguments) -> dict[str, Any]:
    """The config of the folder that a run starts from, if it has coordinates that the run keeps; of a hub name the
    flags alone tell.
    """
    if model_args.from_scratch or not model_args.model_name_or_path:
        return {}
    try:
        values = json.loads((Path(model_args.model_name_or_path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # Whoever loads the model says what is wrong with it.
    return values if isinstance(values, dict) and values.get("mm_coordinates") else {}


def flag_problems(
    model_args: ModelArguments, training_args: TrainingArguments, by_stage: Collection[str] = ()
) -> list[str]:
    """What is wrong with `--mm_coordinates` and its switches, which are set here where nobody named them.

    Args:
        by_stage: flags that `--stage` has set, and nobody has given.
    """
    config = kept(model_args)
    there = bool(config)
    if model_args.mm_coordinates is None:
        model_args.mm_coordinates = there
    problems = []
    for name in SWITCHES:
        if getattr(model_args, name) is None:
            setattr(model_args, name, config.get(name, True))
        elif getattr(model_args, name) is False and not model_args.mm_coordinates:
            problems.append(f"--{name} False, but there is no --mm_coordinates True: leave it out")
    if there and not model_args.mm_coordinates:
        problems.append(
            f"--mm_coordinates False: {model_args.model_name_or_path} was trained with coordinates, which cannot be "
            "taken out: leave the flag out, or start from a model without them"
        )
    named = [part.strip() for part in (model_args.mm_tunable_parts or "").split(",")]
    if COORDINATE_PART in named and not model_args.mm_coordinates:
        problems.append(f"--mm_tunable_parts names {COORDINATE_PART}, but there is no --mm_coordinates True")
    if not there and model_args.mm_coordinates and model_args.mm_tunable_parts and COORDINATE_PART not in named:
        more = f"--mm_tunable_parts {','.join((*named, COORDINATE_PART))}"
        who, remedy = "--mm_tunable_parts, of the command or of its recipe, freezes", f"give {more}"
        if "mm_tunable_parts" in by_stage:
            who = f"--stage {model_args.stage} freezes, since it trains {','.join(named)} alone"
            remedy = f"leave --mm_coordinates to --stage 2, which adds them, or give {more}"
        problems.append(f"--mm_coordinates True gives the model fresh tables, which {who}: {remedy}")
    if (tables := model_args.mm_coordinates_pretrained) is not None:
        if not Path(tables).is_file():
            problems.append(f"{TABLES} {tables}: no such file")
        if not model_args.mm_coordinates:
            problems.append(f"{TABLES} {tables} has tables of coordinates, but there is no --mm_coordinates True")
    if model_args.mm_coordinates and training_args.fsdp and (training_args.bf16 or training_args.fp16):
        problems.append(
            "--mm_coordinates True --fsdp in half precision: FSDP rounds the numbers that a batch brings to it: use "
            "--deepspeed scripts/zero3.json, or leave --bf16 and --fp16 out"
        )
    return problems


def give_coordinates(
    model: VisionCausalLM, tokenizer: PreTrainedTokenizerBase, model_args: ModelArguments, name: str
) -> None:
    """Tokens and tables where the flags ask for them; after the visual tokens.

    Args:
        name: the flag that names the model, for the message.

    Raises:
        ValueError: when the model has coordinates that the flags do not, or was trained with other `SWITCHES`; and from
            `load_coordinates`.
    """
    fresh, config = model.coordinates is None, model.config
    if not fresh and not model_args.mm_coordinates:
        raise UserError(f"{name} was trained with coordinates: add --mm_coordinates True")
    if not model_args.mm_coordinates:
        return
    asked = {switch: bool(getattr(model_args, switch)) for switch in SWITCHES}
    if fresh:
        config.update(asked)
    other = [switch for switch in SWITCHES if getattr(config, switch) != asked[switch]]
    if other:
        trained = " ".join(f"--{switch} {getattr(config, switch)}" for switch in other)
        raise UserError(f"{name} was trained with {trained}: give the same, or start from a model without coordinates")
    ids = add_coordinate_tokens(tokenizer, model)
    logger.info(
        "coordinates: %d tokens from id %d on, %s tables%s", len(ids), min(ids.values()), "fresh" if fresh else "its",
        "".join(f", {switch} False" for switch in SWITCHES if not asked[switch]),
    )  # fmt: skip
    if model_args.mm_coordinates_pretrained is not None:
        logger.info("%s", load_coordinates(model, model_args.mm_coordinates_pretrained))


def unread_tables(model: Any, texts: Iterable[str]) -> dict[str, str]:
    """Tables for reading that no text of a run has a token of, with the reason; none where patches are given places,
    by which each table gets a gradient.

    Args:
        texts: of the records; no further than until each axis was seen.
    """
    if model.coordinates is None or (model.mm_projector is not None and model.config.mm_coordinates_in_vision):
        return {}
    unseen = dict(zip(COORDINATE_AXES, COORDINATE_GROUPS["coordinates input"], strict=True))
    for text in texts:
        for axis in [axis for axis in unseen if f"<{axis}-" in text]:
            del unseen[axis]
        if not unseen:
            break
    return {name: f"coordinates that no record tells or asks for ({axis})" for axis, name in unseen.items()}
