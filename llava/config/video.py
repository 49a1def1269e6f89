"""What a video becomes: `VideoSpec` is the one source of frame and token counts, which placeholder runs, resampler
shapes and checks read; `ProcessorSpec` is what a tower takes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from llava.errors import UserError

RESAMPLERS = ("fast_slow_resampler", "stp")
"""What `mm_resampler_type` may name."""
STP_TEMPORAL_FACTOR = 5
"""Frames of one step of STP's slow stream in LLaVA-ST: 100 frames are 20 steps."""
IMAGE_ASPECT_RATIOS = ("pad", "square", "crop")
VIDEO_DECODERS = ("auto", "decord", "torchcodec", "pyav")


@dataclass(frozen=True)
class VideoSpec:
    """How one clip becomes `rows` embeddings of the language model.

    The fast stream has `fast_latents` rows a frame, and the slow stream `slow_latents` for every `temporal_factor`
    frames; the latents of a frame lie on a grid (`grid`). The rows of a stream fill its whole token span, delimiters
    included, so a span of `n` rows is written `<start>`, `n - 2` times `<patch>`, `<end>`.

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
    temporal_factor: int = 1

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be at least 1, got {getattr(self, name)}"
            for name in ("num_frames", "fast_latents", "slow_latents", "temporal_factor")
            if getattr(self, name) < 1
        ]
        if not problems and self.num_frames % self.temporal_factor:
            problems.append(
                f"num_frames ({self.num_frames}) does not divide into steps of {self.temporal_factor} frames: set "
                f"mm_perceiver_temporal_factor to {_listed(divisors(self.num_frames))}, or num_frames to a multiple of "
                f"{self.temporal_factor}"
            )
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
            raise UserError("VideoSpec: " + "; ".join(problems))

    @property
    def fast_rows(self) -> int:
        """Rows of the fast stream of one video (36 by default)."""
        return self.num_frames * self.fast_latents

    @property
    def slow_rows(self) -> int:
        """Rows of the slow stream of one video (324 by default)."""
        return self.num_frames // self.temporal_factor * self.slow_latents

    @property
    def rows(self) -> int:
        """Rows of one video, both streams (360 by default)."""
        return self.fast_rows + self.slow_rows

    @property
    def image_rows(self) -> int:
        """Rows of one image: one step of the slow stream, of a single frame (81 by default)."""
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


def divisors(number: int) -> list[int]:
    """All of them, the largest first: 6 -> [6, 3, 2, 1]."""
    return [n for n in range(number, 0, -1) if number % n == 0]


def temporal_factor(resampler_type: str, given: int | None) -> int:
    """Frames of one step of the slow stream, for `--mm_perceiver_temporal_factor`, which may be left out.

    Raises:
        ValueError: for a factor that the resampler cannot have.
    """
    if resampler_type == "stp":
        return STP_TEMPORAL_FACTOR if given is None else given
    if given not in (None, 1):
        raise UserError(
            f"--mm_perceiver_temporal_factor {given}: the slow stream of {resampler_type} has rows for every frame; "
            "leave it out, or take --mm_resampler_type stp"
        )
    return 1


def _listed(numbers: list[int]) -> str:
    """[4, 2, 1] -> '4, 2 or 1'."""
    head = ", ".join(map(str, numbers[:-1]))
    return f"{head} or {numbers[-1]}" if head else str(numbers[-1])


@dataclass(frozen=True)
class ProcessorSpec:
    """Pixel values that a vision tower expects, read from its image processor (`image_size` in pixels).

    `resize_edge` is the shortest edge of a frame before its middle is cropped, in pixels; None is DINOv2's proportion,
    256 to 224.
    """

    image_size: int = 224
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    resample: int = 3
    rescale_factor: float = 1 / 255
    resize_edge: int | None = None

    @property
    def crop_edge(self) -> int:
        """The shortest edge before the crop, in pixels."""
        return self.resize_edge or round(self.image_size * 256 / 224)

    def to_dict(self) -> dict[str, Any]:
        """Without `resize_edge` where it is None: checkpoints and caches are named by these fields."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ProcessorSpec:
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        lists_as_tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
        return cls(**lists_as_tuples)
