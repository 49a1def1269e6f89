"""A box moves as its pixels do: a rectangle is drawn, the pixels are transformed, and it is found again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llava.config.video import ProcessorSpec
from llava.data.grounding.geometry import Square, square_of, truth_in_square
from llava.data.video.transforms import frames_to_pixels
from llava.errors import UserError

PROCESSOR = ProcessorSpec(image_size=112, resize_edge=140)
SHAPES = [(96, 160), (200, 120), (128, 128)]
"""Height and width of frames: wide, high, square."""


def drawn(height: int, width: int, box: tuple[float, ...]) -> np.ndarray:
    """A frame with a red rectangle on black, (1, H, W, 3)."""
    frame = np.zeros((1, height, width, 3), np.uint8)
    x1, y1, x2, y2 = (round(v * edge) for v, edge in zip(box, (width, height) * 2, strict=True))
    frame[:, y1:y2, x1:x2, 0] = 255
    return frame


def found(pixels: torch.Tensor) -> list[float]:
    """The red rectangle of a square picture (3, S, S), as fractions of it."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PROCESSOR.image_mean, PROCESSOR.image_std))
    colours = pixels * std + mean
    rows, columns = torch.nonzero(colours[0] - colours[1] > 0.5, as_tuple=True)
    edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return [int(edge) / PROCESSOR.image_size for edge in edges]


@pytest.mark.parametrize("way", ["pad", "square", "crop"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_box_moves_with_its_pixels(shape: tuple[int, int], way: str) -> None:
    height, width = shape
    # The last lies across the edge of the crop of a wide frame, where both are cut.
    for box in [(0.375, 0.25, 0.625, 0.5), (0.4, 0.5, 0.6, 0.875), (0.05, 0.375, 0.5, 0.625)]:
        square = Square.of(width, height, way, PROCESSOR)
        moved = square.box(box)
        assert moved is not None
        seen = found(frames_to_pixels(drawn(height, width, box), PROCESSOR, way)[0])
        assert seen == pytest.approx(moved, abs=1.5 / PROCESSOR.image_size)
        inside = square.inverse(moved)
        assert all(
            low - 1e-9 <= v <= high + 1e-9 for v, low, high in zip(inside, box[:2] * 2, box[2:] * 2, strict=True)
        )
        if all(0 < v < 1 for v in moved):
            assert inside == pytest.approx(box)


def test_what_is_cropped_away_is_no_box() -> None:
    square = Square.of(320, 120, "crop", PROCESSOR)
    assert square.box((0.0, 0.2, 0.1, 0.8)) is None
    assert square.number("WIDTH", 0.0) == 0 and square.number("WIDTH", 1.0) == 1
    assert square.number("TEMP", 0.0) == 0 and square.number("TEMP", 0.77) == 0.77


def test_numbers_move_along_their_axes() -> None:
    square = Square.of(200, 100, "pad")
    names = ["<WIDTH-OUTPUT>", "<HEIGHT-INPUT>", "<TEMP-OUTPUT>"]
    assert square.numbers(names, [0.25, 0.5, 0.3]) == (0.25, 0.5, 0.3)
    assert square.numbers(names, [0.25, 0.0, 0.3]) == (0.25, 0.25, 0.3)


def test_a_frame_without_size_is_refused_where_it_matters() -> None:
    assert square_of({}, "square") == Square()
    assert square_of({"width": 20, "height": 10}, "pad") == Square.of(20, 10, "pad")
    for meta in ({}, {"width": 20}, {"width": "20", "height": 10}, {"width": 0, "height": 10},
                 {"width": float("inf"), "height": 10}, {"width": 10**400, "height": 10}):  # fmt: skip
        with pytest.raises(UserError, match="expected meta.width and meta.height in pixels, got .* write them"):
            square_of(meta, "pad")
    with pytest.raises(UserError, match="crop moves numbers of places by the tower's image processor"):
        Square.of(20, 10, "crop")
    with pytest.raises(UserError, match="image_aspect_ratio must be pad, square or crop, got 'anyres'"):
        Square.of(20, 10, "anyres", PROCESSOR)


def test_truth_is_where_answers_are() -> None:
    meta = {"width": 320, "height": 120, "truth": {
        "box": [0.25, 0.0, 0.75, 1.0], "boxes": {"0": [0.4, 0.25, 0.6, 0.75], "99": [0.0, 0.2, 0.1, 0.8]},
        "phrases": [["a ball", [0.25, 0.0, 0.75, 1.0]]], "span": [0.1, 0.2],
    }}  # fmt: skip
    padded = truth_in_square(meta, "pad")
    assert padded["box"] == pytest.approx((0.25, 0.3125, 0.75, 0.6875)) and padded["span"] == [0.1, 0.2]
    assert padded["phrases"] == [["a ball", padded["box"]]]
    assert set(truth_in_square(meta, "crop", PROCESSOR)["boxes"]) == {"0"}
    assert meta["truth"]["box"] == [0.25, 0.0, 0.75, 1.0]
