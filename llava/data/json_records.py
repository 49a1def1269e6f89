"""Files of JSON or JSON lines to values, with the place of each, and of what cannot be read."""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.errors import UserError, show

EXPECTED_FORMAT = "expected a JSON list of records, or one JSON object on each line"
CONVERT = (
    "captions in another form (CSV, TSV, MSR-VTT, VATEX, COCO, Parquet, a folder of clips) become records by python -m "
    "llava.data.convert"
)
OTHER_FORMS = ({"videos", "sentences"}, {"images", "annotations"})
"""Keys of annotations that are no records: MSR-VTT's and COCO's."""
PACKED = {b"\x1f\x8b": "gzip", b"PAR1": "Parquet", b"PK\x03\x04": "a ZIP archive"}


class DatasetError(UserError):
    """A data file, or a set of records, that cannot be trained on."""


@dataclass(frozen=True, slots=True)
class NotJSON:
    """Why a text is no JSON, and where: `line` and `column` count from 1, or are 0 when Python does not say; the text
    up to `position` has no error.
    """

    message: str
    line: int
    column: int
    position: int

    def __str__(self) -> str:
        return f"column {self.column}: {self.message}" if self.column else self.message


class RepeatedKeys(dict[str, Any]):
    """An object that says a key twice, or holds one that does; JSON readers keep the last of the values."""

    keys_twice: tuple[str, ...] = ()


def read_values(path: Path) -> Iterator[tuple[str, Any]]:
    """(source, value) of every element of a JSON list or of every line; a line that is not JSON gives its error."""
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
            if packed := next((name for mark, name in PACKED.items() if start.startswith(mark)), None):
                raise DatasetError(f"{show(path)}: is {packed}; {EXPECTED_FORMAT}; {CONVERT}")
            start = start.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
            file.seek(0)
            yield from _read_lines(path, file) if start == b"{" else _read_list(path, file.read())
    except OSError as error:
        raise DatasetError(f"{show(path)}: {error.strerror}; check --data_path") from error


def load_json(text: str) -> tuple[Any, list[str]]:
    """The value of a JSON text, or `NotJSON`, and the keys that some object in it says twice."""
    twice: list[str] = []

    def make(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) == len(pairs):
            return value
        repeated = RepeatedKeys(value)
        names = [name for name, _ in pairs]
        repeated.keys_twice = tuple(name for name in value if names.count(name) > 1)
        twice.extend(repeated.keys_twice)
        return repeated

    try:
        return json.loads(text, object_pairs_hook=make), twice
    except json.JSONDecodeError as error:
        return NotJSON(error.msg, error.lineno, error.colno, error.pos), []
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or thousands of brackets.
        return NotJSON(str(error), 0, 0, len(text)), []


def _marked(value: Any) -> Any:
    """The value; an object with a repeated key anywhere in it as one `RepeatedKeys` that names all of them."""
    if not isinstance(value, dict):
        return value
    found: list[str] = []
    inside: list[Any] = [value]
    while inside:
        part = inside.pop()
        found += part.keys_twice if isinstance(part, RepeatedKeys) else ()
        inside += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    if not found:
        return value
    marked = RepeatedKeys(value)
    marked.keys_twice = tuple(dict.fromkeys(found))
    return marked


def _read_lines(path: Path, file: Iterable[bytes]) -> Iterator[tuple[str, Any]]:
    is_first = True
    for number, line in enumerate(file, 1):
        text = _decode(path, line, number).strip()
        if not text:
            continue
        value, twice = load_json(text)
        if is_first and isinstance(value, NotJSON):
            raise DatasetError(f"{show(path)}: line {number}, {value}; {EXPECTED_FORMAT}; {CONVERT}")
        if is_first and isinstance(value, dict) and any(keys <= value.keys() for keys in OTHER_FORMS):
            keys = ", ".join(list(value)[:8])
            raise DatasetError(f"{show(path)}: is one object with {keys}; {EXPECTED_FORMAT}; {CONVERT}")
        is_first = False
        yield f"{path}:{number}", _marked(value) if twice else value


def _read_list(path: Path, data: bytes) -> Iterator[tuple[str, Any]]:
    text = _decode(path, data)
    if not text.strip():
        return
    values, twice = load_json(text)
    if isinstance(values, NotJSON):
        index = _broken_record(text, values)
        where = ([] if index is None else [f"record [{index}]"]) + ([f"line {values.line}"] if values.line else [])
        raise DatasetError(f"{show(path)}: {', '.join([*where, str(values)])}; {EXPECTED_FORMAT}{_other_form(text)}")
    if not isinstance(values, list):
        raise DatasetError(f"{show(path)}: holds {type(values).__name__}; {EXPECTED_FORMAT}")
    for index, value in enumerate(values):
        yield f"{path}[{index}]", _marked(value) if twice else value


def _other_form(text: str) -> str:
    """What is said of a text that does not begin as JSON does."""
    return "" if text.lstrip()[:1] in ("[", "{") else f"; {CONVERT}"


def _broken_record(text: str, error: NotJSON) -> int | None:
    """Index of the element of a list that cannot be read, None when the text is no list.

    Its line says little: a list of 100,000 records is often written in a single one.
    """
    start = re.compile(r"\s*\[").match(text)
    if start is None:
        return None
    decoder, between = json.JSONDecoder(), re.compile(r"[\s,]*")
    index, position = 0, start.end()
    with contextlib.suppress(ValueError, RecursionError):
        while True:
            _, position = decoder.raw_decode(text, between.match(text, position).end())  # type: ignore[union-attr]
            if position > error.position:
                break
            index += 1
    return index


def _decode(path: Path, data: bytes, first_line: int = 1) -> str:
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        raise DatasetError(f"{show(path)}: line {line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
