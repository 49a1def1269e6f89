"""The numbers of records in the square picture that a tower sees, and records whose numbers have no place there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from llava.config.video import ProcessorSpec, VideoSpec
from llava.data.columns import take
from llava.data.features.store import Clip
from llava.data.grounding.geometry import cropped_box, is_edge, is_other_shape, square_of
from llava.data.other_clips import clips_named
from llava.data.problems import Problem
from llava.data.record_table import RecordTable
from llava.data.records import Record
from llava.data.variables import COORDINATES, axis_of, frame_places, placeholders_in
from llava.errors import UserError

ROUNDED, WRITTEN = 1e-3, 2e-6
"""By how much a time may differ from that of its frame, where frames do not lie nearer together than ten times this;
and does in records that are made here, whose number of frames is told by it."""
MOST_FRAMES = 513
"""Below this that number is looked for."""


def moved_numbers(
    record: Record, image_aspect_ratio: str | None, processor: ProcessorSpec | None = None
) -> tuple[float, ...]:
    """The numbers of a record, those of places moved as `image_aspect_ratio` moves the pixels of its frames, which
    need not be shown: without them the record predicts the same.

    Args:
        image_aspect_ratio: None moves nothing.

    Raises:
        ValueError: when they are to be moved and the record does not say how large its frames are; for a crop without
            the processor of a tower.
    """
    if image_aspect_ratio is None or not record.coordinates:
        return record.coordinates
    names = placeholders_in("".join(turn["value"] for turn in record.conversations))
    is_shown = record.videos or record.images or "width" in record.meta
    if not is_shown or all(axis_of(name) == "TEMP" for name in names):
        return record.coordinates
    return square_of(record.meta, image_aspect_ratio, processor).numbers(names, record.coordinates)


def coordinate_problems(
    records: Sequence[Record], image_aspect_ratio: str | None, processor: ProcessorSpec | None
) -> list[Problem]:
    """A problem for each record whose numbers cannot be moved, or of which a box is cropped away; no file is opened.

    Args:
        processor: of the tower; without one there is none for a crop to be told by.
    """
    if image_aspect_ratio is None:
        return []
    problems = []
    for record in _numbered(records):
        try:
            lost = lost_box(record, moved_numbers(record, image_aspect_ratio, processor))
        except UserError as error:
            lost = str(error)
        if lost:
            problems.append(Problem(record.source, record.id, COORDINATES, lost))
    return problems


def loose_times(records: Sequence[Record], spec: VideoSpec | None) -> str:
    """What is to be said where records have times of their clips, and the frames that are seen do not lie at them;
    empty for nothing.
    """
    if spec is None:
        return ""
    if spec.force_sample or spec.video_fps == 0:
        return _other_frames(records, spec.num_frames)
    timed = next((r for r in _numbered(records) if r.videos and _names(r, "<TEMP-")), None)
    if timed is None:
        return ""
    return (
        f"records have times (record {timed.id!r} for one), which go from the first frame of a clip to its last, and "
        f"--video_fps {spec.video_fps:g} may end up to {1 / spec.video_fps:g} s before that: frame i of n lies at "
        "i / (n - 1) with --force_sample True"
    )


def _other_frames(records: Sequence[Record], seen: int) -> str:
    """What is said where boxes of frames stand at other times than those of the `seen` frames; empty for nothing."""
    first, count, times = "", 0, set()
    for record in _numbered(records):
        text = "".join(turn["value"] for turn in record.conversations) if record.videos else ""
        its = {record.coordinates[place] for place in frame_places(text)}
        if its and not _are_of(its, seen, min(ROUNDED, 0.1 / max(seen - 1, 1))):
            first, count, times = first or record.id, count + 1, times | its
    if not times:
        return ""
    made = next((frames for frames in range(2, MOST_FRAMES) if _are_of(times, frames, WRITTEN)), None)
    other = "no one number of frames" if made is None else f"{made} frames"
    remedy = "" if made is None else f", or train with --num_frames {made}"
    return (
        f"{count} records (record {first!r} for one) have boxes at times of {other}, and --num_frames is {seen}: the "
        f"model sees no frame there; convert or make the records again with --num_frames {seen}{remedy}"
    )


def _are_of(times: Collection[float], frames: int, off: float) -> bool:
    """Whether times are those of so many frames, `i / (frames - 1)`, and .5 of one, but for `off`."""
    steps = frames - 1
    return all(abs(time - (round(time * steps) / steps if steps else 0.5)) <= off for time in times)


def other_shapes(records: Sequence[Record], sizes: Mapping[Clip, tuple[int, int]]) -> list[Problem]:
    """A problem for each record with places whose `meta.width` and `meta.height` are of another shape than its frames:
    a picture that its EXIF data turn, or that was cut or squeezed after it was annotated. Another size is fine.

    Args:
        sizes: width and height of the frames of each clip, as they are shown; 0 where that is not known.
    """
    problems = []
    for record in _numbered(records):
        said = record.meta.get("width"), record.meta.get("height")
        if not all(is_edge(edge) for edge in said) or not _names(record, "<WIDTH-", "<HEIGHT-"):
            continue
        for clip in clips_named(record):
            width, height = sizes.get(clip, (0, 0))
            if height and is_other_shape(said, (width, height)):
                message = (
                    f"{clip[0]}: meta.width and meta.height are {said[0]} x {said[1]}, and its frames are shown in "
                    f"{width} x {height}, of another shape: places are fractions of what is shown; mend both"
                )
                problems.append(Problem(record.source, record.id, COORDINATES, message))
    return problems


def _names(record: Record, *begin: str) -> bool:
    """Whether a record has a placeholder that begins so."""
    return any(name.startswith(begin) for turn in record.conversations for name in placeholders_in(turn["value"]))


def _numbered(records: Sequence[Record]) -> Sequence[Record]:
    """The records that have numbers."""
    if isinstance(records, RecordTable):
        return take(records, np.flatnonzero(records.with_coordinates()))
    return [r for r in records if r.coordinates]


def lost_box(record: Record, numbers: Sequence[float]) -> str:
    """What is said of a record with a box that lies outside its picture, which has no width or height there.

    Args:
        numbers: of `moved_numbers`.
    """
    if not numbers:
        return ""
    text = "".join(turn["value"] for turn in record.conversations)
    lost = cropped_box(text, record.coordinates, numbers)
    return (
        f"{lost}: leave the record out, or show the whole frame with --image_aspect_ratio pad or square" if lost else ""
    )
