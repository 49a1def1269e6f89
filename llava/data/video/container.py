"""Containers of video: opened when they are of a known kind, and their picture stream found."""

from __future__ import annotations

from typing import Any

import av
from av.stream import Disposition

from llava.data.video.errors import FETCH_AGAIN, REENCODE, VideoError
from llava.data.video.files import MAX_PIXELS, file_name, require_file, what_it_is

DEMUXERS = ("mov", "matroska", "avi", "mpegts", "mpeg", "gif", "flv", "ogg", "asf", "mp3", "flac", "wav", "aac")
"""FFmpeg's names of the containers that are opened: those whose completeness is checked, and four of sound, which are
named as such. Others read further files (hls, dash, concat, image2), render text (tty) or are devices (lavfi)."""


def open_container(path: str) -> Any:
    """An open container, a context manager. What it is is decided by its content, and no other file is opened.

    Raises:
        av.FFmpegError, OSError: when it cannot be opened.
        VideoError: when it is no regular file, or of a kind that is not in `DEMUXERS`.
    """
    require_file(path)
    # FFmpeg compares the kind that it found with the list before anything of that kind is read.
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(DEMUXERS)}
    try:
        return av.open(file_name(path), metadata_errors="ignore", options=options)
    except av.FFmpegError as error:
        what = what_it_is(path)
        if what:
            raise VideoError(f"{path}: cannot be opened as a video (it is {what}); name a video file") from error
        if isinstance(error, av.error.ArgumentError):
            raise VideoError(
                f"{path}: cannot be opened as a video (a container of another kind than {', '.join(DEMUXERS[:9])}); "
                f"{REENCODE}"
            ) from error
        raise


def video_stream(container: Any, path: str) -> Any:
    """The stream of pictures that a player shows: the first one that is marked as default, or else the first.

    Raises:
        VideoError: when there is none, there is no decoder for it, or its frames are too large or have an alpha plane
            that the decoders leave out.
    """
    pictures = container.streams.video
    streams = [s for s in pictures if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = {s.type for s in container.streams} - {"data"}
        if not kinds:
            raise VideoError(f"{path}: holds neither video nor audio, perhaps since it is cut short; {FETCH_AGAIN}")
        found = ", ".join(sorted(kinds))
        if pictures:
            found = "audio with a cover picture" if "audio" in kinds else "a cover picture"
        raise VideoError(
            f"{path}: no video stream (the file holds {found}); name a video, or leave the record "
            "out with --on_bad_sample skip",
            kind="no video stream",
        )
    stream = next((s for s in streams if s.disposition & Disposition.default), streams[0])
    codec = stream.codec_context
    if codec is None:
        raise VideoError(f"{path}: there is no decoder for its video stream; {REENCODE}")
    if codec.width * codec.height > MAX_PIXELS:
        raise VideoError(f"{path}: frames of {codec.width} x {codec.height} are above {MAX_PIXELS} pixels; {REENCODE}")
    if stream.metadata.get("alpha_mode") == "1":
        raise VideoError(
            f"{path}: the decoders leave its transparency (alpha_mode of WebM) out; put it on white "
            "(ffmpeg -c:v libvpx-vp9 -i IN -filter_complex '[0]split[a][b];[a]drawbox=c=white:t=fill:replace=1[w];"
            "[w][b]overlay' -pix_fmt yuv420p OUT.mp4), or leave it out with --on_bad_sample skip"
        )
    return stream
