"""Which column, or key, holds what: the clip, its captions and their language, its part of the data, its segment."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from llava.data.json_records import DatasetError
from llava.errors import show

NONE = "none"
"""Given as the name of a column, says that there is none."""

NAMES: Mapping[str, tuple[str, ...]] = {
    "clip": (
        "video", "videoid", "clip", "clipid", "videoname", "clipname", "videopath", "clippath", "videofile",
        "videofilename", "youtubeid", "ytid", "image", "imagepath", "imagefile", "imagefilename", "filename",
        "filepath", "file", "path", "filmato", "nomefile", "imageid", "id", "key",
    ),
    "caption": (
        "caption", "captions", "cap", "sentence", "sentences", "text", "description", "descriptions", "desc", "texts",
        "transcript", "translation", "didascalia", "descrizione", "frase", "testo", "name", "title",
    ),
    "language": ("language", "lang"),
    "split": ("split", "subset", "partition"),
    "folder": ("pagedir", "folder", "directory", "subdir", "dir"),
    "start": ("start", "starttime", "startsec", "startseconds", "begin", "tstart", "timestamps"),
    "end": ("end", "endtime", "endsec", "endseconds", "stop", "tend"),
}  # fmt: skip
"""What columns are called, without case, spaces and underscores, the likeliest first."""

LANGUAGES: Mapping[str, tuple[str, ...]] = {
    "it": ("ita", "italian", "italiano"),
    "en": ("eng", "english"),
    "zh": ("zho", "chi", "ch", "cn", "chinese"),
    "de": ("deu", "ger", "german"),
    "es": ("spa", "spanish"),
    "fr": ("fra", "fre", "french"),
    "pt": ("por", "portuguese"),
    "nl": ("nld", "dut", "dutch"),
    "ja": ("jpn", "jp", "japanese"),
    "ru": ("rus", "russian"),
    "ar": ("ara", "arabic"),
    "hi": ("hin", "hindi"),
}
_CODES = {word: code for code, words in LANGUAGES.items() for word in (code, *words)}


def language_code(text: str) -> str:
    """A language by its code (`it` for `Italian`, `ita`, `it_IT`); one that is not known in lower case."""
    plain = text.strip().casefold()
    return _CODES.get(plain) or _CODES.get(re.split(r"[-_]", plain)[0]) or plain


def is_language(text: str) -> bool:
    """Whether a part of a file's name says a language: `it`, `ita`, `pt_BR`; of three letters, those known alone."""
    found = re.fullmatch(r"([a-z]{2,3})(?:[-_][A-Za-z]{2,4})?", text)
    return bool(found) and (len(found[1]) == 2 or found[1] in _CODES)  # type: ignore[index]


@dataclass(frozen=True)
class Columns:
    """Names of columns; empty for what a table does not have. `captions` is (column, language or empty) of each that
    is read.
    """

    clip: str = ""
    captions: tuple[tuple[str, str], ...] = ()
    language: str = ""
    split: str = ""
    folder: str = ""
    start: str = ""
    end: str = ""

    def __str__(self) -> str:
        taken = [
            f"{f.name} from {getattr(self, f.name)}"
            for f in fields(self)
            if getattr(self, f.name) and f.name != "captions"
        ]
        captions = ", ".join(f"{name}{f' ({code})' if code else ''}" for name, code in self.captions)
        return show(", ".join([*taken[:1], f"caption from {captions}", *taken[1:]]))

    @property
    def is_image(self) -> bool:
        """Whether the column of the clip is called an image."""
        return _plain(self.clip).startswith("image")


@dataclass(frozen=True)
class Asked:
    """What flags say of the columns: names, or None where they are to be guessed."""

    clip: str | None = None
    caption: str | None = None
    language: str | None = None
    start: str | None = None
    end: str | None = None
    split: str | None = None

    @property
    def code(self) -> str:
        """The code of the language that is asked for."""
        return language_code(self.language) if self.language else ""


