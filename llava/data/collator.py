"""Samples to a batch.

Letters in shapes: B batch, L positions, V videos of the batch, I images of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from llava.constants import FILLER_ID, IGNORE_INDEX
from llava.data.prompt import count_supervised
from llava.errors import UserError

VISION_KEYS = ("pixel_values_videos", "video_features", "pixel_values", "image_features")


@dataclass
class DataCollatorForSupervisedDataset:
    """Pads on the right; the attention mask comes from the lengths, so a real EOS is seen even when `pad == eos`."""

    pad_token_id: int

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`input_ids`, `labels`, `attention_mask` (B, L), `num_videos`, `num_images` (B,), `sample_ids`, and the
        vision tensors of all samples concatenated, (V, ...) or (I, ...), in reading order.

        The label of position 0 is never a target of next-token prediction; it is set to `IGNORE_INDEX`, so that
        counting labels counts targets.

        Raises:
            ValueError: naming every sample that supervises no word.
        """
        empty = [s["sample_id"] for s in samples if count_supervised(s["labels"]) == 0 and s["sample_id"] != FILLER_ID]
        if empty:
            raise UserError(f"no supervised token in sample(s) {', '.join(map(repr, empty))}: the caption is empty")
        lengths = torch.tensor([len(s["input_ids"]) for s in samples])
        labels = pad_sequence([s["labels"] for s in samples], batch_first=True, padding_value=IGNORE_INDEX)
        labels[:, 0] = IGNORE_INDEX
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
        for key in VISION_KEYS:
            tensors = [s[key] for s in samples if key in s]
            if tensors:
                batch[key] = torch.cat(tensors)
        return batch


def _counts(samples: Sequence[dict[str, Any]], keys: tuple[str, str]) -> torch.Tensor:
    return torch.tensor([sum(len(s[k]) for k in keys if k in s) for s in samples])
