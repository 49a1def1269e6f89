"""LLaVA-ST's flags: what becomes of each one here. `python -m llava.config.llava_st` prints the tables of
docs/from-llava-st.md.

A flag works, perhaps under another name; or it has no effect, and the run says so once; or it is refused, apart from
values that ask for nothing, with what to use instead. The names and defaults are those of LLaVA-ST's argument classes,
and of transformers 4 where transformers 5 dropped them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

WORKS, NO_EFFECT, REFUSED = "works", "no effect", "refused"
REQUIRED = "required"


@dataclass(frozen=True)
class Flag:
    """A flag of LLaVA-ST.

    Attributes:
        default: LLaVA-ST's, which also says of what type the value is; None is a text.
        words: what to know of it, why it has no effect, or what to use instead.
        silent: values of which nothing is said: what they ask for is what happens here.
    """

    name: str
    default: Any
    status: str
    words: str
    silent: tuple[Any, ...] = ()


def _flags(status: str, rows: Mapping[str, tuple[Any, ...]]) -> list[Flag]:
    return [Flag(name, default, status, words, tuple(silent)) for name, (default, words, *silent) in rows.items()]


GRID = "an image is one square view (--image_aspect_ratio); there is no grid of crops"
POOL = "belongs to resamplers that are not here; --mm_perceiver_latents says how many rows a frame takes"
GROUP = (
    "samples share rows (--packing, which is on), so that lengths cost nothing; --group_by_modality_length makes "
    "batches of similar lengths"
)
MERGE = (
    "a run of this project: name its folder with --model_name_or_path, and --merge_lora True merges its adapters first "
    "(python -m llava.commands.merge_lora does so once for all); another: merge them by peft's merge_and_unload"
)

FLAGS: tuple[Flag, ...] = (
    *_flags(WORKS, {
        # The model
        "model_name_or_path": ("facebook/opt-125m", "any causal language model; --from_scratch True draws fresh "
                               "weights"),
        "version": ("v0", "LLaVA's names; an unknown one is an error and never the default. USE_PLAIN_LM=1 decides "
                    "over it"),
        "attn_implementation": ("flash_attention_2", "any that the model has"),
        "vision_tower": (None, "DINOv2, DINOv3, SigLIP or CLIP; frozen unless it is named in --mm_tunable_parts; "
                         "its features are computed once and "
                         "kept (--feature_cache)"),
        "mm_tunable_parts": (None, "what is not named is frozen. Left out: all but the tower"),
        "stage": ("1", "1, 2 or 3: sets what the command leaves unsaid (docs/recipes.md); without it nothing is set"),
        "freeze_backbone": (False, "`mm_tunable_parts` without mm_language_model, embeddings and head included; "
                            "there a head that is not tied trains on"),
        "tune_mm_mlp_adapter": (False, "`mm_tunable_parts mm_mlp_adapter`: nothing else trains"),
        "tune_mm_vision_resampler": (False, "`mm_tunable_parts mm_vision_resampler`: nothing else trains"),
        "freeze_mm_mlp_adapter": (False, "`mm_tunable_parts` without mm_mlp_adapter"),
        "freeze_mm_vision_resampler": (False, "`mm_tunable_parts` without mm_vision_resampler"),
        "unfreeze_mm_vision_tower": (False, "`mm_tunable_parts` with mm_vision_tower; needs "
                                     "--mm_vision_tower_storage checkpoint"),
        "pretrain_mm_mlp_adapter": (None, "a .bin (read with weights_only) or .safetensors with the weights of the "
                                    "projector, or of projector and resampler; every name and shape must fit"),
        "mm_vision_select_layer": (-1, "index into the tower's hidden states"),
        "mm_vision_select_feature": ("patch", "patch or cls_patch"),
        "mm_projector_type": ("linear", "linear, identity, or `mlp<N>x_gelu` with a LayerNorm in front, which LLaVA's "
                              "has not"),
        "mm_resampler_type": (None, "fast_slow_resampler, or stp, which is LLaVA-ST's packer; there it has the name "
                              "fast_slow_resampler, which is another one here"),
        "mm_perceiver_latents": (81, "rows of a frame in the slow stream"),
        "mm_perceiver_latents_fast": (9, "rows of a frame in the fast stream, which reaches the model"),
        "mm_perceiver_depth": (3, "blocks of each stream; stp, as LLaVA-ST's packer, always has one"),
        "mm_perceiver_pretrained": (None, "a .bin (read with weights_only) or .safetensors with the weights of the "
                                    "resampler alone; LLaVA-ST's names are read too"),
        "lora_enable": (False, "adapters of the language model's linear layers train, its own weights, embeddings and "
                        "head stay; the vision parts train in full. Needs peft and mm_language_model in "
                        "--mm_tunable_parts"),
        "lora_r": (64, "rank of the adapters"),
        "lora_alpha": (16, "adapters are multiplied by lora_alpha / lora_r"),
        "lora_dropout": (0.05, "dropout of what adapters see"),
        "lora_bias": ("none", "none, all (of the language model's body) or lora_only (of the adapted layers)"),
        # The data
        "data_path": (None, "JSON or JSONL, several files (`{a,b}.json`), or a YAML mixture"),
        "image_folder": (None, "`.` and an empty folder are the working folder"),
        "video_folder": (None, "`.` and an empty folder are the working folder"),
        "image_aspect_ratio": ("square", "pad, square or crop; anyres and the like are refused"),
        "video_fps": (1, "candidate frames a second, by presentation time and without rounding"),
        "frames_upbound": (0, "most candidate frames; at least num_frames, or 0"),
        "num_frames": (100, "frames that the model sees, exactly"),
        "force_sample": (False, "frames uniformly over the clip"),
        # Training
        "model_max_length": (4096, "at most the model's positions"),
        "mm_projector_lr": (None, "learning rate of the projector"),
        "mm_vision_tower_lr": (None, "learning rate of the tower"),
        "mm_vision_resampler_lr": (None, "learning rate of the resampler"),
        "group_by_modality_length": (False, "batches of one modality and of similar lengths"),
        "gradient_checkpointing": (True, "off unless it is asked for"),
        "optim": ("adamw_torch", "the same steps, fused"),
        "remove_unused_columns": (False, "False alone"),
        "evaluation_strategy": ("no", "`eval_strategy`, its name in transformers 5"),
        "warmup_ratio": (0.0, "share of all steps that warm up; `warmup_steps` below 1 says the same"),
        "no_cuda": (False, "`use_cpu`, its name in transformers 5"),
    }),
    *_flags(NO_EFFECT, {
        "model_class_name": (None, "the class follows from the model's own config"),
        "unfreeze_language_model": (False, "LLaVA-ST does not read it either; name mm_language_model in "
                                    "--mm_tunable_parts"),
        "mm_use_im_start_end": (False, "an image always stands between `<im_start>` and `<im_end>`"),
        "mm_use_im_patch_token": (True, "an image always stands as `<im_patch>` tokens, which its rows replace"),
        "mm_patch_merge_type": ("flat", GRID),
        "image_grid_pinpoints": (None, GRID),
        "image_crop_resolution": (None, GRID),
        "image_split_resolution": (None, GRID),
        "mm_newline_position": ("grid", "frames follow each other without a newline token"),
        "mm_mask_drop_mode": ("fixed", POOL),
        "mm_mask_drop_skip_percentage": (0.0, POOL),
        "mm_mask_drop_ratio": (0.25, POOL),
        "mm_mask_drop_ratio_upper": (None, POOL),
        "mm_mask_drop_ratio_lower": (None, POOL),
        "mm_spatial_pool_stride": (None, POOL),
        "mm_spatial_pool_mode": ("bilinear", POOL),
        "mm_spatial_pool_out_channels": (None, POOL),
        "mm_qformer_depth": (3, POOL),
        "mm_qformer_latents": (32, POOL),
        "mm_qformer_pretrained": (None, POOL),
        "use_downsample_image": (False, "an image always takes --mm_perceiver_latents rows, as there with True; "
                                 "videos are not concerned", True),
        "s2_scales": ("336,672,1008", "belongs to --s2"),
        "pos_skipping_range": (4096, "belongs to --use_pos_skipping"),
        "faster_token_stride": (10, "belongs to --add_faster_video"),
        "delay_load": (True, "the tower is loaded once, when the model is made"),
        "lazy_preprocess": (False, "a sample is always made when it is asked for, and features of a frozen tower come "
                            "from the cache"),
        "is_multimodal": (False, "a record says so itself, by naming a video or an image"),
        "early_mix_text": (False, "records without a video are text; both kinds share batches"),
        "group_by_varlen": (False, GROUP),
        "group_by_modality_length_auto": (False, GROUP),
        "group_by_length": (False, GROUP),
        "double_quant": (True, "belongs to --bits"),
        "quant_type": ("nf4", "belongs to --bits"),
        "mpt_attn_impl": ("triton", "--attn_implementation says it for every model"),
        "verbose_logging": (False, "flags, data and what trains are always written down (llava_run.json, log)"),
        "cache_dir": (None, "set HF_HOME in the environment, which every library reads"),
        "overwrite_output_dir": (False, "a run is never overwritten: go on with --resume_from_checkpoint auto, or "
                                 "name another folder"),
        "logging_dir": (None, "TensorBoard's files lie in output_dir/runs; TENSORBOARD_LOGGING_DIR moves them"),
    }),
    *_flags(REFUSED, {
        "lora_weight_path": ("", MERGE, ""),
        "load_lora_path": ("", MERGE, ""),
        "bits": (16, "weights of 4 and 8 bits, which need CUDA and bitsandbytes, are not built in yet: leave it out; "
                 "--lora_enable True, --bf16 True, --gradient_checkpointing True and --deepspeed "
                 "scripts/zero2_offload.json save memory", 16, 32),
        "add_time_instruction": (False, "times are not written into texts, where they would tell one clip from "
                                 "another without looking: write the sentence into the human turns of the records",
                                 False),
        "add_faster_video": (False, "a video always has a fast stream: --mm_perceiver_latents_fast", False),
        "vision_tower_pretrained": (None, "name the folder of the weights with --vision_tower", ""),
        "mm_perceiver_ff_mult": (4.0, "the MLP of a block is 4 times as wide as the model, and stp has none: leave it "
                                 "out", 4.0),
        "rope_scaling_factor": (None, "write rope_scaling into the config.json of the model"),
        "rope_scaling_type": (None, "write rope_scaling into the config.json of the model", ""),
        "s2": (False, "one scale: name a tower of a larger image size", False),
        "use_pos_skipping": (False, "positions are counted without gaps: leave it out", False),
        "auto_find_batch_size": (False, "lower --per_device_train_batch_size and raise --gradient_accumulation_steps "
                                 "by the same factor", False),
        "save_safetensors": (True, "weights are always saved as safetensors", True),
    }),
)  # fmt: skip
"""Every flag of LLaVA-ST's argument classes, in the order of the tables."""

