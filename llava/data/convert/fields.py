"""Rows of annotations of where and when, read field by field: what is wrong with one is said of its field."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.data.convert.marked import WRONG, Marked
from llava.data.convert.rows import Fault, read_text
from llava.errors import UserError

Items = Iterator[Marked | Fault]
FOREIGN = (AttributeError, LookupError, TypeError, ValueError, OverflowError)
"""What reading a row may end in that is of no form at all, or VidOR's file of it."""


@dataclass(frozen=True)
class MarkedSource:
    """A source of annotations: its form, by what it is known, the tasks that it serves, and what it holds.

    `asks` is the language of its own questions, where it has some.
    """

    form: str
    why: str
    tasks: tuple[str, ...]
    items: Items
    is_image: bool = False
    asks: str = ""


def json_values(path: Path, encoding: str) -> list[tuple[str, Any]] | dict[str, Any] | None:
    """(place, value) of a JSON list or of JSON lines, or the one object; None for what is none of these."""
    text = read_text(path, encoding)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        try:
            lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
            return [(f"{path}:{number}", json.loads(line)) for number, line in lines]
        except (ValueError, RecursionError):
            return None
    if isinstance(content, list):
        return [(f"{path}[{place}]", value) for place, value in enumerate(content)]
    return content if isinstance(content, dict) else None


def each(rows: Iterator[tuple[str, Any]], read: Callable[[str, Any], Iterator[Marked]]) -> Items:
    """What `read` gives of each row; a row that lacks a field or has a wrong one is a fault that names it, and one of
    another form a fault.
    """
    for place, value in rows:
        try:
            yield from list(read(place, value))
        except UserError as error:
            yield Fault(place, WRONG, str(error))
        except FOREIGN as error:
            yield Fault(place, WRONG, f"is of another form ({type(error).__name__}: {error})")


def field(row: Any, name: str, kind: type | tuple[type, ...] = (int, float)) -> Any:
    """A field of a row, `a.b` within another.

    Raises:
        ValueError: when it is not there or of another kind.
    """
    value = row
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool) or value == "":
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names: dict[Any, str] = {str: "a text", dict: "an object", list: "a list"}
        wanted = "a number" if int in kinds else names[kinds[0]]
        raise UserError(f"{name}: expected {wanted}, got {value!r:.60}")
    return value


def whole(row: Any, name: str) -> int:
    """A field of a row that counts frames.

    Raises:
        ValueError: when it is not there, or no whole number: seconds are counted so.
    """
    value = field(row, name)
    if value != int(value):
        raise UserError(f"{name}: expected a whole number of frames, got {value!r:.60}")
    return int(value)


def corners(box: Any, name: str) -> tuple[float, float, float, float]:
    """The corners of a box that is x, y, width, height."""
    numbers = (
        [v for v in box if isinstance(v, (int, float)) and not isinstance(v, bool)] if isinstance(box, list) else []
    )
    if len(numbers) != 4 or len(box) != 4:
        raise UserError(f"{name}: expected [x, y, width, height] in pixels, got {box!r:.60}")
    x, y, width, height = map(float, numbers)
    if width <= 0 or height <= 0:
        raise UserError(f"{name}: {box} has no area; it is read as [x, y, width, height] in pixels")
    return x, y, x + width, y + height
