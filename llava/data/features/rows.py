"""Rows of cached features by their place on disk or in a bucket, read straight into the tensor of a batch.

Letters in shapes: V rows, T frames, P patches, Dv width of the tower.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from llava.data.features.quantised import dequantise
from llava.data.features.remote import read_many
from llava.errors import UserError

HUGE_PAGE = 2 << 20
OPEN_FILES = 256
"""Shards that a process holds open: many systems allow 1,024 files."""


class DamagedFeatures(UserError):
    """A row of a shard is not what was written."""


class StoredRow(NamedTuple):
    """The features of a clip as they lie on disk: the clip, the file and the row's first byte there, the row's shape
    (T, P, Dv), or (P, Dv) of an image, and what they are stored as.
    """

    clip: str
    file: str
    offset: int
    shape: tuple[int, ...]
    dtype: str

    def tensor(self) -> torch.Tensor:
        """The features in fp16, in memory of their own."""
        values, scales = read_rows([self])
        return (values if scales is None else dequantise(values, scales))[0]


class StoredRows(list[StoredRow]):
    """The features of a batch, not read yet, in reading order."""

    def read(self, key: str, pin: bool = False) -> dict[str, torch.Tensor]:
        """The tensors of a batch that they are under their key: `video_features` or `image_features`, and the scales
        beside those in int8. As `read_rows`.
        """
        values, scales = read_rows(self, pin)
        return {key: values} | ({} if scales is None else {f"{key.removesuffix('features')}scales": scales})

    def fetch(self) -> None:
        """Asks the system to have them in its memory when another process reads them, which names what it cannot."""
        for row in self if hasattr(os, "posix_fadvise") else ():
            size = math.prod(row.shape) * (2 if row.dtype == "float16" else 1)
            with suppress(OSError):
                os.posix_fadvise(_open(row.file).number, row.offset, size, os.POSIX_FADV_WILLNEED)


class RemoteRow(NamedTuple):
    """The features of a clip in a bucket: the clip, the shard's address, the shape (T, P, Dv), or (P, Dv) of an image,
    and what asks for them, checks them and names the clip in its errors.
    """

    clip: str
    file: str
    shape: tuple[int, ...]
    fetch: Callable[[], torch.Tensor]

    def tensor(self) -> torch.Tensor:
        """The features in fp16, in memory of their own."""
        return self.fetch().view(self.shape)


def fetch_rows(rows: Sequence[RemoteRow], values: torch.Tensor) -> None:
    """Fills `values` (V, T, P, Dv) in fp16 with the rows of a bucket, several requests in the air at once.

    Each row is put into its place as it arrives: beside the batch, memory holds what is in the air.

    Raises:
        DamagedFeatures: as `FeatureCache.stored`, for the first row in their order that is not what was written.
    """
    wrong = [row for row in rows if row.shape != values.shape[1:]]
    if wrong:
        raise ValueError(f"{wrong[0].clip}: features of {wrong[0].shape} beside {tuple(values.shape[1:])}")
    places = bytes_of(values)  # Of numpy, which knows no inference mode: torch's is that of one thread.

    def put(number: int) -> None:
        np.copyto(places[number], bytes_of(rows[number].tensor()[None])[0])

    read_many(range(len(rows)), put, lambda number: rows[number].file)


def read_rows(rows: Sequence[StoredRow], pin: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows of one shape and type: (V, T, P, Dv) in fp16 and None, or in int8 with the scales (V, Dv) of their channels
    (`llava.data.features.quantised`), as the bits of fp32.

    Every byte is copied once, from the system's memory of the file into the tensor that is returned.

    Args:
        pin: into memory that a GPU copies from while it computes.

    Raises:
        DamagedFeatures: naming clip and file, when a row cannot be read to its end.
    """
    shape, dtype = rows[0].shape, rows[0].dtype
    is_int8 = dtype == "int8"
    values = _empty((len(rows), *shape), torch.int8 if is_int8 else torch.float16, pin)
    scales = _empty((len(rows), shape[-1]), torch.int32, pin) if is_int8 else None
    parts = [bytes_of(t) for t in (values, scales) if t is not None]
    for number, row in enumerate(rows):
        if (row.shape, row.dtype) != (shape, dtype):
            raise ValueError(f"{row.clip}: features of {row.shape} {row.dtype} beside {shape} {dtype}")
        try:
            read_into(row.file, row.offset, [part[number] for part in parts])
        except OSError as error:
            raise DamagedFeatures(
                f"{row.clip}: its features in {row.file}, {math.prod(shape)} values from byte {row.offset}, cannot be "
                f"read ({error}): put the file back, or start again, which extracts what is missing"
            ) from error
    return values, scales


def _empty(shape: tuple[int, ...], dtype: torch.dtype, pin: bool) -> torch.Tensor:
    """Memory of its own. That of a batch comes in fresh pages, each of which costs more than copying into it does,
    unless they are large; pinned memory and that of single clips is kept and used again.
    """
    size = math.prod(shape) * dtype.itemsize
    if pin or shape[0] == 1 or size < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, pin_memory=pin)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # Of a system without them.
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def bytes_of(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a tensor (V, ...) as (V, bytes)."""
    return tensor.view(len(tensor), -1).view(torch.uint8).numpy()


def read_into(file: str, offset: int, buffers: Sequence[np.ndarray]) -> None:
    """Fills buffers of bytes, one after the other, from a place in a file on.

    Raises:
        OSError: when it cannot be read, or ends before.
    """
    left: list[Any] = list(buffers)
    opened = _open(file)
    while left:
        done = os.preadv(opened.number, left, offset)
        if not done:
            raise OSError(errno.EIO, f"it ends at byte {offset}")
        offset += done
        while left and done >= left[0].nbytes:
            done -= left.pop(0).nbytes
        if done:
            left[0] = left[0][done:]


class _File:
    """An open file, closed with its last reference: a thread that still reads it is not cut off."""

    def __init__(self, file: str) -> None:
        self.number = os.open(file, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=OPEN_FILES)
def _open(file: str) -> _File:
    return _File(file)
