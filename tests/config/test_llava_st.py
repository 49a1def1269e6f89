"""LLaVA-ST's flags: every one is known, none is silently dropped, and the page about them is the code's."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from transformers import HfArgumentParser

from llava.config import llava_st
from llava.config.flags import DataArguments, ModelArguments, TrainingArguments
from llava.config.llava_st import FLAGS, NO_EFFECT, REFUSED, RENAMED, WORKS, add_flags, take, trained_parts
from llava.train.run_flags import parse_arguments
from tests.train.runs import flags

PAGE = Path(__file__).resolve().parents[2] / "docs" / "from-llava-st.md"
LM, PROJECTOR, RESAMPLER, TOWER = "mm_language_model", "mm_mlp_adapter", "mm_vision_resampler", "mm_vision_tower"

LLAVA_ST = """
    model_name_or_path model_class_name mm_tunable_parts version freeze_backbone tune_mm_mlp_adapter
    tune_mm_vision_resampler vision_tower vision_tower_pretrained unfreeze_mm_vision_tower unfreeze_language_model
    mm_vision_select_layer pretrain_mm_mlp_adapter mm_projector_type mm_use_im_start_end mm_use_im_patch_token
    mm_patch_merge_type mm_vision_select_feature mm_resampler_type mm_mask_drop_mode mm_mask_drop_skip_percentage
    mm_mask_drop_ratio mm_mask_drop_ratio_upper mm_mask_drop_ratio_lower mm_spatial_pool_stride mm_spatial_pool_mode
    mm_spatial_pool_out_channels mm_perceiver_depth mm_perceiver_latents mm_perceiver_latents_fast
    mm_perceiver_ff_mult mm_perceiver_pretrained mm_qformer_depth mm_qformer_latents mm_qformer_pretrained
    rope_scaling_factor rope_scaling_type s2 s2_scales use_pos_skipping pos_skipping_range mm_newline_position
    delay_load add_faster_video faster_token_stride use_downsample_image
    data_path lazy_preprocess is_multimodal early_mix_text image_folder image_aspect_ratio image_grid_pinpoints
    image_crop_resolution image_split_resolution video_folder video_fps frames_upbound add_time_instruction
    force_sample num_frames
    cache_dir optim remove_unused_columns freeze_mm_mlp_adapter freeze_mm_vision_resampler mpt_attn_impl
    model_max_length double_quant quant_type bits lora_enable lora_r lora_alpha lora_dropout lora_weight_path lora_bias
    mm_projector_lr mm_vision_tower_lr mm_vision_resampler_lr group_by_varlen group_by_modality_length
    group_by_modality_length_auto auto_find_batch_size gradient_checkpointing verbose_logging attn_implementation
    stage load_lora_path
"""
"""The fields of LLaVA-ST's three argument classes."""
STAGES = {
    # What the three stages of LLaVA-ST set, apart from paths and numbers that are this project's own flags.
    1: "--deepspeed F --version qwen_1_5 --mm_tunable_parts mm_vision_resampler --mm_perceiver_latents_fast 9 "
    "--mm_use_im_start_end False --mm_use_im_patch_token False --bf16 True --evaluation_strategy no "
    "--save_strategy steps --warmup_ratio 0.03 --tf32 True --gradient_checkpointing True --lazy_preprocess True "
    "--report_to wandb --stage 1",
    2: "--lora_enable True --lora_r 128 --lora_alpha 256 --mm_vision_resampler_lr 2e-5 --stage 2",
    3: "--lora_enable True --lora_r 128 --lora_alpha 256 --stage 3 --load_lora_path output/stage2",
}


def parser() -> HfArgumentParser:
    return HfArgumentParser((ModelArguments, DataArguments, TrainingArguments), allow_abbrev=False)


def taken(*words: str, **values):
    """`take` of a command line, with values of this project's own flags."""
    full = parser()
    added = add_flags(full)
    known, unknown = full.parse_known_args(["--model_name_or_path", "m", "--data_path", "d", *words])
    assert unknown == []
    defaults = {name: full.get_default(name) for name in vars(known)}
    return take({**vars(known), **values}, added, defaults)


def test_every_flag_is_there_once_and_those_that_work_lead_somewhere():
    names = [flag.name for flag in FLAGS]
    assert len(names) == len(set(names)) and set(LLAVA_ST.split()) <= set(names)
    own = set(vars(parser().parse_args(["--model_name_or_path", "m", "--data_path", "d"])))
    mapped = {*RENAMED, *llava_st.TUNED, *llava_st.FROZEN, llava_st.TOWER}
    assert {flag.name for flag in FLAGS if flag.status == WORKS} - own - mapped == set()
    # A flag that this project has is not without effect, and nothing that was built is still refused in the table.
    assert {flag.name for flag in FLAGS if flag.status == NO_EFFECT} & own == set()
    assert {flag.name for flag in FLAGS if flag.status == REFUSED} & own <= {"auto_find_batch_size"}
    assert set(RENAMED.values()) <= own
    assert all(flag.words and "\n" not in flag.words and "|" not in flag.words for flag in FLAGS)


@pytest.mark.parametrize("stage", STAGES)
def test_the_flags_of_the_stages_are_known(stage):
    result = taken(*STAGES[stage].split())
    assert not any(note.startswith("--stage") for note in result.notes)
    refused = [line.partition(":")[0] for line in result.problems]
    assert refused == [[], [], ["--load_lora_path output/stage2"]][stage - 1]
    if stage == 1:
        assert result.values == {"eval_strategy": "no"}


