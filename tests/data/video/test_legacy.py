"""Which features of the first frame rule are still right."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava.config.video import VideoSpec
from llava.data.video import legacy, probe_video, select_frames
from llava.data.video.legacy import count_changed, same_as_before, select_by_rate
from tests.data.video.clips import faulty, set_matrix, write_gray

ONCE_A_SECOND = VideoSpec()


def test_the_first_rule_is_kept_as_it_was() -> None:
    """Values that it gave."""

    def settings(**options) -> VideoSpec:
        return VideoSpec(**{"num_frames": 4, **options})

    assert select_by_rate(45, 10, settings(), None) == [0, 10, 30, 40]
    assert select_by_rate(11, 10, settings(video_fps=4), None) == [0, 3, 8, 10]
    assert select_by_rate(100, 10, settings(), (5, 40)) == [5, 15, 25, 35]
    assert select_by_rate(120, 1000, settings(), None) == [0, 0, 0, 0]
    assert select_by_rate(101, 10, settings(video_fps=0, frames_upbound=5), None) == [0, 25, 75, 100]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
def test_a_constant_rate_is_the_same(tmp_path: Path, suffix: str) -> None:
    path = str(write_gray(tmp_path / f"clip{suffix}", codec="mpeg4" if suffix == ".avi" else "libx264"))
    for split in (None, (7, 30)):
        assert same_as_before((path, split, False), ONCE_A_SECOND)
        assert same_as_before((path, split, False), VideoSpec(force_sample=True))


OTHERS: dict[str, Callable[[Path], Path]] = {
    "pause": lambda p: write_gray(p, milliseconds=[*range(0, 1000, 100), *range(9000, 12000, 100)]),
    "mirrored": lambda p: set_matrix(write_gray(p), -1, 0, 0, 1),
    "anamorphic": lambda p: write_gray(p, aspect=Fraction(2)),
    "ten bits": lambda p: write_gray(p, pixels="yuv420p10le"),
    "no video": lambda p: p if p.write_bytes(b"Un gatto.\n" * 99) else p,
    "missing": lambda p: p,
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_what_is_seen_otherwise(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    assert not same_as_before((str(make(tmp_path / "clip.mp4")), None, False), ONCE_A_SECOND)


def test_packets_are_not_counted_for_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the decoder gives fewer frames, both rules count those."""
    path = str(write_gray(tmp_path / "clip.avi", frames=41, codec="mpeg4"))
    monkeypatch.setattr(legacy, "decoded_times", lambda path: np.arange(31) * 0.1)
    counted = []
    monkeypatch.setattr(legacy, "select_by_rate", lambda count, *_: counted.append(count) or [])
    assert not same_as_before((path, None, False), ONCE_A_SECOND)
    assert counted == [31]


def test_a_turned_clip_is_the_same(tmp_path: Path) -> None:
    path = set_matrix(write_gray(tmp_path / "clip.mp4"), 0, 1, -1, 0)
    assert same_as_before((str(path), None, False), ONCE_A_SECOND)


def test_a_pause_is_the_same_where_frames_are_counted(tmp_path: Path) -> None:
    path = OTHERS["pause"](tmp_path / "clip.mp4")
    assert same_as_before((str(path), None, False), VideoSpec(force_sample=True))


def test_a_tie_is_seen_otherwise(tmp_path: Path) -> None:
    path = str(write_gray(tmp_path / "clip.mp4", frames=11))
    assert not same_as_before((path, None, False), VideoSpec(video_fps=4))


def test_transparent_images(tmp_path: Path) -> None:
    for mode, same in (("RGB", True), ("L", True), ("RGBA", False), ("LA", False)):
        path = tmp_path / f"{mode}.png"
        Image.new(mode, (4, 4)).save(path)
        assert same_as_before((str(path), None, True), ONCE_A_SECOND) == same
    Image.new("P", (4, 4)).save(tmp_path / "palette.png", transparency=0)
    assert not same_as_before((str(tmp_path / "palette.png"), None, True), ONCE_A_SECOND)


def test_faulty_clips_are_counted() -> None:
    clips = [
        (str(faulty(name)), None, False)
        for name in ("webm_without_rate/mr_jitter.webm", "vfr_nominal_rate/vfr.mp4", "mirrored_matrix/hflip.mp4",
                     "anamorphic/sar.mp4", "clips/0.mp4", "clips/1.mp4")
    ]  # fmt: skip
    assert count_changed(clips, ONCE_A_SECOND) == 4


def test_real_clips_are_the_same(real_clips: Path) -> None:
    for path in sorted(real_clips.glob("*.mp4")):
        assert same_as_before((str(path), None, False), ONCE_A_SECOND), select_frames(
            probe_video(path).times, ONCE_A_SECOND
        )
