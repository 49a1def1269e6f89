"""Which frames are seen: by presentation time, against a nearest frame found by trying all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from llava.config.video import VideoSpec
from llava.data.video import select_frames
from llava.data.video.select import milliseconds

ALL = VideoSpec(num_frames=4, force_sample=True)


def spec(**options) -> VideoSpec:
    return VideoSpec(**{"num_frames": 4, "video_fps": 0, **options})


def constant(total: int, fps: float | Fraction = 10) -> list[float]:
    return [float(i / Fraction(fps)) for i in range(total)]


def expected_candidates(times: Sequence[float], video_fps: float, split: tuple[int, int] | None = None) -> list[int]:
    """The rule, written down plainly: every time against every frame."""
    first, last = split or (0, len(times) - 1)
    clock = [Fraction(int(t)) for t in milliseconds(times)][first : last + 1]
    step, found, k = 1000 / Fraction(video_fps).limit_denominator(1_000_000), [], 0
    while clock[0] + k * step <= clock[-1] + (1 if first else Fraction(1, 2)):
        distances = [abs(t - clock[0] - k * step) for t in clock]
        found.append(first + next(i for i, d in enumerate(distances) if d - min(distances) < 1))
        k += 1
    return found


@pytest.mark.parametrize(
    ("settings", "total", "split", "expected"),
    [
        pytest.param({}, 10, None, [0, 3, 6, 9], id="every frame is a candidate"),
        pytest.param({"num_frames": 1, "fast_latents": 2}, 9, None, [4], id="one frame is the middle"),
        pytest.param({"video_fps": 1}, 45, None, [0, 10, 30, 40], id="one candidate a second"),
        pytest.param({"video_fps": 1, "force_sample": True}, 45, None, [0, 15, 29, 44], id="force_sample"),
        pytest.param({"video_fps": 1}, 25, None, [0, 10, 10, 20], id="too few candidates repeat"),
        pytest.param({"video_fps": 99}, 4, None, [0, 1, 2, 3], id="denser than the frames"),
        pytest.param({"video_fps": 4}, 11, None, [0, 2, 7, 10], id="steps of two frames and a half: the earlier"),
        pytest.param({"frames_upbound": 5}, 101, None, [0, 25, 75, 100], id="upbound thins and keeps both ends"),
        pytest.param({"frames_upbound": 50}, 10, None, [0, 3, 6, 9], id="upbound above the candidates"),
        pytest.param({}, 2, None, [0, 0, 1, 1], id="a short clip repeats"),
        pytest.param({}, 1, None, [0, 0, 0, 0], id="one frame for all"),
        pytest.param({"video_fps": 1}, 1, None, [0, 0, 0, 0], id="one frame, by time"),
        pytest.param({}, 100, (10, 19), [10, 13, 16, 19], id="split, both ends included"),
        pytest.param({}, 100, (7.0, 7.0), [7, 7, 7, 7], id="split of one frame"),
        pytest.param({}, 100, (-5, 300), [0, 33, 66, 99], id="split is clipped"),
        pytest.param({"video_fps": 1}, 100, (5, 40), [5, 15, 25, 35], id="video_fps counts from the split"),
    ],
)
def test_constant_rate(settings: dict, total: int, split: tuple | None, expected: list[int]) -> None:
    assert select_frames(constant(total), spec(**settings), split) == expected
    late = [t + 71.3 for t in constant(total)]
    assert select_frames(late, spec(**settings), split) == expected, "a clock that starts late"


@pytest.mark.parametrize(
    ("times", "video_fps", "expected"),
    [
        pytest.param([0, 0.1, 0.2, 3.0, 3.1], 1, [0, 2, 3, 3], id="a pause: a frame counts once per time"),
        pytest.param([0, 1, 3, 4], 1, [0, 1, 1, 2, 3], id="equal distance: the earlier"),
        pytest.param([0, 0.9, 2.2, 3.1], 1, [0, 1, 2, 3], id="uneven: the nearest, on either side"),
        pytest.param([0, 0, 1, 1, 2], 1, [0, 2, 4], id="of frames with one time, the first"),
        pytest.param([0, 0.1, 0.2, 3.996], 1, [0, 2, 2, 3], id="the clip ends where its last frame appears"),
        pytest.param([0, 0.1, 0.2, 4], 1, [0, 2, 2, 3, 3], id="that time included"),
        # 5 / 12 s lies between frames 12 and 13 of 30 a second, which Matroska writes as 400 and 433 ms.
        pytest.param([i / 30 for i in range(14)], 12, [0, 2, 5, 7, 10, 12], id="a tie"),
        pytest.param([round(i / 30, 3) for i in range(14)], 12, [0, 2, 5, 7, 10, 12], id="a tie in milliseconds"),
    ],
)
def test_uneven_times(times: list[float], video_fps: float, expected: list[int]) -> None:
    assert expected_candidates(times, video_fps) == expected
    assert select_frames(times, VideoSpec(len(expected), 2, 2, video_fps)) == expected


@pytest.mark.parametrize("rate", [24, 30, 60, Fraction(30000, 1001), Fraction(24000, 1001), Fraction(1221, 200)])
@pytest.mark.parametrize("video_fps", [0.5, 1, 2, 5, 12, 16, 20])
def test_rounding_by_a_container_does_not_decide(rate: Fraction, video_fps: float) -> None:
    exact = [i / Fraction(rate) for i in range(700)]
    # As FFmpeg writes Matroska: a half away from zero.
    rounded = [math.floor(t * 1000 + Fraction(1, 2)) / 1000 for t in exact]
    settings = VideoSpec(64, 2, 2, video_fps)
    assert select_frames([float(t) for t in exact], settings) == select_frames(rounded, settings)


@pytest.mark.parametrize(
    ("times", "split", "message"),
    [
        ([], None, "at least one frame"),
        ([0, 0.2, 0.1], None, "never decrease"),
        ([0, float("nan")], None, "finite"),
        (constant(10), (5, 4), "reversed"),
        (constant(10), (10, 12), "outside"),
        (constant(10), (-3, -1), "outside"),
        (constant(10), (0.5, 3.2), "multiply seconds by fps"),
        (constant(10), (0, float("nan")), "whole numbers"),
    ],
)
def test_refuses(times: list[float], split: tuple | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_frames(times, ALL, split)


ENDS = st.one_of(st.none(), st.tuples(st.floats(0, 1), st.floats(0, 1)))


def segment(total: int, ends: tuple[float, float] | None) -> tuple[int, int] | None:
    return None if ends is None else tuple(sorted(int(e * (total - 1)) for e in ends))  # type: ignore[return-value]


@settings(deadline=None)
@given(
    gaps=st.lists(st.one_of(st.floats(0, 0.2), st.sampled_from([0.0, 1 / 30, 0.04, 0.1, 5.0])), max_size=60),
    video_fps=st.one_of(st.sampled_from([0.5, 1.0, 2.0, 12.0, 29.97]), st.floats(0.1, 60)),
    num_frames=st.integers(1, 40),
    extra=st.one_of(st.none(), st.integers(0, 40)),
    ends=ENDS,
    start=st.floats(0, 1000),
)
def test_equals_the_nearest_of_all_frames(gaps, video_fps, num_frames, extra, ends, start) -> None:
    times = (start + np.cumsum([0.0, *gaps])).tolist()
    split = segment(len(times), ends)
    first, last = split or (0, len(times) - 1)
    found = select_frames(
        times, VideoSpec(num_frames, 2, 2, video_fps, 0 if extra is None else num_frames + extra), split
    )
    every = expected_candidates(times, video_fps, split)
    assert len(found) == num_frames
    assert found == sorted(found)
    assert first <= found[0] and found[-1] <= last
    assert set(found) <= set(every)
    if num_frames > 1:
        assert (found[0], found[-1]) == (every[0], every[-1])
    if extra is None and num_frames == len(every):
        assert found == every
    assert select_frames(times, VideoSpec(len(every), 2, 2, video_fps), split) == every


RATES = [Fraction(r) for r in (5, 10, 12, 15, 24, 25, 30, 50, 60)] + [Fraction(30000, 1001), Fraction(1221, 200)]


@settings(deadline=None)
@example(total=788, rate=Fraction(15), video_fps=3, ends=(4 / 787, 359.5 / 787))
@given(
    total=st.integers(1, 2000),
    rate=st.sampled_from(RATES),
    video_fps=st.sampled_from([0.25, 0.5, 1, 2, 3, 4, 5, 8, 10, 24]),
    ends=ENDS,
)
def test_constant_rate_is_within_one_frame_of_a_fixed_stride(total, rate, video_fps, ends) -> None:
    split = segment(total, ends)
    first, last = split or (0, total - 1)
    stride = max(rate / Fraction(video_fps), Fraction(1))
    fixed = [first + round(k * stride) for k in range(int((last - first) / stride) + 1)]
    # A time that the segment misses by less than the clock can tell is one of its times.
    missed = stride - (last - first) % stride
    assume(missed == stride or missed / rate > Fraction(2, 1000))
    found = select_frames(constant(total, rate), VideoSpec(len(fixed), 2, 2, float(rate / stride)), split)
    assert max(abs(a - b) for a, b in zip(found, fixed, strict=True)) <= (stride.denominator > 1)


@settings(deadline=None)
@given(total=st.integers(1, 2000), rate=st.sampled_from(RATES), stride=st.integers(1, 60), count=st.integers(1, 32))
def test_a_whole_stride_is_llavas(total, rate, stride, count) -> None:
    """LLaVA-NeXT's `process_video_with_decord`: `range(0, frames, stride)`, then a `linspace` over it."""
    fixed = list(range(0, total, stride))
    gaps = max(count - 1, 1)
    spread = [(2 * j * (len(fixed) - 1) + gaps) // (2 * gaps) for j in range(count)]
    expected = [fixed[i] for i in spread] if count > 1 else [fixed[(len(fixed) - 1) // 2]]
    assert select_frames(constant(total, rate), VideoSpec(count, 2, 2, float(rate / stride))) == expected


@settings(deadline=None)
@given(st.data())
def test_every_frame_is_spread_by_number(data) -> None:
    total, num_frames = data.draw(st.integers(1, 3000)), data.draw(st.integers(1, 64))
    times = np.cumsum(np.random.default_rng(total).exponential(0.1, total))
    for chosen in (
        spec(num_frames=num_frames, fast_latents=2),
        spec(num_frames=num_frames, fast_latents=2, video_fps=1, force_sample=True),
    ):
        found = select_frames(times, chosen)
        if num_frames > 1:
            assert (found[0], found[-1]) == (0, total - 1)
            assert np.ptp(np.diff(found)) <= 1
        assert len(set(found)) == min(num_frames, total)


def test_many_candidates_are_not_written_out() -> None:
    """An hour at a million candidates a second."""
    assert select_frames([0, 1800, 3600], spec(num_frames=3, video_fps=1e6))[:2] == [0, 1]
