"""Records in columns that lie in files, made once of the data files: `llava.data.prepared` says when anew.

A process holds no record but those that it is working on, and all processes share the memory of the columns.

Letters in shapes: N records of a view, M records of the table.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from llava.data.columns import RecordView, Rows
from llava.data.hashes import hash64
from llava.data.mixture import DEFAULT_SEED, Source, open_sources
from llava.data.prepared import Prepared, Texts, Writer, code_digest, identify, prepared
from llava.data.prompt import reserved_tokens
from llava.data.records import Problem, Reading, Record, load_records, text_alone
from llava.data.sources import words_by_turn
from llava.data.split.text_key import text_key
from llava.data.target_words import said_in
from llava.errors import UserError, show
from llava.progress import progress

CODE = (
    "llava.constants", "llava.errors", "llava.data.captions", "llava.data.columns", "llava.data.hashes",
    "llava.data.json_records", "llava.data.keys", "llava.data.mixture", "llava.data.paths", "llava.data.prepared",
    "llava.data.problems", "llava.data.prompt", "llava.data.record_table", "llava.data.records", "llava.data.sources",
    "llava.data.split.text_key", "llava.data.target_words", "llava.data.turns", "llava.data.variables",
)  # fmt: skip
"""Modules that decide what a record is, and what is wrong with it."""
AT_ONCE = 4096
"""Records between two writes."""
SHOWN = 500
"""Records between two changes of the progress that is shown."""
LINE, ELEMENT = ":", "["
"""What stands between file and number in the source of a record, of JSON lines and of a JSON list."""


_quoted, _TURN = json.encoder.encode_basestring_ascii, '{"from": %s, "value": %s}'


class RecordTable(RecordView):
    """Records of a table by their `rows` (N,), in that order; as text alone when `without_vision`."""

    def __init__(
        self, arrays: Prepared, origins: Sequence[Source], rows: Rows | None = None, without_vision: bool = False
    ) -> None:
        self.arrays, self.origins, self.without_vision = arrays, origins, without_vision
        self.rows = np.arange(len(arrays["place"])) if rows is None else np.asarray(rows, dtype=np.int64)
        self._forms: list[str] = arrays.made["forms"]
        self._last: tuple[int, Record] | None = None
        """The row that was asked for last and its record: a sample asks for one three times."""
        self._texts = {name: Texts(arrays, name) for name in ("id", "turns", "meta", "remarks", "shown", "numbers")}

    def __reduce__(self) -> Any:
        return RecordTable, (self.arrays, self.origins, self.rows, self.without_vision)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> RecordTable: ...
    def __getitem__(self, index: int | slice) -> Record | RecordTable:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        row, last = int(self.rows[index]), self._last
        if last is None or last[0] != row:
            last = self._last = row, next(self._made(np.array([row])))
        return last[1]

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), AT_ONCE):
            yield from self._made(self.rows[start : start + AT_ONCE])

    def _made(self, rows: Rows) -> Iterator[Record]:
        """The records of some rows of the table."""
        places, shown = self.arrays["place"][rows].tolist(), self.arrays["shown"][rows].tolist()
        texts: list[Any] = [self._texts[name].many(rows) for name in ("id", "turns", "meta", "remarks", "numbers")]
        # One call of the reader for all of them.
        texts[1] = json.loads(f"[{','.join(texts[1])}]")
        clips: dict[int, tuple[int, tuple[str, ...], tuple[str, ...], tuple[int, int] | None]] = {}
        for place, clip, name, turns, meta, remarks, numbers in zip(places, shown, *texts, strict=True):
            if clip not in clips:
                number, videos, images, split = json.loads(self._texts["shown"][clip])
                clips[clip] = number, tuple(videos), tuple(images), None if split is None else (split[0], split[1])
            number, named, pictures, segment = clips[clip]
            origin = self.origins[number]
            record = Record(
                name,
                turns,
                named,
                pictures,
                segment,
                json.loads(meta) if meta else {},
                f"{origin.path}{_numbered(self._forms[number], place)}",
                tuple((kind, message) for kind, message in json.loads(remarks)) if remarks else (),
                origin,
                tuple(json.loads(numbers)) if numbers else (),
            )
            yield text_alone(record) if self.without_vision else record

    def take(self, rows: Rows) -> RecordTable:
        return RecordTable(self.arrays, self.origins, self.rows[rows], self.without_vision)

    def as_text(self) -> RecordTable:
        """The same records without their videos and images."""
        return RecordTable(self.arrays, self.origins, self.rows, without_vision=True)

    def column(self, name: str) -> np.ndarray:
        if name == "origin":
            return self.arrays["shown_origin"][self.arrays["shown"][self.rows]]
        return self.arrays[name][self.rows]

    def at(self, sources: Collection[str]) -> np.ndarray:
        found = np.zeros(len(self), dtype=bool)
        origins, places = self.column("origin"), self.column("place")
        for number, (origin, form) in enumerate(zip(self.origins, self._forms, strict=True)):
            ends = [s.removeprefix(origin.path) for s in sources if s.startswith(origin.path)]
            numbers = [int(digits) for end in ends if end and (digits := end.strip(f"{ELEMENT}{LINE}]")).isdecimal()
                       and end == _numbered(form, int(digits))]  # fmt: skip
            found |= (origins == number) & np.isin(places, numbers)
        return found

    def remarked(self) -> list[Record]:
        return list(self.take(np.flatnonzero(self._texts["remarks"].filled()[self.rows])))

    def with_coordinates(self) -> np.ndarray:
        """(N,) bool: which records have numbers at coordinate placeholders."""
        return self._texts["numbers"].filled()[self.rows]

    def id_of(self, index: int) -> str:
        return self._texts["id"][int(self.rows[index])]

    @cached_property
    def _firsts(self) -> tuple[np.ndarray, np.ndarray]:
        """Places of the representatives, and which of them stands for each record (N,)."""
        shown = self.column("shown")
        first = np.full(len(self.arrays["shown_origin"]), len(self), dtype=np.int64)
        first[shown[::-1]] = np.arange(len(self))[::-1]  # Of several values for a place numpy keeps the last.
        places = np.sort(first[first < len(self)])
        rank = np.empty(len(first), dtype=np.int64)
        rank[shown[places]] = np.arange(len(places))
        return places, rank[shown]

    @cached_property
    def representatives(self) -> tuple[list[Record], np.ndarray]:
        places, index = self._firsts
        return list(self.take(places)), index


def _numbered(form: str, number: int) -> str:
    return f"[{number}]" if form == ELEMENT else f":{number}"


def open_records(
    root: Path,
    data_path: str | Path,
    image_folder: str | Path | None = None,
    video_folder: str | Path | None = None,
    reserved: Sequence[str] = reserved_tokens(None),
    allow_absolute_paths: bool = False,
    seed: int = DEFAULT_SEED,
    is_chat: bool = False,
    check: bool = True,
    show_progress: bool = False,
) -> tuple[Sequence[Record], list[Problem]]:
    """What `load_records` gives, from a table in `root` that is made when there is none of these files and settings.

    Args:
        check: whether the table's checksums are compared.
        show_progress: of making it.

    Raises:
        DatasetError: as `load_records`, and when a file changes while it is read.
    """
    origins = open_sources(data_path, video_folder, image_folder, seed)
    try:
        files = [identify(origin.path) for origin in origins]
    except OSError:  # Reading it says what is wrong.
        return load_records(data_path, image_folder, video_folder, reserved, allow_absolute_paths, seed, is_chat)
    identity = {
        "code": code_digest(*CODE),
        "sources": [[o.name, o.path, str(o.strategy), o.video_folder, o.image_folder, o.draw] for o in origins],
        "rules": [list(reserved), allow_absolute_paths, is_chat],
    }

    def make(writer: Writer) -> dict[str, Any]:
        reading = Reading(origins, reserved, allow_absolute_paths, is_chat)
        made = _write(writer, reading, show_progress)
        for origin, file in zip(origins, files, strict=True):
            if identify(origin.path) != file:
                raise UserError(f"{show(origin.path)}: changed while it was read; start again when it is complete")
        return made

    arrays = prepared(root, "records", identity, files, make, check)
    for origin, total in zip(origins, arrays.made["totals"], strict=True):
        origin.total = total
    return RecordTable(arrays, origins), [Problem(*values) for values in arrays.made["problems"]]


def _write(writer: Writer, reading: Reading, show_progress: bool) -> dict[str, Any]:
    """Writes all records of a reading; returns what is no column."""
    numbers = {id(origin): number for number, origin in enumerate(reading.origins)}
    forms = [ELEMENT] * len(reading.origins)
    shown: dict[tuple[Any, ...], int] = {}
    ids: list[str] = []
    # Renaming needs to know where each record is from; there is none of a single source.
    places: list[tuple[Source | None, str]] = []
    columns = _Columns(writer)
    with progress(desc="records", unit="record", disable=not show_progress) as bar:
        for count, record in enumerate(reading, 1):
            origin = record.origin
            assert origin is not None
            number, end = numbers[id(origin)], record.source[len(origin.path) :]
            forms[number] = end[0]
            clips = number, record.videos, record.images, record.split
            named = record.meta.get("clip") if record.meta else None
            key = (*clips, named if isinstance(named, str) else None)
            row = shown.get(key)
            if row is None:
                row = shown[key] = len(shown)
                columns.add_shown(number, json.dumps(clips))
            ids.append(record.id)
            if len(reading.origins) > 1:
                places.append((origin, record.source))
            columns.add(record, row, int(end.strip("[]:")))
            if not count % SHOWN:
                bar.update(SHOWN)
        bar.update(len(ids) % SHOWN)
    columns.flush()
    if reading.shared:
        ids = reading.final_ids((name, *place) for name, place in zip(ids, places, strict=True))
    for start in range(0, max(len(ids), 1), AT_ONCE):
        part = ids[start : start + AT_ONCE]
        writer.add_texts("id", part)
        writer.add("id_hash", [hash64(name) for name in part], np.uint64)
    problems = [[p.source, p.record_id, p.kind, p.message] for p in reading.problems]
    return {"forms": forms, "totals": [origin.total for origin in reading.origins], "problems": problems}


def _written(turns: Sequence[dict[str, Any]]) -> str:
    """`json.dumps` of turns, in a quarter of its time where they have `from` and `value` alone, which are texts."""
    if any([[*turn] != ["from", "value"] for turn in turns]):
        return json.dumps(turns)
    return f"[{', '.join([_TURN % (_quoted(turn['from']), _quoted(turn['value'])) for turn in turns])}]"


class _Columns:
    """Values of records that are not written yet."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._records: list[tuple[Record, int, int]] = []
        self._shown: list[tuple[int, str]] = []
        self.flush()  # Writes the types of the arrays, should there be no record.

    def add_shown(self, origin: int, clips: str) -> None:
        self._shown.append((origin, clips))

    def add(self, record: Record, shown: int, place: int) -> None:
        self._records.append((record, shown, place))
        if len(self._records) == AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Writes what was added."""
        writer, records = self._writer, [record for record, _, _ in self._records]
        writer.add("shown", [shown for _, shown, _ in self._records], np.int32)
        writer.add("place", [place for _, _, place in self._records], np.int64)
        writer.add_texts("turns", [_written(r.conversations) for r in records])
        writer.add_texts("meta", [json.dumps(r.meta) if r.meta else "" for r in records])
        writer.add_texts("remarks", [json.dumps(r.remarks) if r.remarks else "" for r in records])
        writer.add_texts("numbers", [json.dumps(r.coordinates) if r.coordinates else "" for r in records])
        spoken = [words_by_turn(r) for r in records]
        writer.add("words", [sum(map(len, turns)) for turns in spoken], np.int32)
        writer.add("said", [said_in(r, turns) for r, turns in zip(records, spoken, strict=True)], np.uint64)
        writer.add("key", [bytes.fromhex(text_key(r).partition(":")[2]) for r in records], "S16")
        writer.add("shown_origin", [origin for origin, _ in self._shown], np.int32)
        writer.add_texts("shown", [clips for _, clips in self._shown])
        self._records, self._shown = [], []
