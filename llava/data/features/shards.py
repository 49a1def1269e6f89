"""Shards of features on disk: the bytes of their rows, and their indexes.

An index that is damaged is a `ValueError` whatever is wrong with it: what it says is believed after all of it was
checked, and a row after its checksum was, which covers the row's bytes, its shape and the clip that it belongs to.

Letters in shapes: C clips, T frames, P patches, Dv width of the tower.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from llava.data.features.content import load_json
from llava.data.features.quantised import dequantise
from llava.data.features.rows import read_into

HEADER_BYTES = 1024
"""What stands before the rows of an array is shorter."""


class Shard(NamedTuple):
    """A file of features: its path, its index's name without suffix, size in bytes, rows, bytes of a row, and the row's
    shape (T, P, Dv).
    """

    file: str
    name: str
    size: int
    rows: int
    row_bytes: int
    shape: tuple[int, ...]


class Entry(NamedTuple):
    """Where the features of a clip lie, and their checksum: of the row's bytes alone when `key` is None."""

    shard: Shard
    row: int
    checksum: int
    key: str | None

    @property
    def offset(self) -> int:
        """The row's first byte in the file. Rows fill its end, so that its header need not be trusted."""
        return self.shard.size - (self.shard.rows - self.row) * self.shard.row_bytes

    def bytes(self) -> np.ndarray:
        """The row as it lies on disk, (bytes,) uint8.

        Raises:
            OSError: when it cannot be read.
        """
        row = np.empty(self.shard.row_bytes, np.uint8)
        read_into(self.shard.file, self.offset, [row])
        return row


def damage(entry: Entry) -> str:
    """What is wrong with a row on disk; empty when it is what was written for its clip."""
    shard = entry.shard
    try:
        size = os.stat(shard.file).st_size
        if size != shard.size:
            return f"the file has {size} bytes, expected {shard.size}"
        checksum = zlib.crc32(entry.bytes())
    except OSError as error:
        return str(error)
    if entry.key is not None:
        checksum = row_checksum(checksum, entry.key, shard.shape)
    return "" if checksum == entry.checksum else f"checksum {checksum:08x}, expected {entry.checksum:08x}"


def row_checksum(bytes_checksum: int, key: str, shape: tuple[int, ...]) -> int:
    """The checksum of a row from that of its bytes (CRC-32), the key of its clip and its shape."""
    return zlib.crc32(f"{bytes_checksum:08x} {shape} {key}".encode("utf-8", "surrogatepass"))


def read_index(path: Path, dtype: str, keyed: bool = True) -> dict[str, Entry]:
    """The entries of an index whose array is there in its full length.

    Args:
        keyed: whether checksums cover the keys; those of earlier commits do not.

    Raises:
        ValueError: when anything is amiss, however absurd.
        OSError: when index or array cannot be read.
    """
    index = load_json(path)
    if not isinstance(index, dict):
        raise ValueError("no table")
    shape, size, entries = index.get("shape"), index.get("size"), index.get("entries")
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
        raise ValueError(f"the shape is {shape!r:.80}, expected three numbers above 0")
    if not isinstance(entries, list) or type(size) is not int:
        raise ValueError("no list of entries, or no size")
    shard = Shard(
        _array_of(path, index.get("array")), path.stem, size, len(entries), row_bytes(dtype, shape), (*shape,)
    )
    if not 0 <= size - shard.rows * shard.row_bytes <= HEADER_BYTES:
        raise ValueError(f"{shard.rows} entries of shape {shard.shape} do not fit {size:.6g} bytes")
    found = os.stat(shard.file).st_size
    if found != size:
        raise ValueError(f"{Path(shard.file).name} has {found} bytes, expected {size}")
    read: dict[str, Entry] = {}
    for row, entry in enumerate(entries):
        if entry is None:
            continue
        key, checksum = (entry.get("key"), entry.get("crc32")) if isinstance(entry, dict) else (None, None)
        if not isinstance(key, str) or type(checksum) is not int or key in read:
            raise ValueError(f"entry {row} has no key of its own and checksum: {entry!r:.80}")
        read[key] = Entry(shard, row, checksum, key if keyed else None)
    return read


def _array_of(index: Path, array: Any) -> str:
    """The array of an index: beside it, or the one that it names in another folder of the same cache."""
    if array is None:
        return str(index.with_suffix(".npy"))
    if not isinstance(array, str) or not re.fullmatch(r"[0-9a-f]{16}/[0-9a-f]{32}\.npy", array):
        raise ValueError(f"the array is {array!r:.80}")
    return str(index.parent.parent / array)


def row_bytes(dtype: str, shape: list[int] | tuple[int, ...]) -> int:
    """Bytes of a row of `encode`; any size of number."""
    values = math.prod(shape)
    return 2 * values if dtype == "float16" else values + 4 * shape[-1]


def row_type(dtype: str, shape: tuple[int, ...]) -> np.dtype:
    """What a clip of shape (T, P, Dv) is stored as: fp16 values, or int8 values and the scale (Dv,) of each channel.

    Channels of DINOv2 differ in size by orders of magnitude, tokens less.
    """
    if dtype == "float16":
        return np.dtype(("<f2", shape))
    return np.dtype([("values", "i1", shape), ("scale", "<f4", shape[-1:])])


def encode(features: np.ndarray, dtype: str) -> np.ndarray:
    """(C, T, P, Dv) in fp16 to rows of `row_type`."""
    if dtype == "float16":
        return np.ascontiguousarray(features, dtype="<f2")
    rows = np.empty(len(features), row_type(dtype, features.shape[1:]))
    for row, clip in zip(rows, features.astype(np.float32), strict=True):
        row["scale"] = np.maximum(np.abs(clip).max(axis=(0, 1)), 1e-12) / 127
        row["values"] = np.rint(clip / row["scale"])
    return rows


def decode(row: np.ndarray, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The bytes of a stored row to features (T, P, Dv) in fp16, in memory of their own."""
    if dtype == "float16":
        return torch.from_numpy(row.copy()).view(torch.float16).view(shape)
    count = math.prod(shape)
    values, scale = (torch.from_numpy(part.copy()) for part in (row[:count].view("i1"), row[count:].view("<f4")))
    return dequantise(values.view(shape), scale)
