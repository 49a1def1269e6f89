"""Folders of arrays that are made once of the data files and memory-mapped by every process.

A folder holds one `NAME.npy` for each array and `about.json`: the types, lengths and checksums of the arrays, and the
`identity` of what they were made of. A folder's name is a hash of that identity, so
that a data file that changed, another setting, or other code that reads records leads to another folder. It is renamed
into place when it is complete; one that was made of a file that has changed since is deleted by who makes the next.

Letters in shapes: N rows of a table.
"""

from __future__ import annotations

import gc
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
import time
import uuid
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from llava.errors import UserError

logger = logging.getLogger(__name__)

FORMAT = 1
ABOUT = "about.json"
BLOCK = 1 << 22
"""Bytes that are read or written at once."""
ABANDONED = 86_400.0
"""Seconds after which a folder that nobody completed is deleted."""

File = tuple[str, int, int]
"""(absolute path, bytes, time of change in ns)."""


class Prepared:
    """The arrays of a folder; what it `made` beside them, as JSON."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder, self.key = folder, folder.name
        self.made: Any = about["made"]
        self.files: list[Any] = about["files"]
        """The data files that it was made of, as `File`."""
        self._arrays: Mapping[str, Any] = about["arrays"]
        self._mapped: dict[str, np.ndarray] = {}

    @classmethod
    def open(cls, folder: Path) -> Prepared:
        """A folder whose arrays have the lengths that it says.

        Raises:
            ValueError: when something in it is not what was written.
            OSError: when it cannot be read.
        """
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if not isinstance(about, dict) or about.get("format") != FORMAT or not isinstance(about.get("arrays"), dict):
            raise UserError(f"{folder / ABOUT} is not what was written")
        for name, (dtype, count, _) in about["arrays"].items():
            path = folder / f"{name}.npy"
            size, expected = os.stat(path).st_size, len(_header(dtype, count)) + np.dtype(dtype).itemsize * count
            if size != expected:
                raise UserError(f"{path} has {size} bytes, expected {expected}")
        return cls(folder, about)

    def __reduce__(self) -> Any:
        # Data workers that are started afresh map the same files.
        return Prepared.open, (self.folder,)

    def __getitem__(self, name: str) -> np.ndarray:
        """An array (N,) of the folder, memory-mapped and read-only."""
        if name not in self._mapped:
            dtype, count, _ = self._arrays[name]
            # No bytes cannot be mapped.
            path = self.folder / f"{name}.npy"
            self._mapped[name] = np.asarray(np.load(path, mmap_mode="r")) if count else np.empty(0, dtype)
        return self._mapped[name]

    def check(self) -> None:
        """Reads all arrays and compares their checksums.

        Raises:
            ValueError: naming the file that is damaged.
        """
        for name, (dtype, count, checksum) in self._arrays.items():
            path, header, found = self.folder / f"{name}.npy", _header(dtype, count), 0
            with open(path, "rb") as file:
                if file.read(len(header)) != header:
                    raise UserError(f"{path} does not begin as it was written")
                while block := file.read(BLOCK):
                    found = zlib.crc32(block, found)
            if found != checksum:
                raise UserError(f"{path}: checksum {found:08x}, expected {checksum:08x}")


def _header(dtype: str, count: int) -> bytes:
    """The beginning of an .npy file; numpy leaves room in it, so that it is as long for every `count`."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": (count,)})
    return stream.getvalue()


