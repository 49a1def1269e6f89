"""What a video says of itself without being decoded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from llava.data.video.completeness import check_complete
from llava.data.video.container import open_container, video_stream
from llava.data.video.errors import FETCH_AGAIN, REENCODE, VideoError, cause
from llava.data.video.files import is_utf8

ROTATIONS = ((1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0))
"""Display matrices that turn by 0, 90, 180 and 270 degrees, in units of 1 / 65536."""


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """What a file says of itself without being decoded.

    `times` (N,) float64 are the seconds at which its frames are shown, counted from the first of them, in this order;
    `width` and `height` are those of the stored frame, before it is turned or stretched; `can_seek` says whether a
    decoder that seeks gives the same frames as a full decode.
    """

    times: np.ndarray
    width: int
    height: int
    can_seek: bool

    @property
    def num_frames(self) -> int:
        return len(self.times)


class _Packet(NamedTuple):
    pts: int | None
    is_keyframe: bool
    is_shown: bool
    has_idr: bool


def probe_video(path: str | Path) -> VideoInfo:
    """Reads the container of a video, all packets included, without decoding more than a frame of it.

    Where packets carry no time, all frames are decoded for theirs.

    Raises:
        VideoError: when the file is missing, is no video, has no video stream, no frame or no times, or is cut short.
    """
    path = str(path)
    try:
        with open_container(path) as container:
            stream = video_stream(container, path)
            codec = stream.codec_context
            size = codec.width, codec.height
            packets, end = _demux(container, stream)
            check_complete(path, container, stream, end)
            can_seek = is_utf8(path) and _can_seek(container, stream, packets) and _is_plain(container, stream)
            pts = [p.pts for p in packets if p.is_shown]
            time_base = stream.time_base
        times = presentation_times(pts, time_base)
        if times is None:
            times = decoded_times(path)
    except (av.FFmpegError, OSError, IndexError) as error:  # IndexError: a damaged head announces streams in mid-file.
        remedy = "correct the path, or --video_folder" if isinstance(error, FileNotFoundError) else FETCH_AGAIN
        raise VideoError(f"{path}: cannot be opened as a video ({cause(error)}); {remedy}") from error
    if not len(times):
        raise VideoError(f"{path}: the video stream holds no frame; {REENCODE}")
    return VideoInfo(times, *size, can_seek)


KNOWN = 8192
"""Videos of which a process keeps what `probe_video` said: 20 MB where each has 300 frames."""


def known_video(path: str | Path) -> VideoInfo:
    """`probe_video`, asked again for a file of another size or time of change alone; errors are not kept.

    Reading all packets of a short clip costs about a third of decoding a few of its frames.
    """
    try:
        status = os.stat(path)
    except OSError:
        return probe_video(path)  # It says what is wrong.
    return _known(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(KNOWN)
def _known(path: str, size: int, changed: int) -> VideoInfo:
    info = probe_video(path)
    info.times.flags.writeable = False
    return info


def forget() -> None:
    """Drops what `known_video` keeps."""
    _known.cache_clear()


def presentation_times(pts: Sequence[int | None], time_base: Fraction | None) -> np.ndarray | None:
    """(N,) seconds from the first of `pts`, in order; None where one of them has no time."""
    if any(p is None for p in pts) or (pts and not time_base):
        return None
    ticks = np.sort(np.array(pts, dtype=np.int64))
    base = time_base or Fraction(1)
    # Differences before the division, so that a clock that starts late loses no digits.
    return (ticks - ticks[:1]) * base.numerator / base.denominator


def decoded_times(path: str) -> np.ndarray:
    """The times (N,) of `VideoInfo`, from all frames of a file, decoded.

    Raises:
        VideoError: when the frames carry none either, as in a raw stream.
    """
    with open_container(path) as container:
        stream = video_stream(container, path)
        times = presentation_times([frame.pts for frame in container.decode(stream)], stream.time_base)
    if times is None:
        raise VideoError(f"{path}: its frames carry no times; put it into a container (ffmpeg -i IN -c copy OUT.mkv)")
    return times


def _demux(container: Any, stream: Any) -> tuple[list[_Packet], float]:
    """The packets of `stream` in the file's order, and where the last packet of any stream ends, in seconds."""
    extradata = stream.codec_context.extradata or b""
    # Units are preceded by their length (AVCC, MP4 and Matroska) or by start codes (Annex B), where it is 0.
    length_size = (extradata[4] & 3) + 1 if extradata[:1] == b"\x01" and len(extradata) > 4 else 0
    is_vp8 = stream.codec_context.codec.canonical_name == "vp8"
    packets, end = [], 0.0
    for packet in container.demux():
        if not packet.size:
            continue
        if packet.pts is not None and packet.time_base:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index == stream.index:
            has_idr = packet.is_keyframe and length_size > 0 and _has_idr(bytes(packet), length_size)
            # VP8's `show_frame` (RFC 6386, 9.1): a reference that is never shown has a packet of its own.
            is_shown = not packet.is_discard and not (is_vp8 and not bytes(packet)[0] & 16)
            packets.append(_Packet(packet.pts, packet.is_keyframe, is_shown, has_idr))
    return packets, end


def _has_idr(data: bytes, length_size: int) -> bool:
    """Whether an H.264 packet holds a slice of an IDR picture (ITU-T H.264, table 7-1: unit type 5)."""
    position = 0
    while position + length_size < len(data):
        if data[position + length_size] & 31 == 5:
            return True
        position += length_size + int.from_bytes(data[position : position + length_size], "big")
    return False


def _can_seek(container: Any, stream: Any, packets: Sequence[_Packet]) -> bool:
    """Whether the n-th frame of decord and torchcodec is PyAV's; each condition is a case that was seen to go wrong.

    The matrix and range of the colours need none: all three convert by them.
    """
    codec = stream.codec_context.codec.canonical_name
    keys = [p for p in packets if p.is_keyframe]
    times = {p.pts for p in packets if p.pts is not None}
    return (
        container.format.name in ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
        and codec in ("h264", "vp9")
        and len(container.streams.video) == 1
        # More bits are rounded to 8 in another way by each.
        and stream.codec_context.pix_fmt in ("yuv420p", "yuvj420p")
        # Interlaced frames get other chroma; 0 is unknown, 1 progressive. PyAV before 18 does not say: see `_is_plain`.
        and getattr(stream.codec_context, "field_order", 0) in (0, 1)
        and (stream.sample_aspect_ratio or 1) == 1
        and all(p.is_shown for p in packets)
        and len(times) == len(packets)
        and packets[:1] == keys[:1]
        # A key frame that is no IDR picture may be missing from the file's index, and what follows may refer to what
        # comes before it: decord then gives frames of two places further on.
        and (codec != "h264" or all(p.has_idr for p in keys))
    )


def _is_plain(container: Any, stream: Any) -> bool:
    """Whether the first frame is not interlaced, and its display matrix does nothing or turns by a right angle."""
    try:
        container.seek(0, stream=stream)
        frame = next(container.decode(stream))
    except (av.FFmpegError, StopIteration):
        return False
    turns = [tuple(v << 16 for v in turn) for turn in ROTATIONS]
    return not frame.interlaced_frame and display_matrix(frame) in turns


def display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """(a, b, c, d) of a frame: a pixel at (x, y) is shown at (a x + c y, b x + d y), in units of 1 / 65536."""
    data = next((s for s in frame.side_data if s.type.name == "DISPLAYMATRIX"), None)
    if data is None:
        return 1 << 16, 0, 0, 1 << 16
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    return a, b, c, d
