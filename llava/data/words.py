"""Whether supervised ids read as the words of their record.

Letters in shapes: L positions of a sample.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from transformers import PreTrainedTokenizerBase

from llava.constants import IGNORE_INDEX, PLACEHOLDERS
from llava.data.coordinates import spell
from llava.data.records import Record
from llava.data.text_format import PlainLM, TextFormat
from llava.data.variables import fill, is_asked

_SPACED = re.compile(r"\s*(<(?:TEMP|HEIGHT|WIDTH)-\d+>)\s*")


def record_words(record: Record, text_format: TextFormat, numbers: Sequence[float] = ()) -> str:
    """What a record has to be learnt, without placeholders, composed (NFC), with single spaces; `numbers` that are
    asked for as their nearest coordinate tokens, those that are told left out.
    """

    def write(name: str, number: float) -> str:
        return spell(name, number) if is_asked(name) else " "

    text = text_format.words(fill(record.conversations, numbers, write) if numbers else record.conversations)
    for placeholder in PLACEHOLDERS:
        text = text.replace(placeholder, " ")
    return plain(text)


def plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def supervised_words(labels: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of the supervised ids of `labels` (L,), without special tokens; a space for masked ones between them."""
    runs = (list(run) for masked, run in groupby(labels.tolist(), lambda label: label == IGNORE_INDEX) if not masked)
    decode = partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return plain(" ".join(map(decode, runs)))


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
    record: Record,
    labels: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    cut: bool,
    text_format: TextFormat | None = None,
    numbers: Sequence[float] = (),
) -> OtherWords | None:
    """How the text of the supervised ids of `labels` (L,) differs from the record's; None where it does not.

    A tokenizer that changes text (unknown characters, lower case) is judged by what it makes of the text itself; some
    put their own spaces between words and marks.

    Args:
        cut: whether the sample was cut at the maximal length.
        text_format: what says which of the words are supervised; plain LM without it.
        numbers: at the record's coordinate placeholders, as they are in the picture that is shown.
    """
    found = supervised_words(labels, tokenizer)
    wanted = record_words(record, PlainLM(tokenizer) if text_format is None else text_format, numbers)
    if numbers:  # Some tokenizers put a space after every token that was added to them.
        found, wanted = _SPACED.sub(r"\1", found), _SPACED.sub(r"\1", wanted)
    if reads_as(found, wanted, cut):
        return None
    ids = tokenizer(wanted, add_special_tokens=False)["input_ids"]
    again = plain(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    if not reads_as(*("".join(text.split()) for text in (found, again)), cut):
        return OtherWords(found, wanted, by_tokenizer=False)
    return None if again == wanted else OtherWords(found, wanted, by_tokenizer=True)
