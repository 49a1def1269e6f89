"""The result files of a study's runs, each test of all of them as one table, and the long CSV of every value.

`STUDY/seed0/V/tests/` has a CSV for each test (`chck_7M/tests/` of a run for a milestone). Files are read row by row
and written on at once; what stays is one number an item and run.

Letters in shapes: S seeds, N items.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llava.errors import MissingFile, UserError, show

ARMS = ("V", "M", "T")
"""Sees its own clip; sees another; text alone. Names of folders, in the order in which they are read."""
BLIND, SIGHTED, PAIRS = "blind_words", "sighted_captions", "pairs_"
NATS, CORRECT = "nats", "correct"
COLUMNS = (
    "test", "run", "arm", "seed", "step", "item", "cluster", "position", "word", "class", "value", "unit", "weight"
)  # fmt: skip
"""Of the long CSV; covariates and norms follow. A value is a mean over `weight` words (or one pair)."""
NEEDED = {
    BLIND: ("test", "item", "cluster", "position", "word", "class", "tokens", "nats"),
    SIGHTED: ("item", "cluster", "words", "tokens", "nats"),
    PAIRS: (
        "item", "cluster", "phenomenon", "good_nats", "bad_nats", "good_tokens", "bad_tokens", "condition"
    ),
}  # fmt: skip


class Value(NamedTuple):
    """One number of a test: what `items.csv` has a row for."""

    test: str
    item: str
    cluster: str
    position: str
    word: str
    kind: str
    units: float
    value: float
    unit: str


@dataclass
class Table:
    """One test of all runs of a study.

    `values` has an array (S, N) for each arm; `units` (N,) are how many words (or pairs) each item is; `covariates`
    have NaN where an item has none.
    """

    test: str
    unit: str
    seeds: tuple[str, ...]
    items: list[str]
    clusters: list[str]
    words: list[str]
    kinds: list[str]
    units: np.ndarray
    values: dict[str, np.ndarray]
    covariates: dict[str, np.ndarray]


@dataclass
class _Growing:
    """A table while its files are read; `places` are those of its items."""

    unit: str
    first: str
    places: dict[tuple[str, str], int] = field(default_factory=dict)
    rows: list[Value] = field(default_factory=list)
    covariates: dict[str, list[float]] = field(default_factory=dict)
    columns: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)


def runs_of(study: Path) -> dict[tuple[str, str], Path]:
    """Folders of runs by (arm, seed): all arms of one seed are read before the next.

    Raises:
        MissingFile: where the folder holds no run, or V or M is nowhere.
    """
    seeds = sorted(
        (p.name[4:] for p in study.glob("seed*") if p.is_dir() and p.name[4:].isdigit()), key=lambda name: int(name)
    )
    runs = {(arm, seed): study / f"seed{seed}" / arm for seed in seeds for arm in ARMS}
    runs = {key: folder for key, folder in runs.items() if folder.is_dir()}
    if lacking := [arm for arm in ("V", "M") if not any(arm == a for a, _ in runs)]:
        raise MissingFile(
            f"{study}: no run of arm {' or '.join(lacking)} (expected seed0/V, seed0/M ...); train the study first"
        )
    return runs


def read_study(study: Path, out: Any = None) -> list[Table]:
    """Every test of a study's runs at the end of training, joined item by item.

    Args:
        out: a text file for the long CSV; none by default.

    Raises:
        UserError: naming runs that lack a test, items that a run lacks, words that differ between runs, and values that
            are not finite, with file and line.
    """
    return next(_read_all(study, ["tests"], out))


def read_milestones(study: Path, names: Sequence[str], out: Any = None) -> Iterator[list[Table]]:
    """The same at each milestone (`chck_7M`), one after the other, with one long CSV of them all."""
    return _read_all(study, [f"{name}/tests" for name in names], out)


def _read_all(study: Path, places: Sequence[str], out: Any) -> Iterator[list[Table]]:
    """Args: places: where results lie in the folder of a run."""
    runs = runs_of(study)
    paths = {place: {key: _results(folder / place) for key, folder in runs.items()} for place in places}
    for place in places:
        _check_complete(study, runs, paths[place], place)
    extra = _extra_columns([path for found in paths.values() for listed in found.values() for path in listed])
    writer = csv.writer(out) if out is not None else None
    if writer:
        writer.writerow([*COLUMNS, *(f"norm_{c}" if c in COLUMNS else c for c in extra)])
    for place in places:
        within = Path(place).parent
        names = {key: (folder.relative_to(study) / within).as_posix() for key, folder in runs.items()}
        yield _joined(names, paths[place], extra, writer)


def _results(folder: Path) -> list[Path]:
    return sorted([*folder.glob(f"{BLIND}.csv"), *folder.glob(f"{SIGHTED}.csv"), *folder.glob(f"{PAIRS}*.csv")])


def _joined(
    names: Mapping[tuple[str, str], str],
    paths: Mapping[tuple[str, str], Sequence[Path]],
    extra: Sequence[str],
    writer: Any,
) -> list[Table]:
    """Args: names, paths: of each run; extra: the columns after `COLUMNS`; writer: takes a row for each value."""
    tables: dict[str, _Growing] = {}
    for (arm, seed), found in paths.items():
        name = names[arm, seed]
        for path in found:
            step = _step(path)
            for value, covariates, where in _read(path):
                table = tables.setdefault(value.test, _Growing(value.unit, name))
                _put(table, (arm, seed), name, value, covariates, where)
                if writer:
                    writer.writerow(
                        [value.test, name, arm, seed, step, value.item, value.cluster, value.position, value.word,
                         value.kind, repr(value.value / value.units), value.unit, f"{value.units:g}",
                         *(covariates.get(c, "") for c in extra)]
                    )  # fmt: skip
    return [_finish(test, table, list(paths)) for test, table in tables.items()]


def milestones(study: Path) -> list[str]:
    """Names of milestone folders that all runs have with results, fewest words first."""
    found: list[set[str]] = [
        {p.parent.name for p in folder.glob("chck_*/tests") if any(p.glob("*.csv"))}
        for folder in runs_of(study).values()
    ]
    return sorted(set.intersection(*found), key=words_of) if found else []


def words_of(name: str) -> float:
    """How many words a milestone's name says: 7e6 of `chck_7M`."""
    number, scale = name.removeprefix("chck_"), {"K": 1e3, "M": 1e6, "B": 1e9}
    factor = scale.get(number[-1:].upper(), 1.0)
    try:
        return float(number.rstrip("KkMmBb")) * factor
    except ValueError:
        return math.inf


