"""Flags that several commands share: each is written once, with its default, its help and its range."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields

from llava.config.ranges import Range
from llava.config.video import VideoSpec

DEFAULT_SEED = 42
"""`transformers.TrainingArguments.seed` where no flag says another."""
CLIP_TIMEOUT = 120.0
"""Seconds that decoding one clip may take."""
PROCESSES = Range(0, 4096, whole=True)


def cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class FolderFlags:
    """Where the files of records lie."""

    video_folder: str | None = field(default=None, metadata={"help": "Prefix of the records' video paths."})
    image_folder: str | None = field(default=None, metadata={"help": "Prefix of the records' image paths."})
    allow_absolute_paths: bool = field(
        default=False, metadata={"help": "Records may name files outside these folders, by absolute paths or by `..`."}
    )


@dataclass
class FrameFlags:
    """Which frames of a clip the model sees, and how."""

    _argument_group_name = "frames, as in training"

    num_frames: int = field(default=VideoSpec.num_frames, metadata={"help": "Frames of a video that the model sees."})
    video_fps: float = field(
        default=VideoSpec.video_fps, metadata={"help": "Candidate frames per second of video; 0 takes every frame."}
    )
    frames_upbound: int = field(
        default=VideoSpec.frames_upbound, metadata={"help": "At most this many candidate frames; 0 is no bound."}
    )
    force_sample: bool = field(
        default=VideoSpec.force_sample,
        metadata={"help": "Ignore video_fps and take frames uniformly over the whole clip."},
    )
    image_aspect_ratio: str = field(
        default=VideoSpec.image_aspect_ratio,
        metadata={
            "help": "How a frame becomes square: pad, square (squeeze; SigLIP's own) or crop (DINOv2's and CLIP's)."
        },
    )
    video_decoder: str = field(
        default=VideoSpec.video_decoder,
        metadata={
            "help": "decord, torchcodec, pyav, or auto: decord where it is installed. Where seeking would give other "
            "frames, PyAV decodes the whole clip whatever is asked for."
        },
    )

    def video_spec(self, **latents: int) -> VideoSpec:
        """The `VideoSpec` that these flags describe; `latents` are `fast_latents`, `slow_latents`, `temporal_factor`.

        Raises:
            ValueError: naming every flag that is out of range.
        """
        return VideoSpec(**{f.name: getattr(self, f.name) for f in fields(FrameFlags)} | latents)


@dataclass
class DataFlags(FolderFlags):
    """Records, and where their files lie."""

    _argument_group_name = "data"

    data_path: str = field(
        kw_only=True,
        metadata={
            "help": "Records, LLaVA JSON or JSONL: a file, several (a.json,b.json or {a,b}.json), or a YAML mixture."
        },
    )
    seed: int = field(default=DEFAULT_SEED, metadata={"help": "Of what a YAML mixture takes at random."})


@dataclass
class ManyDataFlags(DataFlags):
    """Several files of records, and where their files lie."""

    data_path: list[str] = field(  # type: ignore[assignment]
        kw_only=True, metadata={"help": "Files of records, LLaVA JSON or JSONL, or YAML mixtures of them."}
    )


@dataclass
class ModelFlags:
    """A model that was trained."""

    _argument_group_name = "model"

    model_path: str = field(metadata={"help": "Folder of a finished run or a checkpoint."})
    vision_tower: str | None = field(
        default=None, metadata={"help": "Where the model's tower lies now, if it has moved."}
    )
    device: str | None = field(
        default=None, metadata={"help": "cuda, cpu, ...; the first GPU by default when there is one."}
    )


@dataclass
class EvaluationFlags(ModelFlags):
    """A model, and what its evaluation on clips takes."""

    ranges = {
        "num_workers": PROCESSES,
    }

    feature_cache: str = field(kw_only=True, metadata={"help": "Folder where vision features are kept."})
    num_workers: int = field(default=2, metadata={"help": "Processes that decode clips."})
