"""How much each source of a data set has, and how much of it a run has seen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llava.data.captions import without_placeholders
from llava.data.columns import RecordIds, RecordView
from llava.data.json_records import DatasetError
from llava.data.mixture import Source
from llava.data.records import Record
from llava.errors import show

ABOUT = ".source.json"
"""What the file is called that says where a file of records comes from, after that file's name."""


@dataclass
class SourceCount:
    """What a data set has of a source, for the run's record.

    `in_file` counts the records of the file, `records` those that are used, `words` their words between white space;
    `seen` counts the samples that a run has trained on, with repetitions, and is None where nobody counted. `source`
    and `license` are what a file beside it says (`llava.data.corpus` writes it).
    """

    name: str
    path: str
    strategy: str
    in_file: int
    records: int
    words: int
    seen: int | None = None
    source: str = ""
    license: str = ""

    def __str__(self) -> str:
        seen = "" if self.seen is None else f", {self.seen:,} samples seen"
        return f"{self.records:,} of {self.in_file:,} records ({self.strategy}), {self.words:,} words{seen}"


def count_sources(records: Sequence[Record]) -> list[SourceCount]:
    """A count for each source of the records, in their order."""
    if isinstance(records, RecordView):
        places, words = records.column("origin"), records.column("words")
        listed, first = np.unique(places, return_index=True)
        found = []
        for place in listed[np.argsort(first)]:
            count = _count_of(records.origins[place])
            count.records, count.words = int((places == place).sum()), int(words[places == place].sum())
            found.append(count)
        return found
    counts: dict[int, SourceCount] = {}
    for record in records:
        if record.origin is None:
            continue
        count = counts.setdefault(id(record.origin), _count_of(record.origin))
        count.records += 1
        count.words += words_of(record)
    return list(counts.values())


def words_of(record: Record) -> int:
    """Words of a record between white space."""
    return sum(map(len, words_by_turn(record)))


def words_by_turn(record: Record) -> list[list[str]]:
    """The words between white space of each turn, without placeholders of files."""
    return [without_placeholders(turn["value"]).split() for turn in record.conversations]


def _count_of(origin: Source) -> SourceCount:
    count = SourceCount(origin.name, show(origin.path), str(origin.strategy), origin.total, records=0, words=0)
    count.source, count.license = about(origin.path)
    return count


def about(path: str) -> tuple[str, str]:
    """`source` and `license` of a file of records, as the file beside it says.

    Raises:
        DatasetError: when that file cannot be read.
    """
    beside = Path(path + ABOUT)
    if not beside.is_file():
        return "", ""
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
        return str(found["source"]), str(found["license"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{show(beside)}: says no source and license ({error}); make the corpus anew") from error


def format_sources(counts: Sequence[SourceCount]) -> str:
    """A line for each source, with its share of the records."""
    total = sum(count.records for count in counts)
    width = max((len(count.name) for count in counts), default=0)
    lines = [
        f"  {count.name.ljust(width)}  {count.records / max(total, 1):6.1%}  {count}{_fewer(count)}" for count in counts
    ]
    return "\n".join([f"{total:,} records from {len(counts)} sources:", *lines])


def _fewer(count: SourceCount) -> str:
    """A remark where a mixture asks for more records than the file holds."""
    asked = count.strategy.partition(":")[2]
    return f"; {int(asked):,} were asked for" if asked.isdecimal() and int(asked) > count.in_file else ""


class Seen:
    """Counts the samples of each source that a run trains on; `record` is the run's, whose sources get the numbers."""

    def __init__(self, records: Sequence[Record], record: Mapping[str, Any]) -> None:
        self._ids = RecordIds(records)
        if isinstance(records, RecordView):
            listed, first, found = np.unique(records.column("origin"), return_index=True, return_inverse=True)
            self._origins = np.argsort(np.argsort(first))[found]
        else:
            origins: dict[int, int] = {}
            numbers = [-1 if r.origin is None else origins.setdefault(id(r.origin), len(origins)) for r in records]
            listed, self._origins = np.arange(len(origins)), np.array(numbers, dtype=np.int64)
        self._sources = sources_of(record)
        self._steps: list[tuple[int, list[str]]] = []
        self._counts = [0] * len(listed)
        self._before: list[int] | None = [0] * len(listed)

    def add(self, step: int, sample_ids: Iterable[str]) -> None:
        """Takes the ids of samples of a step that is about to be made."""
        self.counts(step - 1)
        self._steps.append((step, list(sample_ids)))

    def counts(self, step: int) -> list[int]:
        """Samples of each source that this process has trained on up to a step; what fills up a batch is no sample."""
        for _, ids in (made for made in self._steps if made[0] <= step):
            for name in ids:
                places = self._ids.places(name)
                if len(places) and (origin := int(self._origins[places[-1]])) >= 0:
                    self._counts[origin] += 1
        self._steps = [planned for planned in self._steps if planned[0] > step]
        return self._counts

    def go_on(self, record: Mapping[str, Any]) -> None:
        """Goes on from the numbers of a checkpoint's run record; one of an earlier commit has none."""
        listed = [n for source in sources_of(record) if (n := source.get("seen")) is not None]
        self._before = listed if len(listed) == len(self._counts) else None

    def write(self, parts: Sequence[Sequence[int]]) -> None:
        """Writes the sums into the run's record; `parts` are the `counts` of all processes."""
        totals = (
            [None] * len(self._counts) if self._before is None else map(sum, zip(self._before, *parts, strict=True))
        )
        for source, total in zip(self._sources, totals, strict=False):
            source["seen"] = total


def sources_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sources of the training data in a run's record."""
    return ((record.get("data") or {}).get("train") or {}).get("sources") or []
