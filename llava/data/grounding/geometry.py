"""Where a box lies after `llava.data.video.transforms` has made its frame square, and where it was before.

A picture is padded, squeezed or cropped along each axis by itself, so that a number needs to know its axis alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.config.video import ProcessorSpec
from llava.data.variables import BOX, axis_of, places_of
from llava.errors import UserError

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 from 0 to 1."""
LARGEST = 1 << 31
"""Pixels that no frame's edge has."""
SHAPE = 0.02
"""By how much the proportions of frames may differ from what is said of them: codecs want even numbers of pixels."""


@dataclass(frozen=True)
class Square:
    """Where a frame lies in the square picture of a tower: `x * scale[0] + shift[0]`, and y likewise with [1]."""

    scale: tuple[float, float] = (1.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, width: int, height: int, image_aspect_ratio: str, processor: ProcessorSpec | None = None) -> Square:
        """The square of a frame of `width` x `height` pixels.

        Args:
            processor: of the tower; "crop" needs it.

        Raises:
            ValueError: for another `image_aspect_ratio`, for a frame without pixels, and for a crop without processor.
        """
        if width < 1 or height < 1:
            raise UserError(f"a frame of {width} x {height} pixels has no place for a box")
        if image_aspect_ratio == "square":
            return cls()
        if image_aspect_ratio == "pad":
            side = max(width, height)
            return cls((width / side, height / side), ((side - width) // 2 / side, (side - height) // 2 / side))
        if image_aspect_ratio != "crop":
            raise UserError(f"image_aspect_ratio must be pad, square or crop, got {image_aspect_ratio!r}")
        if processor is None:
            raise UserError(
                "--image_aspect_ratio crop moves numbers of places by the tower's image processor, and without a tower "
                "there is none: use pad or square, with vision and without"
            )
        size = processor.image_size
        resized = [int(processor.crop_edge * edge / min(width, height)) for edge in (width, height)]
        left, top = ((edge - size) // 2 for edge in resized)
        return cls((resized[0] / size, resized[1] / size), (-left / size, -top / size))

    def number(self, axis: str, value: float) -> float:
        """A number of an axis in the square, at its edge where the place was cut off; times stay as they are."""
        if axis == "TEMP":
            return value
        place = 0 if axis == "WIDTH" else 1
        return min(max(value * self.scale[place] + self.shift[place], 0.0), 1.0)

    def numbers(self, placeholders: Sequence[str], values: Sequence[float]) -> tuple[float, ...]:
        """Numbers at coordinate placeholders, moved into the square."""
        return tuple(self.number(axis_of(name), value) for name, value in zip(placeholders, values, strict=True))

    def box(self, box: Sequence[float]) -> Box | None:
        """A box in the square, cut at its edges; None where nothing of it is in the picture."""
        x1, y1, x2, y2 = (self.number(axis, v) for axis, v in zip(("WIDTH", "HEIGHT") * 2, box, strict=True))
        return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None

    def inverse(self, box: Sequence[float]) -> Box:
        """A box of the square on the frame, cut at its edges: what a model answers, where to draw it."""
        x1, y1, x2, y2 = (
            min(max((value - self.shift[place % 2]) / self.scale[place % 2], 0.0), 1.0)
            for place, value in enumerate(box)
        )
        return x1, y1, x2, y2


def is_other_shape(size: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two (width, height) differ in their proportions by more than `SHAPE`."""
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1) > SHAPE


def is_edge(value: Any) -> bool:
    """Whether a value is a number of pixels that a frame can be wide or high."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 1 <= value < LARGEST


def square_of(meta: Mapping[str, Any], image_aspect_ratio: str, processor: ProcessorSpec | None = None) -> Square:
    """The square of a record's frame, by `meta.width` and `meta.height`.

    Raises:
        ValueError: when the square depends on them and they are not there.
    """
    if image_aspect_ratio == "square":
        return Square()
    size = meta.get("width"), meta.get("height")
    if not all(map(is_edge, size)):
        raise UserError(
            f"numbers of places are fractions of the frame, and --image_aspect_ratio {image_aspect_ratio} moves them: "
            f"expected meta.width and meta.height in pixels, got {size[0]!r:.40} and {size[1]!r:.40}; write them, or "
            "use --image_aspect_ratio square"
        )
    return Square.of(int(size[0]), int(size[1]), image_aspect_ratio, processor)  # type: ignore[arg-type]


def cropped_box(text: str, told: Sequence[float], moved: Sequence[float]) -> str:
    """What is said of the first box of a text that lies outside its picture, which has no width or height there; empty
    for none.

    Args:
        told, moved: the numbers at the text's coordinate placeholders, and those in the square.
    """
    for place in places_of(BOX, text):
        its, (x1, y1, x2, y2) = told[place], moved[place]
        if (its[0] < its[2] and x2 <= x1) or (its[1] < its[3] and y2 <= y1):
            return f"its box {[round(number, 3) for number in its]} is cropped away"
    return ""


def truth_in_square(
    meta: Mapping[str, Any], image_aspect_ratio: str, processor: ProcessorSpec | None = None
) -> dict[str, Any]:
    """`meta.truth` of a record of `llava.data.grounding.tasks` with its boxes in the square, where answers are.

    A box that was cut off is left out of `boxes`, and None under `box`.
    """
    truth = dict(meta.get("truth") or {})
    square = square_of(meta, image_aspect_ratio, processor)
    if truth.get("box") is not None:
        truth["box"] = square.box(truth["box"])
    if "boxes" in truth:
        moved = {index: square.box(box) for index, box in truth["boxes"].items()}
        truth["boxes"] = {index: box for index, box in moved.items() if box is not None}
    if "phrases" in truth:
        truth["phrases"] = [[phrase, square.box(box)] for phrase, box in truth["phrases"]]
    return truth
