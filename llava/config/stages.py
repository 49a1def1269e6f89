"""LLaVA-ST's three stages, `--stage 1|2|3`: what each one sets where the command says nothing.

Li et al. 2025, "LLaVA-ST", https://arxiv.org/abs/2501.08282, section 4.2. Content first, then coordinates, then several
tasks: stage 1 trains the resampler and the word embeddings; stages 2 and 3 add the coordinates and adapt the language
model by LoRA. Every stage starts from the folder of the last one, `--model_name_or_path`, whose adapters go on, or are
merged into its weights first with `--merge_lora True`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llava.config.known_flags import is_on
from llava.config.llava_st import FROZEN, TOWER, TUNED, trained_parts
from llava.config.recipe import below

LANGUAGE_MODEL, RESAMPLER = "mm_language_model", "mm_vision_resampler"
EMBEDDINGS, COORDINATES = "mm_embeddings", "mm_coordinates"
RATES = {
    "mm_mlp_adapter": "mm_projector_lr",
    RESAMPLER: "mm_vision_resampler_lr",
    "mm_vision_tower": "mm_vision_tower_lr",
    EMBEDDINGS: "mm_embeddings_lr",
    COORDINATES: "mm_coordinates_lr",
}
"""The flag of each part's own learning rate."""
SCHEDULE = {"lr_scheduler_type": "cosine", "warmup_steps": 0.03}
ADAPTED = {
    "mm_coordinates": True,
    "mm_tunable_parts": f"{LANGUAGE_MODEL},{RESAMPLER},{EMBEDDINGS},{COORDINATES}",
    "lora_enable": True,
    "lora_r": 128,
    "lora_alpha": 256,
    "lora_dropout": 0.05,
    "learning_rate": 2e-4,
    "mm_vision_resampler_lr": 2e-5,
    "mm_embeddings_lr": 2e-5,
    "mm_coordinates_lr": 2e-5,
    **SCHEDULE,
}
STAGES: dict[str, dict[str, Any]] = {
    "1": {
        "mm_tunable_parts": f"{RESAMPLER},{EMBEDDINGS}",
        "learning_rate": 1e-4,
        "mm_embeddings_lr": 1e-4,
        **SCHEDULE,
    },
    "2": ADAPTED,
    "3": ADAPTED,
}
"""By `--stage`: flags and what they are without the command's own word."""


@dataclass(frozen=True)
class StageSays:
    """What a stage makes of a command line.

    Attributes:
        values: of flags that the command leaves unsaid.
        note: one line, what the stage sets and what the command decides; empty without a stage.
        problem: what is wrong with the stage, if anything.
    """

    values: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    problem: str | None = None


def take_stage(said: Mapping[str, Any]) -> StageSays:
    """What `--stage` sets, beside what a command and its recipe say, by flag.

    A learning rate is set for a part that trains alone, LoRA's flags where there are adapters, and adapters and
    coordinates where the command leaves them among what trains. On text alone a stage sets nothing.
    """
    stage = said.get("stage")
    if stage is None:
        return StageSays()
    stage = str(stage).strip()
    if stage not in STAGES:
        return StageSays(problem=f"--stage {stage}: use {', '.join(list(STAGES)[:-1])} or {list(STAGES)[-1]}")
    if "vision_tower" not in said:
        return StageSays(note=f"stage {stage} is about vision and sets nothing without a --vision_tower")
    whole = STAGES[stage]
    values = below(whole, said)
    parts = said.get("mm_tunable_parts", _by_older_flags(said, values))
    if parts is not None:
        named = _names(parts)
        if LANGUAGE_MODEL not in named:
            values.pop("lora_enable", None)
        if COORDINATES not in named:
            values.pop("mm_coordinates", None)
    if not is_on(said.get("lora_enable", values.get("lora_enable"))):
        values = {k: v for k, v in values.items() if not k.startswith("lora_")}
    trained = values.get("mm_tunable_parts") if parts is None else parts
    if trained is not None:
        named = _names(trained)
        idle = {flag for part, flag in RATES.items() if part not in named}
        values = {k: v for k, v in values.items() if k not in idle}
    else:
        # The older flags of LLaVA say what trains, and none of them names the embeddings or the coordinates.
        values = {k: v for k, v in values.items() if k not in (RATES[EMBEDDINGS], RATES[COORDINATES])}
    if not is_on(said.get("mm_coordinates", values.get("mm_coordinates"))):
        values.pop("mm_coordinates_lr", None)
        if "mm_tunable_parts" in values:
            kept = [part for part in values["mm_tunable_parts"].split(",") if part != COORDINATES]
            values["mm_tunable_parts"] = ",".join(kept)
    return StageSays(values, _note(stage, whole, values, said))


def _names(parts: Any) -> set[str]:
    return {part.strip() for part in str(parts).split(",")}


def _by_older_flags(said: Mapping[str, Any], values: Mapping[str, Any]) -> str | None:
    """What trains by the older flags of LLaVA that a command gives; None where they leave it open."""
    older = {name: is_on(said[name]) for name in (*TUNED, *FROZEN, TOWER) if name in said}
    coordinates = is_on(said.get("mm_coordinates", values.get("mm_coordinates")))
    return trained_parts({**older, "vision_tower": said["vision_tower"], "mm_coordinates": coordinates})[0]


def _note(stage: str, whole: Mapping[str, Any], values: Mapping[str, Any], said: Mapping[str, Any]) -> str:
    sets = ", ".join(f"--{name} {value}" for name, value in values.items())
    wins = ", ".join(
        f"--{name} {said[name]} (stage {stage}: {value})"
        for name, value in whole.items()
        if name in said and str(said[name]) != str(value)
    )
    left = [name for name in whole if name not in values and name not in said]
    words = [f"stage {stage} sets {sets}" if sets else f"stage {stage} sets nothing"]
    if wins:
        words.append(f"given and so decided by the command: {wins}")
    if left:
        words.append(f"left to the command's other flags: {', '.join(f'--{name}' for name in left)}")
    return "; ".join(words)
