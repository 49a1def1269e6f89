"""Batches on their way from data workers to the process that trains.

Cached features do not travel: a worker verifies them, has the system fetch them and names their places, and the process
that trains reads them straight into the tensor that the device copies from. A worker's memory, and what it would share,
are then fresh pages for every batch, which cost several times what copying into them does. Ids and masks travel by
value, since a handle of shared memory costs more than they do. Pixels travel in shared memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.features.rows import StoredRows

BY_VALUE = 1 << 20
"""Bytes of a tensor that is sent through the workers' pipe."""


class Parcel:
    """A batch with `StoredRows` in place of features; becomes a batch of tensors where it is unpickled, or pinned.

    Args:
        pins: whether the loader pins what arrives, in a thread of its own; features are then read there.
    """

    def __init__(self, batch: dict[str, Any], pins: bool) -> None:
        self.batch, self.pins = batch, pins

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        sent = {key: _by_value(value) for key, value in self.batch.items()}
        return (Parcel, (sent, True)) if self.pins else (unpacked, (sent,))

    def pin_memory(self) -> dict[str, Any]:
        """The batch of tensors in pinned memory; torch's loaders call it."""
        return unpacked(self.batch, pin=True)


def unpacked(batch: dict[str, Any], pin: bool = False) -> dict[str, Any]:
    """The batch of tensors that was sent."""
    made: dict[str, Any] = {}
    for key, value in batch.items():
        if isinstance(value, StoredRows):
            made |= value.read(key, pin)
            continue
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        made[key] = value.pin_memory() if pin and isinstance(value, torch.Tensor) else value
    return made


def _by_value(value: Any) -> Any:
    small = isinstance(value, torch.Tensor) and value.nbytes <= BY_VALUE and value.dtype != torch.bfloat16
    return value.numpy() if small else value


@dataclass(frozen=True)
class HandingOver:
    """A collator for a loader that has workers or pins.

    Args:
        collate: of whole batches.
    """

    collate: DataCollatorForSupervisedDataset
    pins: bool

    def __call__(self, samples: Sequence[dict[str, Any]]) -> Parcel:
        batch = replace(self.collate, reads=False)(samples)
        for value in batch.values():
            if isinstance(value, StoredRows):
                value.fetch()
        return Parcel(batch, self.pins)
