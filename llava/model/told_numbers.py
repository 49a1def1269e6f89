"""Numbers that a question tells: the `variables` of records, for users of the processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from llava.config.video import ProcessorSpec
from llava.data.coordinates import CoordinateTokens
from llava.data.grounding.geometry import Square, cropped_box, is_other_shape
from llava.data.prompt import Turns
from llava.data.variables import axis_of, placeholders_in, read_variables
from llava.errors import UserError


@dataclass(frozen=True)
class Told:
    """A text with placeholders and the numbers at its coordinate placeholders, in reading order."""

    text: str
    numbers: tuple[float, ...] = ()

    def moved(
        self, sizes: Sequence[tuple[int, int]], image_aspect_ratio: str, processor: ProcessorSpec
    ) -> tuple[float, ...]:
        """The numbers where they are in the square picture that the tower sees, as the pixels are moved.

        Args:
            sizes: width and height in pixels of each image and video of the text.

        Raises:
            ValueError: where they have several shapes, so that nobody knows of which a box is, and for a box that is
                cropped away.
        """
        names = placeholders_in(self.text)
        if not sizes or image_aspect_ratio == "square" or all(axis_of(name) == "TEMP" for name in names):
            return self.numbers
        if other := next((size for size in sizes if is_other_shape(size, sizes[0])), None):
            raise UserError(
                f"its pictures are of {sizes[0][0]} x {sizes[0][1]} and of {other[0]} x {other[1]} pixels, of which "
                "one box cannot be a fraction: give pictures of one shape"
            )
        numbers = Square.of(*sizes[0], image_aspect_ratio, processor).numbers(names, self.numbers)
        if lost := cropped_box(self.text, self.numbers, numbers):
            raise UserError(f"{lost}: this model sees the middle of a picture alone")
        return numbers


def told_numbers(
    conversations: Sequence[Turns], variables: Any, tokenizer: PreTrainedTokenizerBase, has_roles: bool
) -> list[Told]:
    """What each conversation tells, by the rules of records (`docs/data.md`).

    Args:
        variables: LLaVA-ST's keys with lists of numbers from 0 to 1; of several conversations a list of these, with
            None where one tells nothing.
        has_roles: whether the turns say who wrote them, so that a question may not have what is asked for.

    Raises:
        ValueError: for too few or too many numbers, one that is not from 0 to 1 or not finite, whatever else is wrong
            with a record's `variables`, another number of these than of conversations, and a model without coordinates.
    """
    texts = ["".join(turn["value"] for turn in turns) for turns in conversations]
    if CoordinateTokens.known(tokenizer) is None:
        if name := next((name for text in texts for name in placeholders_in(text)), ""):
            raise UserError(f"{name} in the text: this model was trained without coordinates and takes no numbers")
        if variables:
            raise UserError("variables: this model was trained without coordinates and takes no numbers")
        return [Told(text) for text in texts]
    if variables is None or (isinstance(variables, Mapping) and len(texts) == 1):
        given = [variables] * len(texts)
    elif isinstance(variables, Sequence) and not isinstance(variables, str) and len(variables) == len(texts):
        given = list(variables)
    else:
        found = f"{len(variables)}" if isinstance(variables, (list, tuple)) else f"a {type(variables).__name__}"
        raise UserError(f"variables: expected a list of {len(texts)} objects, one for each text, got {found}")
    read = [read_variables(turns, its, has_roles) for turns, its in zip(conversations, given, strict=True)]
    if wrong := [f"text {i}: {'; '.join(messages)}" for i, (_, messages) in enumerate(read) if messages]:
        raise UserError("\n".join(wrong))
    return [Told(text, numbers) for text, (numbers, _) in zip(texts, read, strict=True)]
