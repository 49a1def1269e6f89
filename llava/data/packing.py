"""Training batches without padding: several samples share a row, and none sees another.

A batch holds the same samples as without packing, so the loss and the order of the data are the same; only the layout
differs. Attention stays within a sample and positions restart (document-wise attention, as in T5, Raffel et al. 2020,
section 3.1.2, and its follow-ups). An attention that never looks at pairs of positions of different samples takes all
samples in one row (`flat`); one with a mask of all pairs is cheaper on several short rows.

Letters in shapes: B samples of the batch, R rows, L positions, N supervised positions.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F

from llava.constants import FILLER_ID, IGNORE_INDEX
from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.coordinates import NO_COORDINATE
from llava.data.positions import check_positions, supervised_positions, visual_positions

ATTENTION_LENGTH = 1536
"""Row length at which attention costs as much as the rest of a block: 6 times the width, here of a width of 256."""
CANDIDATES = 32
"""Numbers of rows that are tried for a batch."""
LEAST_SAVING = 0.05


def pack_rows(lengths: Sequence[int]) -> list[list[int]]:
    """Which samples share a row: indices of every row, so that rows are as short and as few as pays.

    Several numbers of rows are tried; each gives the longest samples first to the row that is shortest so far (Graham
    1969), and the layout with the lowest cost of blocks and attention wins. One sample a row when packing saves less
    than `LEAST_SAVING` of that cost.
    """
    alone = [[i] for i in range(len(lengths))]
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])

    def cost(rows: int, length: int) -> float:
        return rows * length * (1 + length / ATTENTION_LENGTH)

    total, longest = sum(lengths), max(lengths)
    best, least = alone, cost(len(lengths), longest) * (1 - LEAST_SAVING)
    for number in sorted({max(1, len(lengths) * k // CANDIDATES) for k in range(1, CANDIDATES)} - {len(lengths)}):
        if cost(number, max(longest, -(-total // number))) >= least:  # Rows that were all full would not pay.
            continue
        heap = [(0, row) for row in range(number)]
        rows: list[list[int]] = [[] for _ in range(number)]
        for i in longest_first:
            length, row = heap[0]
            rows[row].append(i)
            heapq.heapreplace(heap, (length + lengths[i], row))
        found = cost(number, max(heap)[0])
        if found < least:
            best, least = [sorted(row) for row in rows], found
    return best


def sample_bounds(lengths: Sequence[int], multiple: int = 1) -> dict[str, Any]:
    """Where each sample of a flat row starts and ends, as flash attention's functions for samples of varying length
    take it.

    Args:
        lengths: of the samples, in their order.
        multiple: what the row is padded to; above 1, the padding counts as one more sample, of any length, so that
            rows of one length hold equally many, and the longest length is a multiple too.

    Returns:
        `cu_seq_lens_q` and `cu_seq_lens_k` (samples + 1,) int32, the same bounds; `max_length_q` and `max_length_k`,
        numbers that nobody has to wait for.
    """
    found = list(lengths)
    if multiple > 1:
        found.append(-sum(found) % multiple)
    bounds = torch.tensor([0, *accumulate(found)], dtype=torch.int32)
    longest = _up(max(found), multiple)
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def _up(number: int, multiple: int) -> int:
    return number + -number % multiple


@dataclass
class TrainingCollator(DataCollatorForSupervisedDataset):
    """The batches of `DataCollatorForSupervisedDataset`, laid out for speed.

    Besides packing, it computes in the data worker what the device would have to be waited for: where the labels are,
    and where the visual tokens are, checked against the items that each sample brings. Fillers of an incomplete batch
    are left out where there is a record beside them.

    Args:
        templates: token ids of one item's span in order, by kind ("video", "image"); empty for text alone.
        pack: whether samples may share a row.
        flat: whether those that may share a row all share one, with the `sample_bounds` of it.
        multiple: L and N are multiples of it, so that a few shapes serve all batches: a graph that was compiled or
            captured for one of them runs again. Places of N that are none are 0.
        longest: rows of one sample are never padded beyond this length: a model may have no more positions.
    """

    templates: dict[str, list[int]] = field(default_factory=dict)
    pack: bool = True
    flat: bool = False
    multiple: int = 1
    longest: int = sys.maxsize

    def rows_of(self, lengths: Sequence[int]) -> list[list[int]]:
        """Which samples share a row."""
        if not self.pack:
            return [[i] for i in range(len(lengths))]
        return [list(range(len(lengths)))] if self.flat else pack_rows(lengths)

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """As there, with `segment_ids` (R, L), the sample that each position belongs to (-1 is padding), and
        `supervised_positions` (N,); `position_ids` (R, L) when samples share rows, and the `sample_bounds` of a flat
        one; `video_positions` and `image_positions` (R, L) on a model with vision. `sample_ids`, `num_videos`,
        `num_images` and vision tensors are those of the samples in reading order of the rows.

        Raises:
            ValueError: naming samples without a supervised word, or whose visual tokens are not those of its items.
        """
        samples = [s for s in samples if s["sample_id"] != FILLER_ID] or samples[:1]
        lengths = [len(s["input_ids"]) for s in samples]
        rows = self.rows_of(lengths)
        batch = super().__call__([samples[i] for row in rows for i in row])
        tokens = batch["attention_mask"].bool()
        widths = [sum(lengths[i] for i in row) for row in rows]
        flat, shared = self.pack and self.flat, len(rows) < len(samples)
        length = _up(max(widths), self.multiple)
        if not (flat or shared):
            length = max(max(widths), min(length, self.longest))

        filled = torch.arange(length) < torch.tensor(widths)[:, None]

        def laid_out(values: torch.Tensor, padding: float) -> torch.Tensor:
            """(B, L), one sample a row, in the rows of this batch."""
            found = torch.full(filled.shape, padding, dtype=values.dtype)
            return found.masked_scatter_(filled, values[tokens])

        batch["segment_ids"] = laid_out(torch.arange(len(tokens))[:, None].expand_as(tokens), -1)
        if flat or shared:
            batch["position_ids"] = laid_out(torch.arange(tokens.shape[1]).expand_as(tokens), 0)
        if flat:
            batch |= sample_bounds(lengths, self.multiple)
        if shared or length > tokens.shape[1]:
            paddings = {"input_ids": self.pad_token_id, "labels": IGNORE_INDEX, "attention_mask": 0}
            if "coordinates" in batch:
                paddings["coordinates"] = NO_COORDINATE
            for name, padding in paddings.items():
                batch[name] = laid_out(batch[name], padding)
        places = supervised_positions(batch["labels"])
        batch["supervised_positions"] = F.pad(places, (0, -len(places) % self.multiple))
        for kind, template in self.templates.items():
            positions = visual_positions(batch["input_ids"], sorted(set(template)))
            check_positions(
                batch["input_ids"], positions, batch[f"num_{kind}s"], template, kind, batch["sample_ids"],
                batch["segment_ids"],
            )  # fmt: skip
            batch[f"{kind}_positions"] = positions
        return batch
