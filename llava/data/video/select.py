"""Which frames of a clip are seen: pure functions of its length, its rate and the settings."""

from __future__ import annotations

import math

import numpy as np

from llava.config import VideoSpec


def select_frames(num_total: int, fps: float, spec: VideoSpec, split: tuple[float, float] | None = None) -> list[int]:
    """Which frames of a clip are seen: exactly `spec.num_frames` indexes, never decreasing.

    1. The segment: `split` is (first, last) in frames from 0, both included, as LLaVA-ST's `meta.split`, clipped to
       the clip; without one it is the whole clip.
    2. The candidates: frames at `video_fps` per second from the start of the segment, or every frame of it when
       `video_fps` is 0 or above the clip's rate, or when `force_sample` is set.
    3. If `frames_upbound` is above 0 and there are more candidates, that many are kept, evenly spread, the first and
       the last included.
    4. Of these, `num_frames` are taken, evenly spread, the first and the last included; one frame is the middle one.
       Fewer candidates than `num_frames` are repeated.

    Args:
        num_total: frames of the clip.
        fps: its frames per second.

    Raises:
        ValueError: for a clip without frames or without a frame rate, and for a split that is not two whole numbers,
            is reversed, or lies outside the clip.
    """
    if num_total < 1:
        raise ValueError(f"a clip needs at least one frame, got {num_total}")
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"the frame rate must be above 0, got {fps}")
    first, last = segment_bounds(num_total, split)
    if spec.force_sample or spec.video_fps == 0 or spec.video_fps >= fps:
        candidates = np.arange(first, last + 1)
    else:
        step = fps / spec.video_fps
        # Half a frame is rounded up, which keeps steps of one frame or more distinct.
        candidates = first + np.floor(np.arange((last - first) / step + 1) * step + 0.5).astype(np.int64)
        candidates = candidates[candidates <= last]
    if 0 < spec.frames_upbound < len(candidates):
        candidates = candidates[spread_evenly(len(candidates), spec.frames_upbound)]
    return candidates[spread_evenly(len(candidates), spec.num_frames)].tolist()


def segment_bounds(num_total: int, split: tuple[float, float] | None) -> tuple[int, int]:
    """First and last frame of a segment of a clip, both included; see `select_frames`."""
    if split is None:
        return 0, num_total - 1
    first, last = split
    if not all(math.isfinite(v) and v == int(v) for v in split):
        raise ValueError(f"split {list(split)} counts frames, so both must be whole numbers; multiply seconds by fps")
    if first > last:
        raise ValueError(f"split {list(split)} is reversed: [first frame, last frame] was expected")
    if last < 0 or first >= num_total:
        raise ValueError(f"split {list(split)} lies outside the clip, whose frames are 0 to {num_total - 1}")
    return max(int(first), 0), min(int(last), num_total - 1)


def spread_evenly(count: int, wanted: int) -> np.ndarray:
    """`wanted` evenly spread indexes into `count` things, ends included; distinct when there are enough."""
    if wanted == 1:
        return np.array([(count - 1) // 2])
    gaps = wanted - 1
    return (2 * np.arange(wanted) * (count - 1) + gaps) // (2 * gaps)
