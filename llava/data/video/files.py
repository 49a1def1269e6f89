"""Files before anything opens them: their name, whether they may be read at all, and what they plainly are not."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from llava.data.video.errors import VideoError

MAX_PIXELS = 89_478_485
"""Most pixels of an image or a frame: a quarter of a gigabyte in RGB, Pillow's own limit (`Image.MAX_IMAGE_PIXELS`)."""

_STARTS = (
    (b"#EXTM3U", "an HLS playlist, which names other files"),
    (b"ffconcat", "a list of files (ffconcat), which names other files"),
    (b"[playlist]", "a playlist, which names other files"),
    (b"%!PS", "PostScript"),
    (b"%PDF", "a PDF"),
    (b"<!doctype html", "a web page, as a failed download leaves it"),
    (b"<html", "a web page, as a failed download leaves it"),
    (b"<?xml", "XML"),
    (b"<svg", "SVG"),
    (b"version https://git-lfs", "a pointer of Git LFS: get the file itself by git lfs pull"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip data"),
)


def file_name(path: str | Path) -> str:
    """`path` as FFmpeg and what is built on it take it for a file, whatever it contains.

    Without a folder in front, `12:30.mp4` names the protocol `12`, and `http://…` a server. UTF-8 is not needed here;
    see `is_utf8`.
    """
    return os.path.join(os.curdir, path)


def is_utf8(path: str | Path) -> bool:
    """Whether decoders that take names as UTF-8 can be given this one."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def require_file(path: str | Path) -> int:
    """The size of a regular file, in bytes; a pipe or a device would be waited for.

    Raises:
        OSError: for a file that is missing, or that may not be looked at.
        VideoError: for what is no regular file.
    """
    try:
        status = os.stat(path)
    except ValueError as error:
        raise VideoError(f"{path!r}: is no name of a file ({error}); correct the path") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
        raise VideoError(f"{path}: is {kind}, not a file; correct the path")
    return status.st_size


def what_it_is(path: str | Path) -> str:
    """What a file is by its first bytes, where that is neither video nor image; empty when nothing is known."""
    with open(path, "rb") as file:
        head = file.read(512)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, name in _STARTS:
        if text.startswith(start.lower()):
            return name
    if not head:
        return "an empty file"
    # Control characters other than white space are in every container of video.
    return "" if any(byte < 32 and byte not in b"\t\n\v\f\r\x1b" for byte in head) else "a text"