TUNED = {"tune_mm_mlp_adapter": "mm_mlp_adapter", "tune_mm_vision_resampler": "mm_vision_resampler"}
FROZEN = {
    "freeze_backbone": "mm_language_model",
    "freeze_mm_mlp_adapter": "mm_mlp_adapter",
    "freeze_mm_vision_resampler": "mm_vision_resampler",
}
TOWER = "unfreeze_mm_vision_tower"
RENAMED = {"evaluation_strategy": "eval_strategy", "no_cuda": "use_cpu"}
"""What transformers 5 calls what transformers 4 had."""


@dataclass(frozen=True)
class Taken:
    """What a command line says in LLaVA-ST's flags.

    Attributes:
        values: of this project's own flags.
        notes: a line for each flag without effect.
        problems: a line for each flag that is refused, or that contradicts another.
    """

    values: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def add_flags(parser: argparse.ArgumentParser) -> list[Flag]:
    """Adds the flags that a parser of this project's own lacks, without a default, and returns them."""
    from transformers.hf_argparser import string_to_bool

    group = parser.add_argument_group("LLaVA-ST", "its other flags, by name; docs/from-llava-st.md has all of them")
    added = [flag for flag in FLAGS if f"--{flag.name}" not in parser._option_string_actions]
    for flag in added:
        names = dict.fromkeys((f"--{flag.name}", f"--{flag.name.replace('_', '-')}"))
        text = flag.words if flag.status == WORKS else argparse.SUPPRESS
        if isinstance(flag.default, bool):
            group.add_argument(*names, type=string_to_bool, nargs="?", const=True, help=text)
        else:
            group.add_argument(*names, type=str if flag.default is None else type(flag.default), help=text)
    return added


