"""Whether two records show the same clip, under whatever name, and so whether evaluation clips were trained on."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Sequence

from llava.data.content_hashes import ContentHashes
from llava.data.records import Record
from llava.train.preflight_data import Finding


def clip_names(records: Iterable[Record], contents: ContentHashes | None = None) -> dict[Hashable, Hashable]:
    """For what each record with a video or image names, a name that the same clip has under every path.

    It is the hash of the content where the feature cache knows one or can read the file, else the real path; a segment
    of a video is a clip of its own.
    """
    clips = {(r.videos, r.images, r.split) for r in records if r.videos or r.images}
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


def check_held_out(
    records: Sequence[Record], evaluation: Sequence[Record], contents: ContentHashes | None = None
) -> Finding | None:
    """Whether evaluation clips are kept out of training; None when the evaluation has no clip."""
    shown = clip_names(evaluation, contents)
    if not shown:
        return None
    trained = set(clip_names(records, contents).values())
    both = sorted(str(clip[0] or clip[1]) for clip, name in shown.items() if name in trained)
    how = "by content" if contents is not None else "by path alone, since there is no feature cache"
    if both:
        words = (
            f"{len(both)} of {len(shown)} evaluation clips are trained on too ({how}; the first is {both[0]}): their "
            "figures say nothing about new clips"
        )
        return Finding("held-out clips", "warning", words, "take them out of --data_path or of --eval_data_path")
    return Finding("held-out clips", "ok", f"none of {len(shown)} evaluation clips is trained on, {how}")
