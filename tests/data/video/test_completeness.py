from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.damage import KINDS, NUM_FRAMES, SHARES, cut, write
from llava.data.video import VideoError, probe_video
from tests.conftest import REAL_CLIPS

FAULTY = REAL_CLIPS.parent / "faulty"


@pytest.mark.parametrize("name", KINDS)
def test_whole_files_are_silent_and_cut_ones_are_not(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, **KINDS[name])
    assert probe_video(path).num_frames == NUM_FRAMES
    data = path.read_bytes()
    for share in SHARES:
        path.write_bytes(cut(data, share))
        with pytest.raises(VideoError, match="cut short|cannot be opened|neither video nor audio"):
            probe_video(path)


@pytest.mark.skipif(not REAL_CLIPS.is_dir(), reason="the shared data folder is not beside this checkout")
def test_real_clips_are_whole() -> None:
    assert [probe_video(path).num_frames > 100 for path in sorted(REAL_CLIPS.glob("*.mp4"))] == [True] * 6


@pytest.mark.skipif(not FAULTY.is_dir(), reason="the shared data folder is not beside this checkout")
@pytest.mark.parametrize("name", ["damaged/006_trunc_h264.ts", "damaged/015_trunc_mjpeg.avi", "damaged/024_trunc_x.gif",
                                  "damaged/028_trunc_h264.mkv", "cut_fragmented/cut.mp4"])  # fmt: skip
def test_files_that_were_taken_for_short_clips(name: str) -> None:
    with pytest.raises(VideoError, match=r"the file is cut short \("):
        probe_video(FAULTY / name)
