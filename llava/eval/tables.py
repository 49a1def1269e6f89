"""Tables of others: TSV, CSV and JSON lines, each row by the names of its columns."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.data.json_records import DatasetError
from llava.errors import show

UNNAMED = "row"
"""What the first column is called where the header has one name less than the rows have cells."""


@dataclass(frozen=True)
class Table:
    """Rows of a file, each by column, as text; `places` says where each stands (`a.csv:3`), for messages."""

    path: str
    columns: tuple[str, ...]
    rows: list[dict[str, str]]
    places: list[str]

    def need(self, columns: Sequence[str], flag: str) -> None:
        """Refuses columns that are not there.

        Raises:
            DatasetError: naming them, the flag that asked for them, and the columns that there are.
        """
        if missing := [c for c in columns if c not in self.columns]:
            raise DatasetError(
                f"{flag}: {show(self.path)} has no column {', '.join(map(show, missing))}; it has "
                f"{', '.join(map(show, self.columns))}"
            )


def read_table(path: str | Path) -> Table:
    """A table with a header, its cells separated by tabs, commas or semicolons, whichever the header has most; or JSON
    lines, of which each is an object. UTF-8, with quotes as in RFC 4180.

    A header with one name less than each row has cells lacks that of the first column, as pandas and R write an index:
    it is called `UNNAMED`.

    Raises:
        DatasetError: naming file and line, when it is missing, empty, not UTF-8, or has a row of another length.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{show(path)}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{show(path)}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    if not text.strip():
        raise DatasetError(f"{show(path)}: is empty")
    return _json_lines(str(path), text) if text.lstrip()[:1] == "{" else _separated(str(path), text)


def _json_lines(path: str, text: str) -> Table:
    rows: list[dict[str, str]] = []
    places: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):  # A text within it may hold other marks of a line's end.
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DatasetError(f"{show(path)}:{number}: is no JSON ({error}); a line is one object") from error
        if not isinstance(value, dict):
            raise DatasetError(f'{show(path)}:{number}: is no object; a line is one, such as {{"sentence_good": …}}')
        rows.append({key: v if isinstance(v, str) else "" if v is None else str(v) for key, v in value.items()})
        places.append(f"{path}:{number}")
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    return Table(path, columns, [{c: row.get(c, "") for c in columns} for row in rows], places)


def _separated(path: str, text: str) -> Table:
    header = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max("\t,;", key=header.count), strict=True)
    rows: list[dict[str, str]] = []
    places: list[str] = []
    columns: list[str] = []
    try:
        for cells in reader:
            if not columns:
                columns = [cell.strip() for cell in cells]
                continue
            if not any(cell.strip() for cell in cells):
                continue
            if not rows and len(cells) == len(columns) + 1:
                columns = [UNNAMED, *columns]
            if len(cells) != len(columns):
                raise DatasetError(
                    f"{show(path)}:{reader.line_num}: {len(cells)} cells, and {len(columns)} columns: "
                    f"{', '.join(map(show, columns))}; put a cell with a separator in it into double quotes"
                )
            rows.append(dict(zip(columns, cells, strict=True)))
            places.append(f"{path}:{reader.line_num}")
    except csv.Error as error:
        raise DatasetError(
            f"{show(path)}:{reader.line_num}: {error}; a cell with a double quote in it stands in double quotes, with "
            "its own doubled"
        ) from error
    if twice := sorted({c for c in columns if columns.count(c) > 1}):
        raise DatasetError(f"{show(path)}: the column {', '.join(map(show, twice))} stands there twice: rename one")
    return Table(path, tuple(columns), rows, places)
