"""What is known of words beside their nats: norms, classes, how often they occur in training. Pure but for the readers.

Words are looked up by their form (`llava.eval.italian.form`). Where a table of classes has a column `lemma`, a word
that a norm lacks is looked up by its lemma too.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llava.constants import HELD_OUT_FILE, RUN_RECORD
from llava.data.json_records import DatasetError
from llava.data.prompt import join_turns
from llava.data.records import load_records, text_alone
from llava.data.variables import without_coordinates
from llava.errors import UserError, show
from llava.eval.italian import form, word_forms
from llava.eval.tables import Table, read_table

WORD_COLUMNS = ("word", "form", "parola", "forma", "italian", "italiano", "lemma")
"""Names of the column of words, in any case of letters; a table without one has them in its first column."""
MISSING = ("", "na", "nan", "n/a", "-")
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
"""`1,234`: one and a bit where commas are decimal, and more than a thousand where they are not."""


@dataclass(frozen=True)
class Norm:
    """A column of numbers by the forms of words."""

    name: str
    values: Mapping[str, float]
    repeated: int = 0
    """Words with several rows, whose mean is taken."""
    absent: float | None = None
    """Of a word that is not there: 0 for frequencies, which no lemma stands in for; else it is not known."""

    def of(self, word: str, lemmas: Mapping[str, str]) -> float | None:
        """The value of a form, or else of its lemma; None where neither is in the table."""
        other = word if self.absent is not None else lemmas.get(word, word)
        return self.values.get(word, self.values.get(other, self.absent))

    @property
    def digest(self) -> str:
        """A hash of all values."""
        return hashlib.sha256(repr(sorted(self.values.items())).encode("utf-8", "backslashreplace")).hexdigest()


@dataclass(frozen=True)
class Classes:
    """Classes and lemmas by form; of a form with several rows, the first."""

    classes: Mapping[str, str] = field(default_factory=dict)
    lemmas: Mapping[str, str] = field(default_factory=dict)


def word_column(table: Table) -> str:
    """The column of a table that holds the words."""
    names = {column.lower(): column for column in reversed(table.columns)}
    return next((names[name] for name in WORD_COLUMNS if name in names), table.columns[0])


def read_norms(paths: Sequence[str], columns: Sequence[str], words: str | None = None) -> list[Norm]:
    """A norm for each column, from whichever of the tables has it.

    Args:
        words: the column of words; found by its name without it.

    Raises:
        DatasetError: for a column that no table has, or several have, and for a value that is no number.
        UserError: where there are tables and no columns, or the other way round.
    """
    if bool(paths) != bool(columns):
        raise UserError("--norms and --column go together: tables, and the names of their columns to take")
    tables = [read_table(path) for path in paths]
    norms = []
    for column in dict.fromkeys(columns):
        having = [t for t in tables if column in t.columns]
        if len(having) != 1:
            listed = "; ".join(f"{show(t.path)}: {', '.join(map(show, t.columns))}" for t in having or tables)
            found = f"{len(having)} tables have it" if having else "no table has it"
            raise DatasetError(f"--column {show(column)}: {found} ({listed}); name a column of one of --norms")
        norms.append(norm_of(having[0], column, words))
    return norms


def norm_of(table: Table, column: str, words: str | None = None) -> Norm:
    """The numbers of a column by the forms of words, rows without one left out; raises as `read_norms`.

    Commas are decimal where a column has no point, and not all of them could be between thousands.
    """
    if words is not None:
        table.need([words], "--word_column")
    key = words or word_column(table)
    found: dict[str, list[float]] = {}
    cells = [(row[column].strip(), row[key], place) for row, place in zip(table.rows, table.places, strict=True)]
    cells = [cell for cell in cells if cell[0].lower() not in MISSING]
    commas = [(text, place) for text, _, place in cells if "," in text]
    if commas and (any("." in cell[0] for cell in cells) or all(THOUSANDS.fullmatch(text) for text, _ in commas)):
        text, place = commas[0]
        raise DatasetError(
            f"{show(place)}: {show(column)} is {text!r:.40}, and the column does not say whether commas are decimal or "
            "between thousands: write numbers as 1234.5"
        )
    for text, word, place in cells:
        try:
            value = float(text.replace(",", ".", 1))
        except ValueError as error:
            raise DatasetError(
                f"{show(place)}: {show(column)} is {text!r:.40}, which is no number; take a column of numbers"
            ) from error
        if not math.isfinite(value):
            raise DatasetError(
                f"{show(place)}: {show(column)} is {text!r:.40}: leave the cell empty where there is none"
            )
        found.setdefault(form(word.strip()), []).append(value)
    return Norm(
        column,
        {word: sum(values) / len(values) for word, values in found.items() if word},
        sum(len(values) > 1 for values in found.values()),
    )


def read_classes(path: str) -> Classes:
    """Classes of a table with a column of words, `class`, and perhaps `lemma`.

    Raises:
        DatasetError: when it has no column `class`.
    """
    table = read_table(path)
    table.need(["class"], "--classes")
    key = next((c for c in table.columns if c.lower() in WORD_COLUMNS and c != "lemma"), table.columns[0])
    classes: dict[str, str] = {}
    lemmas: dict[str, str] = {}
    for row in table.rows:
        word = form(row[key].strip())
        if row["class"].strip():
            classes.setdefault(word, row["class"].strip())
        if row.get("lemma", "").strip():
            lemmas.setdefault(word, form(row["lemma"].strip()))
    return Classes(classes, lemmas)


def frequencies(texts: Iterable[str]) -> Norm:
    """Occurrences of each form in a million words of texts.

    Raises:
        DatasetError: for texts without a word.
    """
    counts = Counter(word for text in texts for word in word_forms(text))
    total = sum(counts.values())
    if not total:
        raise DatasetError("--frequency: there is no word to count")
    return Norm("frequency", {word: count / total * 1e6 for word, count in counts.items()}, absent=0.0)


def is_table(path: str | None) -> bool:
    """Whether a file of frequencies is a table, by its name; else it is one of records."""
    return path is not None and Path(path).suffix.lower() in (".tsv", ".csv")


def read_frequencies(path: str) -> Norm:
    """Frequencies of a table (its words, and its column `frequency` or `count`, as they are), or of records."""
    if is_table(path):
        table = read_table(path)
        column = next((c for c in table.columns if c.lower() in ("frequency", "count", "freq")), None)
        if column is None:
            raise DatasetError(f"--frequency {show(path)}: no column frequency or count; {', '.join(table.columns)}")
        found = norm_of(table, column)
        return Norm("frequency", found.values, found.repeated, absent=0.0)
    return _of_records(path, set())


def frequencies_for(path: str | None, run: str | Path) -> tuple[Norm | None, str]:
    """The frequencies of a `--frequency`, or of the run's training records without one, and what is to be said of them.

    Raises:
        DatasetError: as `read_frequencies`.
    """
    return training_frequencies(run) if path is None else (read_frequencies(path), f"frequency: by {show(path)}")


def training_frequencies(run: str | Path) -> tuple[Norm | None, str]:
    """Frequencies of the captions that a run trained on, by its record, and what is to be said of them: where they are
    from, or why there are none."""
    home = next((f for f in (Path(run), Path(run).parent) if (f / RUN_RECORD).is_file()), None)
    if home is None:
        return None, f"frequency is NOT MEASURED: {show(run)} has no {RUN_RECORD}; give --frequency FILE"
    try:
        path = json.loads((home / RUN_RECORD).read_text(encoding="utf-8"))["flags"]["data_path"]
        held_out = next((f for f in (home / HELD_OUT_FILE, home.parent / HELD_OUT_FILE) if f.is_file()), None)
        left_out = {r.id for r in load_records(held_out)[0]} if held_out else set()
        return _of_records(path, left_out), f"frequency: occurrences in a million words of {show(path)}"
    except (OSError, ValueError, LookupError, TypeError) as error:
        return None, f"frequency is NOT MEASURED: the run's data cannot be read ({show(error)}); give --frequency FILE"


def _of_records(path: str, left_out: set[str]) -> Norm:
    records, _ = load_records(path, allow_absolute_paths=True)
    kept = (r for r in records if r.id not in left_out)
    return frequencies(without_coordinates(join_turns(text_alone(r).conversations)) for r in kept)
