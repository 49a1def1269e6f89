"""Pre-flight of the data: what is supervised, counted and shown token by token.

Letters in shapes: B batch, L positions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from llava.constants import IGNORE_INDEX
from llava.data.captions import MODEL_ROLES
from llava.data.chat_formats import PLAIN
from llava.data.coordinates import CoordinateTokens
from llava.data.forms import differing_forms
from llava.data.records import MODALITIES, Record, modality, modality_codes, remarks, spread
from llava.data.text_format import PlainLM, TextFormat
from llava.data.text_start import EOS
from llava.errors import show

MAX_RECORDS = 256
STATUSES = ("ok", "note", "warning", "FAIL")


@dataclass(frozen=True)
class Finding:
    """A line of the pre-flight table; `status` is one of `STATUSES`, and a FAIL stops the run.

    `nats` is a loss per token that was measured, for those who read `preflight.json`.
    """

    check: str
    status: str
    finding: str
    remedy: str = ""
    nats: float | None = None

    def __post_init__(self) -> None:
        """Findings name records and files; they stay one line that can be written anywhere."""
        object.__setattr__(self, "finding", show(self.finding))


@dataclass
class LabelCounts:
    """What became of the positions of some samples, and what is wrong with them (record and words)."""

    samples: int = 0
    supervised: int = 0
    masked_visual: int = 0
    masked_other: int = 0
    padding: int = 0
    unknown: int = 0
    problems: dict[str, list[str]] = field(default_factory=dict)

    def problem(self, what: str, record_id: str) -> None:
        self.problems.setdefault(what, []).append(record_id)


def count_labels(
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    record: Record,
    tokenizer: PreTrainedTokenizerBase,
    visual_ids: Sequence[int],
    expected_visual: int,
    counts: LabelCounts,
    text_format: TextFormat,
    coordinates: CoordinateTokens | None = None,
) -> None:
    """Adds one sample (L,) to `counts`, with every way in which its labels are wrong.

    Args:
        coordinates: the tokens of numbers; what is told is no target, and the target of what is asked for a coordinate.
        expected_visual: visual positions that the record's videos and images take.
    """
    visual = torch.isin(input_ids, torch.tensor(list(visual_ids), dtype=input_ids.dtype))
    supervised = labels != IGNORE_INDEX
    told = torch.zeros_like(visual)
    if coordinates is not None:
        told = torch.isin(input_ids, coordinates.told)
        if (told & supervised).any():
            counts.problem("numbers that are told are targets", record.id)
        input_ids, strays = coordinates.answered(input_ids, labels)
        if strays:
            counts.problem("the label of a number that is asked for is no coordinate of its axis", record.id)
    targets = supervised.clone()
    targets[0] = False  # Nothing comes before it, so it is never predicted.
    eos = tokenizer.eos_token_id
    counts.samples += 1
    counts.supervised += int(targets.sum())
    counts.masked_visual += int((visual & ~supervised).sum())
    counts.masked_other += int((~visual & ~supervised).sum())
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id != eos:
        counts.unknown += int((labels == tokenizer.unk_token_id).sum())
    if torch.isin(labels, torch.tensor(list(visual_ids), dtype=labels.dtype)).any():
        counts.problem("visual tokens are targets: the mask of the labels is missing", record.id)
    elif (labels[supervised] != input_ids[supervised]).any():
        ahead = labels[:-1] == input_ids[1:]
        shifted = bool(ahead[supervised[:-1]].float().mean() > 0.5)
        words = "the labels are shifted by one (the model shifts them itself)" if shifted else "labels differ from ids"
        counts.problem(words, record.id)
    if text_format.version == PLAIN:
        if int((labels == eos).sum()) != 1 or int(labels[-1]) != eos:
            words = "EOS is not supervised exactly once, at the end: a caption would not learn to stop"
            counts.problem(words, record.id)
        if (~visual & ~supervised & ~told & (input_ids != eos))[1:].any():
            counts.problem("words are masked", record.id)
        starts = [int((~visual).int().argmax())] if text_format.text_start == EOS else []
        if (input_ids == eos).nonzero().flatten().tolist() != [*starts, len(input_ids) - 1]:
            where = "once, before the first word" if starts else "nowhere before the end"
            counts.problem(f"--text_start {text_format.text_start}: EOS must stand {where}", record.id)
    else:
        end = text_format.end_ids[-1]
        answers = sum(turn["from"] in MODEL_ROLES for turn in record.conversations)
        if int((labels == end).sum()) != answers or [*labels[supervised].tolist(), None][-2:] != [end, None]:
            token = tokenizer.convert_ids_to_tokens(end)
            words = f"{token} is not supervised once for each answer, at its end: the model would not learn to stop"
            counts.problem(words, record.id)
        if int(supervised.sum()) == len(labels):
            counts.problem("questions and markup are targets", record.id)
    if int(targets.sum()) < (2 if expected_visual or text_format.text_start == EOS else 1):
        counts.problem("no word is supervised", record.id)
    if int(visual.sum()) != expected_visual:
        found = int(visual.sum())
        counts.problem(f"{found} visual positions where its videos and images take {expected_visual}", record.id)


def check_labels(
    dataset: Any, collate: Any, tokenizer: PreTrainedTokenizerBase, visual_ids: Sequence[int]
) -> list[Finding]:
    """Labels of a sample of records of each modality, before and after collation; no file is opened."""
    findings = []
    text_format = getattr(dataset, "text_format", PlainLM(tokenizer))
    for kind, members in dataset.forms().items():
        counts = LabelCounts()
        chosen = spread(members.tolist(), MAX_RECORDS)
        samples = []
        for index in chosen:
            record = dataset.record(index)
            ids, labels = dataset.tokens(index)
            expected = 0
            if dataset.spec is not None:
                expected = len(record.videos) * dataset.spec.rows + len(record.images) * dataset.spec.image_rows
            numbers = getattr(dataset, "coordinates", None)
            count_labels(ids, labels, record, tokenizer, visual_ids, expected, counts, text_format, numbers)
            samples.append({"input_ids": ids, "labels": labels, "sample_id": record.id})
        batch = collate(samples)
        for b, sample in enumerate(samples):
            length = len(sample["input_ids"])
            counts.padding += batch["input_ids"].shape[1] - length
            mask = batch["attention_mask"][b]
            if not mask[:length].all() or mask[length:].any():
                counts.problem("the attention mask is not that of its length: words are hidden or padding is seen",
                               sample["sample_id"])  # fmt: skip
            if (batch["labels"][b, length:] != IGNORE_INDEX).any():
                counts.problem("padding is supervised", sample["sample_id"])
        findings.append(_label_finding(kind, counts, text_format))
        if counts.unknown:
            share = counts.unknown / counts.supervised
            findings.append(
                Finding(
                    f"unknown words, {kind}",
                    "warning",
                    f"{share:.1%} of the targets are the tokenizer's unknown token: the model learns to say it",
                    "train a tokenizer on the captions (llava-make-model)",
                )
            )
    cut = getattr(dataset, "num_cut", 0)
    if cut:
        findings.append(
            Finding(
                "length",
                "warning",
                f"{cut} of {len(dataset)} samples are cut at {dataset.max_length} positions, with EOS after the cut",
                "raise --model_max_length, or split the captions",
            )
        )
    return findings


def check_text_form(dataset: Any, tokenizer: PreTrainedTokenizerBase, visual_ids: Sequence[int]) -> Finding | None:
    """Whether records predict the same words with their videos and images as without; None when none has any."""
    visual = np.flatnonzero(modality_codes(dataset.records) != MODALITIES.index("text")).tolist()
    chosen = [dataset.records[i] for i in spread(visual, MAX_RECORDS)]
    if not chosen:
        return None
    wrong = differing_forms(chosen, dataset.whole_tokens, tokenizer, visual_ids)
    if not wrong:
        return Finding("text form", "ok", f"{len(chosen)} records predict the same words with vision and without")
    only_first = all(d.first_word for d in wrong)
    words = (
        f"{len(wrong)} of {len(chosen)} records predict other tokens with vision than as text alone"
        f"{', at their first word' if only_first else ''}: {wrong[0]}"
    )
    remedy = (
        "make the tokenizer write a word at the start as after a video (add_prefix_space=True, as "
        "llava-make-model does); until then no text-only run is comparable with this one"
    )
    return Finding("text form", "warning" if only_first else "FAIL", words, remedy)


def check_remarks(records: Sequence[Record]) -> list[Finding]:
    """What reading remarked on in the records; nothing when there is nothing."""
    found = remarks(records)
    if not found:
        return []
    first = found[0]
    kinds = ", ".join(f"{sum(p.kind == kind for p in found)} {kind}" for kind in dict.fromkeys(p.kind for p in found))
    words = f"{kinds} (first: {first.source} id {first.record_id!r}: {first.message})"
    return [Finding("records", "warning", words, "python -m llava.data.check lists all")]


def _label_finding(kind: str, counts: LabelCounts, text_format: TextFormat) -> Finding:
    positions = counts.supervised + counts.masked_visual + counts.masked_other + counts.padding
    words = (
        f"{counts.samples} samples: {counts.supervised / counts.samples:.1f} supervised, "
        f"{counts.masked_visual / counts.samples:.0f} masked visual, {counts.masked_other / counts.samples:.0f} masked "
        f"other, {counts.padding / counts.samples:.0f} padding a sample; {counts.supervised / max(positions, 1):.1%} "
        "of the positions are supervised"
    )
    if not counts.problems:
        return Finding(f"labels, {kind}", "ok", words)
    listed = "; ".join(
        f"{what} ({len(ids)} of {counts.samples} samples, e.g. {ids[0]!r})" for what, ids in counts.problems.items()
    )
    if text_format.version == PLAIN:
        remedy = (
            "labels must equal the ids at every word and EOS and be -100 at visual tokens, as "
            "llava.train.train.preprocess_plain_lm makes them"
        )
    else:
        remedy = (
            "labels must equal the ids at the assistant's words and at the end of each of its turns, and be -100 "
            "elsewhere, as llava.train.train.preprocess makes them"
        )
    return Finding(f"labels, {kind}", "FAIL", listed, remedy)


def check_format(text_format: TextFormat, tokenizer: PreTrainedTokenizerBase) -> list[Finding]:
    """What a chat format is and where its answers end; nothing in plain LM."""
    if text_format.version == PLAIN:
        return []
    tokens = tokenizer.convert_ids_to_tokens(list(text_format.end_ids))
    words = (
        f"{text_format.version}: the assistant's words and {tokens[-1]} are supervised, nothing else; an answer ends "
        f"at {' or '.join(dict.fromkeys(tokens))}"
    )
    if tokenizer.chat_template != text_format.template:
        remedy = "the checkpoint would keep another template than it trains with: record it with record_format"
        return [Finding("text format", "FAIL", words, remedy)]
    return [Finding("text format", "ok", words)]


def check_tokens(tokenizer: PreTrainedTokenizerBase, ids: Mapping[str, int], embeddings: int) -> Finding:
    """Whether every visual token is one token of its own, and every token has an embedding.

    Args:
        ids: the visual tokens' ids as the model's config knows them.
        embeddings: rows of the model's embedding table.
    """
    problems = []
    for token, expected in ids.items():
        found = tokenizer(token, add_special_tokens=False)["input_ids"]
        if found != [expected]:
            problems.append(f"{token} becomes {found} where the model expects [{expected}]")
    if len(set(ids.values())) < len(ids):
        problems.append("visual tokens share an id")
    if len(tokenizer) > embeddings:
        problems.append(f"the tokenizer has {len(tokenizer)} entries, the model {embeddings} embeddings")
    if problems:
        remedy = "register them with llava.model.builder.add_visual_tokens(tokenizer, model)"
        return Finding("visual tokens", "FAIL", "; ".join(problems), remedy)
    words = f"{len(ids)} registered, each one token; {len(tokenizer)} entries, {embeddings} embeddings"
    return Finding("visual tokens", "ok", words)


def sample_text(
    record: Record,
    ids: torch.Tensor,
    labels: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    visual: Sequence[int],
    owners: Sequence[str] | None = None,
) -> Text:
    """A sample as coloured text: green is predicted, cyan is where video features stand, red is masked text.

    Runs of the same visual token are written once, with their number.

    Args:
        owners: who wrote each id (`TextFormat.places`): what others wrote than the assistant is masked and has colours
            of its own.
    """
    text = Text()
    text.append(f"{modality(record)} {record.id}", style="bold")
    legend = "green: predicted, cyan: vision, grey: the start of the text or a number that is told, red: neither"
    if owners is not None and {"user", "system"} & set(owners):
        legend = (
            "green: the assistant, predicted, yellow: the user, magenta: the system, grey: markup, cyan: vision, red: "
            "an answer that is masked"
        )
    text.append(f"  ({legend})\n")
    for (token, state), run in groupby(_states(ids, labels, visual, owners)):
        length = len(list(run))
        piece = show(tokenizer.convert_tokens_to_string([tokenizer.convert_ids_to_tokens(token)]))
        repeated = f"×{length}" if length > 1 and state == "cyan" else ""
        shown = piece + repeated if repeated or length == 1 else piece * length
        text.append(shown, style=state)
        if state != "cyan":
            text.append("·", style="dim")
    text.append("\n")
    return text


OWNER_COLOURS = {"user": "yellow", "system": "magenta", "markup": "bright_black", "assistant": "red"}
"""Of masked positions; an answer should not be masked."""


def _states(
    ids: torch.Tensor, labels: torch.Tensor, visual: Sequence[int], owners: Sequence[str] | None
) -> Iterator[tuple[int, str]]:
    members = set(visual)
    owners = ["assistant"] * len(ids) if owners is None else owners
    for position, (token, label, owner) in enumerate(zip(ids.tolist(), labels.tolist(), owners, strict=False)):
        predicted = label != IGNORE_INDEX and position > 0
        wrong = predicted and (token in members or owner in ("user", "system"))
        if wrong:
            yield token, "bold white on red"
        else:
            yield token, "green" if predicted else "cyan" if token in members else OWNER_COLOURS[owner]


def owners_of(dataset: Any, record: Record) -> list[str]:
    """Who wrote each position of a record's sample; a number that is told is nobody's to predict.

    A cut sample ends as a whole one does, with what is predicted, so it is told right by its beginning.
    """
    ids, _ = next(dataset.text_format.encode([record.conversations]))
    spans = dataset.spans.ids if record.videos or record.images else {}
    told = set() if dataset.coordinates is None else set(dataset.coordinates.told.tolist())
    owners = dataset.text_format.places(record.conversations)
    owners = ["markup" if i in told and o == "assistant" else o for i, o in zip(ids, owners, strict=True)]
    places = zip(ids, owners, strict=True)
    return [owner for token, owner in places for _ in range(len(spans.get(token, "1")))]


def show_samples(
    dataset: Any, tokenizer: PreTrainedTokenizerBase, visual: Sequence[int], number: int
) -> tuple[list[Text], str]:
    """`number` samples of each modality as coloured text, and as a page of HTML (at least one); numbers are shown as
    their nearest coordinates.
    """
    texts = []
    for members in dataset.forms().values():
        for index in spread(members.tolist(), max(number, 1)):
            record = dataset.record(index)
            ids, labels, numbers = dataset.numbered_tokens(index)
            if numbers is not None:
                ids = dataset.coordinates.spelled(ids, numbers)
            texts.append(sample_text(record, ids, labels, tokenizer, visual, owners_of(dataset, record)))
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=120, file=nowhere, force_terminal=True)
        for text in texts:
            console.print(text)
        page = console.export_html(inline_styles=True)
    return (texts if number else []), page
