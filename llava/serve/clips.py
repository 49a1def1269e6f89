"""Which files are meant by the clips that a user names: files, folders and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence

from llava.data.convert.clips import VIDEOS
from llava.errors import UserError, show


def find_clips(named: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files in the order in which they were named, those of a folder or a pattern by name, each once.

    A file counts whatever it is called, and whether it is there is for its reader to say. Of a folder and those below
    it count files with a video's extension (`VIDEOS`). A pattern is Python's (`clips/*.mp4`, `clips/**/*.mp4`), for
    shells that leave it alone; the folders that it matches are taken whole.

    Returns:
        the files, and what is to be said of those that were left out.

    Raises:
        ValueError: naming every pattern without a match and every folder without a video.
    """
    found: list[str] = []
    remarks: list[str] = []
    problems: list[str] = []
    for name in named:
        matches = [name]
        if glob.has_magic(name) and not os.path.lexists(name):
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                problems.append(f"{show(name)}: no file matches")
        for match in matches:
            if not os.path.isdir(match):
                found.append(match)
                continue
            clips, others = _videos_in(match)
            found += clips
            if not clips:
                problems.append(f"{show(match)}: a folder without videos ({', '.join(sorted(VIDEOS))})")
            elif others:
                remarks.append(f"{show(match)}: {len(clips)} videos; left out are {others} other files")
    if problems:
        raise UserError("--video " + "; ".join(problems))
    files: dict[str, str] = {}
    for path in found:
        files.setdefault(os.path.abspath(path), path)
    if len(files) < len(found):
        remarks.append(f"{len(found) - len(files)} files were named again and are captioned once")
    return list(files.values()), remarks


def _videos_in(folder: str) -> tuple[list[str], int]:
    """The videos of a folder and those below it by name, and how many other files there are."""
    paths = list(_walk(folder))
    clips = [path for path in paths if is_video_name(path)]
    return clips, len(paths) - len(clips)


def _walk(folder: str) -> Iterator[str]:
    for root, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        yield from (os.path.join(root, name) for name in sorted(names))


def is_video_name(path: str) -> bool:
    """Whether a file is called like a video, and not `._clip.mp4`, which macOS puts beside `clip.mp4`."""
    name = os.path.basename(path)
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEOS
