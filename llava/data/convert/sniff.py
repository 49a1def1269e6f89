"""Which form a source has, and by what it is known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from llava.data.convert import known, tables
from llava.data.convert.clips import VIDEOS, times_in
from llava.data.convert.columns import Asked, Columns
from llava.data.convert.folder import read_folder, sidecars
from llava.data.convert.rows import COMMAND, Read, decode_lines, open_source, read_text
from llava.data.json_records import DatasetError, NotJSON, load_json
from llava.errors import show

FORMS = (
    "a CSV or TSV, JSON or JSON lines of objects, MSR-VTT's JSON (videos, sentences), VATEX's, MSVD's, COCO's "
    "captions, an object of captions by clip, Parquet, a dataset saved to disk, or a folder of clips with .txt, .srt "
    "or .vtt beside them"
)
RECORD_KEYS = {"conversations", "messages"}


@dataclass(frozen=True)
class Opened:
    """A source whose form is known: what it is, by what that is known, its columns if it has any, and its rows."""

    form: str
    why: str
    columns: Columns | None
    rows: Iterator[Read]
    is_image: bool = False


def open_form(source: str | Path, asked: Asked, encoding: str = "utf-8", header: bool = True) -> Opened:
    """Recognises a file or folder and opens it; rows are read as they are taken.

    Raises:
        DatasetError: for what is none of `FORMS`, cannot be read, or lacks a clip or caption.
    """
    path, where = Path(source), show(source)
    if path.is_dir():
        return _folder(path, asked, encoding)
    with open_source(path) as file:
        start = file.read(4096)
    if not start:
        raise DatasetError(f"{where}: is empty (0 bytes)")
    if start.startswith(b"PAR1") or path.suffix == ".arrow":
        return _arrow("Parquet" if start.startswith(b"PAR1") else "Arrow", "by its first bytes", path, asked)
    if start.startswith(b"PK"):
        raise DatasetError(f"{where}: is a ZIP archive: unpack it, and give what is in it")
    if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
        return _json(path, asked, encoding)
    if _is_lines(path, encoding):
        rows = known.read_lines(decode_lines(path, open_source(path), encoding), str(path))
        return Opened("lines as in MSVD", "each begins with the name of a clip, ID_start_end", None, rows)
    columns, rows, (delimiter, quoted), names = tables.read_table(path, asked, encoding, header)
    name = {",": "CSV", "\t": "TSV"}.get(delimiter, f"table with {delimiter!r} between columns")
    msvd = header and known.msvd_columns(names)
    why = f"rows of the same number of columns, {'with' if quoted else 'without'} quotation marks"
    return Opened(f"{name} of MSVD" if msvd else name, why, columns, rows, columns.is_image)


def _folder(path: Path, asked: Asked, encoding: str) -> Opened:
    where = show(path)
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file() or any(path.glob("*.arrow")):
        return _arrow("dataset saved to disk", "dataset_info.json or .arrow files", path, asked)
    if next(path.rglob("*.parquet"), None) is not None:
        return _arrow("folder of Parquet", ".parquet files", path, asked)
    if sidecars(path) and any(p.suffix.lower() in VIDEOS for p in path.rglob("*")):
        return Opened(
            "folder of clips", ".txt, .srt or .vtt files beside them", None, read_folder(path, asked, encoding)
        )
    raise DatasetError(
        f"{where}: a folder with neither Parquet or Arrow files, nor clips with .txt, .srt or .vtt beside them; give "
        "the file of captions itself"
    )


def _arrow(form: str, why: str, path: Path, asked: Asked) -> Opened:
    columns, rows = tables.read_arrow(path, asked)
    return Opened(form, why, columns, rows, columns.is_image)


def _json(path: Path, asked: Asked, encoding: str) -> Opened:
    where = show(path)
    with open_source(path) as file:
        first_lines = [line for line in islice(decode_lines(path, file, encoding), 10) if line.strip()][:2]
    first: Any = None
    if len(first_lines) == 2 and first_lines[1].lstrip().startswith("{"):
        with suppress(ValueError, RecursionError):
            first = json.loads(first_lines[0])
    if isinstance(first, dict):
        return _objects(path, "JSON lines", first, tables.json_lines(path, encoding), asked)
    content, names = load_json(read_text(path, encoding))
    if isinstance(content, NotJSON):
        line = f"line {content.line}, " if content.line else ""
        raise DatasetError(f"{where}: no JSON ({line}{content})")
    if names:
        raise DatasetError(
            f"{where}: the key {show(names[0])!r} stands twice in one object, and readers keep the last of the values: "
            "put what is under it in one list"
        )
    if isinstance(content, list):
        objects = ((f"{path}[{i}]", value) for i, value in enumerate(content))
        return _objects(path, "JSON list", next((v for v in content if isinstance(v, dict)), {}), objects, asked)
    if isinstance(content.get("videos"), list) and isinstance(content.get("sentences"), list):
        return Opened("MSR-VTT", '"videos" and "sentences"', *known.read_msr_vtt(content, asked, where))
    if isinstance(content.get("images"), list) and isinstance(content.get("annotations"), list):
        columns, rows = known.read_coco(content, asked, where)
        return Opened("COCO captions", '"images" and "annotations"', columns, rows, is_image=True)
    if RECORD_KEYS & content.keys():
        raise known.refuse_records(where)
    if content and all(isinstance(v, list) and v and isinstance(v[0], (str, dict)) for v in content.values()):
        return Opened(
            "captions by clip", "an object with a list for each clip", None, known.read_by_clip(content, where)
        )
    return _objects(path, "one JSON object", content, iter([(str(path), content)]), asked)


def _objects(path: Path, form: str, first: dict[str, Any], objects: Iterator[tuple[str, Any]], asked: Asked) -> Opened:
    where = show(path)
    if RECORD_KEYS & first.keys():
        raise known.refuse_records(where)
    try:
        columns, rows = tables.read_objects(objects, asked, where)
    except DatasetError as error:
        raise DatasetError(f"{error}\n{COMMAND} reads {FORMS}") from error
    is_vatex = "videoID" in first and any(key.endswith("Cap") for key in first)
    form, why = ("VATEX", "videoID, and captions by language") if is_vatex else (form, "objects with these keys")
    return Opened(form, why, columns, rows, columns.is_image)


def _is_lines(path: Path, encoding: str) -> bool:
    """Whether every line begins as MSVD's: `mv89psg6zh4_33_46 a bird bathes`."""
    with open_source(path) as file:
        lines = [n for n in decode_lines(path, islice(file, 50), encoding) if n.strip() and not n.startswith("#")]
    heads = [line.split(None, 1) for line in lines]
    return bool(heads) and all(len(head) == 2 and "," not in head[0] and times_in(head[0]) for head in heads)
