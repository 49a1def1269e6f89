"""Records to training samples.

Letters in shapes: L positions, V videos, I images, T frames, S pixels, P patches, Dv width of the vision tower.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from llava.config.video import ProcessorSpec, VideoSpec
from llava.constants import FILLER_ID, FILLER_INDEX, IGNORE_INDEX
from llava.data.blind import BlindDraw
from llava.data.chat_formats import PLAIN
from llava.data.columns import representatives
from llava.data.coordinates import CoordinateTokens
from llava.data.features.extract import FeatureCache
from llava.data.features.store import Clip
from llava.data.features.workers import CLIP_TIMEOUT
from llava.data.other_clips import OtherClips, clips_named
from llava.data.prompt import Spans
from llava.data.record_table import RecordTable
from llava.data.records import MODALITIES, Problem, Record, by_modality, spread
from llava.data.square_numbers import moved_numbers
from llava.data.text_format import PlainLM, TextFormat
from llava.data.token_table import TokenTable
from llava.data.video import frames_to_pixels, read_frames, read_image
from llava.data.watch import ClipWatch
from llava.errors import UserError, show

Preprocess = Callable[..., Mapping[str, list[torch.Tensor]]]
"""`(conversations with markers for placeholders, tokenizer, has_image=…)` to `input_ids` and `labels`."""

LEAST_CUT = 4
"""Positions of a plain text that is cut: a start, two words and the end."""
CLOSING = 4
"""Positions within which a box or span ends after its last number: a space, a bracket, a stop."""
COMPARED = 64
"""Records whose prepared tokens are compared with their text at the start of every run."""


class LazySupervisedDataset(Dataset):
    """A sample is made when it is asked for: text by `preprocess`, vision from the cache or from the file.

    A file that cannot be read raises `VideoError` here, inside the worker, and training stops: no other sample ever
    takes its place.

    Attributes:
        others: what records are shown in place of their own clips; None shows them their own.
        alone: the samples of the same records as text alone; `N + i` is then record `i` without its video, a sample of
            `alone` to the token.
        blind: which of them an epoch shows so.
        coordinates: the coordinate tokens of the tokenizer; every sample then has its numbers beside its ids. None
            where it does not know them.
    """

    others: OtherClips | None = None
    alone: LazySupervisedDataset | None = None
    blind: BlindDraw | None = None

    def __init__(
        self,
        records: Sequence[Record],
        tokenizer: PreTrainedTokenizerBase,
        preprocess: Preprocess,
        max_length: int,
        spec: VideoSpec | None = None,
        processor: ProcessorSpec | None = None,
        cache: FeatureCache | None = None,
        clip_timeout: float = CLIP_TIMEOUT,
        text_format: TextFormat | None = None,
        num_cut: int = 0,
        prepared: TokenTable | None = None,
        image_aspect_ratio: str | None = None,
    ) -> None:
        self.records = records
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.max_length = max_length
        self.spec = spec
        self.processor = processor
        self.image_aspect_ratio = image_aspect_ratio if spec is None else spec.image_aspect_ratio
        """How frames are made square, that of the frames of text alone too: numbers of places are moved so."""
        self.cache = cache
        self.watch = ClipWatch(clip_timeout)
        self.text_format: TextFormat = PlainLM(tokenizer) if text_format is None else text_format
        """What lays the turns out and cuts them; `preprocess` is its own, but for an experiment that breaks it."""
        self.coordinates = CoordinateTokens.known(tokenizer)
        self.num_cut = num_cut
        """Samples whose text `max_length` cuts, counted by who knows their lengths."""
        self.prepared = prepared
        """Ids that `text_format` has given for `records`, which are of a table then; where some are not held, or
        `preprocess` is another, they are made."""

    def __len__(self) -> int:
        return len(self.records)

    def tokens(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`input_ids` and `labels` (L,) of a record, truncated to `max_length`; the label of a number that is asked for
        is its nearest coordinate.

        Raises:
            ValueError: naming the record, when its visual spans or its numbers do not fit.
        """
        if index >= len(self.records) and self.alone is not None:
            return self.alone.tokens(index - len(self.records))
        record = self.records[index]
        return self.finished(record, lambda: self.prepared_tokens(index, record) or self.whole_tokens(record))

    def numbered_tokens(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """`tokens`, and where there are coordinates the numbers (L,) float32 beside them."""
        ids, labels = self.tokens(index)
        if self.coordinates is None:
            return ids, labels, None
        owner = self.alone if index >= len(self.records) and self.alone is not None else self
        return ids, labels, self.coordinates.numbers(ids, owner.numbers(self.record(index)))

    def finished(
        self, record: Record, make: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Whole ids and labels (L,) of a record that `make` gives, truncated, its numbers among the labels."""
        try:
            ids, labels = cut(make(), self.text_format, self.max_length, self.coordinates)
            if self.coordinates is None:
                return ids, labels
            return ids, self.coordinates.labels(ids, labels, self.numbers(record))
        except ValueError as error:
            raise _named(error, record) from error

    def numbers(self, record: Record) -> tuple[float, ...]:
        """The numbers at a record's coordinate placeholders, as they are in the picture that the tower sees, or that
        another run's tower does.
        """
        return moved_numbers(record, self.image_aspect_ratio, self.processor)

    def prepared_tokens(self, index: int, record: Record) -> tuple[torch.Tensor, torch.Tensor] | None:
        """`input_ids` and `labels` (L,) of the record at `index` in full as they were prepared; None where they must be
        made.
        """
        if self.prepared is None or self.preprocess != self.text_format.preprocess:
            return None
        row = int(self.records.rows[index])  # type: ignore[attr-defined]
        if not self.prepared.holds(row):
            return None
        ids, labels = self.prepared[row]
        return self.spans.insert(ids, labels) if record.videos or record.images else (ids, labels)

    def differs_from_prepared(self, number: int = COMPARED) -> str | None:
        """The id of a record whose prepared tokens are not those of its text, of some evenly spread; None for none."""
        for index in spread(range(len(self.records)), number):
            record = self.records[index]
            found = self.prepared_tokens(index, record)
            if found is not None and not all(map(torch.equal, found, self.whole_tokens(record))):
                return record.id
        return None

    def whole_tokens(self, record: Record) -> tuple[torch.Tensor, torch.Tensor]:
        """`input_ids` and `labels` (L,) of any record, in full, placeholders of numbers as they stand in the text."""
        has_image = bool(record.videos or record.images)
        turns = self.text_format.turns(record.conversations) if has_image else record.conversations
        sample = self.preprocess([turns], self.tokenizer, has_image=has_image)
        ids, labels = sample["input_ids"][0], sample["labels"][0]
        return self.spans.insert(ids, labels) if has_image else (ids, labels)

    @cached_property
    def spans(self) -> Spans:
        """The ids that stand for a video and for an image."""
        return Spans.of(self.tokenizer, self.spec)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`input_ids`, `labels` (L,), `sample_id`; `coordinates` (L,) where the tokenizer knows them;
        `pixel_values_videos` (V, T, 3, S, S) or `video_features` when there
        are videos; `pixel_values` (I, 3, S, S) or `image_features` likewise.

        Features are named and not read: a sample holds the place of each (V or I `StoredRow`, of a bucket `RemoteRow`),
        and the collator reads them into the batch, those of a bucket by requests for all of them at once.
        """
        if index == FILLER_INDEX:
            filler = torch.tensor([self.tokenizer.eos_token_id])
            labels = torch.full_like(filler, IGNORE_INDEX)
            numbers = {"coordinates": self.coordinates.numbers(filler, ())} if self.coordinates else {}
            return {"input_ids": filler, "labels": labels, "sample_id": FILLER_ID, **numbers}
        record = self.record(index)
        input_ids, labels, coordinates = self.numbered_tokens(index)
        sample: dict[str, Any] = {"input_ids": input_ids, "labels": labels, "sample_id": record.id}
        if coordinates is not None:
            sample["coordinates"] = coordinates
        shown = self.shown(index)
        videos = [(path, split) for path, split, is_image in shown if not is_image]
        images = [path for path, _, is_image in shown if is_image]
        if self.cache is not None:
            if videos:
                sample["video_features"] = [self.cache.stored(path, split) for path, split in videos]
            if images:
                sample["image_features"] = [self.cache.stored(path, None, True) for path in images]
            return sample
        if videos:
            sample["pixel_values_videos"] = torch.stack([self.read_video(path, split) for path, split in videos])
        if images:
            sample["pixel_values"] = torch.stack([self.read_image(path) for path in images])
        return sample

    def record(self, index: int) -> Record:
        """The record of a sample; as text alone for one that is shown without its video."""
        if index >= len(self.records) and self.alone is not None:
            return self.alone.records[index - len(self.records)]
        return self.records[index]

    def shown(self, index: int) -> list[Clip]:
        """(path, segment, is it an image) of each file that a sample is shown, its videos first."""
        if self.others is None or index >= len(self.records):
            return clips_named(self.record(index))
        return self.others.of(self.records, index)

    def forms(self) -> dict[str, np.ndarray]:
        """The indices of the samples of each modality that there is, those without their video among the text."""
        found = by_modality(self.records)
        if self.alone is None:
            return found
        blind = np.concatenate([places for kind, places in found.items() if kind != "text"]) + len(self.records)
        found["text"] = np.concatenate([found.get("text", blind[:0]), np.sort(blind)])
        return {kind: found[kind] for kind in MODALITIES if kind in found}

    def own(self) -> LazySupervisedDataset:
        """The same samples with their own clips, whatever `others` says."""
        twin = copy.copy(self)
        twin.others = None
        return twin

    def read_video(self, path: str, split: tuple[int, int] | None) -> torch.Tensor:
        """Pixels (T, 3, S, S) of a clip's chosen frames."""
        with self.watch.reading(path):
            frames = read_frames(path, self.spec, split)
        return frames_to_pixels(frames, self.processor, self.spec.image_aspect_ratio)

    def read_image(self, path: str) -> torch.Tensor:
        """Pixels (3, S, S) of an image."""
        with self.watch.reading(path):
            frames = read_image(path)
        return frames_to_pixels(frames, self.processor, self.spec.image_aspect_ratio)[0]


def measure_lengths(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    spec: VideoSpec | None,
    text_format: TextFormat,
    max_length: int,
    prepared: TokenTable | None = None,
) -> tuple[Sequence[int], list[Problem]]:
    """Positions of every record with those of its videos and its end, before truncation, and a problem for each record
    that cannot be cut to `max_length`.

    The ids of a whole sequence are made for records alone that are too long.
    """
    if prepared is not None and isinstance(records, RecordTable):
        return _prepared_lengths(records, tokenizer, spec, text_format, max_length, prepared)
    spans = cache(lambda: Spans.of(tokenizer, spec))
    coordinates = CoordinateTokens.known(tokenizer)
    lengths, problems = [], []
    for record, (ids, labels) in zip(records, text_format.encode([r.conversations for r in records]), strict=True):
        lengths.append(len(ids) + _positions_more(record, spec))
        if lengths[-1] <= max_length:
            continue
        whole = torch.tensor(ids), torch.tensor(labels)
        problems += _uncuttable(record, whole, spec and spans, text_format, max_length, coordinates)
    return lengths, problems


def cut(
    whole: tuple[torch.Tensor, torch.Tensor],
    text_format: TextFormat,
    max_length: int,
    coordinates: CoordinateTokens | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """At most `max_length` positions of ids and labels (L,), as the text format cuts them.

    Raises:
        ValueError: when too little would be left, or a number or the end of its box would be lost: that is another
            answer.
    """
    ids, labels = text_format.truncate(*whole, max_length)
    if coordinates is not None and len(ids) < len(whole[0]):
        total, kept = coordinates.count(whole[0]), coordinates.count(ids)
        if kept < total or coordinates.count(ids[-1 - CLOSING : -1]):
            raise UserError(
                f"{len(whole[0])} positions do not fit model_max_length {max_length}, and would be cut after {kept} of "
                f"the {total} coordinates of the text: raise --model_max_length (and the model's positions), lower "
                "--num_frames or --mm_perceiver_latents, or write boxes for fewer frames"
            )
    return ids, labels


def _positions_more(record: Record, spec: VideoSpec | None) -> int:
    """How much longer a sequence is than its compact form."""
    items = len(record.videos) + len(record.images)
    if spec is None:
        return -items
    return len(record.videos) * spec.rows + len(record.images) * spec.image_rows - items


def _prepared_lengths(
    records: RecordTable,
    tokenizer: PreTrainedTokenizerBase,
    spec: VideoSpec | None,
    text_format: TextFormat,
    max_length: int,
    prepared: TokenTable,
) -> tuple[np.ndarray, list[Problem]]:
    """`measure_lengths` of records whose tokens are there; a record whose tokens are not is asked for them."""
    firsts, index = representatives(records)
    more = np.array([_positions_more(r, spec) for r in firsts], dtype=np.int64)[index]
    shows = np.array([bool(r.videos or r.images) for r in firsts], dtype=bool)[index]
    spans = cache(lambda: Spans.of(tokenizer, spec))
    lengths = prepared.lengths(records.rows) + more
    problems: list[Problem] = []
    for place in np.flatnonzero(~prepared.holds(records.rows)):
        (length,), found = measure_lengths([records[place]], tokenizer, spec, text_format, max_length)
        lengths[place] = length
        problems += found
    long = prepared.holds(records.rows) & (lengths > max_length)
    coordinates = CoordinateTokens.known(tokenizer)
    if text_format.version == PLAIN and max_length >= LEAST_CUT and coordinates is None:
        long &= shows  # Of a plain text something is always left.
    for place in np.flatnonzero(long):
        whole = prepared[int(records.rows[place])]
        problems += _uncuttable(records[place], whole, spec and spans, text_format, max_length, coordinates)
    return lengths, problems


def _uncuttable(
    record: Record,
    whole: tuple[torch.Tensor, torch.Tensor],
    spans: Callable[[], Spans] | None,
    text_format: TextFormat,
    max_length: int,
    coordinates: CoordinateTokens | None,
) -> list[Problem]:
    """The problem of a record, given as compact ids and labels (L,) too, that cannot be cut to `max_length`."""
    try:
        if spans is not None and (record.videos or record.images):
            whole = spans().insert(*whole)
        cut(whole, text_format, max_length, coordinates)
    except ValueError as error:
        return [Problem(record.source, record.id, "too long", str(_named(error, record)))]
    return []


def _named(error: ValueError, record: Record) -> ValueError:
    """The error with the record that it is about in front."""
    return ValueError(f"record {record.id!r} ({show(record.source)}): {error}")
