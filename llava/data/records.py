"""LLaVA JSON or JSONL to checked records. No video or image is opened here; see `llava.data.check` for that.

A record is `{"id", "conversations": [{"from", "value"}, ...]}` with an optional `video` or `image` (a path or a list of
paths; `videos` and `images` are read too), and an optional `meta.split`, the segment of the video. As in LLaVA-ST, a
split counts *frames*, not seconds: `[first, last]`, from 0, both ends included. Other keys are left alone, unless they
name a file that would not be seen. Without an `id` a record is called by its file and its place in it. Turns may be
written as `{"role", "content"}` too (`llava.data.turns`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from llava.constants import COORDINATE_PLACEHOLDERS, DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN
from llava.data.captions import check_text, half_character, remarks_on, without_placeholders
from llava.data.columns import RecordView, representatives, standing_at, take
from llava.data.json_records import DatasetError, NotJSON, RepeatedKeys
from llava.data.keys import UNREAD, files_under, unread_keys
from llava.data.lookup import wrong_with_files
from llava.data.mixture import DEFAULT_SEED, Source, open_sources
from llava.data.paths import OUTSIDE, leaves_folder, place
from llava.data.problems import Problem, format_problems
from llava.data.prompt import lay_out, reserved_tokens
from llava.data.turns import read_turns
from llava.data.variables import COORDINATES, check_variables
from llava.errors import UserError, show

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Record:
    """A record with its paths resolved; `split` is (first, last) frame, `source` is file and index or line.

    `conversations` have the white space around their placeholders laid out (`llava.data.prompt.lay_out`), and `remarks`
    is (kind, message) of what is no problem and may be none that was meant. `origin` is the file, or the entry of a
    mixture, that it comes from. `coordinates` are the numbers at its coordinate placeholders in reading order, from 0
    to 1.
    """

    id: str
    conversations: list[dict[str, str]]
    videos: tuple[str, ...]
    images: tuple[str, ...]
    split: tuple[int, int] | None
    meta: dict[str, Any]
    source: str
    remarks: tuple[tuple[str, str], ...] = ()
    origin: Source | None = field(default=None, compare=False, repr=False)
    coordinates: tuple[float, ...] = ()


def load_records(
    data_path: str | Path,
    image_folder: str | Path | None = None,
    video_folder: str | Path | None = None,
    reserved: Sequence[str] = reserved_tokens(None),
    allow_absolute_paths: bool = False,
    seed: int = DEFAULT_SEED,
    is_chat: bool = False,
) -> tuple[list[Record], list[Problem]]:
    """Reads JSON lists or JSON lines (the content decides, not the suffix) and checks every record.

    Args:
        data_path: a file, several, or a mixture, as `llava.data.mixture` reads them. An id that stands in several of
            them gets the name of its file in front; twice in one it is a problem.
        reserved: strings that a text must not contain; pass `reserved_tokens(tokenizer)` when there is a tokenizer.
            With coordinate placeholders among them a record may have no coordinates at all.
        allow_absolute_paths: whether a record may name files outside its folder, by an absolute path or by `..`.
        seed: of what a mixture takes at random.
        is_chat: whether the records are for a chat format, in which only answers are learnt.

    Returns:
        Every record that could be understood, those with a problem included, and all problems; `apply_policy` decides
        what becomes of the former.

    Raises:
        DatasetError: when a file is missing, empty, or neither format, naming line and column, or a mixture is wrong.
    """
    reading = Reading(
        open_sources(data_path, video_folder, image_folder, seed), reserved, allow_absolute_paths, is_chat
    )
    records = list(reading)
    if reading.shared:
        ids = reading.final_ids((r.id, r.origin, r.source) for r in records)
        records = [r if r.id == name else replace(r, id=name) for r, name in zip(records, ids, strict=True)]
    return records, reading.problems


class Reading:
    """The records of sources, one after the other, as `load_records` checks them.

    `problems` is complete after the last of them, and what they are called after `final_ids`.
    """

    def __init__(
        self, origins: Sequence[Source], reserved: Sequence[str], allow_absolute_paths: bool, is_chat: bool
    ) -> None:
        self.origins = origins
        self.problems: list[Problem] = []
        self.shared: set[str] = set()
        """Ids that stand in several sources."""
        self._owners: dict[str, Source] = {}
        words = [token for token in reserved if token not in COORDINATE_PLACEHOLDERS]
        self._rules = words, allow_absolute_paths, is_chat, len(words) == len(reserved)

    def __iter__(self) -> Iterator[Record]:
        for origin in self.origins:
            first_seen: dict[str, str] = {}
            for source, raw in origin.values():
                if isinstance(raw, NotJSON):
                    self.problems.append(Problem(source, "", "not JSON", str(raw)))
                    continue
                found: list[tuple[str, str]] = []
                record_id = _id_of(raw) or _id_by_place(raw, source, origin)
                record = _parse(raw, record_id, source, origin, found, *self._rules)
                if record_id and first_seen.setdefault(record_id, source) != source:
                    found.append(("duplicate id", f"{record_id!r} is also the id of {first_seen[record_id]}"))
                if record_id and self._owners.setdefault(record_id, origin) is not origin:
                    self.shared.add(record_id)
                if found:
                    self.problems.extend(Problem(source, record_id, kind, message) for kind, message in found)
                if record is not None:
                    yield record

    def final_ids(self, records: Iterable[tuple[str, Source | None, str]]) -> list[str]:
        """What records are called, given as (id, origin, source): an id of several sources has its file in front."""
        ids = []
        for name, origin, source in records:
            if name in self.shared and origin is not None:
                name = f"{origin.name}/{name}"
            ids.append(name)
            if name in self._owners and origin is not self._owners[name]:
                message = f"{name!r} is what another record is called by its file and id"
                self.problems.append(Problem(source, name, "duplicate id", message))
        return ids


def _id_of(raw: Any) -> str:
    """The id as text, `1.0` as `"1.0"`, in a form that can be shown; empty when there is none."""
    value = raw.get("id") if isinstance(raw, dict) else None
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        return ""
    if isinstance(value, float) and not math.isfinite(value):  # What pandas writes for an id that is not there.
        return ""
    return show(value)


def _id_by_place(raw: Any, source: str, origin: Source) -> str:
    """What a record without an id is called, `train.json[3]` or `train.jsonl:4`; empty when it has one that is none."""
    is_absent = isinstance(raw, dict) and raw.get("id") is None
    return origin.name + show(source.removeprefix(origin.path)) if is_absent else ""


def _parse(
    raw: Any,
    record_id: str,
    source: str,
    origin: Source,
    found: list[tuple[str, str]],
    reserved: Sequence[str],
    allow_absolute_paths: bool,
    is_chat: bool,
    has_coordinates: bool,
) -> Record | None:
    """The record, or None when it cannot be understood; (kind, message) of each problem is added to `found`."""
    if not isinstance(raw, dict):
        found.append(("malformed", f"a record must be an object, got {type(raw).__name__}"))
        return None
    if isinstance(raw, RepeatedKeys):
        found.append(("repeated key", f"{', '.join(map(repr, raw.keys_twice))} stands there twice"))
    if not record_id:
        found.append(("no id", f"id must be a word or a number, got {raw.get('id')!r:.80}"))
    turns, wrong = read_turns(raw)
    meta = raw.get("meta")
    if meta is not None and not isinstance(meta, dict):
        wrong.append(f"meta must be an object, got {type(meta).__name__}")
    meta = meta or {}
    if half := half_character(str(raw.get("id"))):
        wrong.append(f"id: {half}")
    paths: dict[str, tuple[str, ...]] = {}
    for kind, folder in (("video", origin.video_folder), ("image", origin.image_folder)):
        key, value = files_under(raw, kind)
        if value is None:
            paths[kind] = ()
            continue
        files = [value] if isinstance(value, str) else value
        if not isinstance(files, list) or not all([isinstance(f, str) and f for f in files]):
            wrong.append(f"{key} must be a path or a list of paths, got {value!r:.80}")
            continue
        wrong += [f"{key}: {half}" for f in files if (half := half_character(f, is_path=True))]
        paths[kind] = tuple([place(f, folder) for f in files])
        if not allow_absolute_paths:
            found += [(OUTSIDE, f"{key} {f!r} leaves its folder") for f in files if leaves_folder(f)]
    if wrong:
        found.extend(("malformed", message) for message in wrong)
        return None
    unread = unread_keys(raw, paths)
    if unread:
        found += [(UNREAD, message) for message, lost in unread if lost]
    files_of = {DEFAULT_VIDEO_TOKEN: len(paths["video"]), DEFAULT_IMAGE_TOKEN: len(paths["image"])}
    found += check_text(turns, files_of, reserved, is_chat)
    numbers, messages = check_variables(turns, raw.get("variables"), has_coordinates)
    if messages:
        found += [(COORDINATES, message) for message in messages]
    split = None
    if meta.get("split") is not None:
        split = _parse_split(meta["split"])
        if split is None:
            found.append(("bad split", f"expected two frame numbers [first, last], got {meta['split']!r:.80}"))
    turns = [turn if "<" not in turn["value"] else {**turn, "value": lay_out(turn["value"])} for turn in turns]
    remarks = tuple(remarks_on(turns))
    if unread:
        remarks += tuple((UNREAD, message) for message, lost in unread if not lost)
    return Record(record_id, turns, paths["video"], paths["image"], split, meta, source, remarks, origin, numbers)


def _parse_split(value: Any) -> tuple[int, int] | None:
    """(first, last), or None unless `value` is two whole numbers with 0 <= first <= last."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    # Numbers such as 1.5 are seconds by mistake; 30.0 is a frame number that a table program wrote.
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) or v != v or v % 1 for v in value):
        return None
    first, last = int(value[0]), int(value[1])
    return (first, last) if 0 <= first <= last else None