def take(values: Mapping[str, Any], added: Sequence[Flag], defaults: Mapping[str, Any]) -> Taken:
    """What the flags that `add_flags` added say.

    Args:
        values: of every flag of the command line; an added one that was left out is None.
        defaults: of this project's own flags.
    """
    said = [(flag, values[flag.name]) for flag in added if values.get(flag.name) is not None]
    lines = {
        status: [
            f"--{flag.name} {value}: {flag.words}".replace(f"--{flag.name} :", f"--{flag.name} '':")
            for flag, value in said
            if flag.status == status and value not in flag.silent
        ]
        for status in (NO_EFFECT, REFUSED)
    }
    taken = Taken(notes=lines[NO_EFFECT], problems=lines[REFUSED])
    for old, new in RENAMED.items():
        value = values.get(old) if old in {flag.name for flag, _ in said} else None
        if value is None:
            continue
        other = getattr(values[new], "value", values[new])
        if other not in (defaults[new], value):
            taken.problems.append(f"--{old} {value} and --{new} {other} say the same thing twice: leave --{old} out")
        else:
            taken.values[new] = value
    parts, problems = trained_parts(values)
    taken.problems.extend(problems)
    if parts is not None:
        taken.values["mm_tunable_parts"] = parts
    return taken


def trained_parts(values: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """`mm_tunable_parts` as the older flags say it, None where none does, and what contradicts another flag.

    As in LLaVA, `tune_*` trains that part alone. There `mm_tunable_parts` decides over all of them without a word;
    here they must agree with it.
    """
    given = values.get("mm_tunable_parts")
    tuned = {part: flag for flag, part in TUNED.items() if values.get(flag)}
    frozen = {part: flag for flag, part in FROZEN.items() if values.get(flag)}
    tower = {"mm_vision_tower": TOWER} if values.get(TOWER) else {}
    if not tuned and not frozen and not tower:
        return None, []
    problems = [f"--{tuned[part]} True and --{frozen[part]} True: one of them" for part in tuned if part in frozen]
    if given is not None:
        named = {part.strip() for part in given.split(",") if part.strip()}
        lacking = {**tuned, **tower}
        problems += [
            f"--{flag} True, but --mm_tunable_parts {given} does not name {part}: leave one of the two out"
            for part, flag in lacking.items()
            if part not in named
        ]
        problems += [
            f"--{flag} True, but --mm_tunable_parts {given} names {part}: leave one of the two out"
            for part, flag in frozen.items()
            if part in named
        ]
        alone = sorted(named - set(lacking)) if tuned else []
        if alone:
            flags = " and ".join(f"--{flag} True" for flag in tuned.values())
            problems.append(
                f"{flags} trains nothing else, but --mm_tunable_parts {given} names {', '.join(alone)} too: leave one "
                "of the two out"
            )
        return None, problems
    everything = [
        "mm_language_model",
        *(["mm_mlp_adapter", "mm_vision_resampler"] if values.get("vision_tower") else []),
        *(["mm_coordinates"] if values.get("mm_coordinates") else []),
    ]
    parts = [*(tuned or [part for part in everything if part not in frozen]), *tower]
    if not parts:
        flags = ", ".join(f"--{flag} True" for flag in frozen.values())
        problems.append(f"{flags}: nothing is left to train")
    return ",".join(parts) or None, problems


def table(status: str) -> str:
    """The flags of one kind as a table in Markdown: those that work with both defaults, the others by their reason."""
    flags = [flag for flag in FLAGS if flag.status == status]
    if status == WORKS:
        own = own_defaults()
        head = ["| flag | default there | default here | what to know |", "| --- | --- | --- | --- |"]
        rows = [
            f"| `--{f.name}` | {_shown(f.default)} | {_shown(own.get(f.name, f.default))} | {f.words} |" for f in flags
        ]
        return "\n".join([*head, *rows])
    title = "why it has no effect" if status == NO_EFFECT else "what to use instead"
    named: dict[str, list[str]] = {}
    for flag in flags:
        named.setdefault(flag.words, []).append(f"`--{flag.name}`{_off(flag)}")
    rows = [f"| {', '.join(names)} | {words} |" for words, names in named.items()]
    return "\n".join([f"| flag | {title} |", "| --- | --- |", *rows])


def own_defaults() -> dict[str, Any]:
    """The defaults that this project sets itself; those of transformers change with its version."""
    # Imported here: the launch script reads the table without waiting for transformers.
    from llava.config.flags import DataArguments, ModelArguments, TrainingArguments

    return {
        f.name: f.default
        for group in (ModelArguments, DataArguments, TrainingArguments)
        for f in fields(group)
        if f.name in group.__annotations__
    }


def _off(flag: Flag) -> str:
    """The values of which nothing is said."""
    values = [repr(value) if value == "" else str(value) for value in flag.silent]
    return f" other than {' and '.join(values)}" if values else ""


def _shown(default: Any) -> str:
    return REQUIRED if default is MISSING else "" if default is None else f"`{default}`"


def main() -> None:
    """Prints the three tables."""
    for status, title in ((WORKS, "Works"), (NO_EFFECT, "Accepted, without effect"), (REFUSED, "Refused")):
        print(f"### {title}\n\n{table(status)}\n")


if __name__ == "__main__":
    main()
