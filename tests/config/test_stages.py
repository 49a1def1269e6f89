"""What `--stage` sets where the command says nothing, and the line that it says."""

from __future__ import annotations

import pytest

from llava.config.flags import ModelArguments, TrainingArguments
from llava.config.known_flags import known_flags
from llava.config.stages import RATES, STAGES, take_stage

VISION = {"vision_tower": "tower"}
LORA = {"lora_enable", "lora_r", "lora_alpha", "lora_dropout"}


def test_every_flag_that_a_stage_sets_exists_and_takes_its_value():
    known = known_flags()
    fields = {*ModelArguments.__dataclass_fields__, *TrainingArguments.__dataclass_fields__}
    assert set(RATES.values()) <= fields
    for values in STAGES.values():
        assert all(known[name].problem(value) is None for name, value in values.items())


def test_a_stage_sets_all_that_the_command_leaves_unsaid():
    first = take_stage({"stage": "1", **VISION})
    assert first.values == STAGES["1"] and first.values["mm_tunable_parts"] == "mm_vision_resampler,mm_embeddings"
    assert first.values["learning_rate"] == 1e-4 and "lora_enable" not in first.values
    for stage in ("2", "3"):
        said = take_stage({"stage": stage, **VISION})
        assert said.values == STAGES[stage]
        assert (said.values["learning_rate"], said.values["mm_coordinates_lr"]) == (2e-4, 2e-5)
        assert (said.values["lora_r"], said.values["lora_alpha"], said.values["lora_dropout"]) == (128, 256, 0.05)
        assert said.note.startswith(f"stage {stage} sets --mm_coordinates True, --mm_tunable_parts ")


def test_what_is_given_wins_and_the_line_says_so():
    """The command of LLaVA-ST's fork trains what it did before there were stages."""
    said = {
        "stage": "1", **VISION, "mm_tunable_parts": "mm_vision_resampler,mm_mlp_adapter,mm_language_model",
        "learning_rate": "5e-4", "mm_projector_lr": "5e-4", "warmup_ratio": "0.1", "lr_scheduler_type": "cosine",
    }  # fmt: skip
    taken = take_stage(said)
    assert taken.values == {}
    assert taken.note == (
        "stage 1 sets nothing; given and so decided by the command: --mm_tunable_parts "
        "mm_vision_resampler,mm_mlp_adapter,mm_language_model (stage 1: mm_vision_resampler,mm_embeddings), "
        "--learning_rate 5e-4 (stage 1: 0.0001); left to the command's other flags: --mm_embeddings_lr, --warmup_steps"
    )


@pytest.mark.parametrize(
    ("said", "unset"),
    [
        ({"lora_enable": "False"}, {"lora_r", "lora_alpha", "lora_dropout"}),
        ({"mm_tunable_parts": "mm_language_model,mm_coordinates"}, {"mm_vision_resampler_lr", "mm_embeddings_lr"}),
        (
            {"tune_mm_vision_resampler": "True"},
            {"mm_tunable_parts", "mm_embeddings_lr", "mm_coordinates", "mm_coordinates_lr", *LORA},
        ),
        (
            {"mm_tunable_parts": "mm_vision_resampler"},
            {"mm_embeddings_lr", "mm_coordinates", "mm_coordinates_lr", *LORA},
        ),
        ({"mm_tunable_parts": "mm_vision_resampler,mm_coordinates"}, {"mm_embeddings_lr", *LORA}),
        ({"freeze_backbone": "True"}, {"mm_tunable_parts", "mm_embeddings_lr", *LORA}),
        ({"freeze_mm_vision_resampler": "1"}, {"mm_tunable_parts", "mm_embeddings_lr", "mm_vision_resampler_lr"}),
        ({"warmup_ratio": "0.1"}, {"warmup_steps"}),
        ({"warmup_steps": "10"}, set()),
        ({"mm_coordinates": "False"}, {"mm_coordinates_lr"}),
    ],
)
def test_what_follows_from_a_given_flag_is_not_set_either(said, unset):
    taken = take_stage({"stage": "2", **VISION, **said})
    assert set(STAGES["2"]) - set(taken.values) == unset | (set(said) & set(STAGES["2"]))
    if "mm_coordinates" in said:
        assert "mm_coordinates" not in taken.values["mm_tunable_parts"]


def test_text_alone_and_no_stage_set_nothing():
    assert take_stage({}).note == "" and take_stage({}).values == {}
    alone = take_stage({"stage": "1", "text_only": "True"})
    assert alone.values == {} and "sets nothing without a --vision_tower" in alone.note


def test_another_number_is_refused():
    assert take_stage({"stage": "4", **VISION}).problem == "--stage 4: use 1, 2 or 3"
