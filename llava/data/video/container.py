"""Containers of video: opened, their picture stream found, checked for completeness."""

from __future__ import annotations

import os
from typing import Any

import av
from av.stream import Disposition

from llava.data.video.errors import FETCH_AGAIN, REENCODE, VideoError


def open_container(path: str) -> Any:
    """An open container, a context manager.

    Raises:
        av.FFmpegError, OSError: when it cannot be opened.
    """
    return av.open(path, metadata_errors="ignore")


def video_stream(container: Any, path: str) -> Any:
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = {s.type for s in container.streams} - {"data"}
        if not kinds:
            raise VideoError(f"{path}: holds neither video nor audio, perhaps since it is cut short; {FETCH_AGAIN}")
        raise VideoError(
            f"{path}: no video stream (the file holds {', '.join(sorted(kinds))}); name a video, or leave the record "
            "out with --on_bad_sample skip",
            kind="no video stream",
        )
    # What a player shows of several: the track that is marked as default, or else the first.
    stream = next((s for s in streams if s.disposition & Disposition.default), streams[0])
    if stream.codec_context is None:
        raise VideoError(f"{path}: there is no decoder for its video stream; {REENCODE}")
    return stream


def check_complete(path: str, container: Any, stream: Any, end: float) -> None:
    """Raises VideoError when the file ends before what its header announces; decoders take that for a short clip."""
    if "mp4" in container.format.name:
        found = float(os.path.getsize(path))
        announced = max((e.pos + e.size for e in stream.index_entries), default=0.0)
        what = f"{found:.0f} bytes of {announced:.0f}"
    elif "matroska" in container.format.name and container.duration:
        # Half a second and a tenth are left for headers that were rounded or count silence at the end.
        found, announced = end + 0.5, 0.9 * container.duration / av.time_base
        what = f"{end:.1f} s of {container.duration / av.time_base:.1f} s"
    else:
        return
    if found < announced:
        raise VideoError(f"{path}: the file is cut short ({what}); {FETCH_AGAIN}")
