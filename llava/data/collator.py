"""Samples to a batch.

Letters in shapes: B batch, L positions, V videos of the batch, I images of the batch, Dv width of the tower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import get_worker_info

from llava.constants import FILLER_ID, IGNORE_INDEX
from llava.data.coordinates import NO_COORDINATE
from llava.data.features.remote import read_many
from llava.data.features.rows import RemoteRow, StoredRow, StoredRows, fetch_rows
from llava.errors import UserError

VISION_KEYS = ("pixel_values_videos", "video_features", "pixel_values", "image_features")


def vision_of(samples: Sequence[dict[str, Any]], reads: bool = True) -> dict[str, Any]:
    """The vision tensors of samples in reading order, (V, ...) or (I, ...); beside features in int8 their scales,
    `video_scales` (V, Dv) or `image_scales` (I, Dv).

    Args:
        reads: whether cached features on disk are read; else they stay `StoredRows`. Those in a bucket always are, by
            requests for all of them at once.
    """
    batch: dict[str, Any] = {}
    for key in VISION_KEYS:
        items = [item for sample in samples for item in sample.get(key, ())]
        kinds = {type(item) for item in items}
        if kinds == {StoredRow}:
            rows = StoredRows(items)
            batch |= rows.read(key) if reads else {key: rows}
        elif kinds == {RemoteRow}:
            batch[key] = _empty((len(items), *items[0].shape), torch.float16)
            fetch_rows(items, batch[key])
        elif items:
            batch[key] = _stack([item if isinstance(item, torch.Tensor) else item.tensor() for item in items])
    return batch


def fetched(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The samples with features that lie in a bucket in memory, for who makes several batches of them."""
    rows = [row for s in samples for key in VISION_KEYS for row in s.get(key, ()) if isinstance(row, RemoteRow)]
    found = iter(read_many(rows, RemoteRow.tensor, lambda row: row.file))
    return [
        s | {key: [next(found) if isinstance(row, RemoteRow) else row for row in s[key]] for key in VISION_KEYS
             if key in s and not isinstance(s[key], torch.Tensor)}
        for s in samples
    ]  # fmt: skip


def _stack(items: Sequence[torch.Tensor]) -> torch.Tensor:
    if get_worker_info() is None:
        return torch.stack(items)
    return torch.stack(items, out=_empty((len(items), *items[0].shape), items[0].dtype))


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """In a data worker, in the memory that it shares with the process that trains: nothing is copied on the way."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload]


@dataclass
class DataCollatorForSupervisedDataset:
    """Pads on the right; the attention mask comes from the lengths, so a real EOS is seen even when `pad == eos`.

    Args:
        reads: whether cached features are read into the batch; else it names them (`llava.data.handover`).
    """

    pad_token_id: int
    reads: bool = field(default=True, kw_only=True)

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`input_ids`, `labels`, `attention_mask` (B, L), `num_videos`, `num_images` (B,), `sample_ids`, what
        `vision_of` makes of the samples, and of samples that have them `coordinates` (B, L) float32, `NO_COORDINATE`
        where no number stands.

        The label of position 0 is never a target of next-token prediction; it is set to `IGNORE_INDEX`, so that
        counting labels counts targets.

        Raises:
            ValueError: naming every sample that supervises no word.
        """
        lengths = torch.tensor([len(s["input_ids"]) for s in samples])
        labels = pad_sequence([s["labels"] for s in samples], batch_first=True, padding_value=IGNORE_INDEX)
        labels[:, :1] = IGNORE_INDEX
        learns = (labels != IGNORE_INDEX).any(dim=1).tolist()
        empty = [s["sample_id"] for s, some in zip(samples, learns, strict=True) if not some]
        empty = [name for name in empty if name != FILLER_ID]
        if empty:
            raise UserError(f"no supervised token in sample(s) {', '.join(map(repr, empty))}: the caption is empty")
        batch = {
            "input_ids": pad_sequence(
                [s["input_ids"] for s in samples], batch_first=True, padding_value=self.pad_token_id
            ),
            "labels": labels,
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
            "sample_ids": [s["sample_id"] for s in samples],
            "num_videos": _counts(samples, ("pixel_values_videos", "video_features")),
            "num_images": _counts(samples, ("pixel_values", "image_features")),
        }
        if any("coordinates" in s for s in samples):
            # What fills the last batch has none.
            numbers = [s.get("coordinates", torch.full(s["input_ids"].shape, NO_COORDINATE)) for s in samples]
            batch["coordinates"] = pad_sequence(numbers, batch_first=True, padding_value=NO_COORDINATE)
        return batch | vision_of(samples, self.reads)


def _counts(samples: Sequence[dict[str, Any]], keys: tuple[str, str]) -> torch.Tensor:
    return torch.tensor([sum(len(s[k]) for k in keys if k in s) for s in samples])
