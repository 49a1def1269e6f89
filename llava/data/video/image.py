"""Images: files to one frame. What is transparent is shown on white.

Letters in shapes: H and W height and width of a frame.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from llava.data.video.errors import VideoError, cause
from llava.data.video.files import MAX_PIXELS, require_file, what_it_is

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Pillow's names of what is opened, as far as this Pillow has them. Others start programs (EPS: Ghostscript) or are
tried on any file."""

ORIENTATION, SIDEWAYS = 0x112, (5, 6, 7, 8)
"""The EXIF tag of how a picture is held, and its values that exchange width and height."""


def read_image(path: str | Path) -> np.ndarray:
    """An image as one frame, (1, H, W, 3) uint8 RGB, turned upright as its EXIF data says, on white where transparent.

    Of several pictures in a JPEG (MPO, as phones write them) the first is the photograph, and read.

    Raises:
        VideoError: when the file is missing, no image of a format in `FORMATS`, cut short, above `MAX_PIXELS`, an
            animation or several pages, or has more than 8 bits a channel.
    """
    remedy = "save it anew"
    try:
        require_file(path)
        with _open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise VideoError(
                    f"{path}: {image.width} x {image.height} is above {MAX_PIXELS} pixels; make it smaller"
                )
            pictures = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            if pictures > 1:
                raise VideoError(
                    f"{path}: holds {pictures} pictures; save the one that is meant as an image, or an animation "
                    "as a video and name that as video"
                )
            if image.mode.startswith(("I", "F")):
                raise VideoError(f"{path}: {image.mode} pixels would be clipped; convert it to 8 bits a channel")
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                return on_white(np.asarray(upright.convert("RGBA")))[None]
            return np.asarray(upright.convert("RGB"))[None]
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        said = cause(error)
        if isinstance(error, FileNotFoundError):
            remedy = "correct the path, or --image_folder"
        elif isinstance(error, Image.DecompressionBombError):
            said, remedy = f"it is above {MAX_PIXELS} pixels", "make it smaller"
        elif isinstance(error, Image.UnidentifiedImageError):
            what = what_it_is(path)
            said = f"it is {what}" if what else f"none of {', '.join(FORMATS)}, or damaged"
        raise VideoError(f"{path}: cannot be opened as an image ({said}); {remedy}") from error


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image as it is shown, turned upright, from the head of its file; (0, 0) where it cannot be
    told.
    """
    try:
        with _open(path) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(ORIENTATION, 1) in SIDEWAYS else (width, height)
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return 0, 0


def _open(path: str | Path) -> Image.Image:
    Image.init()
    with warnings.catch_warnings():
        # Above the limit it is refused, and a file that no format knows is an error with more words than a warning.
        warnings.simplefilter("ignore")
        return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])


def on_white(frame: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8 RGBA, not premultiplied, on a white ground: (H, W, 3) uint8 RGB."""
    alpha = frame[..., 3:].astype(np.uint16)
    return ((frame[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def rgb_of(frame: Any) -> np.ndarray:
    """A decoded `av.VideoFrame` as (H, W, 3) uint8 RGB, on white where it is transparent."""
    if any(component.is_alpha for component in frame.format.components):
        return on_white(frame.to_ndarray(format="rgba"))
    return frame.to_ndarray(format="rgb24")
