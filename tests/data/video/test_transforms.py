"""Frames to pixel values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from llava.config.video import ProcessorSpec
from llava.data.video import frames_to_pixels


def noise(height: int, width: int, frames: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(240, 320), (320, 201), (100, 64), (224, 224)])
def test_crop_equals_the_processor_of_dinov2(shape: tuple[int, int]) -> None:
    processor = BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=3, do_center_crop=True,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], rescale_factor=1 / 255,
    )  # fmt: skip
    frames = noise(*shape)
    expected = processor([Image.fromarray(f) for f in frames], return_tensors="pt")["pixel_values"]
    pixels = frames_to_pixels(frames, ProcessorSpec(), "crop")
    assert pixels.shape == (2, 3, 224, 224) and pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, expected.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["square", "pad", "crop"])
def test_every_value_is_that_of_the_formula_to_the_last_bit(name: str) -> None:
    """Features in caches were computed from these: (byte * factor - mean) / std, in fp32, each step rounded."""
    processor = ProcessorSpec(image_size=16, resize_edge=16)
    frames = noise(16, 16)
    frames[0] = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    kept = frames.copy()
    pixels = frames_to_pixels(frames, processor, name)
    for channel, (mean, std) in enumerate(zip(processor.image_mean, processor.image_std, strict=True)):
        scaled = frames[..., channel].astype(np.float32) * np.float32(processor.rescale_factor)
        expected = (scaled - np.float32(mean)) / np.float32(std)
        assert np.array_equal(pixels[:, channel].numpy(), expected)
    assert pixels.is_contiguous() and np.array_equal(frames, kept)


def test_pad_surrounds_the_frame_with_the_mean_colour() -> None:
    processor = ProcessorSpec(image_size=56)
    pixels = frames_to_pixels(np.full((1, 28, 56, 3), 255, np.uint8), processor, "pad")
    # The mean colour is rounded to a byte, so it is 0 after normalisation but for half a step.
    assert pixels[:, :, :12].abs().max() < 0.5 / 255 / 0.224 + 1e-6
    assert pixels[:, :, -12:].abs().max() < 0.5 / 255 / 0.224 + 1e-6
    white = (1 - torch.tensor(processor.image_mean)) / torch.tensor(processor.image_std)
    torch.testing.assert_close(pixels[0, :, 28, 28], white)


def test_square_squeezes_the_whole_frame() -> None:
    frames = noise(30, 90)
    pixels = frames_to_pixels(frames, ProcessorSpec(image_size=28), "square")
    resized = np.asarray(Image.fromarray(frames[1]).resize((28, 28), 3)).astype(np.float32) / 255
    expected = (resized - ProcessorSpec().image_mean) / ProcessorSpec().image_std
    torch.testing.assert_close(pixels[1], torch.from_numpy(expected).permute(2, 0, 1).float(), atol=1e-5, rtol=0)


def test_unknown_aspect_ratio_is_an_error() -> None:
    with pytest.raises(ValueError, match="anyres"):
        frames_to_pixels(noise(8, 8), ProcessorSpec(), "anyres")
