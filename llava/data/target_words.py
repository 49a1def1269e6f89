"""What the supervised words of a run are worth: their unigram entropy, the loss of who knows only their frequencies;
and what a run's record keeps of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from llava.constants import IGNORE_INDEX
from llava.data.captions import MODEL_ROLES
from llava.data.chat_formats import PLAIN
from llava.data.columns import RecordView
from llava.data.coordinates import CoordinateTokens
from llava.data.hashes import hash64
from llava.data.records import MODALITIES, Record, modality_codes
from llava.data.sources import words_by_turn
from llava.data.text_format import PlainLM, TextFormat

if TYPE_CHECKING:
    from llava.data.token_table import TokenTable

MAX_RECORDS = 5_000
"""Records that are counted, evenly spread: 0.2 s, and an entropy that is low by 0.05 nats at most."""


Numbers = Callable[[Record], Sequence[float]]


def as_written(record: Record) -> Sequence[float]:
    """The numbers of a record as its file has them."""
    return record.coordinates


@dataclass
class TargetCount:
    """How often each token is a target; the supervised words between white space, and the tokens that write them."""

    targets: Counter[int] = field(default_factory=Counter)
    words: int = 0
    written: int = 0


def count_targets(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    limit: int = MAX_RECORDS,
    text_format: TextFormat | None = None,
    numbers: Numbers = as_written,
    prepared: TokenTable | None = None,
) -> dict[str, TargetCount]:
    """The targets of "captions" (of records with a video or image) and of "text"; in plain LM without a format.

    The words are tokenised in batches, which takes a hundredth of the time of whole samples.

    Args:
        numbers: of a record, as it predicts them.
        prepared: ids that `text_format` has given for the records, which are of a table then.
    """
    text_format = PlainLM(tokenizer) if text_format is None else text_format
    step = max(1, math.ceil(len(records) / limit))
    chosen = records[::step]
    no_word = {IGNORE_INDEX, tokenizer.eos_token_id, *text_format.end_ids}
    if prepared is not None and prepared.holds(chosen.rows).all() and not chosen.with_coordinates().any():  # type: ignore[attr-defined]
        shows = modality_codes(records)[::step] != MODALITIES.index("text")
        return _count_prepared(chosen, shows, prepared, no_word, text_format.version)
    counts: dict[str, TargetCount] = {}
    coordinates = CoordinateTokens.known(tokenizer)
    for record, (ids, labels) in zip(chosen, text_format.encode([r.conversations for r in chosen]), strict=True):
        if coordinates is not None and record.coordinates:
            labels = coordinates.labels(torch.tensor(ids), torch.tensor(labels), numbers(record)).tolist()
        count = counts.setdefault("captions" if record.videos or record.images else "text", TargetCount())
        # Nothing stands before the first token, so it is no target.
        count.targets.update(label for label in labels[1:] if label != IGNORE_INDEX)
        count.written += sum(label not in no_word for label in labels)
        count.words += _supervised_words(record, text_format.version)
    return counts


def _count_prepared(
    records: Any, shows: np.ndarray, prepared: TokenTable, no_word: set[int], version: str
) -> dict[str, TargetCount]:
    """`count_targets` of records of a table without numbers, all of whose ids are held; `shows` (N,) bool says which
    have a video or image.
    """
    counts = {}
    for kind in (("text", "captions")[int(shows[place])] for place in np.sort(np.unique(shows, return_index=True)[1])):
        places = np.flatnonzero(shows == (kind == "captions"))
        labels, starts = prepared.labels(records.rows[places])
        words = (
            int(records.column("words")[places].sum())
            if version == PLAIN
            else sum(_supervised_words(record, version) for record in records.take(places))
        )
        written = int((~np.isin(labels, list(no_word))).sum())
        labels[starts] = IGNORE_INDEX  # Nothing stands before the first token, so it is no target.
        counts[kind] = TargetCount(Counter(labels[labels != IGNORE_INDEX].tolist()), words, written)
    return counts


def _supervised_words(record: Record, version: str) -> int:
    return sum(
        len(words)
        for turn, words in zip(record.conversations, words_by_turn(record), strict=True)
        if version == PLAIN or turn["from"] in MODEL_ROLES
    )


def entropy(counts: Mapping[int, int] | Iterable[int]) -> float:
    """Entropy in nats of a distribution that is given by its counts."""
    values = list(counts.values() if isinstance(counts, Mapping) else counts)
    total = sum(values)
    return sum(n / total * math.log(total / n) for n in values if n) if total else 0.0


def target_entropies(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, text_format: TextFormat | None = None
) -> dict[str, float]:
    """The unigram entropy in nats of the targets of "captions" and of "text"."""
    return {words: found["entropy"] for words, found in describe_targets(records, tokenizer, text_format).items()}


def describe_targets(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    text_format: TextFormat | None = None,
    numbers: Numbers = as_written,
    prepared: TokenTable | None = None,
) -> dict[str, dict[str, Any]]:
    """What a run's record keeps of the targets of "captions" and of "text", as counted in at most about `MAX_RECORDS`
    records: how many `tokens` are targets, their unigram `entropy` in nats, how many of them are the tokenizer's
    `unknown` token (None where it has none), the supervised `words` between white space, and the `tokens_per_word` that
    these take.
    """
    if not records:
        return {}
    unknown = tokenizer.unk_token_id if tokenizer.unk_token_id != tokenizer.eos_token_id else None
    return {
        kind: {
            "tokens": sum(count.targets.values()),
            "entropy": entropy(count.targets),
            "unknown": None if unknown is None else count.targets[unknown],
            "words": count.words,
            "tokens_per_word": count.written / count.words if count.words else None,
        }
        for kind, count in count_targets(
            records, tokenizer, text_format=text_format, numbers=numbers, prepared=prepared
        ).items()
    }


def repeated_texts(evaluation: Sequence[Record], training: Sequence[Record]) -> int:
    """How many records of an evaluation say word by word what one of the training says, whatever their clips."""
    return int(np.isin(_said(evaluation), _said(training)).sum())


def _said(records: Sequence[Record]) -> np.ndarray:
    """(N,) uint64: `said_by` of every record."""
    if isinstance(records, RecordView):
        return records.column("said")
    return np.fromiter(map(said_by, records), dtype=np.uint64, count=len(records))


def said_by(record: Record) -> int:
    """A hash of the words of a record and its numbers, without placeholders of files and the kind of white space."""
    return said_in(record, words_by_turn(record))


def said_in(record: Record, turns: Sequence[Sequence[str]]) -> int:
    """`said_by` of a record whose `words_by_turn` are known."""
    words = " ".join([" ".join(turn) for turn in turns]).strip()
    return hash64(f"{words} {record.coordinates}" if record.coordinates else words)
