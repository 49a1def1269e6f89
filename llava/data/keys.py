"""Which keys of a record name its files; no key that holds the path of a video or image is passed over in silence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

PLURALS = {"video": "videos", "image": "images"}
"""The keys that name files, and what other data sets call them: read where the first is not there."""

UNREAD = "unread key"

_READ = {"id", "conversations", "messages", "meta", "variables", *PLURALS, *PLURALS.values()}
_NAMES = re.compile(r"(video|image)s?(path|file|filename|location)?s?")
_MEDIA = re.compile(
    r"[^./\\]\.(mp4|m4v|mov|avi|mkv|webm|mpe?g|ts|mts|m2ts|wmv|flv|3gp|ogv|gif|jpe?g|png|webp|bmp|tiff?|heic|avif)\s*\Z",
    re.IGNORECASE,
)


def files_under(raw: Mapping[str, Any], key: str) -> tuple[str, Any]:
    """(key, value) that names a record's files: `video`, or `videos` where that is absent; `image` likewise."""
    plural = PLURALS[key]
    return (plural, raw[plural]) if not raw.get(key) and raw.get(plural) else (key, raw.get(key))


def unread_keys(raw: Mapping[str, Any], files: Mapping[str, tuple[str, ...]]) -> list[tuple[str, bool]]:
    """What is said of each key that names a media file and is not read, and whether the file is lost by that.

    A key that is *called* a video or an image loses one where the record has no other of its kind. A key of any other
    name that *holds* a path to one does where the record names no file at all, and would train as text; beside other
    files it is a remark (a source, a thumbnail).

    Args:
        files: paths that are read, by `video` and `image`.
    """
    found = []
    for key, plural in PLURALS.items():
        if raw.get(key) and raw.get(plural) and _as_list(raw[key]) != _as_list(raw[plural]):
            found.append((f"files under {key!r} and others under {plural!r}; keep one of the two", True))
    for key, value in raw.items():
        if key in _READ or not value or not isinstance(value, (str, list, dict)):
            continue
        called = _NAMES.fullmatch(re.sub(r"[^a-z]+", "", key.casefold()))
        held = next((v for v in _as_list(value) if _is_media(v)), None)
        if called is None and held is None:
            continue
        message = f"key {key!r} is not read, and holds {(value if held is None else held)!r:.80}"
        found.append((message, not files[called[1]] if called else not any(files.values())))
    return found


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_media(value: Any) -> bool:
    """Whether a value is text that reads like the path of a video or image on this machine."""
    if not isinstance(value, str) or len(value) > 4096 or "://" in value:
        return False
    return _MEDIA.search(value) is not None
