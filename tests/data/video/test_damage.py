from __future__ import annotations

from pathlib import Path

import av.logging
import pytest

from benchmarks.damage import KINDS, NUM_FRAMES, write
from llava.data.video import VideoError, check_decodable
from tests.conftest import REAL_CLIPS
from tests.data.video.clips import damage

FAULTY = REAL_CLIPS.parent / "faulty"
CANNOT_SEE = {"clip.webm", "live.webm", "clip.wmv"}
"""VP8 and VP9 take wrong bits for another picture, and these files have no checksums; of ASF, FFmpeg leaves the frames
of a damaged packet out and says nothing."""


@pytest.mark.parametrize("name", KINDS)
def test_sound_files_are_silent_and_damaged_ones_are_not(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, **KINDS[name])
    level = av.logging.get_level()
    assert check_decodable(path) == NUM_FRAMES
    if name not in CANNOT_SEE:
        with pytest.raises(VideoError, match=r"damaged or cut short \(\d+ errors in \d+ frames: .+\); copy"):
            check_decodable(damage(path, 0.5, 400))
    assert av.logging.get_level() == level


@pytest.mark.skipif(not FAULTY.is_dir(), reason="the shared data folder is not beside this checkout")
@pytest.mark.parametrize("name", ["008_head_vp9.webm", "010_flip1_h264.mov", "015_trunc_mjpeg.avi", "024_trunc_x.gif",
                                  "028_trunc_h264.mkv"])  # fmt: skip
def test_damage_that_was_concealed(name: str) -> None:
    with pytest.raises(VideoError, match="damaged or cut short"):
        check_decodable(FAULTY / "damaged" / name)


@pytest.mark.skipif(not REAL_CLIPS.is_dir(), reason="the shared data folder is not beside this checkout")
def test_a_real_clip_is_sound() -> None:
    assert check_decodable(REAL_CLIPS / "armadio.mp4") == 187
