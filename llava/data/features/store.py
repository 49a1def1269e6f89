"""The files of a feature cache: checked shards of features.

A cache folder holds one subfolder for each fingerprint of settings, and in it pairs of files: `NAME.npy`, the features
of some clips, one row of bytes each, and `NAME.json`, their index with a checksum for each row. The index is renamed
into place after its array is complete, so a killed extraction leaves nothing that is ever read; a row is served after
its checksum, which covers the clip's key, was found right, so neither damage on disk nor another clip's row is ever
trained on. An index may name an array of another subfolder, whose rows an earlier commit wrote (`old_features.py`).
`NAME.tar` in place of `NAME.npy` is the same as a shard for storage far away; a folder may hold both, and in a bucket
there are only tars.

Letters in shapes: C clips, T frames, P patches, Dv width of the tower.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import tempfile
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePath
from typing import IO, Any

import numpy as np
import torch

from llava.data.features.content import ContentHashes, load_json, replace_file
from llava.data.features.remote import is_remote, open_folder
from llava.data.features.room import cannot_write
from llava.data.features.rows import DamagedFeatures, RemoteRow, StoredRow
from llava.data.features.shards import (
    Entry,
    damage,
    decode,
    encode,
    read_index,
    read_indexes,
    row_checksum,
    row_damage,
    write_tar,
)
from llava.data.features.sound import SoundRows
from llava.errors import MissingFile, NotCached, UnwritableFile, UserError, show

logger = logging.getLogger(__name__)

FORMAT = 3
"""Of the files, and of the rule that chooses frames; part of the fingerprint, so that files of another format are never
taken for ours. 2 had checksums without keys, and frames by their number (`llava.data.video.legacy`)."""
TOLERANCES = {"float16": 0.02, "int8": 0.05}
"""Types that features are stored as, and the relative error that computing them again may show.

