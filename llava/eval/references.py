"""What a record asks and answers, and which texts are the references of its clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from llava.constants import PLACEHOLDERS
from llava.data.captions import MODEL_ROLES
from llava.data.prompt import join_turns, plain_turns
from llava.data.records import Record


def answer_of(record: Record) -> int | None:
    """The turn that answers what the record shows: the first answer after the last placeholder; None without one."""
    turns = record.conversations
    shown = [i for i, turn in enumerate(turns) if any(p in turn["value"] for p in PLACEHOLDERS)]
    answers = [i for i, turn in enumerate(turns) if turn["from"] in MODEL_ROLES and turn["value"].strip()]
    return next((i for i in answers if i > max(shown, default=-1)), None)


def is_captioned_clip(record: Record) -> bool:
    """Whether a record shows one video and nothing else, and answers it in words: numbers are asked for elsewhere."""
    is_shown = len(record.videos) == 1 and not record.images and not record.coordinates
    return is_shown and answer_of(record) is not None


def prompt_of(record: Record) -> str:
    """The text of a record up to the answer."""
    return join_turns(plain_turns(record.conversations[: answer_of(record)]))


def reference_of(record: Record) -> str:
    """The text of a record's answer."""
    answer = answer_of(record)
    return "" if answer is None else record.conversations[answer]["value"].strip()


def longest_reference(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the longest reference."""
    return max(len(ids) for ids in tokenizer([reference_of(r) for r in records], add_special_tokens=False)["input_ids"])


def clip_of(record: Record) -> tuple[Any, ...]:
    """What a record shows: records are of one clip where this is equal."""
    return record.videos, record.split


def references_of(records: Sequence[Record]) -> dict[tuple[Any, ...], list[str]]:
    """The answers of all records of each clip, in reading order; one that stands there twice counts twice."""
    texts: dict[tuple[Any, ...], list[str]] = {}
    for record in records:
        texts.setdefault(clip_of(record), []).append(reference_of(record))
    return texts
