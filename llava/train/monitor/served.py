"""What a run is served while it trains: which records, and whether samples are still those of their records.

Pre-flight looks at samples as they are before the first step. A dataset or loader that changes afterwards hands over
another caption, other features or other labels, and everything trains on.

Letters in shapes: R rows of a batch, L positions, T frames, P patches, Dv width of the tower, S side of a frame.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from llava.constants import FILLER_ID, IGNORE_INDEX
from llava.data.columns import RecordIds
from llava.data.features.quantised import dequantise
from llava.data.features.store import Clip
from llava.data.hashes import hash64
from llava.data.records import Record
from llava.data.text_format import PlainLM
from llava.data.video import frames_to_pixels, read_frames, read_image
from llava.data.words import differing_words

WORDS, FEATURES, PIXELS = 4, 1, 1
"""Samples of a step whose words are read again; of a step, whose features are; of the run, whose frames are decoded."""
VALUES = 1024
"""Evenly spaced values of a clip that are compared."""

Difference = tuple[str, str]
"""The kind of alarm, and what differs."""


class Served:
    """Which records an epoch has served: a sum of their ids' hashes, whatever their order."""

    def __init__(self) -> None:
        self.hashes = array("Q")
        self.count = self.total = 0
        self.known = True
        """Whether the epoch was followed from its start."""

    def add(self, ids: Iterable[str]) -> None:
        for name in ids:
            if name != FILLER_ID:
                self.hashes.append(hash64(name))
                self.count += 1
                self.total += self.hashes[-1]
        self.total %= 1 << 64

    def state(self) -> list[int] | None:
        """[count, sum] for a checkpoint; None when the epoch's start is not known."""
        return [self.count, self.total] if self.known else None

    def restore(self, state: Sequence[int] | None) -> None:
        self.known = state is not None
        self.count, self.total = state if state is not None else (0, 0)
        self.total %= 1 << 64


def shared_out(states: Sequence[Sequence[int] | None], processes: int) -> list[Sequence[int] | None]:
    """The `Served.state` of each of so many processes, from those of the processes of a checkpoint.

    Of another number, the first takes what all have served: nothing but the sum over the processes is looked at.
    """
    if len(states) == processes:
        return list(states)
    known = [state for state in states if state is not None]
    if len(known) < len(states):
        return [None] * processes
    return [[sum(values) for values in zip(*known, strict=True)], *([[0, 0]] * (processes - 1))]


def served_problem(ids: Sequence[str], hashes: Iterable[int]) -> str:
    """How the records that were served differ from `ids`, each of which has its turn once."""
    wanted, found = Counter(map(hash64, ids)), Counter(hashes)
    names = {hash64(name): name for name in ids}
    parts = []
    for what, more, fewer in (("left out", wanted, found), ("served more than once", found, wanted)):
        difference = more - fewer
        if difference:
            examples = ", ".join(repr(names.get(h, "another")) for h in list(difference)[:3])
            parts.append(f"{sum(difference.values())} {what} ({examples})")
    return "; ".join(parts) or "others than the records of the training set"


