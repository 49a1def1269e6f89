"""Whether a file of video holds all that it announces; decoders take one that is cut for a short clip."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, BinaryIO

import av

from llava.data.video import boxes, chunks, ebml
from llava.data.video.errors import FETCH_AGAIN, VideoError

STRUCTURES: dict[str, Callable[[BinaryIO, int], str]] = {
    "mov": boxes.missing,
    "matroska": ebml.missing,
    "avi": chunks.avi,
    "mpegts": chunks.mpeg_ts,
    "mpeg": chunks.mpeg_ps,
    "gif": chunks.gif,
    "flv": chunks.flv,
    "ogg": chunks.ogg,
    "asf": chunks.asf,
}
"""By FFmpeg's name of the container, the walk that says what a file lacks."""


def check_complete(path: str, container: Any, stream: Any, end: float) -> None:
    """Compares the file with what its container announces: bytes, and seconds where the header has them.

    Args:
        container: open, all of its packets read, so that its index is known.
        stream: its stream of pictures.
        end: where the last packet of any stream ends, in seconds.

    Raises:
        VideoError: when the file is cut short.
    """
    size = os.path.getsize(path)
    name = container.format.name.split(",")[0]
    with open(path, "rb") as file:
        what = STRUCTURES[name](file, size) if name in STRUCTURES else ""
    if not what and name == "mov":
        announced = max(
            (e.pos + e.size for s in (stream, *container.streams.audio) for e in s.index_entries), default=0
        )
        what = f"{size} bytes of {announced}" if size < announced else ""
    if not what and name in ("matroska", "flv", "asf") and container.duration:
        # Half a second and a tenth are left for headers that were rounded or count silence at the end.
        announced = container.duration / av.time_base
        what = f"{end:.1f} s of {announced:.1f} s" if end + 0.5 < 0.9 * announced else ""
    if what:
        raise VideoError(f"{path}: the file is cut short ({what}); {FETCH_AGAIN}")
