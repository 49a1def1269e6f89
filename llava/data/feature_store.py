"""The files of a feature cache: checked shards of features, memory-mapped.

A cache folder holds one subfolder for each fingerprint of settings, and in it pairs of files: `NAME.npy`, the features
of some clips, one row of bytes each, and `NAME.json`, their index with a checksum for each row. The index is renamed
into place after its array is complete, so a killed extraction leaves nothing that is ever read; a row is served after
its checksum was found right, so damage on disk is never trained on.

Letters in shapes: C clips, T frames, P patches, Dv width of the tower.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import uuid
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from llava.data.content_hashes import ContentHashes, replace_file

logger = logging.getLogger(__name__)

FORMAT = 2
"""Of the files; part of the fingerprint, so that files of another format are never looked at."""
TOLERANCES = {"float16": 0.02, "int8": 0.05}
"""Types that features are stored as, and the relative error that computing them again may show.

Kernels, batches of another size and bf16 round differently from run to run, by 0.01 at most; int8 alone errs by 0.005
on features without outliers and 0.018 with some.
"""

Split = tuple[int, int] | None


class DamagedFeatures(ValueError):
    """A row of a shard is not what was written."""


class Shard(NamedTuple):
    """A file of features: name without suffix, size in bytes, rows, bytes of a row, and the row's shape (T, P, Dv)."""

    name: str
    size: int
    rows: int
    row_bytes: int
    shape: tuple[int, ...]


class Entry(NamedTuple):
    shard: Shard
    row: int
    checksum: int


class FeatureCache:
    """Features of one tower under one set of settings.

    Args:
        root: the cache folder, shared by any number of runs.
        settings: everything that determines a feature apart from the clip itself; a difference in any of it leads to
            another subfolder. `dtype` is the type that features are stored as.
        repair: whether extraction first checks all that it would reuse, and computes damaged features again.
    """

    def __init__(self, root: str | Path, settings: dict[str, Any], repair: bool = False) -> None:
        self.settings = {"format": FORMAT, **settings}
        self.dtype = settings.get("dtype", "float16")
        self.repair = repair
        self.fingerprint = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(root) / self.fingerprint
        self.contents = ContentHashes(Path(root) / "contents")
        self._entries: dict[str, Entry] = {}
        self._sound: set[str] = set()
        self._ignored: set[str] = set()
        self.reload()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def reload(self) -> None:
        """Reads the indexes on disk, those of other processes included.

        An index or array that is malformed is ignored with a warning: its clips count as not extracted.
        """
        self.contents.reload()
        self._entries.clear()
        self._sound.clear()  # A clip that two runs extracted may now be served from the other shard.
        for index in sorted(self.folder.glob("*.json")):
            if index.name == "settings.json":
                continue
            try:
                self._entries |= _read_index(index, self.dtype)
            except (ValueError, TypeError, KeyError, OSError) as error:
                if index.name not in self._ignored:
                    self._ignored.add(index.name)
                    logger.warning(
                        "%s: damaged, ignored; extraction computes its features again, and then it and %s can be "
                        "deleted (%s: %s)", index, index.with_suffix(".npy").name, type(error).__name__, error
                    )  # fmt: skip

    def key(self, path: str, split: Split) -> str:
        """Key of a clip: the hash of its content, and the segment. Reads the file when it is new or has changed."""
        return join_key(self.contents.hash(path), split)

    def has(self, path: str, split: Split) -> bool:
        return self.key(path, split) in self._entries

    def place(self, path: str, split: Split) -> tuple[str, int]:
        """The file (without suffix) and the row of a clip's features; an error when there are none."""
        entry = self._entries[self.key(path, split)]
        return entry.shard.name, entry.row

    def read(self, path: str, split: Split) -> torch.Tensor:
        """Features (T, P, Dv) of a clip, in fp16; an image has T = 1.

        Raises:
            LookupError: when the clip as it is now was never extracted.
            DamagedFeatures: when what is on disk is not what was written; found when a process first reads the row.
            FileNotFoundError: when the clip is gone.
        """
        try:
            key = self.key(path, split)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{path}: gone since the run started, so that nobody can say whether its features in {self.folder} are "
                "those of this record; put the file back, or leave its records out"
            ) from error
        entry = self._entries.get(key)
        if entry is None:
            raise LookupError(
                f"{path}: not in the feature cache {self.folder}; the file is new or changed since extraction: start "
                "again, which extracts it"
            )
        if key not in self._sound:
            problem = self._damage(entry)
            if problem:
                raise DamagedFeatures(
                    f"{path}: its features in {self._file(entry.shard)}, row {entry.row}, are damaged ({problem}); "
                    "compute them again with the flags of this run and --repair_features (training or python -m "
                    "llava.data.extract), and have the disk checked"
                )
            self._sound.add(key)
        return decode(_map(self._file(entry.shard), entry.shard)[entry.row], self.dtype, entry.shard.shape)

    def write(self, clips: Sequence[tuple[str, str]], features: np.ndarray) -> None:
        """Adds a shard: `clips` (key, path) and their features (C, T, P, Dv) in fp16.

        Raises:
            OSError: when the disk is full or the folder cannot be written; nothing half-written is ever read.
        """
        name = uuid.uuid4().hex
        rows = encode(features, self.dtype)
        entries = [
            {"key": key, "path": os.path.abspath(path), "crc32": zlib.crc32(row.tobytes())}
            for (key, path), row in zip(clips, rows, strict=True)
        ]
        index: dict[str, Any] = {"shape": features.shape[1:], "entries": entries}
        array = self.folder / f"{name}.npy"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "settings.json").exists():
                replace_file(self.folder / "settings.json", partial(_dump, self.settings))
            index["size"] = replace_file(array, lambda f: np.save(f, rows))
            replace_file(array.with_suffix(".json"), partial(_dump, index))
        except OSError as error:
            with suppress(OSError):
                array.unlink(missing_ok=True)
            raise OSError(error.errno or errno.EIO, self._cannot_write(rows.nbytes, error)) from error
        self._entries |= _read_index(array.with_suffix(".json"), self.dtype)

    def _cannot_write(self, size: int, error: OSError) -> str:
        place = next(p for p in (self.folder, *self.folder.parents) if p.exists())
        free = shutil.disk_usage(place).free
        return (
            f"cannot write {size / 1e6:.1f} MB of vision features to {self.folder} ({error.strerror or error}; "
            f"{free / 1e6:.1f} MB free): make room, name another disk with --feature_cache, or take half the room with "
            "--feature_dtype int8; what was written before is kept, and the same command goes on from there"
        )

    def remove_damaged(self, keys: Iterable[str]) -> int:
        """Checks the rows of `keys` on disk and strikes the damaged ones from their indexes; returns their number."""
        damaged: dict[str, set[int]] = {}
        for key in keys:
            entry = self._entries.get(key)
            if entry is not None and self._damage(entry):
                damaged.setdefault(entry.shard.name, set()).add(entry.row)
        for name, rows in damaged.items():
            path = self.folder / f"{name}.json"
            index = json.loads(path.read_text(encoding="utf-8"))
            index["entries"] = [None if row in rows else entry for row, entry in enumerate(index["entries"])]
            replace_file(path, partial(_dump, index))
        if damaged:
            self.reload()
        return sum(len(rows) for rows in damaged.values())

    def siblings(self) -> list[tuple[Path, str, Any, Any]]:
        """Caches beside this one that differ in a single setting: folder, setting, its value there and here."""
        found = []
        here = json.loads(json.dumps(self.settings))  # Tuples as lists, as they are on disk.
        for path in sorted(self.folder.parent.glob("*/settings.json")):
            try:
                there = json.loads(path.read_text(encoding="utf-8"))
                differing = [k for k in {*there, *here} if there.get(k) != here.get(k)]
            except (ValueError, TypeError, OSError):
                continue
            if len(differing) == 1:
                name = differing[0]
                found.append((path.parent, name, there.get(name), here.get(name)))
        return found

    def _file(self, shard: Shard) -> str:
        return os.path.join(self.folder, f"{shard.name}.npy")

    def _damage(self, entry: Entry) -> str:
        """What is wrong with a row on disk; empty when it is what was written."""
        try:
            size = os.stat(self._file(entry.shard)).st_size
            if size != entry.shard.size:
                return f"the file has {size} bytes, expected {entry.shard.size}"
            checksum = zlib.crc32(_map(self._file(entry.shard), entry.shard)[entry.row])
        except OSError as error:
            return str(error)
        return "" if checksum == entry.checksum else f"checksum {checksum:08x}, expected {entry.checksum:08x}"