def choose_columns(names: Sequence[str], asked: Asked, where: str) -> Columns:
    """The columns of a table to read.

    Args:
        names: of all columns.
        where: what the table is called in errors.

    Raises:
        DatasetError: when there is no clip or no caption among them, or captions of several languages and nothing that
            chooses; when segments have a start alone, or an end; when two columns have the name of one that is read.
    """
    found: dict[str, Any] = {}
    for kind in ("clip", "language", "split", "folder", "start", "end"):
        given = getattr(asked, kind, None) if kind != "language" else None
        if given and given.casefold() != NONE and given not in names:
            raise DatasetError(f"{where}: there is no column {show(given)!r} for --{kind}_column; {_listed(names)}")
        guessed = "" if given else _first(names, NAMES[kind])
        found[kind] = guessed if not given else "" if given.casefold() == NONE else given
    if any((given or "").casefold() == NONE for given in (asked.start, asked.end)):
        found["start"] = found["end"] = ""
    if bool(found["start"]) != bool(found["end"]):
        lone, other = ("start", "end") if found["start"] else ("end", "start")
        raise DatasetError(
            f"{where}: column {show(found[lone])!r} is the {lone} of a segment, and none is called as its {other}: "
            f"name that by --{other}_column (in seconds of the clip), or say --start_column none where captions are of "
            f"whole clips; {_listed(names)}"
        )
    columns = Columns(**found)
    captions = _captions([n for n in names if n not in found.values()], asked, where, names)
    if not columns.clip or not captions:
        lacking = " and ".join(what for what, has in (("clips", columns.clip), ("captions", captions)) if not has)
        raise DatasetError(
            f"{where}: no column is called as one of {lacking} usually is; {_listed(names)}. Name them by "
            "--clip_column and --caption_column (--no_header where the first row is data, and columns are 1, 2, ...)"
        )
    read = [columns.clip, *(name for name, _ in captions), *(v for k, v in found.items() if k != "clip")]
    if twice := next((name for name in read if name and names.count(name) > 1), None):
        raise DatasetError(
            f"{where}: {names.count(twice)} columns are called {show(twice)!r}, and one of them is to be read: give "
            "them different names in the first row"
        )
    return replace(columns, captions=tuple(captions))


def _captions(names: Sequence[str], asked: Asked, where: str, everything: Sequence[str]) -> list[tuple[str, str]]:
    """The columns of captions with their languages."""
    if asked.caption:
        if asked.caption not in everything:
            raise DatasetError(f"{where}: there is no column {show(asked.caption)!r}; {_listed(everything)}")
        return [(asked.caption, (_with_language(asked.caption) or ("", ""))[1])]
    plain = _first(names, NAMES["caption"])
    marked = [(name, found[1]) for name in names if (found := _with_language(name))]
    if asked.code and any(code == asked.code for _, code in marked):
        return [(name, code) for name, code in marked if code == asked.code]
    if marked and (plain or len({code for _, code in marked}) > 1):
        listed = ", ".join([*([f"{plain} (no language named)"] if plain else []), *(f"{n} ({c})" for n, c in marked)])
        wanted = f"none in {asked.code}" if asked.code else "several"
        raise DatasetError(
            f"{where}: {wanted} of the columns of captions: {show(listed)}; choose by --language or --caption_column"
        )
    return marked or ([(plain, "")] if plain else [])


def _with_language(name: str) -> tuple[str, str] | None:
    """(what it is, language) of a column such as `caption_it`, `enCap` or `name-it`; None for other names."""
    parts = [p.casefold() for p in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    if len(parts) < 2:
        return None
    for code, rest in ((parts[-1], parts[:-1]), (parts[0], parts[1:])):
        if code in _CODES and "".join(rest) in NAMES["caption"]:
            return "".join(rest), _CODES[code]
    return None


def _first(names: Sequence[str], known: Sequence[str]) -> str:
    """The column whose name stands first among those known."""
    plain: dict[str, str] = {}
    for name in names:
        plain.setdefault(_plain(name), name)
    return next((plain[k] for k in known if k in plain), "")


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _listed(names: Sequence[str]) -> str:
    return show(f"it has {', '.join(map(repr, names[:20]))}")
