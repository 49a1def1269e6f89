"""Tables to rows: CSV and TSV, JSON and JSON lines of objects, Parquet, datasets that were saved to disk."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from llava.data.convert.columns import Asked, Columns, choose_columns, language_code
from llava.data.convert.rows import NO_CLIP, UNREADABLE, Fault, Read, Row, decode_lines, open_source
from llava.data.json_records import DatasetError, NotJSON, load_json
from llava.errors import show

DELIMITERS = ",\t;|"
SAMPLE = 1000
"""Lines, or objects, that are looked at to know a table."""
SPLITS = ("train", "training", "validation", "validate", "valid", "val", "dev", "test")
NEEDS_PYARROW = (
    'reading Parquet and Arrow needs pyarrow: pip install "llava-italian-video[parquet]", or pip install pyarrow'
)


def sniff_dialect(sample: Sequence[str]) -> tuple[str, bool]:
    """(delimiter, whether `"` quotes) of a table, from its first lines; an empty delimiter when it has one column.

    Rows are parsed with each delimiter, with and without quotes, and the way in which most have the columns of the
    first wins, then that with quotes and with more columns: where a table does not quote, a caption that begins with a
    quotation mark would swallow the rows after it. Where cells begin and end with quotation marks, these quote,
    whatever is wrong with some rows. (`csv.Sniffer` takes letters for delimiters in tables of captions.)
    """
    scored = []
    for delimiter in DELIMITERS:
        for quoted in (True, False) if quotes_are_text(sample, delimiter) else (True,):
            parsed = parse_rows(sample, delimiter, quoted, len(sample) == SAMPLE)
            widths = [0 if isinstance(row, str) else len(row) for row, _ in parsed if row]
            if widths and widths[0] > 1:
                same = sum(w == widths[0] for w in widths) / len(widths)
                scored.append((same, quoted, widths[0], -DELIMITERS.index(delimiter), delimiter))
    if not scored:
        return "", True
    _, quoted, _, _, delimiter = max(scored)
    return delimiter, quoted


def quotes_are_text(lines: Iterable[str], delimiter: str, width: int | None = None) -> bool:
    """Whether `"` may be a letter like others in a table: of the cells that begin with one, most do not end with one.

    Args:
        width: of every line as it stands; another one is that of a table that quotes.
    """
    opened = closed = 0
    for line in lines:
        cells = line.rstrip("\r\n").split(delimiter)
        if width is not None and line.strip() and len(cells) != width:
            return False
        for cell in cells:
            if cell.startswith('"'):
                is_closed = len(cell) > 1 and cell.endswith('"')
                opened, closed = opened + (not is_closed), closed + is_closed
    return opened > closed


def parse_rows(
    lines: Iterable[str], delimiter: str, quoted: bool, is_cut: bool = False
) -> Iterator[tuple[list[str] | str, tuple[int, int]]]:
    """(cells, or what is wrong; first and last line, from 1) of each row, a quoted one over as many lines as it takes.

    Args:
        is_cut: the lines are a sample; what is wrong with its last row is not.
    """
    reader = csv.reader(
        iter(lines), delimiter=delimiter, strict=True, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    )
    while True:
        first = reader.line_num + 1
        try:
            row: list[str] | str = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if is_cut and "unexpected end" in str(error):
                return
            row = str(error)
        yield row, (first, reader.line_num)


def read_table(
    path: Path, asked: Asked, encoding: str = "utf-8", header: bool = True
) -> tuple[Columns, Iterator[Read], tuple[str, bool], list[str]]:
    """The columns of a CSV or TSV that are read, its rows, its delimiter with whether `"` quotes, and all its columns.

    Whether `"` quotes is decided by all lines: one that opens a caption after the sample would swallow the rows after
    it.

    Raises:
        DatasetError: for another encoding, a table without the columns, a file without rows.
    """
    with open_source(path) as file:
        sample = list(decode_lines(path, islice(file, SAMPLE), encoding))
    delimiter, quoted = sniff_dialect(sample)
    first = next((row for row, _ in parse_rows(sample, delimiter or ",", quoted) if row), None)
    if not delimiter or not isinstance(first, list):
        raise DatasetError(
            f"{show(path)}: no table: its first lines have no columns between commas, tabs, semicolons or bars"
            + (f" ({first})" if isinstance(first, str) else "")
        )
    if quoted and delimiter != ",":  # A caption of several lines may have a comma in each.
        with open_source(path) as file:
            quoted = not quotes_are_text(decode_lines(path, file, encoding), delimiter, len(first))
    names = [cell.strip() for cell in first] if header else [str(i) for i in range(1, len(first) + 1)]
    columns = choose_columns(names, asked, show(path))
    rows = _table_rows(path, names, columns, delimiter, quoted, encoding, header)
    return columns, rows, (delimiter, quoted), names


def _table_rows(
    path: Path, names: Sequence[str], columns: Columns, delimiter: str, quoted: bool, encoding: str, header: bool
) -> Iterator[Read]:
    with open_source(path) as file:
        skip = header
        for row, (first, last) in parse_rows(decode_lines(path, file, encoding), delimiter, quoted):
            place = f"{path}:{first}"
            if not row:
                continue
            if skip:
                skip = False
                continue
            if isinstance(row, str):
                lines = f"lines {first} to {last}" if last > first else f"line {first}"
                yield Fault(
                    place, UNREADABLE, f"{lines}: {row}; look for a quotation mark that is not closed or doubled"
                )
            elif len(row) != len(names):
                message = (
                    f"{len(row)} columns where there are {len(names)}; a caption with {delimiter!r} in it needs quotes"
                )
                yield Fault(place, UNREADABLE, message)
            else:
                yield from rows_of(dict(zip(names, row, strict=True)), columns, place)


def rows_of(values: Mapping[str, Any], columns: Columns, place: str, split: str = "") -> Iterator[Read]:
    """The rows of an object, one a caption; a column may hold several captions."""
    clip = _text(values.get(columns.clip))
    if not clip:
        yield Fault(place, NO_CLIP, f"nothing under {columns.clip!r}")
        return
    start, end = _seconds(values.get(columns.start)), _seconds(values.get(columns.end))
    if columns.start and (start is None or end is None):
        message = f"{columns.start} and {columns.end} must be seconds, got {values.get(columns.start)!r:.40} and "
        yield Fault(place, UNREADABLE, f"{message}{values.get(columns.end)!r:.40}")
        return
    spoken = language_code(_text(values.get(columns.language)))
    part = _text(values.get(columns.split)) or split
    for name, code in columns.captions:
        for caption in captions_in(values.get(name)):
            yield Row(
                place, clip, caption, code or spoken, part, _text(values.get(columns.folder)), start, end,
                columns.is_image,
            )  # fmt: skip


def captions_in(value: Any) -> list[str]:
    """The captions that a value holds: a text, a list of texts, or objects with a text; an empty one for none."""
    if isinstance(value, (list, tuple)):
        return [caption for part in value for caption in captions_in(part)] or [""]
    if isinstance(value, Mapping):
        return captions_in(next((value[k] for k in ("caption", "raw", "sentence", "text", "desc") if value.get(k)), ""))
    return [_text(value)]


def _text(value: Any) -> str:
    """A value as text: a whole number without its fraction, as pandas has ids; a file in an Arrow table as its path."""
    if isinstance(value, Mapping):
        value = value.get("path")
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return str(int(value)) if isinstance(value, float) and value == int(value) else str(value).strip()


def _seconds(value: Any) -> float | None:
    """Seconds of a number or of `h:mm:ss`; None when it is neither, as `h:mm:ss:ff`, whose frames have no length."""
    parts = str(value).replace(",", ".").split(":")
    try:
        seconds = 0.0
        for part in parts:
            seconds = seconds * 60 + float(part)
    except ValueError:
        return None
    return seconds if len(parts) <= 3 and math.isfinite(seconds) and seconds >= 0 else None


def read_objects(
    objects: Iterable[tuple[str, Any]], asked: Asked, where: str, split: str = ""
) -> tuple[Columns, Iterator[Read]]:
    """The columns and rows of (place, object); faults among the objects are passed on.

    Raises:
        DatasetError: when no object has the columns.
    """
    objects = iter(objects)
    first = list(islice(objects, SAMPLE))
    names = list(dict.fromkeys(str(key) for _, value in first if isinstance(value, dict) for key in value))
    if not names:
        raise DatasetError(f"{where}: holds no object with a clip and a caption")
    columns = choose_columns(names, asked, where)

    def rows() -> Iterator[Read]:
        for part in (first, objects):
            for place, value in part:
                if isinstance(value, Fault):
                    yield value
                elif isinstance(value, dict):
                    yield from rows_of(value, columns, place, split)
                else:
                    yield Fault(place, UNREADABLE, f"an object was expected, got {type(value).__name__}")

    return columns, rows()


def json_lines(path: Path, encoding: str) -> Iterator[tuple[str, Any]]:
    """(place, value or fault) of every line of JSON lines."""
    with open_source(path) as file:
        for number, line in enumerate(decode_lines(path, file, encoding), 1):
            if line.strip():
                place = f"{path}:{number}"
                value, names = load_json(line)
                if isinstance(value, NotJSON):
                    value = Fault(place, UNREADABLE, f"no JSON ({value})")
                elif names:
                    value = Fault(place, UNREADABLE, f"the key {names[0]!r} stands there twice")
                yield place, value


def arrow_files(folder: Path) -> list[tuple[str, Path]]:
    """(split, file) of the Arrow or Parquet files of a dataset's folder, or of one file.

    Raises:
        DatasetError: when a file is missing of those that the names of others count (`-00000-of-00002`), and when the
            names of some Parquet files say a split, and those of others none.
    """
    if folder.is_file():
        return [(_split_in(folder.name), folder)]
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = json.loads(splits.read_text(encoding="utf-8")).get("splits", [])
        parts = {name: sorted((folder / name).glob("*.arrow")) for name in names}
        if lost := next((name for name, files in parts.items() if not files), None):
            raise DatasetError(
                f"{show(folder / lost)}: holds no .arrow file, and {splits.name} names it: download it anew"
            )
        _check_shards([file for files in parts.values() for file in files])
        return [(name, file) for name, files in parts.items() for file in files]
    if arrows := sorted(folder.glob("*.arrow")):
        _check_shards(arrows)
        return [("", file) for file in arrows]
    found = [(_split_in(file.relative_to(folder).as_posix()), file) for file in sorted(folder.rglob("*.parquet"))]
    _check_shards([file for _, file in found])
    lone = next((file for split, file in found if not split), None)
    if lone is not None and any(split for split, _ in found):
        raise DatasetError(
            f"{show(lone)}: its name says no split, and those of other files do: convert the files one by one"
        )
    return found


def _check_shards(files: Sequence[Path]) -> None:
    there: dict[tuple[Path, int], set[int]] = {}
    for file in files:
        if found := re.fullmatch(r"(.*)-(\d+)-of-(\d+)(?:-[0-9a-f]+)?", file.stem):
            there.setdefault((file.with_name(found[1]), int(found[3])), set()).add(int(found[2]))
    for (name, total), numbers in there.items():
        if lost := sorted(set(range(total)) - numbers):
            raise DatasetError(
                f"{show(name)}: {len(lost)} of its {total} files are missing, the first is "
                f"{show(f'{name.name}-{lost[0]:05d}-of-{total:05d}')}: download them, or give the files that are there "
                "one by one"
            )


def _split_in(path: str) -> str:
    """The split that the name of a shard or of its folders says, as the hub has them: `train-00000-of-00002.parquet`,
    `data/captions-test.parquet`, `default/validation/0000.parquet`; the last of several.
    """
    words = re.findall(r"[a-z]+", path.casefold())
    return next((word for word in reversed(words) if word in SPLITS), "")


def read_arrow(source: Path, asked: Asked) -> tuple[Columns, Iterator[Read]]:
    """The columns and rows of a Parquet file, a folder of them, or a dataset that `save_to_disk` wrote.

    Raises:
        DatasetError: without pyarrow, for a file that is none, for a table without the columns.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DatasetError(f"{show(source)}: {NEEDS_PYARROW}") from error

    def batches(file: Path, names: list[str] | None) -> Iterator[Any]:
        if file.suffix == ".arrow":
            with pa.memory_map(str(file)) as mapped, pa.ipc.open_stream(mapped) as stream:
                yield from (batch if names is None else batch.select(names) for batch in stream)
        else:
            with parquet.ParquetFile(file) as opened:
                yield from opened.iter_batches(1024, columns=names)

    def schema(file: Path) -> Any:
        if file.suffix == ".arrow":
            with pa.memory_map(str(file)) as mapped, pa.ipc.open_stream(mapped) as stream:
                return stream.schema
        return parquet.read_schema(file)

    files = arrow_files(source)
    try:
        types = schema(files[0][1])
    except (pa.ArrowInvalid, OSError, IndexError) as error:
        raise DatasetError(f"{show(source)}: cannot be read as Parquet or Arrow ({error})") from error
    columns = choose_columns(types.names, asked, show(source))
    wanted = [n for n in (columns.clip, *(n for n, _ in columns.captions), columns.language, columns.split,
                          columns.folder, columns.start, columns.end) if n]  # fmt: skip
    labels = _label_names(types)

    def rows() -> Iterator[Read]:
        for split, file in files:
            number = 0
            try:
                for batch in batches(file, wanted):
                    for value in batch.to_pylist():
                        named = {k: labels[k][v] if k in labels and isinstance(v, int) else v for k, v in value.items()}
                        yield from rows_of(named, columns, f"{file}[{number}]", split)
                        number += 1
            except (pa.ArrowInvalid, OSError) as error:
                raise DatasetError(f"{show(file)}: damaged after row {number} ({error})") from error

    return columns, rows()


def _label_names(schema: Any) -> dict[str, list[str]]:
    """Names of the classes of label columns, which `datasets` keeps beside the numbers."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {k: v["names"] for k, v in features.items() if isinstance(v, dict) and v.get("_type") == "ClassLabel"}
