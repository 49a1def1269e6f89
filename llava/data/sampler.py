"""Order of the samples: batches of one modality and of similar lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from llava.constants import FILLER_INDEX

WINDOW_BATCHES = 50
"""Lengths are sorted within windows of this many batches: similar inside a batch, random across the epoch."""
AT_ONCE = 10_000
"""Places that are handed out as Python's numbers, which take four times the room."""


def grouped_order(
    lengths: Sequence[int], modalities: Sequence[Any], batch_size: int, generator: torch.Generator
) -> np.ndarray:
    """A permutation (N,) of the samples whose consecutive runs of `batch_size` share a modality and have similar
    lengths.

    Each modality is shuffled, sorted by length within windows, and cut into batches; the batches are shuffled. What
    does not fill a batch of its own modality shares mixed batches; an incomplete batch comes last, so that the others
    keep their bounds.

    Args:
        modalities: by any values, in whose order they are taken.
        batch_size: samples of one optimiser step, over all ranks and accumulated batches, so that the order does not
            depend on how the step is divided.
    """
    length, kind = np.asarray(lengths), np.asarray(modalities)
    batches, rest = [np.empty((0, batch_size), dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for modality in np.unique(kind):
        shuffled = _shuffled(np.flatnonzero(kind == modality), generator)
        full = len(shuffled) - len(shuffled) % batch_size
        rest.append(shuffled[full:])
        for start in range(0, full, batch_size * WINDOW_BATCHES):
            window = shuffled[start : min(start + batch_size * WINDOW_BATCHES, full)]
            batches.append(window[np.argsort(-length[window], kind="stable")].reshape(-1, batch_size))
    mixed = _shuffled(np.concatenate(rest), generator)
    full = len(mixed) - len(mixed) % batch_size
    batches.append(mixed[:full].reshape(-1, batch_size))
    return np.concatenate([_shuffled(np.concatenate(batches), generator).reshape(-1), mixed[full:]])


def _shuffled(values: np.ndarray, generator: torch.Generator) -> np.ndarray:
    return values[torch.randperm(len(values), generator=generator).numpy()]


class ModalityLengthSampler(Sampler[int]):
    """`grouped_order`, or a plain shuffle, as a function of the seed, the epoch and the samples of a step alone.

    Each step takes the next `batch_size` samples, whatever the number of processes and of accumulated batches: the
    loader gives consecutive batches to the processes in turn, so that only who has a sample depends on them. A run that
    goes on in other processes with the same global batch goes on in the same order.

    Args:
        batch_size: samples of one optimiser step, over all ranks and accumulated batches.
        share: samples of one forward pass of all processes together. `FILLER_INDEX` completes the last one, so that
            every record is trained on once an epoch: accelerate would repeat records from the epoch's start.
        drop_last: leaves out the samples of the last step, if they are too few for a whole one.
        blind: (N,) which samples an epoch shows without their videos: `N + i` stands for sample `i` then, at its place
            in the order, on which this has no influence.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        modalities: Sequence[Any],
        batch_size: int,
        seed: int,
        grouped: bool = True,
        share: int = 1,
        drop_last: bool = False,
        blind: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        self.blind = blind
        self.lengths, self.modalities, self.batch_size = lengths, modalities, batch_size
        self.seed, self.grouped, self.epoch = seed, grouped, 0
        self.kept = len(lengths) - len(lengths) % batch_size if drop_last else len(lengths)
        self.fillers = -self.kept % share

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.kept + self.fillers

    def order(self, epoch: int) -> np.ndarray:
        """The samples of an epoch, (len(self),) int64."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        if self.grouped:
            order = grouped_order(self.lengths, self.modalities, self.batch_size, generator)
        else:
            order = torch.randperm(len(self.lengths), generator=generator).numpy()
        if self.blind is not None:
            order = order + len(order) * self.blind(epoch)[order]
        return np.concatenate([order[: self.kept], np.full(self.fillers, FILLER_INDEX)])

    def __iter__(self) -> Iterator[int]:
        order = self.order(self.epoch)
        for start in range(0, len(order), AT_ONCE):
            yield from order[start : start + AT_ONCE].tolist()
