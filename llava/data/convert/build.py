"""Rows to the trainer's records, with everything that is left out counted and named."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from llava.constants import DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN
from llava.data.captions import EMPTY, MISSING_VALUES, check_text, half_character, is_blank
from llava.data.convert.clips import ClipIndex, frames_between, is_cut, parts_of
from llava.data.convert.rows import Fault, Read, Row
from llava.data.json_records import DatasetError
from llava.data.lookup import wrong_with_files
from llava.data.prompt import reserved_tokens
from llava.data.video import VideoError, probe_video
from llava.errors import show

DUPLICATE = "duplicate"
AMBIGUOUS = "several files of that name"
SEGMENT = "segment outside its clip"
NO_CAPTION = "clip without caption"
RESERVED = reserved_tokens(None)


@dataclass
class Tally:
    """What became of the rows: counts, and everything that was left out.

    `missing` is the clips that have no file, with the reason and how many captions each had; `faults` are all others;
    `languages` counts the captions read by language, those of other languages than `language`, which is asked for,
    included. `splits` has the split of each clip, and `split_twice` those of clips that stand in several.
    """

    read: int = 0
    written: Counter[str] = field(default_factory=Counter)
    clips: set[str] = field(default_factory=set)
    missing: dict[str, tuple[str, int]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    language: str = ""
    left_out: int = 0
    splits: dict[str, str] = field(default_factory=dict)
    split_twice: dict[str, str] = field(default_factory=dict)

    def add(self, clip: str, split: str) -> None:
        """Counts a record that is written."""
        self.clips.add(clip)
        self.written[split] += 1
        if (first := self.splits.setdefault(clip, split)) != split:
            self.split_twice.setdefault(clip, f"{first or 'none'} and {split or 'none'}")

    @property
    def kinds(self) -> Counter[str]:
        """How many faults there are of each kind."""
        return Counter(fault.kind for fault in self.faults)


def tidy(caption: str) -> str:
    """A caption in composed characters (NFC), on one line, with single spaces."""
    return " ".join(unicodedata.normalize("NFC", caption.removeprefix("\ufeff")).split())


def build(
    rows: Iterable[Read], index: ClipIndex | None, tally: Tally, language: str = "", is_image: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(split, record) of every row that can be trained on; all others are counted in `tally`.

    An id is the clip's name and the number of the caption among those of its clip and language, so that it does not
    depend on which clips are there.

    Args:
        index: the files that there are; None makes records of text alone, whose `meta.clip` keeps the clip.
        language: a code; captions of other languages are left out.

    Raises:
        DatasetError: when clips of several folders are one file.
    """
    tally.language = language
    numbers: Counter[str] = Counter()
    homes: dict[str, tuple[str, str]] = {}
    seen: set[int] = set()
    times = lru_cache(64)(times_of)
    for row in rows:
        if isinstance(row, Fault):
            tally.faults.append(row)
            continue
        tally.languages[row.language] += 1
        if language and row.language and row.language != language:
            tally.left_out += 1
            continue
        tally.read += 1
        name = clip_name(row)
        number = numbers[name]
        numbers[name] += 1
        caption = tidy(row.caption)
        if is_blank(caption) or caption.casefold() in MISSING_VALUES:
            tally.faults.append(Fault(row.source, EMPTY, f"{name}: {caption!r}"))
            continue
        path, split = "", None
        if index is not None:
            found = locate(row, index, times, tally)
            if found is None:
                continue
            path, split = found
            _check_home(row, path, homes)
        key = hash((path or name, split, caption, row.split))
        if key in seen:
            tally.faults.append(Fault(row.source, DUPLICATE, f"{name}: {caption!r:.100} stands there before"))
            continue
        record = make_record(f"{name}_{number}", caption, path, row.is_image or is_image, split, name)
        if wrong := wrong_text(record):
            tally.faults += [Fault(row.source, kind, f"{name}: {message}") for kind, message in wrong[:1]]
            continue
        seen.add(key)
        tally.add(path or name, row.split)
        yield row.split, record
    if index is not None:
        tally.faults += [Fault(str(index.folder / p), NO_CAPTION, "") for p in index.files() if p not in tally.clips]


