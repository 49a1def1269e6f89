"""Whether two records show the same clip, under whatever name."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence

from llava.data.columns import representatives
from llava.data.features.content import ContentHashes
from llava.data.records import Record


def clip_names(records: Sequence[Record], contents: ContentHashes | None = None) -> dict[Hashable, Hashable]:
    """For what each record with a video or image names, a name that the same clip has under every path.

    It is the hash of the content where the feature cache knows one or can read the file, else the real path; a segment
    of a video is a clip of its own.
    """
    clips = {(r.videos, r.images, r.split) for r in representatives(records)[0] if r.videos or r.images}
    files: dict[str, str] = {}

    def name(path: str) -> str:
        if path not in files:
            files[path] = _name(path, contents)
        return files[path]

    return {clip: (tuple(map(name, clip[0])), tuple(map(name, clip[1])), clip[2]) for clip in clips}


def _name(path: str, contents: ContentHashes | None) -> str:
    if contents is not None:
        try:
            return contents.hash(path)
        except OSError:
            pass  # Whether the file can be read is said elsewhere.
    return os.path.realpath(path)
