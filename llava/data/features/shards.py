"""Shards of features on disk or in a bucket: the bytes of their rows, and their indexes.

A shard is an array (`.npy`) whose rows fill the end of the file, or a tar as WebDataset has them, with an array of
numpy's for each clip, which any reader of such files opens; rows of both are read by their place.

An index that is damaged is a `ValueError` whatever is wrong with it: what it says is believed after all of it was
checked, and a row after its checksum was, which covers the row's bytes, its shape and the clip that it belongs to.

Letters in shapes: C clips, T frames, P patches, Dv width of the tower.
"""

from __future__ import annotations

import errno
import io
import math
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from llava.data.features.content import load_json
from llava.data.features.quantised import dequantise
from llava.data.features.remote import UnreachableStorage, is_remote, open_folder, read_many
from llava.data.features.rows import read_into

HEADER_BYTES = 1024
"""What stands before the rows of an array is shorter."""


class Shard(NamedTuple):
    """A file of features: its path or address, its index's name without suffix, size in bytes, rows, bytes of a row,
    the row's shape (T, P, Dv), where the first row begins, and the bytes from there to the next.
    """

    file: str
    name: str
    size: int
    rows: int
    row_bytes: int
    shape: tuple[int, ...]
    first: int
    stride: int


class Entry(NamedTuple):
    """Where the features of a clip lie, and their checksum: of the row's bytes alone when `key` is None."""

    shard: Shard
    row: int
    checksum: int
    key: str | None

    @property
    def offset(self) -> int:
        """The row's first byte in the file."""
        return self.shard.first + self.row * self.shard.stride

    def bytes(self) -> np.ndarray:
        """The row as it lies on disk, (bytes,) uint8; from a bucket by a request of its own.

        Raises:
            OSError: when it cannot be read.
        """
        shard = self.shard
        if not is_remote(shard.file):
            row = np.empty(shard.row_bytes, np.uint8)
            read_into(shard.file, self.offset, [row])
            return row
        found = open_folder(shard.file).read_range(self.offset, shard.row_bytes)
        if len(found) != shard.row_bytes:
            raise OSError(errno.EIO, f"it ends before byte {self.offset + shard.row_bytes}", shard.file)
        return np.frombuffer(found, np.uint8)


def damage(entry: Entry) -> str:
    """What is wrong with a row on disk; empty when it is what was written for its clip."""
    try:
        # A request for the size of an object costs as much as one for the row, which would be too short.
        size = entry.shard.size if is_remote(entry.shard.file) else os.stat(entry.shard.file).st_size
        if size != entry.shard.size:
            return f"the file has {size} bytes, expected {entry.shard.size}"
        return row_damage(entry, entry.bytes())
    except OSError as error:
        return str(error)


def row_damage(entry: Entry, row: np.ndarray) -> str:
    """What is wrong with the bytes that were read of a row; empty when they are what was written for its clip."""
    checksum = zlib.crc32(row)
    if entry.key is not None:
        checksum = row_checksum(checksum, entry.key, entry.shard.shape)
    return "" if checksum == entry.checksum else f"checksum {checksum:08x}, expected {entry.checksum:08x}"


def row_checksum(bytes_checksum: int, key: str, shape: tuple[int, ...]) -> int:
    """The checksum of a row from that of its bytes (CRC-32), the key of its clip and its shape."""
    return zlib.crc32(f"{bytes_checksum:08x} {shape} {key}".encode("utf-8", "surrogatepass"))


def file_size(file: str) -> int:
    """Bytes of a shard.

    Raises:
        OSError: when it is not there.
    """
    return open_folder(file).size() if is_remote(file) else os.stat(file).st_size


def read_index(
    path: Path, dtype: str, keyed: bool = True, size_of: Callable[[str], int] = file_size
) -> dict[str, Entry]:
    """The entries of an index whose array is there in its full length.

    Args:
        keyed: whether checksums cover the keys; those of earlier commits do not.
        size_of: bytes of a shard by its path or address.

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
    rows, bytes_each = len(entries), row_bytes(dtype, shape)
    if "tar" in index:
        tar = index["tar"] if isinstance(index["tar"], dict) else {}
        first, stride = tar.get("first"), tar.get("stride")
        whole = type(first) is int and type(stride) is int and first >= 0 and stride >= bytes_each
        fits = whole and (rows == 0 or first + (rows - 1) * stride + bytes_each <= size)
        file = str(path.with_suffix(".tar"))
    else:
        first, stride, file = size - rows * bytes_each, bytes_each, _array_of(path, index.get("array"))
        fits = 0 <= first <= HEADER_BYTES
    if not fits:
        raise ValueError(f"{rows} entries of shape {(*shape,)} do not fit {size:.6g} bytes")
    shard = Shard(file, path.stem, size, rows, bytes_each, (*shape,), first, stride)
    found = size_of(shard.file)
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


def read_indexes(folder: Any, dtype: str) -> Iterator[tuple[Path, dict[str, Entry], Exception | None]]:
    """Every index of a cache's subfolder with its entries, or with what is wrong with it.

    Raises:
        UnreachableStorage: when a bucket does not answer: nothing is known of its shards, so that none is ignored.
    """

    def read(path: Path) -> tuple[Path, dict[str, Entry], Exception | None]:
        try:
            return path, read_index(path, dtype, size_of=size_of), None
        except UnreachableStorage:
            raise
        except (ValueError, OSError) as error:
            return path, {}, error

    indexes = sorted(path for path in folder.glob("*.json") if path.name != "settings.json")
    size_of = _sizes(folder) if indexes and is_remote(folder) else file_size
    yield from read_many(indexes, read)


def _sizes(folder: Any) -> Callable[[str], int]:
    """As `file_size`, for a bucket: all sizes are asked for at once."""
    sizes = folder.sizes()

    def size_of(file: str) -> int:
        name = file.rpartition("/")[2]
        if name not in sizes:
            raise FileNotFoundError(errno.ENOENT, "no such object", file)
        return sizes[name]

    return size_of


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


def write_tar(file: IO[bytes], rows: np.ndarray, keys: Sequence[str]) -> dict[str, int]:
    """Rows of `row_type` as a tar of `KEY.npy`, and where they begin in it: `first` and `stride`.

    Args:
        keys: of the clips, one each; `:` becomes `_`, since a reader takes what stands before the first dot of a name
            as the sample's key and some file systems know no colon.
    """
    begin = []
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row, key in zip(rows, keys, strict=True):
            array = io.BytesIO()
            np.lib.format.write_array(array, np.asarray(row))
            member = tarfile.TarInfo(f"{key.replace(':', '_')}.npy")
            member.size = array.tell()
            begin.append(tar.offset + tarfile.BLOCKSIZE + member.size - row.nbytes)
            array.seek(0)
            tar.addfile(member, array)
    stride = begin[1] - begin[0] if len(begin) > 1 else rows[0].nbytes
    if begin != [begin[0] + n * stride for n in range(len(rows))]:
        raise ValueError("members of a tar do not lie at even distances")
    return {"first": begin[0], "stride": stride}
