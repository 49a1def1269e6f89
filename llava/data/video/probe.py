"""What a video says of itself without being decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import av

from llava.data.video.completeness import check_complete
from llava.data.video.container import open_container, video_stream
from llava.data.video.errors import FETCH_AGAIN, REENCODE, VideoError, cause
from llava.data.video.files import is_utf8

HAS_DECORD = find_spec("decord") is not None
"""There is no wheel for every platform; PyAV then reads all files."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of itself without being decoded.

    `num_frames` counts the packets that are shown; `fps` is the average rate; `width` and `height` are those of the
    stored frame, before any rotation; `decoder` is "decord" or "pyav", the one that `read_frames` starts with.
    """

    num_frames: int
    fps: float
    width: int
    height: int
    decoder: str


class _Packet(NamedTuple):
    pts: int | None
    is_keyframe: bool
    is_discarded: bool
    has_idr: bool


def probe_video(path: str | Path) -> VideoInfo:
    """Reads the container of a video, all packets included, without decoding it.

    Raises:
        VideoError: when the file is missing, is no video, has no video stream, no frame or no frame rate, or is cut
            short.
    """
    path = str(path)
    try:
        with open_container(path) as container:
            stream = video_stream(container, path)
            codec = stream.codec_context
            packets, end = _demux(container, stream)
            check_complete(path, container, stream, end)
            rate = stream.average_rate or stream.guessed_rate or stream.base_rate
            shown = sum(not p.is_discarded for p in packets)
            use_decord = HAS_DECORD and is_utf8(path) and _decord_is_exact(container, stream, packets)
            decoder = "decord" if use_decord else "pyav"
    except (av.FFmpegError, OSError, IndexError) as error:  # IndexError: a damaged head announces streams in mid-file.
        remedy = "correct the path, or --video_folder" if isinstance(error, FileNotFoundError) else FETCH_AGAIN
        raise VideoError(f"{path}: cannot be opened as a video ({cause(error)}); {remedy}") from error
    if not shown:
        raise VideoError(f"{path}: the video stream holds no frame; {REENCODE}")
    if not rate:
        raise VideoError(f"{path}: the video stream has no frame rate; {REENCODE}")
    return VideoInfo(shown, float(rate), codec.width, codec.height, decoder)


def _demux(container: Any, stream: Any) -> tuple[list[_Packet], float]:
    """The packets of `stream` in the file's order, and where the last packet of any stream ends, in seconds."""
    extradata = stream.codec_context.extradata or b""
    # Units are preceded by their length (AVCC, MP4 and Matroska) or by start codes (Annex B), where it is 0.
    length_size = (extradata[4] & 3) + 1 if extradata[:1] == b"\x01" and len(extradata) > 4 else 0
    packets, end = [], 0.0
    for packet in container.demux():
        if not packet.size:
            continue
        if packet.pts is not None and packet.time_base:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index == stream.index:
            has_idr = packet.is_keyframe and length_size > 0 and _has_idr(bytes(packet), length_size)
            packets.append(_Packet(packet.pts, packet.is_keyframe, packet.is_discard, has_idr))
    return packets, end


def _has_idr(data: bytes, length_size: int) -> bool:
    """Whether an H.264 packet holds a slice of an IDR picture (ITU-T H.264, table 7-1: unit type 5)."""
    position = 0
    while position + length_size < len(data):
        if data[position + length_size] & 31 == 5:
            return True
        position += length_size + int.from_bytes(data[position : position + length_size], "big")
    return False


def _decord_is_exact(container: Any, stream: Any, packets: Sequence[_Packet]) -> bool:
    """Whether decord's n-th frame is PyAV's n-th frame; each condition is a case that was seen to go wrong."""
    codec = stream.codec_context.codec.canonical_name
    keys = [p for p in packets if p.is_keyframe]
    times = {p.pts for p in packets if p.pts is not None}
    return (
        container.format.name in ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
        and codec in ("h264", "vp9")
        and len(container.streams.video) == 1
        # Interlaced frames get other chroma; 0 is unknown, 1 progressive.
        and stream.codec_context.field_order in (0, 1)
        and not any(p.is_discarded for p in packets)
        and len(times) == len(packets)
        and packets[:1] == keys[:1]
        # A key frame that is no IDR picture may be missing from the file's index, and what follows may refer to what
        # comes before it: decord then gives frames of two places further on.
        and (codec != "h264" or all(p.has_idr for p in keys))
    )
