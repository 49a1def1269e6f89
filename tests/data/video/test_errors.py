"""Images, and files that are cut short or are no video. In the clips made here, frame i has the gray level 20 + 5 i."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava.config.video import VideoSpec
from llava.data.video import VideoError, probe_video, read_frames, read_image
from tests.data.video.clips import FASTSTART, cut, damage, write_audio, write_gray

ALL = VideoSpec(num_frames=4, force_sample=True)


def write_bytes(data: bytes) -> Callable[[Path], Path]:
    return lambda path: path if path.write_bytes(data) else path


BROKEN: list = [
    pytest.param(write_bytes(b""), "cannot be opened as a video", id="empty"),
    pytest.param(write_bytes(b"Un gatto.\n" * 99), "cannot be opened as a video", id="text"),
    pytest.param(write_audio, r"no video stream \(the file holds audio\)", id="audio alone"),
    pytest.param(lambda path: path, "No such file.*--video_folder", id="missing"),
    pytest.param(lambda path: cut(write_gray(path), 0.6), "neither video nor audio", id="cut, index at the end"),
    pytest.param(lambda path: cut(write_gray(path, muxer=FASTSTART), 0.9), "cut short", id="cut, index at the start"),
    pytest.param(lambda path: damage(write_gray(path, noise=True), 0.5), "cannot be decoded", id="damaged middle"),
]


@pytest.mark.parametrize(("make", "message"), BROKEN)
def test_broken_file_is_an_error_that_names_it(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    path = make(tmp_path / "clip.mp4")
    with pytest.raises(VideoError, match=message) as raised:
        read_frames(path, ALL)
    assert str(raised.value).startswith(f"{path}: ")
    assert raised.value.kind == ("no video stream" if "stream" in message else "unreadable")


def test_cut_matroska_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="cut short"):
        probe_video(cut(write_gray(tmp_path / "clip.mkv", noise=True), 0.5))


# ---- images


def test_image_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[:, :10] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    Image.fromarray(picture).save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "photo.png"), np.rot90(picture, -1)[None])


def test_gray_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "1"):
        Image.new(mode, (5, 4)).save(tmp_path / "image.png")
        assert read_image(tmp_path / "image.png").shape == (1, 4, 5, 3)


def test_broken_images(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    with pytest.raises(VideoError, match="image.png: .*--image_folder"):
        read_image(path)
    path.write_text("no image")
    with pytest.raises(VideoError, match="image.png: cannot be opened"):
        read_image(path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    with pytest.raises(VideoError, match="image.png: cannot be opened"):
        read_image(cut(path, 0.5))
    Image.fromarray(np.full((4, 4), 60000, np.uint16)).save(path)
    with pytest.raises(VideoError, match="8 bits"):
        read_image(path)