def _check_complete(
    study: Path, runs: Mapping[tuple[str, str], Path], paths: Mapping[Any, Sequence[Path]], place: str
) -> None:
    """All arms of all seeds have the same tests in a place; T may lack what needs a video."""
    at = "" if place == "tests" else f" at {Path(place).parent}"
    seeds = sorted({seed for _, seed in runs}, key=int)
    arms = [arm for arm in ARMS if any(arm == a for a, _ in runs)]
    lacking = [f"seed{seed}/{arm}" for seed in seeds for arm in arms if not paths.get((arm, seed))]
    if lacking:
        raise UserError(
            f"{study}: no results of {', '.join(lacking)}{at}; train and test them (the study's command goes on): a "
            "difference is paired over seeds"
        )
    for arms_alike in (("V", "M"), ("T",)):
        names = {key: {p.name for p in found} for key, found in paths.items() if key[0] in arms_alike}
        every = set().union(*names.values())
        for (arm, seed), has in names.items():
            if every - has:
                raise UserError(
                    f"{study}: seed{seed}/{arm} lacks {', '.join(sorted(every - has))}{at}, which others have; test it "
                    "too"
                )


def _extra_columns(paths: Sequence[Path]) -> list[str]:
    """Covariates and norms of all files, in the order in which they come; any may be called as a column is."""
    extra: dict[str, None] = {}
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            header = next(csv.reader(file), [])
        extra |= dict.fromkeys(c for c in header if c not in _needed(path))
    return list(extra)


def _needed(path: Path) -> tuple[str, ...]:
    return NEEDED[path.stem if path.stem in NEEDED else PAIRS]


def _step(path: Path) -> Any:
    """The optimiser step of what was tested, which the file beside the results says."""
    facts = path.with_suffix(".json")
    try:
        step = json.loads(facts.read_text(encoding="utf-8")).get("step") if facts.is_file() else None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{facts}: not a JSON object ({error}); test the run again") from error
    return "" if step is None else step


def _read(path: Path) -> Iterator[tuple[Value, dict[str, str], str]]:
    """The values of a file, each with its covariates as they stand there and its place for errors."""
    needed = _needed(path)
    values: Callable[[Mapping[str, str], str], list[Value]] = {BLIND: _word, SIGHTED: _caption}.get(path.stem, _pair)
    test = path.stem
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if missing := [c for c in needed if c not in (reader.fieldnames or ())]:
            raise UserError(f"{path}: no column {', '.join(missing)}; test the run again")
        names = [c for c in reader.fieldnames or () if c not in needed]
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise UserError(f"{where}: not as many cells as the header has; test the run again")
            covariates = {c: row[c] for c in names}
            for value in values({**row, "file": test}, where):
                yield value, covariates, where


def number(row: Mapping[str, str], column: str, where: str, above: float = -math.inf) -> float:
    """A finite number of a row.

    Raises:
        UserError: naming the item, for what is none.
    """
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value <= above:
        raise UserError(
            f"{where}: {column} of item {show(row['item'])} is {show(row[column]) or 'empty'}, where a finite number"
            f"{f' above {above:g}' if above > -math.inf else ''} is expected; look why, and test the run again"
        )
    return value


