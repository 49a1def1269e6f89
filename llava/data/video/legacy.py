"""Whether features that were made under the first frame rule are those of today's frames.

Rule 1 took frames by their number, at the rate that the file's header names, from the first picture track; it knew
rotations but no reflections, and neither pixel aspect ratio nor transparency. Rule 2 is `select_frames`.
"""

from __future__ import annotations

from collections.abc import Sequence

import av
import numpy as np
from PIL import Image
from PIL.Image import DecompressionBombError

from llava.config.video import VideoSpec
from llava.data.video.container import open_container
from llava.data.video.errors import VideoError
from llava.data.video.probe import ROTATIONS, decoded_times, display_matrix, probe_video
from llava.data.video.select import segment_bounds, select_frames, spread_evenly

SOUGHT_CODECS = ("h264", "vp9")
"""Rule 1 let decord read these in any pixel format."""


def same_as_before(clip: tuple[str, tuple[float, float] | None, bool], spec: VideoSpec) -> bool:
    """Whether rule 1 gave exactly the frames and pixels of today for a `llava.data.features.extract.Clip`.

    False when in doubt: where the file cannot be read or holds several tracks of pictures.
    """
    path, split, is_image = clip
    try:
        return _same_image(path) if is_image else _same_video(path, split, spec)
    except (VideoError, ValueError, OSError, SyntaxError, av.FFmpegError, DecompressionBombError):
        return False


def count_changed(clips: Sequence[tuple[str, tuple[float, float] | None, bool]], spec: VideoSpec) -> int:
    """How many of `clips` rule 2 sees in other frames or pixels than rule 1 did, or may see so."""
    return sum(not same_as_before(clip, spec) for clip in clips)


def _same_image(path: str) -> bool:
    with Image.open(path) as image:
        return "A" not in image.getbands() and "transparency" not in image.info


def _same_video(path: str, split: tuple[float, float] | None, spec: VideoSpec) -> bool:
    info = probe_video(path)
    with open_container(path) as container:
        if len(container.streams.video) != 1:
            return False
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate
        codec = stream.codec_context
        sought = codec.codec.canonical_name in SOUGHT_CODECS
        if (
            not rate
            or (stream.sample_aspect_ratio or 1) != 1
            or (sought and codec.pix_fmt not in ("yuv420p", "yuvj420p"))
        ):
            return False
        matrix = display_matrix(next(container.decode(stream)))
    if not any(matrix == tuple(v << 16 for v in rotation) for rotation in ROTATIONS):
        return False
    times = info.times
    if not info.can_seek:
        # Packets may be more or fewer than frames, which both rules count in the end.
        decoded = decoded_times(path)
        times = times if len(decoded) == len(times) else decoded
    return select_by_rate(len(times), float(rate), spec, split) == select_frames(times, spec, split)


def select_by_rate(num_total: int, fps: float, spec: VideoSpec, split: tuple[float, float] | None) -> list[int]:
    """Rule 1: `spec.num_frames` of the frames that lie rate / video_fps apart, half a frame rounded up."""
    first, last = segment_bounds(num_total, split)
    if spec.force_sample or spec.video_fps == 0 or spec.video_fps >= fps:
        candidates = np.arange(first, last + 1)
    else:
        step = fps / spec.video_fps
        candidates = first + np.floor(np.arange((last - first) / step + 1) * step + 0.5).astype(np.int64)
        candidates = candidates[candidates <= last]
    if 0 < spec.frames_upbound < len(candidates):
        candidates = candidates[spread_evenly(len(candidates), spec.frames_upbound)]
    return candidates[spread_evenly(len(candidates), spec.num_frames)].tolist()
