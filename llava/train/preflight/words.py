"""Pre-flight of the words: what is supervised reads as the record does, in the sample and in the training batch.

Letters in shapes: L positions of a sample, R rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llava.constants import IGNORE_INDEX
from llava.data.collator import VISION_KEYS, vision_of
from llava.data.positions import supervised_positions
from llava.data.records import Record, spread
from llava.data.words import differing_words
from llava.train.preflight.data import Finding

READ_RECORDS = 256


@contextmanager
def remembered_tokens(dataset: Any) -> Iterator[None]:
    """While active, a record is tokenised once, however many checks look at it."""
    make, make_whole = dataset.tokens, dataset.whole_tokens
    known: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    # With the records, since what is freed leaves its `id` to another.
    whole: dict[int, tuple[Record, tuple[torch.Tensor, torch.Tensor]]] = {}

    def tokens(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if index not in known:
            known[index] = make(index)
        return known[index]

    def whole_tokens(record: Record) -> tuple[torch.Tensor, torch.Tensor]:
        if id(record) not in whole:
            whole[id(record)] = record, make_whole(record)
        return whole[id(record)][1]

    dataset.tokens, dataset.whole_tokens = tokens, whole_tokens
    try:
        yield
    finally:
        del dataset.tokens, dataset.whole_tokens


def words_alone(sample: Mapping[str, Any], visual_ids: Sequence[int]) -> dict[str, Any]:
    """A sample without its vision and the positions of that: its words and their labels as a text has them."""
    words = ~torch.isin(sample["input_ids"], torch.tensor(list(visual_ids), dtype=sample["input_ids"].dtype))
    return {
        key: value[words] if isinstance(value, torch.Tensor) else value
        for key, value in sample.items()
        if key not in VISION_KEYS
    }


def check_words(dataset: Any, tokenizer: PreTrainedTokenizerBase) -> list[Finding]:
    """Whether the supervised ids of up to `READ_RECORDS` records of each modality decode to the record's words."""
    findings = []
    text_format = getattr(dataset, "text_format", None)
    for kind, members in dataset.forms().items():
        chosen = spread(members.tolist(), READ_RECORDS)
        wrong: list[str] = []
        changed = 0
        for index in chosen:
            record = dataset.record(index)
            ids, labels = dataset.tokens(index)
            numbers = dataset.numbers(record) if record.coordinates else ()
            is_cut = len(ids) == dataset.max_length
            different = differing_words(record, labels, tokenizer, is_cut, text_format, numbers)
            if different is not None and different.by_tokenizer:
                changed += 1
            elif different is not None:
                wrong.append(f"record {record.id!r}: {different}")
        name = f"words, {kind}"
        if wrong:
            words = f"{len(wrong)} of {len(chosen)} samples supervise other words than their record has ({wrong[0]})"
            remedy = "text must reach the labels whole: look at preprocess, truncation and the tokenizer"
            findings.append(Finding(name, "FAIL", words, remedy))
        elif changed:
            words = f"the tokenizer itself changes the text of {changed} of {len(chosen)} samples"
            findings.append(Finding(name, "note", words, "train one on the captions (llava-make-model)"))
        else:
            findings.append(Finding(name, "ok", f"the supervised ids of {len(chosen)} samples decode to their record"))
    return findings


def check_samples(
    dataset: Any,
    samples: Mapping[int, dict[str, Any]],
    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]],
    kind: str,
) -> Finding:
    """Whether samples as they are served, and the training batch made of them, hold the ids, labels and vision of their
    records.

    Args:
        samples: `dataset[i]` by index.
        collate: of training batches.
    """
    problems = []
    for index, sample in samples.items():
        name = dataset.record(index).id
        ids, labels = dataset.tokens(index)
        if sample["sample_id"] != name:
            problems.append(f"record {name!r} is served as {sample['sample_id']!r}")
        if not torch.equal(sample["input_ids"], ids) or not torch.equal(sample["labels"], labels):
            problems.append(f"record {name!r} is served with other ids or labels than its text gives")
        if "coordinates" in sample:
            wanted = dataset.numbered_tokens(index)[2]
            if wanted is None or not torch.equal(sample["coordinates"], wanted):
                problems.append(f"record {name!r} is served with other numbers than its variables give")
    # Ids of records may repeat; places do not.
    listed = [{**sample, "sample_id": str(place)} for place, sample in enumerate(samples.values())]
    batch = collate(listed)
    order = [int(name) for name in batch["sample_ids"]]
    if sorted(order) != list(range(len(listed))):
        problems.append(f"the training batch holds samples {order} of {len(listed)}")
    else:
        problems += _collated(batch, [listed[n] for n in order])
    name = f"training batch, {kind}"
    if problems:
        remedy = "a sample must be that of its record, and the training collator only lay it out"
        return Finding(name, "FAIL", "; ".join(dict.fromkeys(problems[:3])), remedy)
    words = (
        f"{len(listed)} samples in {len(batch['input_ids'])} rows: ids, labels and vision are those of their records"
    )
    return Finding(name, "ok", words)


def _collated(batch: dict[str, Any], samples: Sequence[dict[str, Any]]) -> list[str]:
    """What in a training batch is not that of its `samples`, in its order."""
    problems = []
    segments = batch["segment_ids"]
    for place, sample in enumerate(samples):
        own = segments == place
        labels = sample["labels"].clone()
        labels[0] = IGNORE_INDEX  # Nothing comes before it.
        laid = {"input_ids": sample["input_ids"], "labels": labels}
        if "coordinates" in sample:
            laid["coordinates"] = sample["coordinates"]
        for key, wanted in laid.items():
            if key not in batch or not torch.equal(batch[key][own], wanted):
                problems.append(f"{key} of a sample change in the training batch")
    targets = batch["supervised_positions"]
    if not torch.equal(targets[targets > 0], supervised_positions(batch["labels"])):
        problems.append("the training batch names other targets than its labels")
    if bool((batch["labels"][segments < 0] != IGNORE_INDEX).any()):
        problems.append("padding of the training batch is supervised")
    for key, own_vision in vision_of(samples).items():
        if not torch.equal(own_vision.nan_to_num(), batch[key].nan_to_num()):
            problems.append(f"{key} of the training batch are not those of its samples in their order")
    return problems