def text_alone(record: Record) -> Record:
    """The record without its videos and images, and without their placeholders: the same words, to the space."""
    turns = [{**turn, "value": without_placeholders(lay_out(turn["value"])).strip()} for turn in record.conversations]
    return replace(record, conversations=turns, videos=(), images=())


def remarks(records: Sequence[Record]) -> list[Problem]:
    """What is remarked on in the records, in the form of problems; it stops nothing."""
    remarked = records.remarked() if isinstance(records, RecordView) else records
    return [Problem(r.source, r.id, kind, message) for r in remarked for kind, message in r.remarks]


def missing_files(records: Sequence[Record]) -> list[Problem]:
    """A problem for each record and file that is missing, empty or a folder; one `stat` for each distinct path."""
    firsts, index = representatives(records)
    wrong = unusable_paths(firsts)
    if not wrong:
        return []
    names_one = np.array([any(path in wrong for path in (*r.videos, *r.images)) for r in firsts], dtype=bool)
    return [
        Problem(record.source, record.id, "missing file", f"{path!r}: {wrong[path]}")
        for record in take(records, np.flatnonzero(names_one[index]))
        for path in (*record.videos, *record.images)
        if path in wrong
    ]


def is_hopeless(records: Sequence[Record], problems: Sequence[Problem]) -> bool:
    """Whether problems tell, before a file is opened, that somebody must look at the data: a record is wrong in itself,
    or the files of all are missing, most often since a folder is wrong.
    """
    if any(p.kind != "missing file" for p in problems):
        return True
    missing = {p.source for p in problems}
    if not missing:
        return False
    visual = np.flatnonzero(modality_codes(records) != MODALITIES.index("text"))
    return len(visual) > 0 and bool(standing_at(records, missing)[visual].all())


