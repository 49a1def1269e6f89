"""Records to training samples.

Letters in shapes: L positions, V videos, I images, T frames, S pixels, P patches, Dv width of the vision tower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from llava.config.video import ProcessorSpec, VideoSpec
from llava.constants import FILLER_ID, FILLER_INDEX, IGNORE_INDEX
from llava.data.features.extract import FeatureCache
from llava.data.features.workers import CLIP_TIMEOUT
from llava.data.prompt import Spans
from llava.data.records import Problem, Record
from llava.data.text_format import PlainLM, TextFormat
from llava.data.video import frames_to_pixels, read_frames, read_image
from llava.data.watch import ClipWatch
from llava.errors import show

Preprocess = Callable[..., Mapping[str, list[torch.Tensor]]]
"""`(conversations with markers for placeholders, tokenizer, has_image=…)` to `input_ids` and `labels`."""


class LazySupervisedDataset(Dataset):
    """A sample is made when it is asked for: text by `preprocess`, vision from the cache or from the file.

    A file that cannot be read raises `VideoError` here, inside the worker, and training stops: no other sample ever
    takes its place.
    """

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
    ) -> None:
        self.records = records
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.max_length = max_length
        self.spec = spec
        self.processor = processor
        self.cache = cache
        self.watch = ClipWatch(clip_timeout)
        self.text_format: TextFormat = PlainLM(tokenizer) if text_format is None else text_format
        """What lays the turns out and cuts them; `preprocess` is its own, but for an experiment that breaks it."""
        self.num_cut = num_cut
        """Samples whose text `max_length` cuts, counted by who knows their lengths."""

    def __len__(self) -> int:
        return len(self.records)

    def tokens(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`input_ids` and `labels` (L,) of a record, truncated to `max_length`.

        Raises:
            ValueError: naming the record, when its visual spans do not fit.
        """
        record = self.records[index]
        try:
            return self.text_format.truncate(*self.whole_tokens(record), self.max_length)
        except ValueError as error:
            raise _named(error, record) from error

    def whole_tokens(self, record: Record) -> tuple[torch.Tensor, torch.Tensor]:
        """`input_ids` and `labels` (L,) of any record, in full."""
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
        """`input_ids`, `labels` (L,), `sample_id`; `pixel_values_videos` (V, T, 3, S, S) or `video_features` when there
        are videos; `pixel_values` (I, 3, S, S) or `image_features` likewise.

        Features are named and not read: a sample holds the place of each (V or I `StoredRow`), and the collator reads
        them into the batch.
        """
        if index == FILLER_INDEX:
            filler = torch.tensor([self.tokenizer.eos_token_id])
            return {"input_ids": filler, "labels": torch.full_like(filler, IGNORE_INDEX), "sample_id": FILLER_ID}
        record = self.records[index]
        input_ids, labels = self.tokens(index)
        sample: dict[str, Any] = {"input_ids": input_ids, "labels": labels, "sample_id": record.id}
        if self.cache is not None:
            if record.videos:
                sample["video_features"] = [self.cache.stored(p, record.split) for p in record.videos]
            if record.images:
                sample["image_features"] = [self.cache.stored(p, None, True) for p in record.images]
            return sample
        if record.videos:
            sample["pixel_values_videos"] = torch.stack([self.read_video(p, record.split) for p in record.videos])
        if record.images:
            sample["pixel_values"] = torch.stack([self.read_image(p) for p in record.images])
        return sample

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
) -> tuple[list[int], list[Problem]]:
    """Positions of every record with those of its videos and its end, before truncation, and a problem for each record
    that cannot be cut to `max_length`.

    The ids of a whole sequence are made for records alone that are too long.
    """
    lengths, problems = [], []
    spans: Spans | None = None
    for record, (ids, labels) in zip(records, text_format.encode([r.conversations for r in records]), strict=True):
        items = len(record.videos) + len(record.images)
        sees = spec is not None and items > 0
        visual = len(record.videos) * spec.rows + len(record.images) * spec.image_rows if sees else 0
        lengths.append(len(ids) - items + visual)
        if lengths[-1] <= max_length:
            continue
        try:
            whole = torch.tensor(ids), torch.tensor(labels)
            if sees:
                spans = spans or Spans.of(tokenizer, spec)
                whole = spans.insert(*whole)
            text_format.truncate(*whole, max_length)
        except ValueError as error:
            problems.append(Problem(record.source, record.id, "too long", str(_named(error, record))))
    return lengths, problems


def _named(error: ValueError, record: Record) -> ValueError:
    """The error with the record that it is about in front."""
    return ValueError(f"record {record.id!r} ({show(record.source)}): {error}")
