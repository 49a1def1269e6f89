"""The clips of records by keys that do not depend on where they lie, and which of them show the same.

Letters in shapes: C clips, T frames, P patches, Dv width of the tower, H and W height and width of a frame.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from llava.config.video import VideoSpec
from llava.data.convert.clips import IMAGES, VIDEOS
from llava.data.features.content import ContentHashes
from llava.data.features.extract import distinct_clips
from llava.data.features.store import FORMAT, FeatureCache, caches_beside
from llava.data.features.workers import WorkerFailure, run_tasks
from llava.data.json_records import DatasetError
from llava.data.records import Record
from llava.data.split.core import chained, connected, near_pairs, radius_of, unit_rows
from llava.data.split.text_key import text_keys
from llava.data.video import VideoError, read_frames, read_image
from llava.errors import show

FRAMES, SIDE = 4, 16
"""Frames of a clip, and pixels of a side, that are compared where there are no features."""
MAX_DIFFERENCE = 6.0
"""Root mean square of the difference of two such clips, of 255, up to which they show the same. Of 18 copies of
six real clips (half the size; crf 38; half the rate) 17 differ by 1.3 to 3.9, and one of fast movement at half the rate
by 16; different clips by 50 and more. Of 300 clips of the demo, which differ little, no two are this near; 16 would put
up to 8 of them together."""
LEAST_COSINE = 0.98
"""Of the pooled features of two clips, without the mean of all; chosen, and not measured on a trained tower."""


def clip_key(path: str, folder: str = "") -> str:
    """What a clip is called in a split: its path below its folder, without its extension, composed (NFC).

    It is the same in an experiment on text and one on video, wherever the clips lie.
    """
    below = os.path.relpath(path, folder) if folder else os.path.normpath(path)
    return unicodedata.normalize("NFC", os.path.splitext(below)[0].replace(os.sep, "/"))


def keys_of(record: Record) -> list[str]:
    """The keys of the clips that a record is of: its files, or the clip that a record of text keeps as `meta.clip`."""
    origin = record.origin
    folders = (origin.video_folder, origin.image_folder) if origin else ("", "")
    keys = [clip_key(p, f) for paths, f in zip((record.videos, record.images), folders, strict=True) for p in paths]
    named = record.meta.get("clip")
    return keys or ([_named_key(named)] if isinstance(named, str) and named else [])


def _named_key(clip: str) -> str:
    """The key of a clip by its name, which may end in a number behind a dot (`scene.0001`) and have no extension."""
    has_extension = os.path.splitext(clip)[1].lower() in VIDEOS | IMAGES
    return clip_key(clip if has_extension else f"{clip}.mp4")


@dataclass
class Clips:
    """The clips of records.

    `keys` has those of each record, in the order of the records: none where a record of text stands beside others that
    have clips, which is never held out; `paths` the files of each key; `has_clips` is False where no record has one, so
    that texts are held out.
    """

    keys: list[list[str]]
    paths: dict[str, list[str]]
    has_clips: bool
    notes: list[str] = field(default_factory=list)


def clips_of(records: Sequence[Record]) -> Clips:
    """The clips of records, by their keys."""
    keys = [keys_of(r) for r in records]
    has_clips = any(keys)
    if not has_clips:
        keys = [[key] for key in text_keys(records)]
    paths: dict[str, list[str]] = {}
    for record, named in zip(records, keys, strict=True):
        files = (*record.videos, *record.images)
        for key, path in zip(named, files or [""] * len(named), strict=True):
            known = paths.setdefault(key, [])
            if path and path not in known:
                known.append(path)
    return Clips(keys, paths, has_clips)


def same_content(clips: Clips, contents: ContentHashes, show_progress: bool = False) -> list[list[str]]:
    """Groups of keys whose files are equal to the byte.

    Raises:
        DatasetError: for files that cannot be read.
    """
    hashes, errors = contents.resolve((p for ps in clips.paths.values() for p in ps), show_progress=show_progress)
    if errors:
        path, message = next(iter(errors.items()))
        raise DatasetError(f"{len(errors)} clips cannot be read, the first is {show(path)}: {show(message)}")
    groups: dict[str, list[str]] = {}
    for key, paths in clips.paths.items():
        for path in paths:
            groups.setdefault(hashes[path], []).append(key)
    return [group for group in groups.values() if len(group) > 1]


def open_features(root: str | Path, records: Sequence[Record]) -> FeatureCache | None:
    """The subfolder of a feature cache that knows all clips of the records; None where none does."""
    clips = list(distinct_clips(records))
    for _, settings in caches_beside(Path(root) / "any"):
        if settings.get("format") != FORMAT:
            continue
        cache = FeatureCache(root, settings)
        with suppress(OSError):
            if len(cache) and all(cache.has(*clip) for clip in clips):
                return cache
    return None


def near_by_features(
    records: Sequence[Record], clips: Clips, cache: FeatureCache, least: float = LEAST_COSINE
) -> list[tuple[str, str]]:
    """Pairs of keys whose features, the mean over patches and frames, have at least this cosine."""
    found = list(distinct_clips(records))
    owners = {path: key for key, paths in clips.paths.items() for path in paths}
    pairs: list[tuple[str, str]] = []
    for is_image in (False, True):
        some = [clip for clip in found if clip[2] == is_image]
        if len(some) > 1:
            rows = np.stack([cache.read(*clip).float().mean(dim=(0, 1)).numpy() for clip in some])
            near = near_pairs(unit_rows(rows), radius_of(least))
            pairs += [(owners[some[i][0]], owners[some[j][0]]) for i, j in near]
    return pairs


def thumbnail(task: tuple[str, bool]) -> np.ndarray | str:
    """(T * SIDE * SIDE * 3,) uint8: a few frames of a video, or an image, made small; or why it cannot be read."""
    path, is_image = task
    try:
        spec = VideoSpec(num_frames=FRAMES, force_sample=True)
        frames = read_image(path)[None] if is_image else read_frames(path, spec)
    except (VideoError, OSError, ValueError) as error:
        return str(error)
    small = [np.asarray(Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BOX)) for frame in frames]
    return np.stack(small).reshape(-1)


def near_by_frames(
    records: Sequence[Record], clips: Clips, num_workers: int = 0, timeout: float | None = None
) -> list[tuple[str, str]]:
    """Pairs of keys whose frames look the same; finds other sizes, rates and qualities, not clips cut in another way.

    Raises:
        DatasetError: for clips that cannot be read.
    """
    owners = {path: key for key, paths in clips.paths.items() for path in paths}
    kinds = {path: is_image for path, _, is_image in distinct_clips(records)}
    rows: dict[bool, dict[str, np.ndarray]] = {False: {}, True: {}}
    wrong = {}
    for (path, is_image), small in run_tasks(thumbnail, list(kinds.items()), num_workers, timeout):
        if isinstance(small, np.ndarray):
            rows[is_image][path] = small
        else:
            wrong[path] = small.message if isinstance(small, WorkerFailure) else small
    if wrong:
        path, message = next(iter(sorted(wrong.items())))
        raise DatasetError(
            f"{len(wrong)} clips cannot be read, the first is {show(path)}: {show(message)}; python -m "
            "llava.data.check names all"
        )
    pairs = []
    for found in rows.values():
        paths = sorted(found)
        if len(paths) > 1:
            matrix = np.stack([found[p] for p in paths])
            near = near_pairs(matrix, MAX_DIFFERENCE * matrix.shape[1] ** 0.5)
            pairs += [(owners[paths[i]], owners[paths[j]]) for i, j in near]
    return pairs


def group_clips(clips: Clips, *pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Groups of keys that belong together: named by one record, or connected by pairs."""
    edges = [*chained(clips.keys), *(pair for some in pairs for pair in some)]
    return connected(sorted(clips.paths), edges)