def unusable_paths(records: Sequence[Record]) -> dict[str, str]:
    """Paths that name no file with something in it, and what is there instead."""
    return wrong_with_files({p for r in records for p in (*r.videos, *r.images)})


MODALITIES = ("image", "text", "video")


def modality(record: Record) -> str:
    """`video`, `image` or `text`: what a batch is grouped by."""
    return "video" if record.videos else "image" if record.images else "text"


def modality_codes(records: Sequence[Record]) -> np.ndarray:
    """(N,) int8: the modality of each record, as its place in `MODALITIES`."""
    firsts, index = representatives(records)
    return np.array([MODALITIES.index(modality(r)) for r in firsts], dtype=np.int8)[index]


def by_modality(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """The places of the records of each modality that there is, by its name."""
    codes = modality_codes(records)
    found = {name: np.flatnonzero(codes == code) for code, name in enumerate(MODALITIES)}
    return {name: places for name, places in found.items() if len(places)}


def without(records: Sequence[Record], problems: Sequence[Problem]) -> Sequence[Record]:
    """The records that no problem names."""
    named = {p.source for p in problems}
    return take(records, np.flatnonzero(~standing_at(records, named))) if named else records


ERROR_LINES = 10
"""Lines of problems that an error has at most, as it is read at a glance; the data check shows all."""


def apply_policy(records: Sequence[Record], problems: Sequence[Problem], on_bad_sample: str) -> Sequence[Record]:
    """The records to train on: all (`stop`, which tolerates no problem), or those that no problem names (`skip`).

    Raises:
        DatasetError: under `stop` when there is any problem; under `skip` when nothing is left.
        ValueError: for any other policy.
    """
    kinds = len({p.kind for p in problems})
    limit = None if kinds + len(problems) <= ERROR_LINES else max(ERROR_LINES - 2 - 2 * kinds, 0)
    if on_bad_sample not in ("stop", "skip"):
        raise UserError(f"--on_bad_sample {on_bad_sample!r}: use stop or skip")
    if problems and on_bad_sample == "stop":
        raise DatasetError(
            f"{format_problems(problems, limit=limit)}\nmend the data (python -m llava.data.check shows everything at "
            "once), or leave these records out with --on_bad_sample skip"
        )
    kept = without(records, problems)
    if not len(kept):
        raise DatasetError(f"no record is left to train on: {format_problems(problems, limit=limit)}")
    return kept


def spread(items: Sequence[T], limit: int) -> list[T]:
    """At most `limit` of some things, evenly spread, the first and the last among them."""
    if len(items) <= limit:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).round().astype(int)]
