"""The flags of a run: three argument classes, whose fields are the flags' names."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import transformers
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import IntervalStrategy

from llava.config.video import VideoSpec, temporal_factor

MUON = "muon"
"""The optimiser of `--optim` that transformers does not know."""
# Flags that may differ between a run and its resumption: they change where and how it runs, not what it computes.
FREE_FLAGS = {
    "output_dir", "logging_dir", "run_name", "report_to", "resume_from_checkpoint", "logging_steps", "logging_strategy",
    "save_steps", "save_strategy", "save_total_limit", "eval_steps", "eval_strategy", "eval_data_path",
    "per_device_eval_batch_size", "dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_pin_memory",
    "dataloader_persistent_workers", "disable_tqdm", "log_level", "feature_cache", "clip_timeout", "local_rank",
    "ddp_timeout", "ddp_find_unused_parameters", "image_folder", "video_folder", "project", "trackio_space_id",
    "preflight", "show_samples", "run_monitor", "run_report", "controls", "controls_samples", "repair_features",
    "replay_every", "save_words", "confirm_changes", "video_decoder", "use_plain_lm", "recipe", "packed_attention",
    "pad_to_multiple_of",
}  # fmt: skip


@dataclass
class ModelArguments:
    """Flags that describe the model."""

    _argument_group_name = "Model"

    model_name_or_path: str = field(
        metadata={"help": "A causal language model of transformers, or a checkpoint: a folder or hub name."}
    )
    from_scratch: bool = field(
        default=False, metadata={"help": "Keep the model's config and tokenizer and draw fresh weights."}
    )
    attn_implementation: str = field(default="sdpa", metadata={"help": "Attention of the language model."})
    vision_tower: str | None = field(
        default=None,
        metadata={"help": "Folder or hub name of a DINOv2, DINOv3, SigLIP or CLIP; none trains on text alone."},
    )
    mm_tunable_parts: str | None = field(
        default=None,
        metadata={
            "help": "Comma-separated parts that train: mm_language_model, mm_mlp_adapter, mm_vision_resampler, "
            "mm_vision_tower, mm_coordinates, mm_embeddings (of the language model, its words alone). Default: all "
            "that exist but the tower."
        },
    )
    version: str = field(
        default="plain",
        metadata={
            "help": "Format of the text, by LLaVA's names: plain (no template, all text is learnt), or chatml, "
            "llama_3, llama_2, mistral_instruct, gemma_instruct, vicuna_v1, lines, tokenizer (its own template), "
            "where answers are learnt. USE_PLAIN_LM=1 in the environment decides over it."
        },
    )
    text_start: str | None = field(
        default=None,
        metadata={
            "help": "What stands before the first word, unlearnt: eos (the end-of-text token, as evaluators put it) or "
            "none. Default: as a checkpoint was trained; eos for any other model in plain LM."
        },
    )
    mm_vision_select_layer: int = field(default=-2, metadata={"help": "Index into the tower's hidden states."})
    mm_vision_select_feature: str = field(default="patch", metadata={"help": "patch, or cls_patch."})
    vision_precision: str = field(
        default="auto",
        metadata={"help": "Precision of a frozen tower: fp32, bf16, or auto, which is bf16 where the device has it."},
    )
    mm_vision_tower_storage: str = field(
        default="reference",
        metadata={"help": "reference: checkpoints name the tower and its checksum; checkpoint: they hold its weights."},
    )
    mm_projector_type: str = field(default="mlp2x_gelu", metadata={"help": "linear, identity or mlp<N>x_gelu."})
    pretrain_mm_mlp_adapter: str | None = field(
        default=None,
        metadata={"help": "A .bin or .safetensors with weights of the projector, or of projector and resampler."},
    )
    mm_resampler_type: str = field(default="fast_slow_resampler", metadata={"help": "fast_slow_resampler, or stp."})
    mm_perceiver_latents: int = field(default=81, metadata={"help": "Latents of a frame in the slow stream."})
    mm_perceiver_latents_fast: int = field(default=9, metadata={"help": "Latents of a frame in the fast stream."})
    mm_perceiver_depth: int = field(
        default=1, metadata={"help": "Cross-attention blocks of each stream; 0 is pooling alone."}
    )
    mm_perceiver_row_std: float | None = field(
        default=None, metadata={"help": "Standard deviation of a fresh resampler's rows; default: as word embeddings."}
    )
    mm_perceiver_temporal_factor: int | None = field(
        default=None,
        metadata={"help": "Frames that a row of the slow stream sums up: 5 by default with stp, else always 1."},
    )
    mm_perceiver_width: int | None = field(
        default=None, metadata={"help": "Width of the attention of stp; the language model's by default."}
    )
    mm_perceiver_heads: int | None = field(
        default=None, metadata={"help": "Heads of the attention of stp; about 64 wide by default."}
    )
    mm_perceiver_pretrained: str | None = field(
        default=None,
        metadata={"help": "A .bin or .safetensors with the resampler's weights, named as here or in LLaVA-ST."},
    )
    mm_coordinates: bool | None = field(
        default=None,
        metadata={
            "help": "Times and places as numbers in the records' `variables` (docs/grounding.md): coordinate tokens "
            "and their tables, which train as mm_coordinates. Default: as the checkpoint has them."
        },
    )
    mm_coordinates_in_vision: bool | None = field(
        default=None,
        metadata={"help": "Patches are given their time and place. Default: as the checkpoint, else True."},
    )
    mm_coordinates_reparameterized: bool | None = field(
        default=None,
        metadata={"help": "Neighbouring rows of the tables learn together. Default: as the checkpoint, else True."},
    )
    mm_coordinates_pretrained: str | None = field(
        default=None,
        metadata={"help": "A .bin or .safetensors with the six tables of coordinates, by LLaVA-ST's names as here."},
    )
    stage: str | None = field(
        default=None,
        metadata={
            "help": "LLaVA-ST's stage, 1, 2 or 3: what trains, learning rates and LoRA where no flag says so "
            "(docs/recipes.md). Left out, nothing is set."
        },
    )
    lora_enable: bool = field(
        default=False,
        metadata={"help": "LoRA: adapters of the language model's linear layers train in place of its weights."},
    )
    lora_r: int = field(default=64, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=16, metadata={"help": "Adapters are multiplied by lora_alpha / lora_r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout of what adapters see."})
    lora_bias: str = field(
        default="none",
        metadata={"help": "Biases of the language model that train beside: none, all, or lora_only."},
    )
    merge_lora: bool = field(
        default=False,
        metadata={"help": "Merge the adapters of --model_name_or_path into its weights before anything trains."},
    )


@dataclass
class DataArguments:
    """Flags that describe the data."""

    _argument_group_name = "Data"

    data_path: str = field(
        metadata={
            "help": "Training records, LLaVA JSON or JSONL: a file, several (a.json,b.json or {a,b}.json), or a YAML "
            "mixture."
        }
    )
    eval_data_path: str | None = field(default=None, metadata={"help": "Records for evaluation, in the same forms."})
    val_fraction: float = field(
        default=0.02,
        metadata={
            "help": "Without eval_data_path this share of the clips is held out of training for evaluation, the same "
            "for text and video and for every seed: at least 32, and never more than a tenth unless more is asked for; "
            "of fewer than ten clips none. 0 holds nothing out."
        },
    )
    text_only: bool = field(
        default=False, metadata={"help": "Leave videos and images out and train on the text of the same records."}
    )
    other_clips: int | None = field(
        default=None,
        metadata={
            "help": "Show each record another clip's video, by an exchange of clips of different content that is drawn "
            "from this number and stays: the same positions and compute, and nothing that belongs to the caption. "
            "Evaluation shows records their own clips."
        },
    )
    blind_share: float = field(
        default=0.0,
        metadata={
            "help": "Share of the records with a video that an epoch shows without it, as text alone; drawn by --seed, "
            "record and epoch. Without it a model has never seen the text at the positions of a text without video."
        },
    )
    image_folder: str | None = field(default=None, metadata={"help": "Prefix of the records' image paths."})
    video_folder: str | None = field(default=None, metadata={"help": "Prefix of the records' video paths."})
    allow_absolute_paths: bool = field(
        default=False, metadata={"help": "Records may name files outside these folders, by absolute paths or by `..`."}
    )
    num_frames: int = field(default=4, metadata={"help": "Frames of a video that the model sees."})
    video_fps: float = field(
        default=1.0, metadata={"help": "Candidate frames per second of video; 0 takes every frame."}
    )
    frames_upbound: int = field(default=0, metadata={"help": "At most this many candidate frames; 0 is no bound."})
    force_sample: bool = field(
        default=False, metadata={"help": "Ignore video_fps and take frames uniformly over the whole clip."}
    )
    image_aspect_ratio: str = field(
        default="pad",
        metadata={
            "help": "How a frame becomes square: pad, square (squeeze; SigLIP's own) or crop (DINOv2's and CLIP's)."
        },
    )
    video_decoder: str = field(
        default="auto",
        metadata={"help": "decord, torchcodec, pyav, or auto: decord where it is installed. Where seeking would give "
                  "other frames, PyAV decodes the whole clip whatever is asked for."},
    )  # fmt: skip
    on_bad_sample: str = field(
        default="stop", metadata={"help": "stop, or skip: leave bad records out, counted and listed in the run folder."}
    )
    feature_cache: str = field(
        default="auto",
        metadata={
            "help": "Where features of a frozen tower are kept: a folder, auto (feature_cache beside output_dir), "
            "s3://bucket/folder, which is only read (docs/shards.md), or off."
        },
    )
    feature_dtype: str = field(
        default="float16", metadata={"help": "What cached features are stored as: float16, or int8 in half the room."}
    )
    repair_features: bool = field(
        default=False,
        metadata={"help": "Check the checksum of every cached feature at the start and compute damaged ones again."},
    )
    clip_timeout: float = field(
        default=120.0, metadata={"help": "Seconds that decoding one clip may take before it counts as unreadable."}
    )
    use_plain_lm: bool | None = field(
        default=None, metadata={"help": "Plain language modelling, no chat template: the same as --version plain."}
    )


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """`transformers.TrainingArguments` with the project's own flags and a few other defaults."""

    _argument_group_name = "Training"

    eval_strategy: str = field(
        default="auto",
        metadata={
            "help": "When to evaluate: no (at the end alone), steps, epoch, or auto: about ten times where the run "
            "holds clips out by itself (--val_fraction), else at the end alone."
        },
    )
    chooses_evaluation: bool = field(default=False, init=False)
    model_max_length: int = field(default=1024, metadata={"help": "Longest sequence, in tokens."})
    mm_projector_lr: float | None = field(default=None, metadata={"help": "Learning rate of the projector."})
    mm_vision_resampler_lr: float | None = field(default=None, metadata={"help": "Learning rate of the resampler."})
    mm_vision_tower_lr: float | None = field(default=None, metadata={"help": "Learning rate of the tower."})
    mm_embeddings_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of the word embeddings, where mm_embeddings is named."}
    )
    mm_coordinates_lr: float | None = field(default=None, metadata={"help": "Learning rate of the coordinate tables."})
    group_by_modality_length: bool | None = field(
        default=None,
        metadata={
            "help": "Batches of one modality and of similar lengths: less padding where samples cannot share rows, but "
            "batches of like captions, from which short runs learn less. By default not; a run that goes on keeps what "
            "it began with."
        },
    )
    packing: bool = field(
        default=True, metadata={"help": "Samples share rows, apart from each other, where that saves padding."}
    )
    packed_attention: str = field(
        default="auto",
        metadata={
            "help": "How samples that share rows are kept apart: varlen (one row, flash attention's kernels), flex "
            "(one row, FlexAttention), mask (several rows, a mask of all pairs), or auto: varlen on CUDA where it can "
            "be had, else mask."
        },
    )
    pad_to_multiple_of: int = field(
        default=1,
        metadata={
            "help": "Pad training rows and the list of targets to a multiple, so that few shapes occur and compiled or "
            "captured graphs run again (--torch_compile_mode reduce-overhead). The loss stays the same."
        },
    )
    preflight: str = field(
        default="quick",
        metadata={"help": "Checks before the first step: quick, full (also over-fits a batch) or off."},
    )
    show_samples: int = field(
        default=1, metadata={"help": "Samples of each modality that pre-flight shows token by token."}
    )
    run_monitor: bool = field(
        default=True, metadata={"help": "Losses by modality, gradients by group, and alarms while training."}
    )
    replay_every: int | None = field(
        default=None,
        metadata={
            "help": "Compute forward and backward of every so many steps twice and sound an alarm where the gradients "
            "differ, by a fault of the machine or because something is not deterministic; takes 1/N of the time."
        },
    )
    controls: bool = field(
        default=True, metadata={"help": "At evaluation, the loss under other, shuffled, blank and halved videos."}
    )
    controls_samples: int = field(default=256, metadata={"help": "Evaluation records that the controls use at most."})
    confirm_changes: bool = field(
        default=False, metadata={"help": "Resume with the flags or training records that changed, where that can work."}
    )
    save_words: str | None = field(
        default=None,
        metadata={
            "help": "Keep the model as chck_... whenever the run has served so many words, repetitions counted: babylm "
            "(every million to 10 million, ten to 100, hundred to a billion) or a list such as 100k,2.5M,10M."
        },
    )
    run_report: bool = field(default=True, metadata={"help": "Write report.html into output_dir at the end."})
    experiment_faults: str | None = field(default=None, metadata={"help": argparse.SUPPRESS})
    experiment_faults_confirmed: bool = field(default=False, metadata={"help": argparse.SUPPRESS})
    report_to: None | str | list[str] = field(default="tensorboard", metadata={"help": "tensorboard, wandb, none."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False: samples carry videos."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Must stay False: it would replace a NaN loss by an average of earlier ones."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={"help": "False: all that trains has a gradient in every step."},
    )
    dataloader_persistent_workers: bool = field(default=True, metadata={"help": "Data workers outlive an epoch."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    optim: str = field(
        default="adamw_torch_fused",
        metadata={
            "help": "Optimiser: those of transformers, or muon, which is Muon for the matrices of the language model's "
            "blocks and of the projector and fused AdamW for the rest, at the same learning rate."
        },
    )
    warmup_ratio: float | None = field(
        default=None, metadata={"help": "Share of all steps that warm up, LLaVA's name for a --warmup_steps below 1."}
    )

    recipe: str | None = field(
        default=None,
        metadata={
            "help": "Flags as a YAML file, or the name of one that comes along (italian, demo, tiny, instruct, "
            "grounding_demo, llava_st_stage1, ...), see docs/recipes.md; arguments beat its values."
        },
    )
    recipe_values: dict[str, Any] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.warmup_ratio is not None and not self.warmup_steps:
            self.warmup_steps = self.warmup_ratio
        muon = self.optim == MUON
        if muon:
            self.optim = "adamw_torch_fused"  # transformers refuses names that it does not know.
        if self.eval_strategy == "auto":
            # transformers does not know it; `evaluate_by_itself` decides once the data is read.
            self.eval_strategy, self.chooses_evaluation = "no", True
        super().__post_init__()
        if muon:
            self.optim = MUON
        if self.dataloader_num_workers == 0:
            self.dataloader_persistent_workers = False
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # There is nothing to pin it for, and torch would warn.
        if self.device.type == "cuda" and self.dataloader_pin_memory:
            # Pinned memory is copied while the device computes.
            cast(AcceleratorConfig, self.accelerator_config).non_blocking = True

    def evaluate_by_itself(self) -> None:
        """Evaluates about ten times a run where no `--eval_strategy` was given, or every `--eval_steps`."""
        if self.chooses_evaluation:
            self.eval_strategy, self.do_eval = IntervalStrategy.STEPS, True
            # A share of all steps, which transformers resolves when it knows them.
            self.eval_steps = self.eval_steps or 0.1


class Settings(NamedTuple):
    """All flags of a run."""

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments


def video_spec(model_args: ModelArguments, data_args: DataArguments) -> VideoSpec:
    """The `VideoSpec` that the flags describe."""
    return VideoSpec(
        num_frames=data_args.num_frames,
        fast_latents=model_args.mm_perceiver_latents_fast,
        slow_latents=model_args.mm_perceiver_latents,
        temporal_factor=temporal_factor(model_args.mm_resampler_type, model_args.mm_perceiver_temporal_factor),
        video_fps=data_args.video_fps,
        frames_upbound=data_args.frames_upbound,
        force_sample=data_args.force_sample,
        image_aspect_ratio=data_args.image_aspect_ratio,
        video_decoder=data_args.video_decoder,
    )
