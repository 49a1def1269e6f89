"""Hashes of records and of their texts, the same in every process and on every machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llava.data.records import Record


_written = json.JSONEncoder(ensure_ascii=False).encode
"""`json.dumps` makes an encoder in each call that has an option."""
_quoted = json.encoder.encode_basestring
"""What `_written` makes of a text, without what surrounds each call of it."""


_UNTIDY = re.compile(r"/[/.]")
"""What pathlib may take out of a path; a name that begins with a dot, too."""


def hash64(text: str) -> int:
    """A number below 2**64; two of a million texts have the same one with a probability of 3e-8."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def below(path: str, folder: str | None) -> str:
    """A path as it is below its folder, or as it is where it is not below it."""
    if folder and (stem := folder.rstrip("/")) and os.sep == "/":
        # Almost all paths are written so; pathlib takes ten times as long for each of a million clips.
        rest = path.removeprefix(f"{stem}/")
        if rest and rest != path and rest[0] not in "/." and rest[-1] != "/" and not _UNTIDY.search(rest):
            return rest
    place = Path(path)
    return place.relative_to(folder).as_posix() if folder and place.is_relative_to(folder) else place.as_posix()


def paths_below(record: Record) -> tuple[list[str], list[str]]:
    """The videos and the images of a record below their folders."""
    origin = record.origin
    videos = [below(p, origin and origin.video_folder) for p in record.videos]
    return videos, [below(p, origin and origin.image_folder) for p in record.images]


def record_digest(record: Record, paths: tuple[list[str], list[str]] | None = None) -> int:
    """A number below 2**64: a hash of what a record trains with, its text, its numbers, the size of the frame that they
    are of, and the names of its clips below their folders.

    Args:
        paths: `paths_below`, where they are known.
    """
    return digest_of(record, clips_written(record, paths_below(record) if paths is None else paths))


def clips_written(record: Record, paths: tuple[list[str], list[str]]) -> str:
    """What `record_digest` writes of the clips of a record, which many records may have in common."""
    return _written([*paths, record.split])[1:]


def digest_of(record: Record, clips: str) -> int:
    """`record_digest` of a record whose `clips_written` are known."""
    turns = ", ".join([f"[{_quoted(turn['from'])}, {_quoted(turn['value'])}]" for turn in record.conversations])
    # Without numbers it stays what earlier commits have written down.
    if record.coordinates:
        numbers = _written([record.coordinates, record.meta.get("width"), record.meta.get("height")])
        clips = f"{clips[:-1]}, {numbers[1:]}"
    text = f"[{_quoted(record.id)}, [{turns}], {clips}"
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
