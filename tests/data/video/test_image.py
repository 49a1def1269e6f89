"""Images; reading them from broken files is tested in tests/data/test_video.py."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from llava.config.video import VideoSpec
from llava.data.video import VideoError, read_frames, read_image
from llava.data.video.image import on_white
from tests.data.video.clips import write_gray


def test_transparency_is_shown_on_white() -> None:
    pixel = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [10, 20, 30, 51]]], np.uint8)
    assert on_white(pixel).tolist() == [[[255, 255, 255], [10, 20, 30], [206, 208, 210]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_a_black_circle_on_transparency_is_seen(tmp_path: Path, mode: str) -> None:
    """RGB and P have one colour that stands for transparency."""
    if mode in ("RGBA", "LA"):
        image = Image.new(mode, (4, 2), (0,) * len(mode))
        image.putpixel((1, 1), (0,) * (len(mode) - 1) + (255,))
        image.save(tmp_path / "logo.png")
    else:
        background = 1 if mode == "P" else (0, 0, 1)
        image = Image.new(mode, (4, 2), background)
        if mode == "P":
            image.putpalette([0, 0, 0, 0, 0, 0])
        image.putpixel((1, 1), 0 if mode == "P" else (0, 0, 0))
        image.save(tmp_path / "logo.png", transparency=background)
    expected = np.full((1, 2, 4, 3), 255, np.uint8)
    expected[0, 1, 1] = 0
    assert np.array_equal(read_image(tmp_path / "logo.png"), expected)


def test_transparent_video_is_shown_on_white(tmp_path: Path) -> None:
    path = write_gray(tmp_path / "clip.mov", frames=2, codec="qtrle", pixels="argb", options={})
    assert read_frames(path, VideoSpec(num_frames=2)).mean() < 30
    frames = [Image.new("RGBA", (16, 8), (0, 0, 0, 0)), Image.new("RGBA", (16, 8), (255, 0, 0, 255))]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=100)
    read = read_frames(tmp_path / "clip.gif", VideoSpec(num_frames=2, video_fps=0))
    assert (read[0] == 255).all() and (read[1][..., 1] == 0).all()


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tiff"])
def test_an_animation_is_no_image(tmp_path: Path, name: str) -> None:
    pictures = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in (0, 200)]
    pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:])
    with pytest.raises(VideoError, match="holds 2 pictures; save the one"):
        read_image(tmp_path / name)


def test_of_several_pictures_of_a_phone_the_first_is_read(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (8, 8), (i, i, i)) for i in (100, 200)]
    pictures[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=pictures[1:])
    assert (read_image(tmp_path / "a.jpg") == 100).all()


@pytest.mark.filterwarnings("error")
def test_too_many_pixels_are_refused(tmp_path: Path) -> None:
    for side in (9460, 14000):
        Image.new("1", (side, side)).save(tmp_path / "a.png")
        with pytest.raises(VideoError, match=r"a\.png: .* above 89478485 pixels.*make it smaller"):
            read_image(tmp_path / "a.png")


def test_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append(1))
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n")
    with pytest.raises(VideoError, match=r"a\.jpg: cannot be opened as an image \(it is PostScript\)"):
        read_image(tmp_path / "a.jpg")
    assert not started


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(VideoError, match="a pipe"):
        read_image(tmp_path / "a.png")
