"""What an extraction will take of disk and time, said before and while it goes on.

Letters in shapes: T frames of a clip, P patches, Dv width of the tower.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from llava.data.features.remote import is_remote
from llava.data.features.shards import row_type
from llava.errors import UserError

FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
"""Errors of writing where there is room."""
WORTH_SAYING = 60.0
"""Seconds that are left: a shorter wait needs no announcement."""


def check_room(folder: Path, videos: int, images: int, shape: tuple[int, int, int], dtype: str) -> str:
    """What the features of clips that are still to be extracted take, beside what is free.

    Args:
        folder: of the cache; its disk is looked at, also before the folder is there.
        videos, images: how many clips; an image has one frame.
        shape: (T, P, Dv) of a video's features.
        dtype: that features are stored as.

    Raises:
        ValueError: when they cannot fit, with the remedies. A quota, and what others write meanwhile, is not seen.
    """
    needed = needed_bytes(videos, images, shape, dtype)
    if is_remote(folder):
        return f"{videos + images:,} clips to extract: {shown_bytes(needed)} in {folder}"  # A bucket has no end.
    free = shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free
    count = f"{videos + images:,} clips to extract"
    if needed <= free:
        return f"{count}: {shown_bytes(needed)} in {folder}, {shown_bytes(free)} free"
    halved = needed_bytes(videos, images, shape, "int8")
    fits = "which fits" if halved <= free else "too much as well"
    smaller = f"; --feature_dtype int8 takes {shown_bytes(halved)}, {fits}" if dtype != "int8" else ""
    raise UserError(
        f"{count}: their features take {shown_bytes(needed)}, and {folder} has {shown_bytes(free)} free: make room "
        f"(python -m llava.clean lists what can go), or name another disk with --feature_cache{smaller}; fewer "
        "--num_frames or a smaller tower take less too"
    )


def cannot_write(folder: Path, size: int, error: OSError) -> str:
    """What to say of features that could not be written.

    Args:
        folder: of the cache, also before it is there.
        size: bytes of what was to be written.
    """
    reason = error.strerror or error
    if is_remote(folder):
        return (
            f"cannot write vision features to {folder} ({reason}); what was written before is kept, and the same "
            "command goes on from there"
        )
    if error.errno in FORBIDDEN:
        return (
            f"cannot write vision features to {folder} ({reason}), and the cache lacks some that are needed: "
            "make it writable for this user, name another folder with --feature_cache, or have its owner extract "
            "them (python -m llava.data.extract)"
        )
    free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if os.path.exists(p))).free
    return (
        f"cannot write {size / 1e6:.1f} MB of vision features to {folder} ({reason}; "
        f"{free / 1e6:.1f} MB free): make room, name another disk with --feature_cache, or take half the room with "
        "--feature_dtype int8; what was written before is kept, and the same command goes on from there"
    )


def needed_bytes(videos: int, images: int, shape: tuple[int, int, int], dtype: str) -> int:
    """Bytes on the disk of the features of clips, (T, P, Dv) of a video and (1, P, Dv) of an image."""
    return videos * row_type(dtype, shape).itemsize + images * row_type(dtype, (1, *shape[1:])).itemsize


def shown_bytes(size: float) -> str:
    """A size for people: 999 B, 2.1 MB, 14.9 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit in ("B", "kB") else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def shown_time(seconds: float) -> str:
    """A duration for people: 3 min, 2 h 10 min."""
    minutes = max(round(seconds / 60), 1)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class Forecast:
    """Says once how long the rest will take.

    The first batch is left out of the rate, since the device warms up in it.

    Args:
        total: clips in all.
        say: takes the line.
    """

    def __init__(self, total: int, say: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.say, self.clock = total, say, clock
        self.start: tuple[float, int] | None = None
        self.said = False

    def batch(self, done: int) -> None:
        """Called after each batch of clips, with how many are done."""
        if self.start is None:
            self.start = self.clock(), done
            return
        if self.said:
            return
        self.said = True
        began, before = self.start
        rate = (self.clock() - began) / max(done - before, 1)
        left = rate * (self.total - done)
        if left >= WORTH_SAYING:
            self.say(f"vision features: {1 / max(rate, 1e-9):.2g} clips a second, about {shown_time(left)} to go")