class Writer:
    """Appends values to the arrays of a folder that is being made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parts: dict[str, bytearray] = {}
        self._state: dict[str, list[Any]] = {}
        """By name: type, count, checksum."""

    def add(self, name: str, values: np.ndarray | Sequence[Any], dtype: Any) -> None:
        """Appends values (n,) to the array `name`, all of whose parts have one type."""
        part = np.asarray(values, dtype=dtype)
        state = self._state.setdefault(name, [part.dtype.str, 0, 0])
        state[1] += len(part)
        buffer = self._parts.setdefault(name, bytearray())
        buffer += part.tobytes()
        if len(buffer) >= BLOCK:
            self._flush(name)

    def add_texts(self, name: str, texts: Sequence[str]) -> None:
        """Appends texts to the column `name`, which `Texts` reads."""
        encoded = [text.encode("utf-8") for text in texts]
        self.add(f"{name}.text", np.frombuffer(b"".join(encoded), np.uint8), np.uint8)
        ends = np.cumsum([len(text) for text in encoded], dtype=np.int64) + self._count(f"{name}.text")
        self.add(f"{name}.ends", ends - sum(map(len, encoded)), np.int64)

    def _count(self, name: str) -> int:
        return int(self._state[name][1])

    def _flush(self, name: str) -> None:
        state, buffer = self._state[name], self._parts[name]
        state[2] = zlib.crc32(buffer, state[2])
        with open(self.folder / f"{name}.npy", "ab") as file:
            if not file.tell():
                file.write(_header(state[0], 0))
            file.write(buffer)
        buffer.clear()

    def finish(self) -> dict[str, list[Any]]:
        """Writes what is left; type, count and checksum of every array."""
        for name, (dtype, count, _) in self._state.items():
            self._flush(name)
            with open(self.folder / f"{name}.npy", "r+b") as file:
                file.write(_header(dtype, count))
        return self._state


class Texts:
    """A column of texts, decoded one at a time."""

    def __init__(self, arrays: Prepared, name: str) -> None:
        self._text, self._ends = arrays[f"{name}.text"], arrays[f"{name}.ends"]

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> str:
        start = int(self._ends[row - 1]) if row else 0
        return self._text[start : int(self._ends[row])].tobytes().decode("utf-8")

    def many(self, rows: np.ndarray) -> list[str]:
        """The texts of some rows (n,), read as one piece where they follow each other."""
        if len(rows) < 2 or len(rows) != rows[-1] - rows[0] + 1 or (np.diff(rows) != 1).any():
            return [self[int(row)] for row in rows]
        first, last = int(rows[0]), int(rows[-1])
        start = int(self._ends[first - 1]) if first else 0
        ends = (self._ends[first : last + 1] - start).tolist()
        piece = self._text[start : start + ends[-1]].tobytes()
        if piece.isascii():  # Then bytes are characters.
            text = piece.decode("ascii")
            return [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        return [piece[a:b].decode("utf-8") for a, b in zip([0, *ends], ends, strict=False)]

    def filled(self) -> np.ndarray:
        """(N,) bool: which texts are not empty."""
        return np.diff(self._ends, prepend=0) > 0


def identify(path: str) -> File:
    """What a file is known by; OSError when it is not there."""
    status = os.stat(path)
    return os.path.abspath(path), status.st_size, status.st_mtime_ns


@cache
def code_digest(*modules: str) -> str:
    """A hash of the source of modules of this package: what other code makes is made anew."""
    from importlib.util import find_spec

    digest = hashlib.sha256()
    for name in modules:
        found = find_spec(name)
        assert found is not None and found.origin is not None, name
        digest.update(Path(found.origin).read_bytes())
    return digest.hexdigest()


def prepared(
    root: Path,
    kind: str,
    identity: Mapping[str, Any],
    files: Sequence[File],
    make: Callable[[Writer], Any],
    check: bool = True,
) -> Prepared:
    """The folder of arrays that `make` writes, made when it is not there.

    Args:
        root: what all such folders lie in; where it cannot be written they are made for this process alone.
        identity: everything that the arrays depend on, as JSON.
        files: the data files among that.
        make: fills the arrays, and returns what is kept beside them, as JSON.
        check: whether checksums are compared; once a run is enough.
    """
    written = json.dumps([FORMAT, kind, identity, files], sort_keys=True)
    name = f"{kind}-{hashlib.sha256(written.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
    folder = root / name
    if folder.is_dir():
        try:
            found = Prepared.open(folder)
            if check:
                found.check()
            return found
        except (ValueError, OSError, TypeError, KeyError) as error:
            logger.warning("%s: damaged, made again (%s)", folder, error)
            with suppress(OSError):
                shutil.rmtree(folder)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_stale(root)
        with _beside(folder) as place:
            _fill(place, identity, files, make)
            with suppress(OSError):  # Another process was quicker.
                os.rename(place, folder)
            return Prepared.open(folder)
    except OSError as error:
        if folder.parent == root and os.access(root, os.W_OK):
            raise
        logger.warning("%s: cannot be written, so that what is prepared of the data serves this run alone (%s)",
                       root, str(error))  # fmt: skip
    alone = Path(tempfile.mkdtemp(prefix="llava-"))
    _fill(alone, identity, files, make)
    found = Prepared.open(alone)
    weakref.finalize(found, shutil.rmtree, alone, ignore_errors=True)
    return found


def _fill(place: Path, identity: Mapping[str, Any], files: Sequence[File], make: Callable[[Writer], Any]) -> None:
    writer = Writer(place)
    with _without_collecting():
        made = make(writer)
    about = {"format": FORMAT, "identity": identity, "files": files, "made": made, "arrays": writer.finish()}
    (place / ABOUT).write_text(json.dumps(about), encoding="utf-8")


@contextmanager
def _without_collecting() -> Iterator[None]:
    """While active, nobody looks for circles among millions of values of JSON, which have none."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A new folder beside one, deleted with all that is left in it."""
    place = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _remove_stale(root: Path) -> None:
    """Deletes folders of files that have changed since, and what was left by processes that were killed."""
    for folder in root.iterdir():
        with suppress(OSError, ValueError, TypeError, KeyError):
            if folder.name.startswith("."):
                stale = time.time() - folder.stat().st_mtime > ABANDONED
            else:
                files = json.loads((folder / ABOUT).read_text(encoding="utf-8"))["files"]
                # A file that is gone may be on a disk that is not mounted now.
                stale = any(os.path.exists(path) and identify(path) != (path, size, at) for path, size, at in files)
            if stale:
                shutil.rmtree(folder)
