"""Numbers at the coordinate placeholders of a sequence: what is told stays a number, what is asked for is a target.

A number `v` from 0 to 1 lies at `v * 99` between two coordinate tokens of its axis. Its label is the nearer of the two;
the other one and its share follow from the number, which travels beside the ids (`llava.model.coordinates`).

Letters in shapes: L positions of one sequence, N its placeholders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import AddedToken, PreTrainedTokenizerBase

from llava.constants import (
    COORDINATE_AXES,
    COORDINATE_PLACEHOLDERS,
    COORDINATE_TOKENS,
    IGNORE_INDEX,
    NUM_COORDINATES,
)
from llava.data.variables import axis_of, is_asked
from llava.errors import UserError

NO_COORDINATE = -1.0
"""In a sequence of numbers: none stands here."""


def coordinate_token(axis: str, value: float) -> str:
    """The token of an axis (`TEMP`, `HEIGHT`, `WIDTH`) nearest to a number from 0 to 1: `<TEMP-012>`."""
    return f"<{axis}-{nearest(value):03d}>"


def spell(placeholder: str, value: float) -> str:
    """The token of a placeholder's axis nearest to its number."""
    return coordinate_token(axis_of(placeholder), value)


def nearest(value: float) -> int:
    """The coordinate nearest to a number, which is clipped to 0 and 1; half-way, the lower one."""
    place = min(max(value, 0.0), 1.0) * (NUM_COORDINATES - 1)
    return int(place) + (place - int(place) > 0.5)


NAMES = (*COORDINATE_TOKENS, *COORDINATE_PLACEHOLDERS)


def register(tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives a tokenizer the coordinate tokens and placeholders, as words: what a model answers is read as text."""
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in NAMES])


@dataclass(frozen=True)
class CoordinateTokens:
    """The ids of the coordinate tokens and placeholders, by name."""

    ids: Mapping[str, int]

    @classmethod
    def known(cls, tokenizer: PreTrainedTokenizerBase) -> CoordinateTokens | None:
        """As a tokenizer has them; None for one that does not know them."""
        return cls.of(tokenizer) if COORDINATE_PLACEHOLDERS[0] in tokenizer.get_added_vocab() else None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> CoordinateTokens:
        """As a tokenizer has them.

        Raises:
            ValueError: when it lacks any.
        """
        found = dict(zip(NAMES, tokenizer.convert_tokens_to_ids(list(NAMES)), strict=True))
        lacks = [n for n, i in found.items() if i is None or tokenizer.convert_ids_to_tokens(i) != n]
        if lacks:
            raise UserError(
                f"the tokenizer does not know {len(lacks)} of the {len(NAMES)} coordinate tokens ({lacks[0]}, ...): "
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
        return self.labels(input_ids, labels, values), self.numbers(input_ids, values)

    def labels(self, input_ids: torch.Tensor, labels: torch.Tensor, values: Sequence[float]) -> torch.Tensor:
        """The labels alone that `place` gives, which also says what is raised: (L,)."""
        labels = labels.clone()
        names = {self.ids[name]: name for name in COORDINATE_PLACEHOLDERS}
        for at, value in self._valued(input_ids, values):
            if labels[at] != IGNORE_INDEX:
                name = names[int(input_ids[at])]
                labels[at] = self.ids[spell(name, value)] if is_asked(name) else IGNORE_INDEX
        return labels

    def numbers(self, input_ids: torch.Tensor, values: Sequence[float]) -> torch.Tensor:
        """The numbers alone that `place` gives, which also says what is raised: float32 (L,)."""
        coordinates = torch.full(input_ids.shape, NO_COORDINATE, dtype=torch.float32)
        for at, value in self._valued(input_ids, values):
            coordinates[at] = value
        return coordinates

    def _valued(self, input_ids: torch.Tensor, values: Sequence[float]) -> list[tuple[int, float]]:
        """Where the placeholders of a sequence (L,) stand, each with its number."""
        places = torch.isin(input_ids, self._placeholders).nonzero().flatten().tolist()
        if len(places) > len(values):
            raise UserError(f"{len(places)} coordinate placeholders but {len(values)} numbers in its variables")
        return list(zip(places, values, strict=False))

    def count(self, input_ids: torch.Tensor) -> int:
        """Coordinate tokens and placeholders of a sequence (L,)."""
        return int(torch.isin(input_ids, self._all).sum())

    def spelled(self, input_ids: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
        """Ids (L,) with the nearest coordinate token in place of each placeholder, whose number is in `coordinates`."""
        ids = input_ids.clone()
        names = {self.ids[name]: name for name in COORDINATE_PLACEHOLDERS}
        for at in torch.isin(input_ids, self._placeholders).nonzero().flatten().tolist():
            ids[at] = self.ids[spell(names[int(input_ids[at])], float(coordinates[at]))]
        return ids

    def answered(self, input_ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Ids (L,) with the label in place of each supervised placeholder of a number that is asked for, and at how
        many the label is no coordinate of its axis; there the placeholder stays.
        """
        ids, strays = input_ids.clone(), 0
        for axis in COORDINATE_AXES:
            asked = (input_ids == self.ids[f"<{axis}-OUTPUT>"]) & (labels != IGNORE_INDEX)
            known = torch.tensor([self.ids[f"<{axis}-{k:03d}>"] for k in range(NUM_COORDINATES)])
            right = asked & torch.isin(labels, known)
            ids[right] = labels[right]
            strays += int((asked & ~right).sum())
        return ids, strays

    @cached_property
    def told(self) -> torch.Tensor:
        """(3,) the ids of the placeholders of numbers that are told."""
        return torch.tensor([self.ids[name] for name in COORDINATE_PLACEHOLDERS if not is_asked(name)])

    @cached_property
    def _placeholders(self) -> torch.Tensor:
        return torch.tensor([self.ids[name] for name in COORDINATE_PLACEHOLDERS])

    @cached_property
    def _all(self) -> torch.Tensor:
        return torch.tensor(list(self.ids.values()))
