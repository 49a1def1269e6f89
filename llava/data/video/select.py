"""Which frames of a clip are seen: pure functions of the times at which its frames are shown and the settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from llava.config.video import VideoSpec
from llava.errors import UserError

FRAME_RULE = 2
"""Raised when another frame may be chosen for the same file and settings; part of the feature cache's key."""


def select_frames(
    times: Sequence[float] | np.ndarray, spec: VideoSpec, split: tuple[float, float] | None = None
) -> list[int]:
    """Which frames of a clip are seen: exactly `spec.num_frames` indexes, never decreasing.

    1. The segment: `split` is (first, last) in frames from 0, both included, as LLaVA-ST's `meta.split`, clipped to
       the clip; without one it is the whole clip.
    2. The candidates: the frames nearest to s, s + 1 / video_fps, s + 2 / video_fps ..., where s is the time of the
       segment's first frame, up to the time at which its last frame appears (not the end of its display, which would
       count 0, 1, 2, 3, 4 s in a clip of 4 s and show its last frame twice); at equal distance the earlier frame. A
       time counts once: in a pause, and where `video_fps` is above the clip's rate, a candidate repeats a frame. When
       `video_fps` is 0 or `force_sample` is set, every frame is a candidate.
    3. If `frames_upbound` is above 0 and there are more candidates, that many are kept, evenly spread, the first and
       the last included.
    4. Of these, `num_frames` are taken, evenly spread, the first and the last included; one frame is the middle one.
       Fewer candidates than `num_frames` are repeated.

    Times are compared in whole milliseconds, the unit of Matroska and WebM, and distances that differ by less than one
    are equal, so that rounding by a container does not decide: the same clip gives the same frames in all. At a
    constant rate a candidate is within one frame of LLaVA's fixed stride of rate / video_fps frames, and the same where
    that is a whole number. (LLaVA rounds the stride to whole frames; at 29.97 frames a second it drifts by one frame in
    33 s, which is not followed.)

    Args:
        times: (N,) seconds at which the frames are shown, never decreasing; only their differences count.

    Raises:
        ValueError: for a clip without frames, for times that are not finite or decrease, and for a split that is not
            two whole numbers, is reversed, or lies outside the clip.
    """
    clock = milliseconds(times)
    first, last = segment_bounds(len(clock), split)
    shown = clock[first : last + 1] - clock[first]
    every = spec.force_sample or spec.video_fps == 0
    # Rounded, since 0.1 has no exact binary fraction.
    rate = Fraction(spec.video_fps).limit_denominator(1_000_000) or Fraction(spec.video_fps)
    count = len(shown) if every else _count_times(shown, rate, cut=first > 0)
    if 0 < spec.frames_upbound < count:
        chosen = spread_evenly(count, spec.frames_upbound)[spread_evenly(spec.frames_upbound, spec.num_frames)]
    else:
        chosen = spread_evenly(count, spec.num_frames)
    return (first + (chosen if every else _nearest(shown, rate, chosen))).tolist()


def milliseconds(times: Sequence[float] | np.ndarray) -> np.ndarray:
    """(N,) int64: times in seconds as whole milliseconds after the first, a half rounded up as FFmpeg does."""
    seconds = np.asarray(times, dtype=np.float64)
    if not len(seconds):
        raise ValueError("a clip needs at least one frame, got 0")
    if not np.isfinite(seconds).all() or (np.diff(seconds) < 0).any():
        raise ValueError("the times of a clip's frames must be finite and never decrease")
    # The millionth of a millisecond keeps a half a half, whatever its binary fraction.
    return np.floor((seconds - seconds[0]) * 1000 + 0.5 + 1e-6).astype(np.int64)


def _count_times(shown: np.ndarray, rate: Fraction, cut: bool) -> int:
    """How many of 0, 1 / rate, 2 / rate ... lie in a segment whose frames are `shown` (N,) ms after its first.

    Args:
        cut: the segment begins within the clip.
    """
    # The last frame's own time, rounded, is up to half a millisecond after it; where the first frame's is rounded too,
    # up to one.
    return int((int(shown[-1]) + Fraction(1, 1 if cut else 2)) * rate / 1000) + 1


def _nearest(shown: np.ndarray, rate: Fraction, ticks: np.ndarray) -> np.ndarray:
    """(K,) the frames, `shown` (N,) ms after the segment's first, that are nearest to the times `ticks` (K,) / rate."""
    indexes = []
    for tick in ticks.tolist():
        time = tick * 1000 / rate
        after = min(int(np.searchsorted(shown, math.ceil(time))), len(shown) - 1)
        before = max(after - 1, 0)
        nearer = 2 * time - int(shown[before]) - int(shown[after]) >= 1
        # Of frames with one time, the first.
        indexes.append(int(np.searchsorted(shown, shown[after if nearer else before])))
    return np.array(indexes)


def segment_bounds(num_total: int, split: tuple[float, float] | None) -> tuple[int, int]:
    """First and last frame of a segment of a clip, both included; see `select_frames`."""
    if split is None:
        return 0, num_total - 1
    first, last = split
    if not all(math.isfinite(v) and v == int(v) for v in split):
        raise UserError(f"split {list(split)} counts frames, so both must be whole numbers; multiply seconds by fps")
    if first > last:
        raise UserError(f"split {list(split)} is reversed: [first frame, last frame] was expected")
    if last < 0 or first >= num_total:
        raise UserError(f"split {list(split)} lies outside the clip, whose frames are 0 to {num_total - 1}")
    return max(int(first), 0), min(int(last), num_total - 1)


def spread_evenly(count: int, wanted: int) -> np.ndarray:
    """`wanted` evenly spread indexes into `count` things, ends included; distinct when there are enough."""
    if wanted == 1:
        return np.array([(count - 1) // 2])
    gaps = wanted - 1
    return (2 * np.arange(wanted) * (count - 1) + gaps) // (2 * gaps)
