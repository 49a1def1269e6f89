"""Minimal pairs from the files of others: BLiMP, MultiBLiMP, CLEVER, and any table whose columns are named. Pure but
for `read_pairs`.

Two layouts: a pair a row (two columns of sentences), and a sentence a row, where a column says which sentences are good
and others group them. White space around a sentence is taken off, and a run of it within becomes one space.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from llava.data.json_records import DatasetError
from llava.errors import UserError, show
from llava.eval.tables import Table, read_table

TWO_COLUMNS = (("sentence_good", "sentence_bad"), ("sen", "wrong_sen"), ("good", "bad"))
"""Of BLiMP and its kin, of MultiBLiMP, and of anybody's own table."""
PHENOMENA = (("UID",), ("phenomenon",), ("linguistics_term",), ("kind",), ("condition", "voice"))
"""Columns that say the phenomenon, the first that are there."""
GOOD, BAD = ("possible", "plausible", "good", "grammatical", "1"), ("impossible", "implausible", "bad", "0")
"""Judgments of CLEVER and others; a sentence with another (CLEVER's `reversible`) is in no pair."""
CLEVER = ("sentence", "judgment", ("item", "condition", "voice"))


@dataclass(frozen=True)
class Pair:
    """Two sentences of which the first is to be likelier; `clip` is the video that belongs to them, if any."""

    item: str
    cluster: str
    phenomenon: str
    good: str
    bad: str
    place: str
    clip: str | None = None
    split: tuple[int, int] | None = None
    """First and last frame of the segment of the clip, as `meta.split` of a record."""


@dataclass
class Columns:
    """Which columns of a table say what; what is not given is found by the names that public files use."""

    _argument_group_name = "columns, where they are not BLiMP's, MultiBLiMP's or CLEVER's"

    good: str | None = field(default=None, metadata={"help": "Column of the better sentence (a pair a row)."})
    bad: str | None = field(default=None, metadata={"help": "Column of the worse sentence."})
    sentence: str | None = field(default=None, metadata={"help": "Column of the sentence (a sentence a row)."})
    judgment: str | None = field(default=None, metadata={"help": "Column that says which sentences are good."})
    good_values: list[str] = field(
        default_factory=lambda: list(GOOD), metadata={"help": "Judgments of good sentences."}
    )
    bad_values: list[str] = field(default_factory=lambda: list(BAD), metadata={"help": "Judgments of bad ones."})
    group: list[str] = field(
        default_factory=list, metadata={"help": "Columns whose values two sentences of a pair have in common."}
    )
    phenomenon: list[str] = field(default_factory=list, metadata={"help": "Columns that name the phenomenon."})
    item: str | None = field(default=None, metadata={"help": "Column with a name of the pair; its line without one."})
    cluster: str | None = field(
        default=None,
        metadata={"help": "Column of what is not independent of each other, for the intervals: the item, the noun."},
    )
    clip: str | None = field(
        default=None,
        metadata={"help": "Column of the video that belongs to the pair; video by default, if it is there."},
    )

    def __post_init__(self) -> None:
        if (self.good is None) != (self.bad is None):
            raise UserError("--good and --bad go together: the columns of the two sentences")
        if self.good is not None and (self.sentence or self.judgment or self.group):
            raise UserError(
                "--good and --bad are for a pair a row; --sentence, --judgment and --group for a sentence a row"
            )
        given = [self.sentence is not None, self.judgment is not None, bool(self.group)]
        if any(given) and not all(given):
            raise UserError("--sentence, --judgment and --group go together: a table with a sentence a row")
        if both := sorted(set(self.good_values) & set(self.bad_values)):
            raise UserError(f"--good_values and --bad_values both have {', '.join(both)}")


def read_pairs(path: str, columns: Columns | None = None) -> tuple[list[Pair], list[str]]:
    """The pairs of a file in its order, and what is to be said of what was left out or changed.

    Raises:
        DatasetError: from `read_table`; when no column of sentences is known, a column that was named is not there, a
            sentence is empty, or a group has not as many good sentences as bad ones.
    """
    return pairs_of(read_table(path), columns or Columns())


