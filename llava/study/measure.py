"""What a study measured: each test's difference of two arms, by word class and on norms, with its intervals. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llava.eval.slopes import slope
from llava.eval.statistics import holm
from llava.eval.two_way import Estimate, paired, students_t, two_way_t
from llava.study.results import SIGHTED, Table

SEEING, VIDEO = ("V", "M"), ("M", "T")
"""What seeing the right clip does, and what having any video costs."""
FREQUENCY, LENGTH = "frequency", "length"
"""Covariates of every slope, where the files have them; frequency as ln(1 + f)."""


@dataclass(frozen=True)
class Result:
    """One difference of two arms.

    `part` is "" for a whole test, a word class (of pairs: a phenomenon), or a norm whose slope it is; `items` counts
    captions, lines or pairs and `units` words (or pairs); `p` is the two-way t's, adjusted for all that were looked at
    beside it.
    """

    test: str
    arms: tuple[str, str]
    part: str
    unit: str
    two_way: Estimate
    seeds_alone: Estimate
    items: int
    units: float
    p: float = math.nan

    @property
    def contrast(self) -> str:
        return f"{self.arms[0]} − {self.arms[1]}"


@dataclass(frozen=True)
class Measured:
    """All differences of a study. `primary` is the test named beforehand, `sighted` whether V saw.

    `tests`, `classes` and `slopes` are V − M and one family of Holm's adjustment, which `family` counts; `costs` are
    M − T and another. `remarks` say what was left out.
    """

    primary: Result
    sighted: Result | None
    tests: list[Result]
    classes: list[Result]
    slopes: list[Result]
    costs: list[Result]
    levels: dict[str, dict[str, float]]
    remarks: list[str]

    @property
    def family(self) -> int:
        return sum(not math.isnan(r.p) for r in (*self.tests, *self.classes, *self.slopes))


def difference(table: Table, arms: tuple[str, str], where: np.ndarray | None = None, part: str = "") -> Result:
    """The mean difference over units of a test, or of those items that `where` (N,) marks.

    Each cluster's mean is over its words, and the mean of clusters is by their words: nats a word, over words.
    """
    kept = np.arange(len(table.items)) if where is None else np.flatnonzero(where)
    first, second = (table.values[arm][:, kept] for arm in arms)
    items, clusters = ([names[i] for i in kept] for names in (table.items, table.clusters))
    pairs = paired(first, second, clusters, table.seeds, items, table.units[kept])
    two_way = two_way_t(pairs.values, pairs.weights)
    seeds = students_t(two_way.per_seed, len(pairs.clusters))
    return Result(table.test, arms, part, table.unit, two_way, seeds, len(set(items)), float(table.units[kept].sum()))


def classes_of(table: Table) -> list[Result]:
    """V − M of each word class, or phenomenon of pairs, the most frequent first."""
    kinds = np.array(table.kinds)
    names, counts = np.unique(kinds[kinds != ""], return_counts=True)
    return [difference(table, SEEING, kinds == names[i], str(names[i])) for i in np.argsort(-counts, kind="stable")]


def slopes_of(table: Table) -> tuple[list[Result], list[str]]:
    """The slope of V − M on each norm, for one standard deviation of it over the words that have it; and remarks."""
    found, remarks = [], []
    held = {
        name: np.log1p(values) if name == FREQUENCY else values
        for name, values in table.covariates.items()
        if name in (FREQUENCY, LENGTH) and np.isfinite(values).any()  # Nobody counted, where no word has it.
    }
    every = table.values[SEEING[0]] - table.values[SEEING[1]]
    words = np.array([word.casefold() for word in table.words], dtype=object)
    for name, norm in table.covariates.items():
        if name in (FREQUENCY, LENGTH):
            continue
        kept = np.isfinite(norm)
        for values in held.values():
            kept &= np.isfinite(values)
        covariates = np.column_stack([np.ones((int(kept.sum()), 0)), *(v[kept] for v in held.values())])
        estimate = slope(every[:, kept], norm[kept], covariates, words[kept])
        if estimate is None:
            remarks.append(f"{name}: no slope, since too few words have it or it does not vary beside its covariates")
            continue
        remarks.append(f"{name}: {int(kept.sum()):,} of {len(kept):,} words have it, {estimate.clusters:,} different")
        alone = students_t(estimate.per_seed, estimate.clusters)
        of = len({table.items[i] for i in np.flatnonzero(kept)})
        found.append(Result(table.test, SEEING, name, table.unit, estimate, alone, of, float(kept.sum())))
    return found, remarks


def adjusted(results: Sequence[Sequence[Result]]) -> list[list[Result]]:
    """The same results with Holm's p over all of them as one family."""
    ps = iter(holm([r.two_way.p for group in results for r in group]))
    return [[dataclasses.replace(r, p=next(ps)) for r in group] for group in results]


def measure(tables: Iterable[Table], primary: str, by_word: str) -> Measured:
    """Everything that is compared, from the tables of all tests.

    Args:
        primary: the name of the test that answers; by_word: that of the blind test that is split by class and norm.

    Raises:
        KeyError: when there is no primary test, with the names of those that there are.
    """
    named = {table.test: table for table in tables}
    if primary not in named:
        raise KeyError(", ".join(sorted(named)))
    both = [t for t in named.values() if set(SEEING) <= set(t.values)]
    others = [difference(t, SEEING) for t in both if t.test not in (primary, SIGHTED)]
    classes = [r for test in dict.fromkeys((by_word, primary)) if test in named for r in classes_of(named[test])]
    slopes, remarks = slopes_of(named[by_word]) if by_word in named else ([], [])
    others, classes, slopes = adjusted([others, classes, slopes])
    (costs,) = adjusted([[difference(t, VIDEO) for t in named.values() if set(VIDEO) <= set(t.values)]])
    sighted = difference(named[SIGHTED], SEEING) if SIGHTED in named else None
    levels = {
        t.test: {arm: float(v.sum(axis=1).mean() / t.units.sum()) for arm, v in t.values.items()}
        for t in named.values()
    }
    return Measured(difference(named[primary], SEEING), sighted, others, classes, slopes, costs, levels, remarks)
