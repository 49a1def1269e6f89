"""Which file of a folder is meant by the name of a clip, and which frames by seconds."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from llava.data.json_records import DatasetError
from llava.errors import show

VIDEOS = frozenset({
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp",
    ".ogv", ".gif",
})  # fmt: skip
IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
YOUTUBE_ID = 11
"""Letters of the name of a video there, as MSVD's clips begin."""
SHORTER = 1.0
"""Seconds by which a clip that was cut may be longer than its segment: cuts are made at key frames."""


def is_image_name(path: str | Path) -> bool:
    """Whether a file is called like an image; `.gif`, which may be either, counts as a video."""
    return os.path.splitext(path)[1].lower() in IMAGES - VIDEOS


def parts_of(clip: str) -> list[str]:
    """The folders and the name that a source has for a clip, of an address without its `https://` and its query."""
    clip = re.sub(r"^[a-z]+://", "", clip.split("?")[0] if "://" in clip else clip)
    return [part for part in clip.replace("\\", "/").split("/") if part not in ("", ".")] or [""]


def folder_of(clip: str, folder: str = "") -> str:
    """The folder that a clip lies in, as its source names it; empty where it names none, as an address does."""
    parts = [] if "://" in clip else parts_of(clip)[:-1]
    return composed((parts or folder.strip("/").split("/"))[-1])


def names_of(clip: str, folder: str = "", start: float | None = None, end: float | None = None) -> Iterator[str]:
    """What the file of a clip may be called, the likeliest first: with and without folders, with its segment, as
    `video12` for 12, and its last name without the segment that VATEX and MSVD put there.
    """
    parts = parts_of(clip)
    clip = "/".join(parts)
    segments = []
    if start is not None and end is not None:
        pairs = [(f"{start:g}", f"{end:g}"), (f"{int(start):06d}", f"{int(end):06d}")]
        segments = [f"{clip}_{a}_{b}" for a, b in pairs]
    tails = ["/".join(parts[i:]) for i in range(len(parts))]
    for name in (*segments, *tails):
        if folder:
            yield f"{folder.strip('/')}/{name}"
        yield name
    if clip.isdecimal():
        yield f"video{clip}"


def times_in(name: str) -> tuple[str, float, float] | None:
    """(name, start, end) of VATEX's and MSVD's `ID_start_end`; None for other names."""
    found = re.fullmatch(r"(.+)_(\d{1,6})_(\d{1,6})", name)
    return (found[1], float(found[2]), float(found[3])) if found and float(found[2]) < float(found[3]) else None


class ClipIndex:
    """The files of a folder by their names, with and without folders and extension.

    Args:
        folder: is walked once, links included.
        extensions: of the files that count.

    Raises:
        DatasetError: when there is no such folder.
    """

    def __init__(self, folder: str | Path, extensions: Iterable[str], flag: str = "--video_folder") -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DatasetError(f"{flag} {show(folder)}: no such folder")
        known = frozenset(extensions)
        # By the path below the folder, with and without its extension; and by the file's name alone.
        self._paths: dict[str, list[str]] = {}
        self._names: dict[str, list[str]] = {}
        self.count = 0
        for root, folders, names in os.walk(self.folder, followlinks=True):
            folders.sort()
            below = os.path.relpath(root, self.folder).replace(os.sep, "/")
            for name in sorted(names):
                stem, extension = os.path.splitext(name)
                if extension.lower() in known:
                    path = name if below == "." else f"{below}/{name}"
                    self.count += 1
                    for index, keys in ((self._paths, {path, os.path.splitext(path)[0]}), (self._names, {name, stem})):
                        for key in keys:
                            index.setdefault(composed(key), []).append(path)

    def find(
        self, clip: str, folder: str = "", start: float | None = None, end: float | None = None
    ) -> tuple[list[str], tuple[float, float] | None]:
        """(files that may be meant, below the folder; the seconds of them that are, where the name or the row says so).

        No file is a clip that is missing, several one that is not told apart. A file of the same name in another folder
        than the source says is not the clip.
        """
        for name in names_of(clip, folder, start, end):
            if found := self._paths.get(composed(name)) or self._named(name, folder_of(clip, folder)):
                whole = start is None or end is None or re.sub(r"\.\w+$", "", name).endswith(_tails(start, end))
                return found, None if whole else (start, end)  # type: ignore[return-value]
        stem = os.path.splitext(clip)[0] if os.path.splitext(clip)[1].lower() in VIDEOS else clip
        named = times_in(stem)
        # Other names end in two numbers too: `kitchen_1_2` is no second of `kitchen`.
        if named and start is None and (len(parts_of(named[0])[-1]) == YOUTUBE_ID or re.search(r"_\d{6}_\d{6}$", stem)):
            return self.find(named[0], folder, named[1], named[2])
        return [], None

    def _named(self, name: str, folder: str) -> list[str]:
        """The files of a name that lie in a folder of this name, or in any where it is empty."""
        found = self._names.get(composed(name), [])
        return [path for path in found if not folder or composed(os.path.dirname(path)).split("/")[-1] == folder]

    def elsewhere(self, clip: str) -> list[str]:
        """The files that are called like a clip, in whatever folder."""
        return self._names.get(composed(parts_of(clip)[-1]), [])

    def files(self) -> list[str]:
        """All files, below the folder."""
        return sorted({path for found in self._names.values() for path in found})


def _tails(start: float, end: float) -> tuple[str, str]:
    return f"_{start:g}_{end:g}", f"_{int(start):06d}_{int(end):06d}"


def composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def frames_between(times: Sequence[float] | np.ndarray, start: float, end: float) -> tuple[int, int] | None:
    """(first, last) frame, both included, of those that appear from `start` up to before `end`, or the one that stands
    then; None where the clip has ended.

    Args:
        times: (N,) seconds at which the frames are shown, from the first of them.
    """
    shown = np.asarray(times, dtype=np.float64)
    step = float(np.median(np.diff(shown))) if len(shown) > 1 else 0.0
    if start >= shown[-1] + max(step, 1e-3):
        return None
    first = min(int(np.searchsorted(shown, start - 5e-4)), len(shown) - 1)
    last = int(np.searchsorted(shown, end - 5e-4)) - 1
    if last < first:
        first = last = max(last, 0)
    return first, last


def is_cut(times: Sequence[float] | np.ndarray, start: float, end: float) -> bool:
    """Whether a clip holds nothing but its segment already: `start` and `end` are then of what it was cut from."""
    return end > float(times[-1]) + SHORTER and abs(float(times[-1]) - (end - start)) <= SHORTER