def pairs_of(table: Table, columns: Columns) -> tuple[list[Pair], list[str]]:
    """As `read_pairs`."""
    named = [n for n in (columns.good, columns.bad, columns.sentence, columns.judgment, columns.item, columns.cluster,
                         columns.clip) if n]  # fmt: skip
    table.need([*named, *columns.group, *columns.phenomenon], "columns")
    clip = columns.clip or ("video" if "video" in table.columns else None)
    phenomenon = columns.phenomenon or next((list(p) for p in PHENOMENA if set(p) <= set(table.columns)), [])
    remarks: list[str] = []
    pairs, spaces = [], 0
    for row in _rows(table, columns, remarks):
        good, bad = (" ".join(s.split()) for s in (row.good, row.bad))
        spaces += (good, bad) != (row.good, row.bad)
        if not good or not bad:
            raise DatasetError(f"{show(row.place)}: a sentence is empty; write it, or delete the row")
        kind = " ".join(value for c in phenomenon if (value := row.cells[c]))
        shown = row.cells[clip] or None if clip else None
        split = _split(row.cells["split"], row.place) if shown and row.cells.get("split") else None
        pairs.append(Pair(row.name, row.cluster, kind, good, bad, row.place, shown, split))
    if not pairs:
        raise DatasetError(f"{show(table.path)}: holds no pair")
    if spaces:
        remarks.append(f"{spaces} pairs had white space around a sentence or doubled within it, which was taken off")
    if same := sum(p.good == p.bad for p in pairs):
        remarks.append(f"{same} pairs have two equal sentences; each counts half")
    if twice := [n for n, count in Counter(p.item for p in pairs).items() if count > 1]:
        raise DatasetError(
            f"{show(table.path)}: the item {show(twice[0])} stands there twice; leave --item out, or mend it"
        )
    return pairs, remarks


def _split(text: str, place: str) -> tuple[int, int]:
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    if len(numbers) != 2 or numbers[0] > numbers[1]:
        raise DatasetError(f"{show(place)}: split is {text!r:.40}; it is [first frame, last frame]")
    return numbers[0], numbers[1]


def _names_of_rows(table: Table, columns: Columns) -> list[str]:
    if columns.item:
        return [row[columns.item] for row in table.rows]
    if {"UID", "pairID"} <= set(table.columns):
        return [f"{row['UID']} {row['pairID']}" for row in table.rows]
    if "item" in table.columns and len({row["item"] for row in table.rows}) == len(table.rows):
        return [row["item"] for row in table.rows]
    return [place.rpartition(":")[2] for place in table.places]


class _Row(NamedTuple):
    """The sentences of a pair as they are written, with the cells of the row of the good one."""

    cells: dict[str, str]
    good: str
    bad: str
    place: str
    name: str
    cluster: str


def _rows(table: Table, columns: Columns, remarks: list[str]) -> list[_Row]:
    two = (columns.good, columns.bad)
    if two == (None, None) and not columns.sentence:
        two = next((t for t in TWO_COLUMNS if set(t) <= set(table.columns)), two)
    good, bad = two
    if good is None or bad is None:
        return _grouped(table, columns, remarks)
    return [
        _Row(row, row[good], row[bad], place, name, row[columns.cluster] if columns.cluster else name)
        for row, place, name in zip(table.rows, table.places, _names_of_rows(table, columns), strict=True)
    ]


def _grouped(table: Table, columns: Columns, remarks: list[str]) -> list[_Row]:
    """Pairs of a table with a sentence a row: within a group, in the file's order, the first good sentence with the
    first bad one, the second with the second."""
    sentence, judgment, group = (columns.sentence, columns.judgment, tuple(columns.group))
    if sentence is None or judgment is None:
        sentence, judgment, group = CLEVER
        if not {sentence, judgment, *group} <= set(table.columns):
            known = " or ".join(" and ".join(t) for t in TWO_COLUMNS)
            raise DatasetError(
                f"{show(table.path)}: no column of sentences is known ({', '.join(map(show, table.columns))}); "
                f"expected {known}, or CLEVER's {', '.join([sentence, judgment, *group])}; or name them with --good "
                "and --bad, or --sentence, --judgment and --group"
            )
    groups: dict[tuple[str, ...], tuple[list[int], list[int]]] = {}
    others: Counter[str] = Counter()
    for number, row in enumerate(table.rows):
        value = row[judgment].strip()
        if value not in (*columns.good_values, *columns.bad_values):
            others[value] += 1
            continue
        groups.setdefault(tuple(row[c] for c in group), ([], []))[value in columns.bad_values].append(number)
    found = []
    for key, (good, bad) in groups.items():
        if len(good) != len(bad):
            raise DatasetError(
                f"{show(table.places[(good + bad)[0]])}: the group {' '.join(map(show, key))} has {len(good)} good and "
                f"{len(bad)} bad sentences; a pair takes one of each: mend the judgments, or name more columns with "
                "--group"
            )
        for number, (one, other) in enumerate(zip(good, bad, strict=True), 1):
            row = table.rows[one]
            name = " ".join(key) + (f" #{number}" if len(good) > 1 else "")
            cluster = row[columns.cluster] if columns.cluster else key[0]
            found.append(_Row(row, row[sentence], table.rows[other][sentence], table.places[one], name, cluster))
    for value, count in others.items():
        remarks.append(f"{count} sentences are judged {value!r}, neither good nor bad, and are in no pair")
    return found


def summarise(pairs: Sequence[Pair]) -> str:
    """How many pairs, phenomena and clusters there are."""
    kinds, clusters = ({getattr(p, name) for p in pairs} for name in ("phenomenon", "cluster"))
    return f"{len(pairs)} pairs, {len(kinds)} phenomena, {len(clusters)} clusters"