def wrong_text(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the trainer would refuse the text or the id of a record for, as `check_text` says it."""
    files = {DEFAULT_VIDEO_TOKEN: int("video" in record), DEFAULT_IMAGE_TOKEN: int("image" in record)}
    half = half_character(record["id"])
    named = [("malformed", f"the name: {half}")] if half else []
    return [*named, *check_text(record["conversations"], files, RESERVED)]


def make_record(
    record_id: str, caption: str, path: str, is_image: bool, split: tuple[int, int] | None, clip: str
) -> dict[str, Any]:
    """A record as `docs/data.md` has it; without a path it is of text alone, and keeps the clip's name."""
    record: dict[str, Any] = {"id": record_id}
    token = ""
    meta: dict[str, Any] = {}
    if path:
        record["image" if is_image else "video"] = path
        token = DEFAULT_IMAGE_TOKEN if is_image else DEFAULT_VIDEO_TOKEN
        meta = {"split": list(split)} if split is not None else {}
    else:
        meta = {"clip": clip}
    record["conversations"] = [{"from": "human", "value": token}, {"from": "gpt", "value": caption}]
    return {**record, "meta": meta} if meta else record


def clip_name(row: Row) -> str:
    """What ids call the clip of a row: as the source does, with its seconds where it is a segment."""
    name = unicodedata.normalize("NFC", row.clip)
    return name if row.start is None or row.end is None else f"{name}_{row.start:g}_{row.end:g}"


def locate(row: Row, index: ClipIndex, times: Any, tally: Tally) -> tuple[str, tuple[int, int] | None] | None:
    """The file of a row and its frames there; None when it was counted as missing or at fault."""
    files, seconds = index.find(row.clip, row.folder, row.start, row.end)
    if len(files) > 1:
        tally.faults.append(Fault(row.source, AMBIGUOUS, f"{row.clip!r} may be {' or '.join(files[:3])}"))
        return None
    path = str(index.folder / files[0]) if files else ""
    reason = wrong_with_files([path]).get(path, "") if files else _why_missing(row, index)
    if reason:
        known = tally.missing.get(clip_name(row), (reason, 0))
        tally.missing[clip_name(row)] = (known[0], known[1] + 1)
        return None
    if seconds is None:
        return files[0], None
    shown = times(path)
    if isinstance(shown, str):
        tally.faults.append(Fault(row.source, "unreadable clip", shown))
        return None
    if not row.is_within and is_cut(shown, *seconds):
        return files[0], None
    if (frames := frames_between(shown, *seconds)) is None:
        message = f"{row.clip!r} ends after {shown[-1]:g} s, and the caption is of {seconds[0]:g} to {seconds[1]:g} s"
        remedy = "" if row.is_within else "; --start_column none where clips are cut already"
        tally.faults.append(Fault(row.source, SEGMENT, f"{message}{remedy}"))
        return None
    return files[0], frames


def _check_home(row: Row, path: str, homes: dict[str, tuple[str, str]]) -> None:
    """Refuses a source whose clips lie in folders where only one of these, or a copy without folders, is at hand: the
    captions of `a/1.mp4` and of `b/1.mp4` would both be given to `1.mp4`.

    Args:
        homes: by file, the folder of the clips that it was taken for, and the first of them.
    """
    home, clip = "/".join(parts_of(row.clip)[:-1]), row.clip
    if not home and (home := row.folder.strip("/")):
        clip = f"{home}/{clip}"
    first, named = homes.setdefault(path, (home, clip))
    if home and first and home != first:
        raise DatasetError(
            f"{show(row.source)}: {show(clip)!r} and {show(named)!r} are clips of two folders, and {show(path)} is "
            "the only file of that name: name the folder that holds both folders, or leave the captions of one out"
        )


def _why_missing(row: Row, index: ClipIndex) -> str:
    others = index.elsewhere(row.clip)
    return f"no such file; {others[0]} is called so too, and lies in another folder" if others else "no such file"


def times_of(path: str) -> np.ndarray | str:
    """When the frames of a file are shown, in seconds, or why it cannot be read."""
    try:
        return probe_video(path).times
    except (VideoError, OSError) as error:
        return str(error)


def summary(tally: Tally, listed: Sequence[str] = (), has_clips: bool = True, noun: str = "captions") -> list[str]:
    """Lines that say what became of the rows; `noun`: of what they are."""
    total = sum(tally.written.values())
    lines = [f"{total:,} records of {len(tally.clips):,} clips from {tally.read:,} {noun}"]
    captions = sum(n for _, n in tally.missing.values())
    if has_clips:
        absent = f"{len(tally.missing):,}, with {captions:,} {noun}, which are not written" if tally.missing else "none"
        lines.append(f"clips missing: {absent}")
    else:
        lines.append("clips: not looked for, the records are of text alone")
    lines += [f"{kind}: {count:,}" for kind, count in tally.kinds.most_common()]
    if tally.split_twice:
        clip, named = next(iter(tally.split_twice.items()))
        lines.append(
            f"clips in several splits: {len(tally.split_twice):,}, such as {show(clip)} in {show(named)}: a score on "
            "one is of clips of the other; --split_column none, then python -m llava.data.split, part them"
        )
    languages = {code: n for code, n in tally.languages.items() if code}
    if len(languages) > 1:
        shown = ", ".join(
            f"{code} {n:,}" for code, n in tally.languages.most_common(8) for code in [code or "not named"]
        )
        chosen = f"{tally.left_out:,} left out" if tally.left_out else "all are written; --language chooses one"
        lines.append(f"languages: {shown}; {chosen}")
    if tally.language and (unnamed := tally.languages[""]):
        lines.append(f"--language {tally.language}: the source says of {unnamed:,} {noun} no language; they are taken")
    return [*lines, *listed]
