"""A record with its video and as text alone: both experiments must predict the same words.

Letters in shapes: L positions of one sequence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from llava.constants import IGNORE_INDEX
from llava.data.records import Record, text_alone
from llava.data.target_words import Numbers, as_written
from llava.data.text_format import TextFormat

Tokens = Callable[[Record], tuple[torch.Tensor, torch.Tensor]]
"""`input_ids` and `labels` (L,) of a record, in full."""

SHOWN = 8


@dataclass(frozen=True)
class Difference:
    """What a record predicts with vision and not as text alone, and the reverse, from the first token that differs.

    `first_word`: whether the tokens of the first word alone differ, which some tokenizers write otherwise at the start.
    """

    source: str
    record_id: str
    visual: str
    text: str
    first_word: bool

    def __str__(self) -> str:
        return f"{self.source} id {self.record_id!r} predicts {self.visual} with vision and {self.text} without"


def text_targets(ids: torch.Tensor, labels: torch.Tensor, visual_ids: Sequence[int]) -> list[int]:
    """The supervised ids of a sequence (L,) that are no visual tokens."""
    visual = torch.isin(ids, torch.tensor(list(visual_ids), dtype=ids.dtype))
    return ids[(labels != IGNORE_INDEX) & ~visual].tolist()


def common_targets(visual: Sequence[int], text: Sequence[int], skip: int = 1) -> tuple[list[int], list[int]] | None:
    """None where both forms predict the same from the first word on; else what each has where they part.

    Args:
        visual, text: `text_targets` of the two forms of a record.
        skip: targets at the beginning that are not compared. In plain LM nothing stands before the first token of a
            text alone, so that one is predicted beside a video and not without (`eval_common_loss` leaves it out too).
    """
    a, b = list(visual[skip:]), list(text[skip:])
    if a == b:
        return None
    same = 0
    while same < min(len(a), len(b)) and a[-1 - same] == b[-1 - same]:
        same += 1
    return list(visual[: len(visual) - same]), list(text[: len(text) - same])


def differing_forms(
    records: Sequence[Record], tokens: Tokens, tokenizer: PreTrainedTokenizerBase, visual_ids: Sequence[int]
) -> list[Difference]:
    """The records whose words are other targets with their videos and images than without."""
    found = []
    for record in records:
        whole = [tokens(r) for r in (record, text_alone(record))]
        first_is_target = int(whole[1][1][0]) != IGNORE_INDEX
        parted = common_targets(*(text_targets(*form, visual_ids) for form in whole), int(first_is_target))
        if parted is None:
            continue
        heads = [tokenizer.decode(ids).strip() for ids in parted]
        first_word = heads[0] == heads[1] and len(heads[0].split()) <= 1  # A space of its own leaves no word.
        shown = [repr(tokenizer.convert_ids_to_tokens(ids)[-SHOWN:]) for ids in parted]
        found.append(Difference(record.source, record.id, *shown, first_word))
    return found


def targets_digest(
    records: Sequence[Record],
    text_format: TextFormat,
    numbers: Numbers = as_written,
) -> str:
    """A hash of the words and numbers that records predict as text alone, in their order: the same for both experiments
    on them.

    Args:
        numbers: of a record, as it predicts them.
    """
    digest = hashlib.sha256()
    encoded = text_format.encode([text_alone(r).conversations for r in records])
    for record, (_, labels) in zip(records, encoded, strict=True):
        targets = [label for label in labels if label != IGNORE_INDEX][:-1]  # Without the end.
        digest.update(f"{targets}\n".encode())
        if record.coordinates:
            digest.update(f"{tuple(numbers(record))}\n".encode())
    return digest.hexdigest()