@pytest.mark.parametrize("flag", [f for f in FLAGS if f.status != WORKS], ids=lambda f: f.name)
def test_a_flag_that_does_not_work_says_so(flag):
    """Once, in one line; values that ask for nothing say nothing."""
    full = parser()
    if flag.name not in {f.name for f in add_flags(full)}:
        pytest.skip("transformers has it")
    loud = {bool: "True", int: "3", float: "0.5"}.get(type(flag.default), "x")
    if loud in map(str, flag.silent):
        loud = "False"
    result = taken(f"--{flag.name}", loud)
    line = f"--{flag.name} {loud}: {flag.words}"
    assert (result.notes, result.problems) == (([line], []) if flag.status == NO_EFFECT else ([], [line]))
    for value in flag.silent:
        assert taken(f"--{flag.name}", str(value)) == llava_st.Taken()
    assert taken() == llava_st.Taken()


def test_a_bare_switch_and_hyphens_are_read():
    assert [note.partition(":")[0] for note in taken("--lazy_preprocess").notes] == ["--lazy_preprocess True"]
    assert taken("--add-faster-video").problems[0].startswith("--add_faster_video True: a video always has")


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("--evaluation_strategy steps", {"eval_strategy": "steps"}),
        ("--no_cuda", {"use_cpu": True}),
    ],
)
def test_old_names_are_todays(words, values):
    assert taken(*words.split()) == llava_st.Taken(values=values)


@pytest.mark.parametrize("words", ["--no_cuda False --use_cpu True", "--evaluation_strategy no --eval_strategy steps"])
def test_two_names_with_two_values_contradict(words):
    result = taken(*words.split())
    assert result.values == {} and len(result.problems) == 1 and "leave" in result.problems[0]


@pytest.mark.parametrize(
    ("said", "parts"),
    [
        ({}, None),
        ({"tune_mm_mlp_adapter": False}, None),
        ({"tune_mm_mlp_adapter": True}, [PROJECTOR]),
        ({"tune_mm_mlp_adapter": True, "tune_mm_vision_resampler": True}, [PROJECTOR, RESAMPLER]),
        ({"freeze_backbone": True}, [PROJECTOR, RESAMPLER]),
        ({"freeze_mm_mlp_adapter": True, "freeze_mm_vision_resampler": True}, [LM]),
        ({"unfreeze_mm_vision_tower": True}, [LM, PROJECTOR, RESAMPLER, TOWER]),
        ({"freeze_backbone": True, "tune_mm_vision_resampler": True, "unfreeze_mm_vision_tower": True},
         [RESAMPLER, TOWER]),
        ({"mm_tunable_parts": f"{PROJECTOR},{RESAMPLER}", "freeze_backbone": True}, None),
        ({"mm_tunable_parts": PROJECTOR, "tune_mm_mlp_adapter": True}, None),
        ({"mm_tunable_parts": f"{LM},{TOWER}", "unfreeze_mm_vision_tower": True}, None),
    ],
)  # fmt: skip
def test_older_flags_say_which_parts_train(said, parts):
    assert trained_parts({"vision_tower": "t", **said}) == (parts and ",".join(parts), [])


def test_without_a_tower_only_the_language_model_is_left():
    assert trained_parts({"freeze_mm_mlp_adapter": True}) == (LM, [])
    assert "nothing is left to train" in trained_parts({"freeze_backbone": True})[1][0]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"tune_mm_mlp_adapter": True, "freeze_mm_mlp_adapter": True}, "one of them"),
        ({"mm_tunable_parts": f"{LM},{PROJECTOR}", "freeze_backbone": True}, f"names {LM}"),
        ({"mm_tunable_parts": LM, "unfreeze_mm_vision_tower": True}, f"does not name {TOWER}"),
        ({"mm_tunable_parts": f"{LM},{PROJECTOR}", "tune_mm_mlp_adapter": True}, f"trains nothing else.*{LM} too"),
    ],
)
def test_parts_that_contradict_are_refused(said, words):
    _, problems = trained_parts({"vision_tower": "t", **said})
    assert len(problems) == 1
    assert re.search(words, problems[0])


def test_a_command_line_says_it_once(assets, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        model_args, _, training_args = parse_arguments(
            flags(assets, tmp_path, freeze_backbone=True, stage=1, lazy_preprocess=True, warmup_ratio=0.1,
                  lora_enable=False, bits=16, evaluation_strategy="no")
        )  # fmt: skip
    notes = [r.getMessage() for r in caplog.records if "without effect" in r.getMessage()]
    assert len(notes) == 1 and [line.split()[1] for line in notes[0].splitlines()[1:]] == ["--lazy_preprocess"]
    assert model_args.mm_tunable_parts == f"{PROJECTOR},{RESAMPLER}"
    assert training_args.get_warmup_steps(100) == 10


def test_what_is_refused_is_said_with_everything_else(assets, tmp_path):
    with pytest.raises(ValueError) as error:
        parse_arguments(flags(assets, tmp_path, bits=4, s2=True, warmup_ratio=1, video_folder="/nowhere"))
    lines = str(error.value).splitlines()[1:]
    assert sorted(line.split()[1] for line in lines) == ["--bits", "--s2", "--video_folder", "--warmup_ratio"]


def test_a_silent_run_stays_silent(assets, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        parse_arguments(flags(assets, tmp_path))
    assert "without effect" not in caplog.text


def test_the_page_has_the_tables(capsys):
    llava_st.main()
    page = PAGE.read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() in page, "write them again: python -m llava.config.llava_st"


def test_statuses_are_three():
    assert {flag.status for flag in FLAGS} == {WORKS, NO_EFFECT, REFUSED}
