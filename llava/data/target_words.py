"""What the supervised words of a run are worth: their unigram entropy, the loss of who knows only their frequencies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from llava.constants import (
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    DEFAULT_VID_START_TOKEN,
    DEFAULT_VIDEO_TOKEN,
)
from llava.data.prompt import join_turns
from llava.data.records import Record

MAX_RECORDS = 5_000
"""Records that are counted, evenly spread: 0.2 s, and an entropy that is low by 0.05 nats at most."""


def count_targets(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, limit: int = MAX_RECORDS
) -> dict[str, Counter[int]]:
    """How often each token is a target, apart for "captions" (of records with a video or image) and "text".

    As in `llava.data.prompt.plain_lm_sample` every word and EOS is a target, a visual token none, and nothing stands
    before the first token. The words are tokenised in batches, which takes a hundredth of the time of whole samples.
    """
    step = max(1, math.ceil(len(records) / limit))
    chosen = records[::step]
    texts = [
        join_turns(r.conversations)
        .replace(DEFAULT_VIDEO_TOKEN, DEFAULT_VID_START_TOKEN)
        .replace(DEFAULT_IMAGE_TOKEN, DEFAULT_IM_START_TOKEN)
        for r in chosen
    ]
    counts: dict[str, Counter[int]] = {}
    if not texts:
        return counts
    visual = {tokenizer.convert_tokens_to_ids(t) for t in (DEFAULT_VID_START_TOKEN, DEFAULT_IM_START_TOKEN)}
    samples = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    for record, ids in zip(chosen, samples, strict=True):
        seen = bool(record.videos or record.images)
        count = counts.setdefault("captions" if seen else "text", Counter())
        count.update(token for token in [*ids, tokenizer.eos_token_id][1:] if not seen or token not in visual)
    return counts


def entropy(counts: Mapping[int, int] | Iterable[int]) -> float:
    """Entropy in nats of a distribution that is given by its counts."""
    values = list(counts.values() if isinstance(counts, Mapping) else counts)
    total = sum(values)
    return sum(n / total * math.log(total / n) for n in values if n) if total else 0.0


def target_entropies(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """The unigram entropy in nats of the targets of "captions" and of "text"."""
    return {words: entropy(count) for words, count in count_targets(records, tokenizer).items()}