class ServedSamples:
    """Compares some samples of training batches with their records' words and with the features or frames of their
    files.

    What is expected is made here, past the dataset: from the record's text, the cache's row of the clip's key, the
    file.

    Args:
        dataset: a `llava.data.dataset.LazySupervisedDataset`, for its records and settings.
    """

    def __init__(self, dataset: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        self.dataset, self.tokenizer = dataset, tokenizer
        self.ids = RecordIds(dataset.records)
        self.text_format = getattr(dataset, "text_format", None) or PlainLM(tokenizer)
        self.ends = {*tokenizer.all_special_ids, *self.text_format.end_ids}
        self.steps = self.decoded = 0
        self._drawn: tuple[int, np.ndarray] | None = None

    def blind(self, epoch: int) -> np.ndarray | None:
        """(N,) which records an epoch shows without their videos; None for none of them."""
        if self.dataset.blind is None:
            return None
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, self.dataset.blind(epoch)
        return self._drawn[1]

    def differences(self, batches: Sequence[Mapping[str, Any]], epoch: int = 0) -> list[Difference]:
        """What is wrong with some samples of a step's batches, which are of `llava.data.packing.TrainingCollator`."""
        names = {name for batch in batches for name in batch["sample_ids"]}
        # Of an id that repeats nobody can say which record is meant.
        at = {name: int(found[0]) for name in names if len(found := self.ids.places(name)) == 1}
        records = {name: self.dataset.records[place] for name, place in at.items()}
        places = [(b, s) for b, batch in enumerate(batches) for s in range(len(batch["sample_ids"]))]
        known = [(b, s) for b, s in places if batches[b]["sample_ids"][s] in records]
        if not known:
            return []
        start = self.steps % len(known)
        turn = known[start:] + known[:start]
        self.steps += 1
        found, texts = [], {}
        for b, s in turn[:: max(1, -(-len(turn) // WORDS))]:
            if b not in texts:
                texts[b] = [batches[b][key].cpu().flatten() for key in ("input_ids", "labels", "segment_ids")]
            found.append(self.words(records[batches[b]["sample_ids"][s]], s, *texts[b]))
        items = [(batch["num_videos"] + batch["num_images"]).tolist() for batch in batches]
        blind = self.blind(epoch)
        for b, s in known:
            name = batches[b]["sample_ids"][s]
            found.append(self.shown(records[name], items[b][s], blind is not None and bool(blind[at[name]])))
        seen = [(b, s) for b, s in turn if items[b][s]]
        for b, s in seen[:FEATURES]:
            name = batches[b]["sample_ids"][s]
            found.append(self.vision(records[name], s, batches[b], self.dataset.shown(at[name])))
        return [difference for difference in found if difference is not None]

    def shown(self, record: Record, items: int, blind: bool) -> Difference | None:
        """Whether a sample comes with as many videos and images as its record has, or with none where shown blind."""
        wanted = 0 if blind else len(record.videos) + len(record.images)
        if items == wanted:
            return None
        why = ", since this epoch shows it blind (--blind_share)" if blind else ""
        return "videos served", f"sample {record.id!r} comes with {items} videos and images instead of {wanted}{why}"

    def words(
        self, record: Record, sample: int, ids: torch.Tensor, labels: torch.Tensor, segments: torch.Tensor
    ) -> Difference | None:
        """What is supervised of a sample of a batch (R * L,) against its record's words, and whether its end is."""
        own = np.flatnonzero(segments.numpy() == sample)
        # A sample stands in one row, so that a slice is all of it, at a tenth of the cost of a mask.
        ids, labels = (values[own[0] : own[-1] + 1] if len(own) else values[:0] for values in (ids, labels))
        if not len(ids):
            return "words served", f"sample {record.id!r} has no position of its own in its batch"
        numbers = self.dataset.numbers(record) if record.coordinates else ()
        # The collator masks the first position, which nothing comes before; where a text begins, its word is there.
        cut = len(ids) == self.dataset.max_length
        for form in (torch.cat([ids[:1], labels[1:]]), labels):
            different = differing_words(record, form, self.tokenizer, cut, self.text_format, numbers)
            if different is None or different.by_tokenizer:
                break
        else:
            return "words served", f"sample {record.id!r} supervises {different}"
        supervised = labels[labels != IGNORE_INDEX]
        if not len(supervised) or int(supervised[-1]) not in self.ends:
            return "words served", f"the end of sample {record.id!r} is not supervised, so it does not learn to stop"
        return None

    def vision(self, record: Record, sample: int, batch: Mapping[str, Any], clips: Sequence[Clip]) -> Difference | None:
        """The first video or image of a sample of a batch against the cache's row of its key, or its own frames.

        Args:
            clips: what the record is shown.
        """
        path, _, is_image = clips[0]
        kind = "image" if is_image else "video"
        cached, pixels = {
            "video": ("video_features", "pixel_values_videos"), "image": ("image_features", "pixel_values")
        }[kind]  # fmt: skip
        place = int(batch[f"num_{kind}s"][:sample].sum())
        try:
            if cached in batch:
                served, own = batch[cached][place], self.stored(clips[0])
                if f"{kind}_scales" in batch:
                    served = dequantise(served, batch[f"{kind}_scales"][place])
            elif pixels in batch and self.decoded < PIXELS:
                self.decoded += 1
                served, own = batch[pixels][place], self.decode(clips[0])
            else:
                return None
        except (OSError, LookupError, ValueError):
            return None  # A file that goes while the run reads it is for the loader to report.
        own = own if kind == "video" else own[0]
        if served.shape == own.shape and torch.equal(_some(served).to(own), _some(own)):
            return None
        what = "features" if cached in batch else "pixels"
        return f"{what} served", f"sample {record.id!r} comes with other {what} than those of {path}"

    def stored(self, clip: Clip) -> torch.Tensor:
        """The features (T, P, Dv) of a clip's row in the cache."""
        cache = self.dataset.cache
        return cache.row(cache.key(*clip))

    def decode(self, clip: Clip) -> torch.Tensor:
        """The pixels (T, 3, S, S) of a clip's chosen frames."""
        spec, (path, split, is_image) = self.dataset.spec, clip
        frames = read_image(path) if is_image else read_frames(path, spec, split)
        return frames_to_pixels(frames, self.dataset.processor, spec.image_aspect_ratio)


def _some(values: torch.Tensor) -> torch.Tensor:
    flat = values.flatten()
    return flat[:: max(1, flat.numel() // VALUES)]
