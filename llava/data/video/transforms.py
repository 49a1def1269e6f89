"""Frames of images and videos to pixel values.

Letters in shapes: T frames, H and W height and width of a frame, S side of the square that the vision tower takes.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from llava.config.video import ProcessorSpec


def frames_to_pixels(frames: np.ndarray, processor: ProcessorSpec, image_aspect_ratio: str) -> torch.Tensor:
    """Frames (T, H, W, 3) uint8 to pixel values (T, 3, S, S) float32, square and normalised.

    Args:
        image_aspect_ratio: "pad" puts the frame in the middle of a square of the mean colour; "square" squeezes it;
            "crop" brings the shortest edge to `processor.crop_edge` and takes the middle S x S, as DINOv2 and CLIP do.

    Raises:
        ValueError: for another `image_aspect_ratio`.
    """
    squares = square_frames(frames, processor, image_aspect_ratio)
    # Bytes are brought into planes, not floats: a quarter of the memory to move.
    pixels = torch.from_numpy(np.ascontiguousarray(squares.transpose(0, 3, 1, 2))).float()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
    return pixels.mul_(processor.rescale_factor).sub_(mean).div_(std)


def square_frames(frames: np.ndarray, processor: ProcessorSpec, image_aspect_ratio: str) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 as the tower sees them, before their values are normalised: (T, S, S, 3) uint8.

    Raises:
        ValueError: for another `image_aspect_ratio`.
    """
    ways = {"pad": _pad, "square": _squeeze, "crop": _crop}
    if image_aspect_ratio not in ways:
        raise ValueError(f"image_aspect_ratio must be one of {tuple(ways)}, got {image_aspect_ratio!r}")
    make_square = ways[image_aspect_ratio]
    return np.stack([np.asarray(make_square(Image.fromarray(frame), processor)) for frame in frames])


def _squeeze(image: Image.Image, processor: ProcessorSpec) -> Image.Image:
    return image.resize((processor.image_size, processor.image_size), processor.resample)


def _pad(image: Image.Image, processor: ProcessorSpec) -> Image.Image:
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), tuple(round(v * 255) for v in processor.image_mean))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return _squeeze(canvas, processor)


def _crop(image: Image.Image, processor: ProcessorSpec) -> Image.Image:
    short = processor.crop_edge
    # The long edge is rounded down, as transformers does.
    width, height = (int(short * edge / min(image.size)) for edge in image.size)
    left, top = (width - processor.image_size) // 2, (height - processor.image_size) // 2
    box = (left, top, left + processor.image_size, top + processor.image_size)
    return image.resize((width, height), processor.resample).crop(box)