def _word(row: Mapping[str, str], where: str) -> list[Value]:
    nats = number(row, "nats", where)
    return [Value(row["test"], row["item"], row["cluster"], row["position"], row["word"], row["class"], 1, nats, NATS)]


def _caption(row: Mapping[str, str], where: str) -> list[Value]:
    words, nats = number(row, "words", where), number(row, "nats", where)
    # What is asked is nats a word: a caption of marks alone has none.
    return [] if words == 0 else [Value(SIGHTED, row["item"], row["cluster"], "", "", "", words, nats, NATS)]


def _pair(row: Mapping[str, str], where: str) -> list[Value]:
    """Whether a pair is right by the sum of its tokens, and by their mean; a tie counts half."""
    sums = [number(row, f"{side}_nats", where) for side in ("good", "bad")]
    means = [s / number(row, f"{side}_tokens", where, above=0) for s, side in zip(sums, ("good", "bad"), strict=True)]
    seen = {"": "", "none": "", "own": ", own video", "other": ", another's video"}.get(row["condition"])
    if seen is None:
        raise UserError(f"{where}: condition {show(row['condition'])}: none, own or other is expected")
    return [
        Value(f"{row['file']}{seen}{how}", row["item"], row["cluster"], "", "", row["phenomenon"], 1,
              0.5 if good == bad else float(good < bad), CORRECT)
        for how, (good, bad) in (("", sums), (", mean per token", means))
    ]  # fmt: skip


def _put(
    table: _Growing, run: tuple[str, str], name: str, value: Value, covariates: Mapping[str, str], where: str
) -> None:
    """Places a value beside those of the other runs; the first run says which items there are."""
    key = (value.item, value.position)
    if name == table.first:
        if key in table.places:
            raise UserError(f"{where}: item {_called(key)} stands there twice; test the run again")
        table.places[key] = len(table.rows)
        table.rows.append(value)
        for column, text in covariates.items():
            table.covariates.setdefault(column, []).append(_covariate(text, column, where))
        table.columns.setdefault(run, np.empty(0))
        return
    place = table.places.get(key)
    if place is None:
        raise UserError(f"{where}: item {_called(key)} of {show(value.test)} is not in {table.first}; "
                        "test all runs on the same items")  # fmt: skip
    if run not in table.columns:
        table.columns[run] = np.full(len(table.rows), math.nan)
    first = table.rows[place]
    if (first.word, first.units) != (value.word, value.units):
        raise UserError(
            f"{where}: item {_called(key)} is {show(value.word) or f'{value.units:g} words'}, and in {table.first} "
            f"{show(first.word) or f'{first.units:g} words'}; runs must predict the same words"
        )
    if not math.isnan(table.columns[run][place]):
        raise UserError(f"{where}: item {_called(key)} stands there twice; test the run again")
    table.columns[run][place] = value.value


def _called(key: tuple[str, str]) -> str:
    return show(key[0]) + (f", word {key[1]}" if key[1] else "")


def _covariate(text: str, column: str, where: str) -> float:
    if not text.strip():
        return math.nan
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{where}: {show(column)} is {show(text)}, where a number or nothing is expected") from None


def _finish(test: str, table: _Growing, runs: Sequence[tuple[str, str]]) -> Table:
    """The table as arrays.

    Raises:
        UserError: naming the items that a run lacks.
    """
    keys = list(table.places)
    first = next(iter(table.columns))
    table.columns[first] = np.array([row.value for row in table.rows])
    for (arm, seed), column in table.columns.items():
        if len(lacking := np.flatnonzero(np.isnan(column))):
            named = "; ".join(_called(keys[i]) for i in lacking[:5]) + ("; ..." if len(lacking) > 5 else "")
            raise UserError(
                f"seed{seed}/{arm}: {len(lacking)} of {len(keys)} items of {show(test)} are missing ({named}); "
                "test all runs on the same items"
            )
    arms = {arm: [seed for a, seed in runs if a == arm] for arm, _ in table.columns}
    if absent := [f"seed{s}/{arm}" for arm, seeds in arms.items() for s in seeds if (arm, s) not in table.columns]:
        raise UserError(f"{', '.join(absent)}: no item of {show(test)}, which others have; test them too")
    return Table(
        test,
        table.unit,
        tuple(next(iter(arms.values()))),
        [key[0] for key in keys],
        [row.cluster for row in table.rows],
        [row.word for row in table.rows],
        [row.kind for row in table.rows],
        np.array([row.units for row in table.rows], dtype=float),
        {arm: np.stack([table.columns[arm, seed] for seed in seeds]) for arm, seeds in arms.items()},
        {name: np.array(column) for name, column in table.covariates.items()},
    )