Kernels, batches of another size and bf16 round differently from run to run, by 0.01 at most; int8 alone errs by 0.005
on features without outliers and 0.018 with some.
"""

Split = tuple[int, int] | None

Clip = tuple[str, Split, bool]
"""(path, segment, is it an image)."""


class FeatureCache:
    """Features of one tower under one set of settings.

    Args:
        root: the cache folder, shared by any number of runs; `s3://bucket/prefix` is one in a bucket.
        settings: everything that determines a feature apart from the clip itself; a difference in any of it leads to
            another subfolder. `dtype` is the type that features are stored as.
        repair: whether extraction first checks all that it would reuse, and computes damaged features again.
        shards: whether features are written as tars; a bucket is read only without it.
        run: a name that the processes of a run have in common: they verify each row once on a machine, and not once
            each.

    Raises:
        UserError: for a bucket that does not answer, or that is only read and should be repaired.
    """

    def __init__(
        self,
        root: str | Path,
        settings: dict[str, Any],
        repair: bool = False,
        shards: bool = False,
        run: str | None = None,
    ) -> None:
        self.settings = {"format": FORMAT, **settings}
        self.dtype = settings.get("dtype", "float16")
        self.repair = repair
        self.fingerprint = fingerprint(self.settings)
        root = open_folder(root)
        self.folder = root / self.fingerprint
        self.contents = ContentHashes(root / "contents")
        self.shards = shards
        self.read_only = is_remote(root) and not shards
        if repair and self.read_only:
            raise UserError(
                f"--repair_features: {root} is only read here; {_extract(root)} --repair_features repairs it"
            )
        self._entries: dict[str, Entry] = {}
        self._verified = SoundRows(0, run)
        self._sound: set[str] = set()
        self._ignored: set[str] = set()
        self.reload()

    _damage = staticmethod(damage)

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
        for index, entries, error in read_indexes(self.folder, self.dtype):
            self._entries |= entries
            if error is not None and index.name not in self._ignored:
                self._ignored.add(index.name)
                logger.warning(
                    "%s: damaged, ignored; extraction computes its features again, and then it and %s can be deleted "
                    "(%s: %s)", index, f"{index.stem}.{'tar' if is_remote(index) else 'npy'}", type(error).__name__,
                    error,
                )  # fmt: skip
        self._make_room()

    def _make_room(self) -> None:
        """For as many verified rows as there are, before data workers are forked."""
        if len(self._entries) > self._verified.room:
            self._verified = SoundRows(len(self._entries), self._verified.name)

    def key(self, path: str, split: Split, is_image: bool = False) -> str:
        """Key of a clip: the hash of its content, the segment, and whether it is read as an image. Reads the file when
        it is new or has changed.
        """
        return join_key(self.contents.hash(path), split, is_image)

    def has(self, path: str, split: Split, is_image: bool = False) -> bool:
        return self.key(path, split, is_image) in self._entries

    def place(self, path: str, split: Split, is_image: bool = False) -> tuple[str, int]:
        """The file (without suffix) and the row of a clip's features; an error when there are none."""
        entry = self._entries[self.key(path, split, is_image)]
        return entry.shard.name, entry.row

    def read(self, path: str, split: Split, is_image: bool = False) -> torch.Tensor:
        """Features (T, P, Dv) of a clip, in fp16 and in memory of their own; an image has T = 1. Raises as `stored`."""
        found = self.stored(path, split, is_image).tensor()
        return found.view(-1, *found.shape[-2:])

    def stored(self, path: str, split: Split, is_image: bool = False) -> StoredRow | RemoteRow:
        """Where the features of a clip lie, verified before anything in this run reads them; those in a bucket are
        verified when they are read.

        Raises:
            LookupError: when the clip as it is now was never extracted.
            DamagedFeatures: when what is on disk is not what was written.
            FileNotFoundError: when the clip is gone.
        """
        try:
            key = self.key(path, split, is_image)
        except FileNotFoundError as error:
            raise MissingFile(
                f"{path}: gone since the run started, so that nobody can say whether its features in {self.folder} are "
                "those of this record; put the file back, or leave its records out"
            ) from error
        entry = self._entries.get(key)
        if entry is None:
            remedy = (
                f"{_extract(self.folder.parent)} extracts it" if self.read_only else "start again, which extracts it"
            )
            raise NotCached(
                f"{path}: not in the feature cache {self.folder}; the file is new or changed since extraction: {remedy}"
            )
        shape = entry.shard.shape[1:] if is_image and entry.shard.shape[0] == 1 else entry.shard.shape
        if is_remote(entry.shard.file):
            return RemoteRow(path, entry.shard.file, shape, partial(self._fetch, path, entry))
        if key not in self._sound:
            self._verify(path, entry)
            self._sound.add(key)
        return StoredRow(path, entry.shard.file, entry.offset, shape, self.dtype)

    def _verify(self, path: str, entry: Entry) -> None:
        if entry not in self._verified:
            self._refuse(path, entry, self._damage(entry))
            self._verified.add(entry)

    def _fetch(self, path: str, entry: Entry) -> torch.Tensor:
        """A row from a bucket, by one request, and checked each time: the way is long."""
        try:
            row = entry.bytes()
        except OSError as error:
            self._refuse(path, entry, str(error))
            raise
        self._refuse(path, entry, row_damage(entry, row))
        return decode(row, self.dtype, entry.shard.shape)

    def _refuse(self, path: str, entry: Entry, problem: str) -> None:
        if not problem:
            return
        where = f"{path}: its features in {entry.shard.file}, row {entry.row}, are damaged ({problem}); "
        if self.read_only:
            raise DamagedFeatures(where + f"{_extract(self.folder.parent)} --repair_features computes them again")
        raise DamagedFeatures(
            where + "compute them again with the flags of this run and --repair_features (training or python -m "
            "llava.data.extract), and have the disk checked"
        )

    def row(self, key: str) -> torch.Tensor:
        """Features (T, P, Dv) of a key as they lie on disk, in fp16, their checksum not looked at.

        Raises:
            LookupError: when there are none.
        """
        entry = self._entries[key]
        return decode(entry.bytes(), self.dtype, entry.shard.shape)

    def check_has(self, missing: Sequence[Clip]) -> None:
        """Where features are only read, after looking for what they lack.

        Raises:
            LookupError: naming some of the clips, when there are any.
        """
        if missing and self.read_only:
            names = ", ".join(show(path) for path, _, _ in missing[:3])
            raise NotCached(
                f"{self.folder} lacks the features of {len(missing):,} clips ({names}{', ...' * (len(missing) > 3)}), "
                f"and a bucket is only read here: {_extract(self.folder.parent)}, with the flags of this run for tower "
                "and frames, extracts them"
            )

    def check_writable(self) -> None:
        """Before work that fills the cache.

        Raises:
            OSError: when the folder cannot be made or written, with the remedy.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if is_remote(self.folder):
                probe = self.folder / f".{uuid.uuid4().hex}"
                replace_file(probe, lambda f: f.write(b" "))
                probe.unlink()
                return
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise UnwritableFile(error.errno or errno.EIO, cannot_write(self.folder, 0, error)) from error

    def write(self, clips: Sequence[tuple[str, str]], features: np.ndarray) -> None:
        """Adds a shard: `clips` (key, path) and their features (C, T, P, Dv) in fp16.

        Raises:
            OSError: when the disk is full or the folder cannot be written; nothing half-written is ever read.
        """
        rows = encode(features, self.dtype)
        shape = features.shape[1:]
        entries = [
            {"key": key, "path": os.path.abspath(path), "crc32": row_checksum(zlib.crc32(row.tobytes()), key, shape)}
            for (key, path), row in zip(clips, rows, strict=True)
        ]
        array = self.folder / f"{uuid.uuid4().hex}.{'tar' if self.shards else 'npy'}"
        index: dict[str, Any] = {"shape": shape, "entries": entries}

        def write(file: IO[bytes]) -> None:
            if self.shards:
                index["tar"] = write_tar(file, rows, [key for key, _ in clips])
            else:
                np.save(file, rows)

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            index["size"] = replace_file(array, write)
            self._publish(array.with_suffix(".json"), index)
        except OSError as error:
            with suppress(OSError):
                array.unlink(missing_ok=True)
            raise UnwritableFile(error.errno or errno.EIO, cannot_write(self.folder, rows.nbytes, error)) from error

    def adopt(self, found: Mapping[str, Entry]) -> None:
        """Serves rows of another subfolder's arrays, which stay where they lie: {key: entry with the checksum of the
        row's bytes alone}.

        Raises:
            OSError: when the folder cannot be written.
        """
        shards: dict[str, dict[int, tuple[str, Entry]]] = {}
        for key, entry in found.items():
            shards.setdefault(entry.shard.file, {})[entry.row] = key, entry
        for rows in shards.values():
            shard = next(iter(rows.values()))[1].shard
            entries = [
                {"key": rows[n][0], "crc32": row_checksum(rows[n][1].checksum, rows[n][0], shard.shape)}
                if n in rows else None
                for n in range(shard.rows)
            ]  # fmt: skip
            index = {"shape": shard.shape, "size": shard.size, "entries": entries,
                     "array": "/".join(PurePath(shard.file).parts[-2:])}  # fmt: skip
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._publish(self.folder / f"{uuid.uuid4().hex}.json", index)
            except OSError as error:
                raise UnwritableFile(
                    error.errno or errno.EIO, cannot_write(self.folder, 100 * len(entries), error)
                ) from error

    def _publish(self, path: Path, index: dict[str, Any]) -> None:
        if not (self.folder / "settings.json").exists():
            replace_file(self.folder / "settings.json", partial(_dump, self.settings))
        replace_file(path, partial(_dump, index))
        self._entries |= read_index(path, self.dtype)
        self._make_room()

    def remove_damaged(self, keys: Iterable[str]) -> int:
        """Checks the rows of `keys` on disk and strikes the damaged ones from their indexes; returns their number."""
        damaged: dict[str, set[int]] = {}
        for key in keys:
            entry = self._entries.get(key)
            if entry is not None and self._damage(entry):
                damaged.setdefault(entry.shard.name, set()).add(entry.row)
        for name, rows in damaged.items():
            path = self.folder / f"{name}.json"
            index = load_json(path)
            index["entries"] = [None if row in rows else entry for row, entry in enumerate(index["entries"])]
            replace_file(path, partial(_dump, index))
        if damaged:
            self.reload()
        return sum(len(rows) for rows in damaged.values())

    def siblings(self) -> list[tuple[Path, str, Any, Any]]:
        """Caches beside this one that differ in a single setting: folder, setting, its value there and here."""
        found = []
        here = json.loads(json.dumps(self.settings))  # Tuples as lists, as they are on disk.
        for folder, there in caches_beside(self.folder):
            differing = [k for k in {*there, *here} if there.get(k) != here.get(k)]
            if len(differing) == 1:
                name = differing[0]
                found.append((folder, name, there.get(name), here.get(name)))
        return found


def fingerprint(settings: Mapping[str, Any]) -> str:
    """The name of the subfolder for some settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def caches_beside(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The subfolders of a cache with their settings; those whose settings are not theirs are left out."""
    found = []
    for path in sorted(folder.parent.glob("*/settings.json")):
        with suppress(ValueError, OSError, RecursionError):
            there = load_json(path)
            if isinstance(there, dict) and fingerprint(there) == path.parent.name:
                found.append((path.parent, there))
    return found


def join_key(content: str, split: Split, is_image: bool = False) -> str:
    """A clip's key: an image and a video of the same bytes are read by other decoders, and are two."""
    key = f"{content}:{split[0]}-{split[1]}" if split else content
    return f"image:{key}" if is_image else key


def _extract(root: object) -> str:
    """The command that writes into a bucket."""
    return f"python -m llava.data.extract --shards {root}"


def _dump(value: Any, file: IO[bytes]) -> None:
    file.write(json.dumps(value).encode())
