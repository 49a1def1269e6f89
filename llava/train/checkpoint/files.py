"""Checkpoints that are whole or not there: written aside, checked, renamed, and found again by their checksums.

Nothing here needs a trainer. A checkpoint `checkpoint-N` has a manifest with the size and SHA-256 of each of its files;
one whose files differ from it is passed over with a warning, and stays for the user to look at.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from llava.constants import ASIDE
from llava.errors import UnwritableFile, UserError

logger = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
INVALID = "invalid-"
"""Start of the names of checkpoints that were found damaged and stood where a new one had to go."""
FULL = {errno.ENOSPC, errno.EDQUOT}
WRITE_ERRORS = {*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG}


class WriteError(UnwritableFile):
    """Something could not be written; the message has the remedy."""


def checksum(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: Path) -> None:
    """Writes the sizes and checksums of all files of a folder into its `manifest.json`."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": checksum(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST_FILE
    }
    (folder / MANIFEST_FILE).write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")


def remove(path: Path) -> None:
    """Removes a folder, a file, or a link without what it leads to: checkpoints may have been moved to another disk."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def checkpoint_problems(folder: Path, contents: bool = True) -> list[str]:
    """What is wrong with a checkpoint, file by file; nothing when it is as it was written.

    Args:
        contents: whether to read the files and compare their checksums, or to look at their sizes alone.
    """
    try:
        files = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
        expected = [(folder / name, entry["size"], entry["sha256"]) for name, entry in files.items()]
    except (FileNotFoundError, NotADirectoryError):
        return [f"no {MANIFEST_FILE}: it was not written to its end, or not by this trainer"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{MANIFEST_FILE} is damaged"]
    problems = []
    for path, size, digest in expected:
        name = path.relative_to(folder)
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != size:
            problems.append(f"{name} has {path.stat().st_size} bytes instead of {size}")
        elif contents and checksum(path) != digest:
            problems.append(f"{name} has other contents than were written (checksum)")
    return problems


def list_checkpoints(output_dir: str | Path) -> list[tuple[int, Path]]:
    """Steps and folders of the checkpoints of a run, whole or not, in the order of their steps.

    The step decides and not the time of the file, which a wrong clock falsifies.
    """
    found = []
    for path in Path(output_dir).glob("checkpoint-*"):
        if path.is_dir() and (match := re.fullmatch(r"checkpoint-(\d+)", path.name)):
            found.append((int(match[1]), path))
    return sorted(found)


def newest_valid(output_dir: str | Path) -> Path | None:
    """The newest whole checkpoint of a run; newer ones that are damaged are named in a warning and left alone."""
    for _, path in reversed(list_checkpoints(output_dir)):
        problems = checkpoint_problems(path)
        if not problems:
            return path
        logger.warning("%s is not whole and is passed over: %s", path, "; ".join(problems[:3]))
    return None


def publish(written: Path, final: Path) -> None:
    """Makes a checkpoint that was written aside appear under its name, all at once and for good.

    Its files reach the disk before the name does. A whole checkpoint that has the name is replaced, a damaged one is
    kept as `invalid-checkpoint-N`.

    Raises:
        OSError: when something could not be written.
        ValueError: when tensors cannot be read back.
    """
    for path in written.rglob("*"):
        _sync(path)
    for path in written.rglob("*.safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                readable = bool(list(file.keys()))
        except SafetensorError as error:
            raise UserError(
                f"{path.name} cannot be read back after it was written ({error}): is the disk sound?"
            ) from error
        if not readable:
            raise ValueError(f"{path.name} was written without tensors")
    write_manifest(written)
    _sync(written / MANIFEST_FILE)
    _sync(written)
    if os.path.lexists(final):  # Also a link that leads nowhere.
        problems = checkpoint_problems(final, contents=False)
        keep = final.with_name(f"{INVALID if problems else ASIDE + 'replaced-'}{final.name}")
        if problems:
            logger.warning("%s is not whole (%s) and is kept as %s", final, problems[0], keep.name)
        remove(keep)
        final.rename(keep)
        written.rename(final)
        if not problems:
            remove(keep)
    else:
        written.rename(final)
    _sync(final.parent)


def move_into(aside: Path, final: Path, last: str) -> None:
    """Moves the files of a folder into another, each whole or not at all, the one named `last` after the others."""
    for path in sorted(aside.iterdir(), key=lambda p: (p.name == last, p.name)):
        _sync(path)
        path.replace(final / path.name)
    _sync(final)
    aside.rmdir()


def rotate(output_dir: str | Path, limit: int | None, keep: set[Path]) -> None:
    """Removes the oldest checkpoints beyond `limit`, never those of `keep`; damaged ones are not counted and stay."""
    if not limit or limit < 1:
        return
    keep = {path.resolve() for path in keep}
    whole = [path for _, path in list_checkpoints(output_dir) if not checkpoint_problems(path, contents=False)]
    surplus = max(len(whole) - max(limit, len(keep)), 0)
    for path in [p for p in whole if p.resolve() not in keep][:surplus]:
        # Renamed first, so that a kill in between leaves no half of a checkpoint under its name.
        aside = path.with_name(f"{ASIDE}removed-{path.name}")
        path.rename(aside)
        remove(aside)


def clear_leftovers(output_dir: str | Path) -> None:
    """Removes what a killed run left half-written, and says so."""
    for path in sorted(Path(output_dir).glob(f"{ASIDE}*")):
        logger.warning("%s: removed, a checkpoint that was not written (or removed) to its end", path)
        remove(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def write_errors_explained(output_dir: str | Path, what: str = "", limit: int | None = None) -> Iterator[None]:
    """Gives errors of writing their remedy.

    Args:
        what: what is being written, so that every error here is one of writing it; "" for a whole run, where only
            errors that cannot come from reading are explained.
        limit: `--save_total_limit`, if set.

    Raises:
        WriteError: naming the folder, the reason, the last whole checkpoint and the lever to pull.
    """
    try:
        yield
    except WriteError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        number = _error_number(error, output_dir, bool(what))
        if number is None:
            raise
        folder = Path(output_dir)
        whole = [p.name for _, p in list_checkpoints(folder) if not checkpoint_problems(p, contents=False)]
        reason = os.strerror(number) if number else "the file system failed"
        place = (
            f"{what} in {folder}" if what else (getattr(error, "filename", None) or f"a file of the run in {folder}")
        )
        lever = f"make {folder} writable, or choose another --output_dir"
        if number in FULL or not number:
            fewer = f"lower --save_total_limit (now {limit or 'unlimited'})"
            lever = f"free space on its disk ({_free(folder)} free), {fewer}, or move the folder to another disk"
        if number == errno.ENOSPC and _no_inodes(folder):
            reason = f"the file system has no inodes left, whatever its free space ({_free(folder)})"
            lever = "remove files on it, many small ones most of all, or choose another --output_dir"
        kept = f"{whole[-1]} is whole and the run goes on from it" if whole else "there is no checkpoint yet"
        raise WriteError(
            number or errno.EIO, f"{place} could not be written: {reason}. {kept}. {lever}; then give the same command"
        ) from error


def _error_number(error: Exception, output_dir: str | Path, writing: bool) -> int | None:
    """The number of an error of writing, 0 for one without number, None for another error.

    safetensors and torch write outside Python and tell of it in words.
    """
    if isinstance(error, OSError):
        inside = error.filename is not None and Path(str(error.filename)).is_relative_to(output_dir)
        unmistakable = error.errno in FULL | {errno.EROFS}
        return error.errno if error.errno in WRITE_ERRORS and (writing or inside or unmistakable) else None
    if not writing:
        return None
    if match := re.search(r"os error (\d+)", str(error)):
        return int(match[1])
    if re.search(r"PytorchStreamWriter|inline_container|unexpected pos", str(error)):
        return errno.ENOSPC if _free_bytes(Path(output_dir)) < 1 << 20 else 0
    return None


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 1 << 62


def _no_inodes(folder: Path) -> bool:
    """Whether a file system has no room for another file; one that counts none says 0 of 0."""
    try:
        counts = os.statvfs(folder)
    except OSError:
        return False
    return counts.f_files > 0 and counts.f_ffree == 0


def _free(folder: Path) -> str:
    return f"{_free_bytes(folder) / 1e6:,.0f} MB"
