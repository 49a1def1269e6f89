"""Settings: what a video becomes (VideoSpec, ProcessorSpec) and the flags of a run (three argument classes).

`VideoSpec` is the one source of frame and token counts; placeholder runs, resampler shapes and checks read it.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, cast

import transformers
from transformers.trainer_pt_utils import AcceleratorConfig

IMAGE_ASPECT_RATIOS = ("pad", "square", "crop")
VIDEO_DECODERS = ("auto", "decord", "torchcodec", "pyav")


@dataclass(frozen=True)
class VideoSpec:
    """How one clip becomes `rows` embeddings of the language model.

    The fast stream has `fast_latents` rows a frame and the slow stream `slow_latents`; the latents of a frame lie on
    a grid (`grid`). The rows of a stream fill its whole token span, delimiters included, so a span of `n` rows is
    written `<start>`, `n - 2` times `<patch>`, `<end>`.

    `video_fps`, `frames_upbound` and `force_sample` say which frames are taken (see
    `llava.data.video.select_frames`); `image_aspect_ratio` says how a frame is made square; `video_decoder` reads them
    (see `llava.data.video.decoder_of`).

    Raises:
        ValueError: at construction, naming every field that is out of range.
    """

    num_frames: int = 4
    fast_latents: int = 9
    slow_latents: int = 81
    video_fps: float = 1.0
    frames_upbound: int = 0
    force_sample: bool = False
    image_aspect_ratio: str = "pad"
    video_decoder: str = "auto"

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be at least 1, got {getattr(self, name)}"
            for name in ("num_frames", "fast_latents", "slow_latents")
            if getattr(self, name) < 1
        ]
        if self.video_fps < 0:
            problems.append(f"video_fps must be 0 (every frame) or more, got {self.video_fps}")
        if self.frames_upbound and self.frames_upbound < self.num_frames:
            problems.append(
                f"frames_upbound ({self.frames_upbound}) is below num_frames ({self.num_frames}): "
                "raise frames_upbound, lower num_frames, or set frames_upbound to 0 for no bound"
            )
        if self.image_aspect_ratio not in IMAGE_ASPECT_RATIOS:
            problems.append(f"image_aspect_ratio must be one of {IMAGE_ASPECT_RATIOS}, got {self.image_aspect_ratio!r}")
        if self.video_decoder not in VIDEO_DECODERS:
            problems.append(f"video_decoder must be one of {VIDEO_DECODERS}, got {self.video_decoder!r}")
        if not problems:
            for name in ("fast_rows", "slow_rows"):
                if getattr(self, name) < 2:
                    problems.append(f"{name} is {getattr(self, name)}: a span needs two rows for its delimiters")
        if problems:
            raise ValueError("VideoSpec: " + "; ".join(problems))

    @property
    def fast_rows(self) -> int:
        """Rows of the fast stream of one video (36 by default)."""
        return self.num_frames * self.fast_latents

    @property
    def slow_rows(self) -> int:
        """Rows of the slow stream of one video (324 by default)."""
        return self.num_frames * self.slow_latents

    @property
    def rows(self) -> int:
        """Rows of one video, both streams (360 by default)."""
        return self.fast_rows + self.slow_rows

    @property
    def image_rows(self) -> int:
        """Rows of one image: the slow stream of a single frame (81 by default)."""
        return self.slow_latents

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VideoSpec:
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


def grid(latents: int) -> tuple[int, int]:
    """Rows and columns of the most square grid with exactly `latents` cells: 9 -> (3, 3), 6 -> (2, 3), 5 -> (1, 5)."""
    rows = next(r for r in range(math.isqrt(latents), 0, -1) if latents % r == 0)
    return rows, latents // rows


@dataclass(frozen=True)
class ProcessorSpec:
    """Pixel values that a vision tower expects, read from its image processor (`image_size` in pixels)."""

    image_size: int = 224
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    resample: int = 3
    rescale_factor: float = 1 / 255

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ProcessorSpec:
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        lists_as_tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
        return cls(**lists_as_tuples)


@dataclass
class ModelArguments:
    """Flags that describe the model."""

    model_name_or_path: str = field(metadata={"help": "A GPT-2 or llava_gpt2 folder or hub name."})
    from_scratch: bool = field(
        default=False, metadata={"help": "Keep the model's config and tokenizer and draw fresh weights."}
    )
    attn_implementation: str = field(default="sdpa", metadata={"help": "Attention of the language model."})
    vision_tower: str | None = field(
        default=None, metadata={"help": "A DINOv2 folder or hub name; none trains on text alone."}
    )
    mm_tunable_parts: str | None = field(
        default=None,
        metadata={
            "help": "Comma-separated parts that train: mm_language_model, mm_mlp_adapter, mm_vision_resampler, "
            "mm_vision_tower. Default: all that exist but the tower."
        },
    )
    version: str = field(
        default="plain",
        metadata={
            "help": "Format of the text, by LLaVA's names: plain (no template, all text is learnt), or chatml, "
            "llama_3, llama_2, mistral_instruct, gemma_instruct, vicuna_v1, tokenizer (its own template), where "
            "answers are learnt. USE_PLAIN_LM=1 in the environment decides over it."
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
    mm_resampler_type: str = field(default="fast_slow_resampler", metadata={"help": "fast_slow_resampler."})
    mm_perceiver_latents: int = field(default=81, metadata={"help": "Latents of a frame in the slow stream."})
    mm_perceiver_latents_fast: int = field(default=9, metadata={"help": "Latents of a frame in the fast stream."})
    mm_perceiver_depth: int = field(
        default=1, metadata={"help": "Cross-attention blocks of each stream; 0 is pooling alone."}
    )


@dataclass
class DataArguments:
    """Flags that describe the data."""

    data_path: str = field(metadata={"help": "Training records, LLaVA JSON or JSONL."})
    eval_data_path: str | None = field(default=None, metadata={"help": "Records for evaluation, the same format."})
    text_only: bool = field(
        default=False, metadata={"help": "Leave videos and images out and train on the text of the same records."}
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
        default="pad", metadata={"help": "How a frame becomes square: pad, square (squeeze) or crop (DINOv2's own)."}
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
            "or off."
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

    model_max_length: int = field(default=1024, metadata={"help": "Longest sequence, in tokens."})
    mm_projector_lr: float | None = field(default=None, metadata={"help": "Learning rate of the projector."})
    mm_vision_resampler_lr: float | None = field(default=None, metadata={"help": "Learning rate of the resampler."})
    mm_vision_tower_lr: float | None = field(default=None, metadata={"help": "Learning rate of the tower."})
    group_by_modality_length: bool = field(
        default=True, metadata={"help": "Batches of one modality and of similar lengths."}
    )
    packing: bool = field(
        default=True, metadata={"help": "Samples share rows, apart from each other, where that saves padding."}
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
    controls: bool = field(
        default=True, metadata={"help": "At evaluation, the loss under other, shuffled, blank and halved videos."}
    )
    controls_samples: int = field(default=256, metadata={"help": "Evaluation records that the controls use at most."})
    confirm_changes: bool = field(
        default=False, metadata={"help": "Resume with the flags or training records that changed, where that can work."}
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
    optim: str = field(default="adamw_torch_fused", metadata={"help": "Optimiser."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataloader_num_workers == 0:
            self.dataloader_persistent_workers = False
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # There is nothing to pin it for, and torch would warn.
        if self.device.type == "cuda" and self.dataloader_pin_memory:
            # Pinned memory is copied while the device computes.
            cast(AcceleratorConfig, self.accelerator_config).non_blocking = True


def video_spec(model_args: ModelArguments, data_args: DataArguments) -> VideoSpec:
    """The `VideoSpec` that the flags describe."""
    return VideoSpec(
        num_frames=data_args.num_frames,
        fast_latents=model_args.mm_perceiver_latents_fast,
        slow_latents=model_args.mm_perceiver_latents,
        video_fps=data_args.video_fps,
        frames_upbound=data_args.frames_upbound,
        force_sample=data_args.force_sample,
        image_aspect_ratio=data_args.image_aspect_ratio,
        video_decoder=data_args.video_decoder,
    )
