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
from llava.data.prompt import join_turns
from llava.data.records import Record, text_alone

Tokens = Callable[[Record], tuple[torch.Tensor, torch.Tensor]]
"""`input_ids` and `labels` (L,) of a record, in full."""

SHOWN = 8
AT_ONCE = 1000


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


def common_targets(visual: Sequence[int], text: Sequence[int]) -> tuple[list[int], list[int]] | None:
    """None where both forms predict the same from the first word on; else what each has where they part.

    Nothing stands before the first token of a text alone, so it is predicted beside a video and not without; the
    comparison begins after it (`eval_common_loss` does the same).

    Args:
        visual, text: `text_targets` of the two forms of a record.
    """
    a, b = list(visual[1:]), list(text[1:])
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
        forms = [text_targets(*tokens(r), visual_ids) for r in (record, text_alone(record))]
        parted = common_targets(*forms)
        if parted is None:
            continue
        heads = [tokenizer.decode(ids).strip() for ids in parted]
        first_word = heads[0] == heads[1] and len(heads[0].split()) == 1
        shown = [repr(tokenizer.convert_ids_to_tokens(ids)[-SHOWN:]) for ids in parted]
        found.append(Difference(record.source, record.id, *shown, first_word))
    return found


def targets_digest(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the words that records predict as text alone, in their order: the same for both experiments on them."""
    digest = hashlib.sha256()
    texts = [join_turns(text_alone(r).conversations) for r in records]
    for start in range(0, len(texts), AT_ONCE):
        for ids in tokenizer(texts[start : start + AT_ONCE], add_special_tokens=False)["input_ids"]:
            digest.update(f"{ids}\n".encode())
    return digest.hexdigest()
