"""Whether supervised ids read as the words of their record.

Letters in shapes: L positions of a sample.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from llava.constants import IGNORE_INDEX, PLACEHOLDERS
from llava.data.prompt import join_turns
from llava.data.records import Record


def record_words(record: Record) -> str:
    """The text of a record without placeholders, composed (NFC), with single spaces."""
    text = join_turns(record.conversations)
    for placeholder in PLACEHOLDERS:
        text = text.replace(placeholder, " ")
    return plain(text)


def plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def supervised_words(labels: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of the supervised ids of `labels` (L,), without special tokens."""
    ids = labels[labels != IGNORE_INDEX].tolist()
    return plain(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def reads_as(found: str, wanted: str, cut: bool) -> bool:
    """Whether supervised text is the wanted one, or its beginning where it was `cut`, which may split a character."""
    if cut:
        return wanted.startswith(found.rstrip("\ufffd").rstrip())
    return found == wanted


@dataclass(frozen=True)
class OtherWords:
    """Supervised text that is not the record's; `by_tokenizer`: the tokenizer itself makes it of the record's text."""

    found: str
    wanted: str
    by_tokenizer: bool

    def __str__(self) -> str:
        return f"{self.found[:60]!r} instead of {self.wanted[:60]!r}"


def differing_words(
    record: Record, labels: torch.Tensor, tokenizer: PreTrainedTokenizerBase, cut: bool
) -> OtherWords | None:
    """How the text of the supervised ids of `labels` (L,) differs from the record's; None where it does not.

    A tokenizer that changes text (unknown characters, lower case) is judged by what it makes of the text itself; some
    put their own spaces between words and marks.

    Args:
        cut: whether the sample was cut at the maximal length.
    """
    found, wanted = supervised_words(labels, tokenizer), record_words(record)
    if reads_as(found, wanted, cut):
        return None
    ids = tokenizer(wanted, add_special_tokens=False)["input_ids"]
    again = plain(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    if not reads_as(*("".join(text.split()) for text in (found, again)), cut):
        return OtherWords(found, wanted, by_tokenizer=False)
    return None if again == wanted else OtherWords(found, wanted, by_tokenizer=True)
