"""Hashes of the contents of files, each file read once for all the runs that share a folder.

A file is known by its absolute path, size and time of change; a clip that moved is read once more, by the process that
finds it first, and by no other and in no later run. What is known lies in `NAME.json` files that are never changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NoReturn

from llava.data.features.remote import is_remote, open_folder, read_many
from llava.errors import Stopped
from llava.progress import progress

logger = logging.getLogger(__name__)

FILES_AT_ONCE = 4096
"""Files that are hashed between two writes of what is known."""
THREADS = 8

File = tuple[str, int, int]
"""(absolute path, bytes, time of change in ns)."""


class ContentHashes:
    """The hashes that `folder` knows; the folder is made when there is something to keep."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = open_folder(folder)
        self._known: dict[File, str] = {}
        self._loaded: set[str] = set()
        self.reload()

    def reload(self) -> None:
        """Reads what other processes have written since; a file that cannot be read is ignored with a warning."""
        new = [path for path in sorted(self.folder.glob("*.json")) if path.name not in self._loaded]
        self._loaded |= {path.name for path in new}
        for path, (known, error) in zip(new, read_many(new, _try_read), strict=True):
            self._known |= known
            if error is not None:
                logger.warning("%s: malformed, ignored; its clips are hashed again; delete it (%s)", path, error)

    def hash(self, path: str) -> str:
        """The hash of a file's content; reads the file when it is new or has changed.

        Raises:
            OSError: when it is gone or cannot be read.
        """
        file = _identify(path)
        if file not in self._known:
            self._known[file] = _hash(path)
        return self._known[file]

    def resolve(
        self, paths: Iterable[str], should_stop: Callable[[], bool] | None = None, show_progress: bool = False
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Hashes of many files, and the errors of those that cannot be read; one `stat` for each file that is known.

        New hashes are written down, so that no other process and no later run reads these files again.

        Raises:
            Stopped: when `should_stop` says so; what is known by then is kept.
        """
        hashes: dict[str, str] = {}
        errors: dict[str, str] = {}
        unknown: dict[str, File] = {}
        for path in dict.fromkeys(paths):
            try:
                file = _identify(path)
            except OSError as error:
                errors[path] = str(error)
                continue
            if file in self._known:
                hashes[path] = self._known[file]
            else:
                unknown[path] = file
        hidden = not (show_progress and unknown)
        with progress(total=len(unknown), desc="contents of clips", unit="file", disable=hidden) as bar:
            names = list(unknown)
            for start in range(0, len(names), FILES_AT_ONCE):
                some = names[start : start + FILES_AT_ONCE]
                new: list[tuple[str, int, int, str, int]] = []
                try:
                    with ThreadPoolExecutor(THREADS) as pool:
                        for path, (digest, problem) in zip(some, pool.map(_try_hash, some), strict=True):
                            if problem:
                                errors[path] = problem
                            else:
                                hashes[path] = self._known[unknown[path]] = digest
                                new.append((*unknown[path], digest, _checksum(*unknown[path], digest)))
                            bar.update()
                            if should_stop is not None and should_stop():
                                pool.shutdown(cancel_futures=True)
                                raise Stopped("stopped while hashing clips: the same command goes on")
                finally:
                    self._keep(new)
        return hashes, errors

    def _keep(self, new: list[tuple[str, int, int, str, int]]) -> None:
        if not new:
            return
        name = f"{uuid.uuid4().hex}.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(self.folder / name, lambda f: f.write(json.dumps(new).encode()))
        except OSError as error:
            # They save time and nothing else: a cache that this process may only read still serves it.
            logger.warning("%s: cannot keep the hashes of %d files (%s)", self.folder, len(new), error)
        self._loaded.add(name)


def _read(path: Path) -> dict[File, str]:
    """The hashes of a file of them; each with a checksum, which those of earlier commits lack.

    Raises:
        ValueError: when a row is not what was written, the hash of another file included.
        OSError: when it cannot be read.
    """
    rows, known = load_json(path), {}
    if not isinstance(rows, list):
        raise ValueError("no list")
    for number, row in enumerate(rows):
        if not isinstance(row, list) or [type(value) for value in row[:4]] != [str, int, int, str] or len(row) > 5:
            raise ValueError(f"row {number} is {row!r:.80}")
        if len(row) == 5 and row[4] != _checksum(*row[:4]):
            raise ValueError(f"row {number}, {row[0]!r:.80}, does not fit its checksum")
        known[row[0], row[1], row[2]] = row[3]
    return known


def _try_read(path: Path) -> tuple[dict[File, str], Exception | None]:
    try:
        return _read(path), None
    except (ValueError, OSError) as error:
        return {}, error


def _checksum(name: str, size: int, changed: int, digest: str) -> int:
    return zlib.crc32(f"{digest} {size} {changed} {name}".encode("utf-8", "surrogatepass"))


def load_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: for anything that is not JSON, NaN and nesting without end included.
        OSError: when it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def replace_file(path: Path, write: Callable[[Any], Any]) -> int:
    """Writes a file so that others see all of it or nothing, and returns its size in bytes."""
    if is_remote(path):
        with TemporaryFile() as file:
            write(file)
            size = file.tell()
            open_folder(path).upload(file)
            return size
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        os.replace(temporary, path)
        return size
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _identify(path: str) -> File:
    status = os.stat(path)
    return os.path.abspath(path), status.st_size, status.st_mtime_ns


def _hash(path: str) -> str:
    digest = hashlib.blake2b(digest_size=20)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _try_hash(path: str) -> tuple[str, str]:
    try:
        return _hash(path), ""
    except OSError as error:
        return "", str(error)
