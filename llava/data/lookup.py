"""Whether the files of records are there; and, for one that is not, which file of its folder may be meant."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterable

SHOWN = 3
NO_FILE = "no such file"
FORM = "another Unicode form"


def wrong_with_files(paths: Iterable[str]) -> dict[str, str]:
    """Paths that name no file with something in it, and what is there instead; one `stat` for each.

    A folder is listed once, and only when a file of it is missing.
    """
    folders = Folders()
    wrong = {}
    for path in paths:
        message = _wrong_with_file(path)
        if message == NO_FILE:
            message += _meant(path, folders.similar(path))
        if message:
            wrong[path] = message
    return wrong


def _wrong_with_file(path: str) -> str:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        return NO_FILE if isinstance(error, FileNotFoundError) else str(error)
    if not stat.S_ISREG(status.st_mode):
        return "is a folder" if stat.S_ISDIR(status.st_mode) else "is not a regular file"
    if not status.st_size:
        return "is empty (0 bytes)"
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not UTF-8, so decoders cannot open it: rename the file"
    return ""


def _plain(name: str) -> str:
    """What names have in common that look the same: composed characters, no case, no white space at the ends."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).strip()


class Folders:
    """Names in folders by how they look; every folder is listed once."""

    def __init__(self) -> None:
        self._listed: dict[str, dict[str, list[str]]] = {}

    def similar(self, path: str) -> list[str]:
        """The paths that are there and look like one that is not, in any of its parts."""
        if os.path.lexists(path):
            return [path]
        folder, name = os.path.split(path)
        if not name:
            return self.similar(folder) if folder and folder != path else []
        parents = self.similar(folder) if folder else [""]
        return [
            os.path.join(parent, other) for parent in parents for other in self._names(parent).get(_plain(name), ())
        ][:SHOWN]

    def _names(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._listed:
            names: dict[str, list[str]] = {}
            try:
                for name in sorted(os.listdir(folder or ".")):
                    names.setdefault(_plain(name), []).append(name)
            except OSError:  # Not a folder, or closed to us: nothing can be said.
                pass
            self._listed[folder] = names
        return self._listed[folder]


def _meant(path: str, others: list[str]) -> str:
    """What is added to the message of a missing path: the files that look like it, and what is different."""
    if not others:
        return ""
    # Two forms of a letter look the same unless they are written out.
    spell = ascii if any(FORM in differences(path, other) for other in others) else repr
    found = [f"{spell(other)} ({', '.join(differences(path, other))})" for other in others]
    written = f", and the record has {spell(path)}" if spell is ascii else ""
    return f"; there is {' and '.join(found)}{written}: write it as it is on disk, or rename the file"


def differences(path: str, other: str) -> list[str]:
    """In what two paths differ that look alike."""

    def stripped(p: str) -> list[str]:
        return [part.strip() for part in p.split(os.sep)]

    def folded(p: str) -> list[str]:
        return [part.casefold() for part in stripped(p)]

    composed = [unicodedata.normalize("NFC", p) for p in (path, other)]
    ways = {
        FORM: folded(path) != folded(other),
        "another case": stripped(composed[0]) != stripped(composed[1]),
        "white space at an end": len(path) - len("/".join(stripped(path)))
        != len(other) - len("/".join(stripped(other))),
    }
    return [way for way, differs in ways.items() if differs]