def join_key(content: str, split: Split) -> str:
    return f"{content}:{split[0]}-{split[1]}" if split else content


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
    count = int(np.prod(shape))
    values, scale = row[:count].view("i1").reshape(shape), row[count:].view("<f4")
    return torch.from_numpy(np.multiply(values, scale, dtype=np.float32)).half()


def _dump(value: Any, file: IO[bytes]) -> None:
    file.write(json.dumps(value).encode())


def _read_index(path: Path, dtype: str) -> dict[str, Entry]:
    """The entries of an index whose array is there in its full length; an error when something is amiss."""
    index = json.loads(path.read_text(encoding="utf-8"))
    shape = tuple(int(n) for n in index["shape"])
    shard = Shard(path.stem, int(index["size"]), len(index["entries"]), row_type(dtype, shape).itemsize, shape)
    if len(shape) != 3 or min(shape) < 1 or shard.size < shard.rows * shard.row_bytes:
        raise ValueError(f"{shard.rows} entries of shape {shape} do not fit {shard.size} bytes")
    size = path.with_suffix(".npy").stat().st_size
    if size != shard.size:
        raise ValueError(f"{path.stem}.npy has {size} bytes, expected {shard.size}")
    return {
        entry["key"]: Entry(shard, row, int(entry["crc32"]))
        for row, entry in enumerate(index["entries"])
        if entry is not None
    }


@lru_cache(maxsize=4096)
def _map(path: str, shard: Shard) -> np.ndarray:
    """Rows of bytes (C, bytes) of a shard. They fill the end of the file, so that its header need not be trusted."""
    offset = shard.size - shard.rows * shard.row_bytes
    return np.asarray(np.memmap(path, np.uint8, "r", offset, (shard.rows, shard.row_bytes)))
