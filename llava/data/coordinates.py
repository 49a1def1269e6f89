"""Numbers at the coordinate placeholders of a sequence: what is told stays a number, what is asked for is a target.

A number `v` from 0 to 1 lies at `v * 99` between two coordinate tokens of its axis. Its label is the nearer of the two;
the other one and its share follow from the number, which travels beside the ids (`llava.model.coordinates`).

Letters in shapes: L positions of one sequence, N its placeholders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from llava.constants import (
    COORDINATE_PLACEHOLDERS,
    COORDINATE_TOKENS,
    IGNORE_INDEX,
    NUM_COORDINATES,
)
from llava.errors import UserError

NO_COORDINATE = -1.0
"""In a sequence of numbers: none stands here."""


def coordinate_token(axis: str, value: float) -> str:
    """The token of an axis (`TEMP`, `HEIGHT`, `WIDTH`) nearest to a number from 0 to 1: `<TEMP-012>`."""
    return f"<{axis}-{nearest(value):03d}>"


def nearest(value: float) -> int:
    """The coordinate nearest to a number, which is clipped to 0 and 1; half-way, the lower one."""
    place = min(max(value, 0.0), 1.0) * (NUM_COORDINATES - 1)
    return int(place) + (place - int(place) > 0.5)


@dataclass(frozen=True)
class CoordinateTokens:
    """The ids of the coordinate tokens and placeholders, by name."""

    ids: Mapping[str, int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> CoordinateTokens:
        """As a tokenizer has them.

        Raises:
            ValueError: when it lacks any.
        """
        names = [*COORDINATE_TOKENS, *COORDINATE_PLACEHOLDERS]
        found = dict(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True))
        lacks = [n for n, i in found.items() if i is None or tokenizer.convert_ids_to_tokens(i) != n]
        if lacks:
            raise UserError(
                f"the tokenizer does not know {len(lacks)} of the {len(names)} coordinate tokens ({lacks[0]}, ...): "
                "register them with --mm_coordinates True (llava.model.builder.add_coordinate_tokens)"
            )
        return cls(found)

    def place(
        self, input_ids: torch.Tensor, labels: torch.Tensor, values: Sequence[float]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels and numbers of a sequence, which may be cut at its end.

        Args:
            input_ids, labels: (L,), the labels with the placeholders where those are supervised.
            values: from 0 to 1, in reading order.

        Returns:
            labels: (L,), at a placeholder of a number that is asked for the nearest coordinate's id (where the labels
                supervise it), at one that is told `IGNORE_INDEX`.
            coordinates: float32 (L,), the numbers where they stand and `NO_COORDINATE` elsewhere.

        Raises:
            ValueError: when there are more placeholders than numbers.
        """
        coordinates = torch.full(input_ids.shape, NO_COORDINATE, dtype=torch.float32)
        labels = labels.clone()
        wanted = torch.tensor([self.ids[name] for name in COORDINATE_PLACEHOLDERS])
        places = torch.isin(input_ids, wanted).nonzero().flatten().tolist()
        if len(places) > len(values):
            raise UserError(f"{len(places)} coordinate placeholders but {len(values)} numbers in its variables")
        names = {self.ids[name]: name for name in COORDINATE_PLACEHOLDERS}
        for at, value in zip(places, values, strict=False):
            axis, way = names[int(input_ids[at])].strip("<>").split("-")
            coordinates[at] = value
            if labels[at] != IGNORE_INDEX:
                labels[at] = self.ids[coordinate_token(axis, value)] if way == "OUTPUT" else IGNORE_INDEX
        return labels, coordinates
