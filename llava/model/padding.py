"""How rows of ids become a batch, by transformers' names: `padding`, `truncation`, `max_length`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from llava.errors import UserError

PADDINGS = {True: "longest", False: "do_not_pad", None: "do_not_pad"}
TRUNCATIONS = {True: "longest_first", False: "do_not_truncate", None: "do_not_truncate"}
GROUPS = ("text_kwargs", "common_kwargs")
"""Arguments of a processor that hold others; those for images and videos hold nothing that a model leaves open."""


@dataclass(frozen=True)
class Padding:
    """Options of a processor about text.

    Attributes:
        padding: `longest` (True), `max_length`, or `do_not_pad` (False).
        padding_side: `left` or `right`.
        truncation: `longest_first` (True; of one text, its end), or `do_not_truncate` (False).
        max_length: positions, visual ones included.
        return_tensors: `pt`, `np`, or None for lists.
        return_offsets_mapping: whether to say where each token stands in its text.
    """

    padding: str = "longest"
    padding_side: str = "left"
    truncation: str = "do_not_truncate"
    max_length: int | None = None
    return_tensors: str | None = "pt"
    return_offsets_mapping: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any], what: str) -> Padding:
        """Options as a caller gives them, those in groups included.

        Args:
            what: is called, for the messages.

        Raises:
            TypeError: naming options that are not known, which would have no effect.
            ValueError: for values that are not known, or do not go together.
        """
        given: dict[str, Any] = {name: value for name, value in options.items() if not name.endswith("_kwargs")}
        for group, inner in options.items():
            if group.endswith("_kwargs"):
                known = group in GROUPS
                given |= {name if known else f"{group}[{name!r}]": value for name, value in (inner or {}).items()}
        names = [field.name for field in fields(cls)]
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise TypeError(
                f"{what} does not take {', '.join(unknown)}: frames, pixels and ids are made as in training, and "
                f"what can be chosen is {', '.join(names)}"
            )
        for name, meanings in (("padding", PADDINGS), ("truncation", TRUNCATIONS)):
            if not isinstance(given.get(name, ""), str):
                given[name] = meanings.get(given[name], str(given[name]))
        found = cls(**given)
        wrong = [
            f"{name} is {value!r}, expected one of {', '.join(map(repr, known))}"
            for name, value, known in (
                ("padding", found.padding, ("longest", "max_length", "do_not_pad")),
                ("padding_side", found.padding_side, ("left", "right")),
                ("truncation", found.truncation, ("longest_first", "do_not_truncate")),
                ("return_tensors", found.return_tensors, ("pt", "np", None)),
            )
            if value not in known
        ]
        uses = found.padding == "max_length" or found.truncation == "longest_first"
        if uses != (found.max_length is not None):
            wrong.append(
                f"{'no ' if uses else ''}max_length is given: it goes with padding='max_length' or truncation=True"
            )
        if wrong:
            raise UserError(f"{what}: {'; '.join(wrong)}")
        return found

    def cut(self, rows: Sequence[Sequence[int]], visual: Collection[int]) -> list[list[int]]:
        """Rows of at most `max_length` ids, where they are to be cut, without those at their ends.

        Raises:
            ValueError: where a visual token (one of `visual`) would be cut off, with the row and the numbers.
        """
        if self.truncation == "do_not_truncate":
            return [list(row) for row in rows]
        for i, row in enumerate(rows):
            if set(row[self.max_length :]) & set(visual):
                raise UserError(
                    f"text {i}: {len(row)} positions, {sum(id_ in visual for id_ in row)} of them visual, do not fit "
                    f"max_length={self.max_length}: no video or image may be cut; give more, or put the text behind it"
                )
        return [list(row[: self.max_length]) for row in rows]

    def batch(self, rows: Sequence[Sequence[int]], pad: int) -> dict[str, list[list[int]]]:
        """`input_ids` and `attention_mask` of rows.

        Raises:
            ValueError: for rows of several lengths that are to be one tensor, without padding.
        """
        lengths = [len(row) for row in rows]
        if self.padding == "do_not_pad" and self.return_tensors is not None and len(set(lengths)) > 1:
            raise UserError(f"texts of {lengths} positions are no tensor: padding=True, or return_tensors=None")
        masks = [[1] * length for length in lengths]
        return {"input_ids": self.filled(rows, pad), "attention_mask": self.filled(masks, 0)}

    def filled(self, rows: Sequence[Sequence[Any]], empty: Any) -> list[list[Any]]:
        """Rows filled up to one length with `empty`, where they are to be."""
        lengths = [len(row) for row in rows]
        width = max([self.max_length or 0, *lengths]) if self.padding == "max_length" else max(lengths)
        fill = [0 if self.padding == "do_not_pad" else width - length for length in lengths]
        left = self.padding_side == "left"
        return [[empty] * n + list(row) if left else list(row) + [empty] * n for row, n in zip(rows, fill, strict=True)]
