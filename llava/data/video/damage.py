"""Decodes a video from start to end and counts what its decoder complains of.

Decoders conceal errors: they fill a damaged part in from its surroundings, and go on. FFmpeg marks such frames, raises,
or only logs, depending on the codec; all three are counted here. A codec without redundancy (VP9, AV1) takes many wrong
bits for another picture, which nothing can see but a checksum of the container.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import av
import av.logging

from llava.data.video import chunks, ebml
from llava.data.video.container import open_container, video_stream
from llava.data.video.errors import FETCH_AGAIN, VideoError

ERRORS = {"err_detect": "crccheck+bitstream+buffer"}
"""What decoders check beyond their default: checksums, where the codec has some, and the end of each frame's data."""

CHECKSUMS: dict[str, Callable[[BinaryIO, int], str]] = {"matroska": ebml.damage, "ogg": chunks.ogg_damage}
"""By FFmpeg's name of the container, the walk that finds a damaged part by its checksum. Files of others have none."""


def check_decodable(path: str | Path) -> int:
    """Decodes every frame of a video, and returns their number.

    Raises:
        VideoError: when something of it is damaged, with the number of places and what was said of the first.
        av.FFmpegError, OSError: when it cannot be opened.
    """
    path = str(path)
    with open_container(path) as container, _decoder_log() as log:
        stream = video_stream(container, path)
        name = stream.codec_context.name
        frames, faults = _decode(container, stream)
        logged = [message.strip() for _, source, message in log if source == name]
        checksums = CHECKSUMS.get(container.format.name.split(",")[0])
    faults += logged
    if checksums:
        with open(path, "rb") as file:
            what = checksums(file, os.path.getsize(path))
        faults += [what] if what else []
    if faults:
        said = max(logged or faults, key=faults.count)
        what = f"{len(faults)} errors in {frames} frames: {said}"
        raise VideoError(f"{path}: is damaged or cut short ({what}); {FETCH_AGAIN}")
    return frames


def _decode(container: Any, stream: Any) -> tuple[int, list[str]]:
    """How many frames there are, and a text for every packet or frame with an error."""
    codec = stream.codec_context
    codec.options = ERRORS
    # The log of other threads is not seen, and their hold on the interpreter can lock up.
    codec.thread_type, codec.thread_count = "NONE", 1
    frames, faults = 0, list[str]()
    for packet in container.demux(stream):
        if packet.is_corrupt:
            faults.append("a packet is incomplete")
        try:
            decoded = packet.decode()
        except av.FFmpegError as error:
            faults.append(error.strerror or type(error).__name__)
            continue
        frames += len(decoded)
        faults += ["a frame is damaged"] * sum(frame.is_corrupt for frame in decoded)
    return frames, faults


@contextmanager
def _decoder_log() -> Iterator[list[tuple[int, str, str]]]:
    """(level, source, message) of what FFmpeg's libraries say of errors in this thread."""
    level, skip = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as log:
            yield log
    finally:
        av.logging.set_skip_repeated(skip)
        av.logging.set_level(level)
