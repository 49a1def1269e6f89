"""What the tests of a run's milestones say together: nats and accuracies over words served, and how words were learned.

Letters in shapes: M models of a run, fewest words first.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from llava.errors import UserError, show
from llava.eval.acquisition import BEFORE, NEVER, NOT_FITTED, PASSED, Age, Correlation, Crossing, age_of, correlation
from llava.eval.milestone_tests import Kept, RunTests, facts_of
from llava.eval.pairs import ALL, NONE
from llava.eval.result_files import FOLDER
from llava.eval.surprisal import BLIND

FREQUENCY, LENGTH = "frequency", "length"
FITTED, FIRST = "fitted", "first milestone"
KINDS = (PASSED, BEFORE, NEVER, NOT_FITTED)
Interval = tuple[float, float, float]


class Measure(NamedTuple):
    """A test over the models of a run: (M,) values with the ends of their 95 % intervals, NaN where there is none."""

    test: str
    values: list[Interval]

    @property
    def means(self) -> np.ndarray:
        return np.array([v[0] for v in self.values])


@dataclass
class WordCurve:
    """A word in a test: mean nats of its occurrences at each model (M,), and the tokens that it has on average."""

    test: str
    word: str
    kind: str
    occurrences: int = 0
    tokens: float = 0.0
    covariates: dict[str, float] = field(default_factory=dict)
    nats: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Learned:
    """How the words of a test were learned; `rare` are those that occur too seldom to say."""

    test: str
    curves: list[WordCurve]
    ages: list[Age]
    rare: int

    def crossings(self, way: str) -> list[Crossing]:
        return [age.fitted if way == FITTED else age.first for age in self.ages]

    def counts(self, way: str) -> dict[str, int]:
        """Words of each kind of crossing."""
        kinds = [c.kind for c in self.crossings(way)]
        return {kind: kinds.count(kind) for kind in KINDS}

    def share(self, words: float) -> float:
        """Share of the words that had passed after so many words served, by the first milestone."""
        return float(np.mean([c.is_known and c.words <= words for c in self.crossings(FIRST)]))


@dataclass(frozen=True)
class Milestones:
    """All that is known of a run's models."""

    models: Sequence[Kept]
    nats: list[Measure]
    accuracies: list[Measure]
    learned: list[Learned]
    columns: list[str]

    @property
    def words(self) -> np.ndarray:
        return np.array([m.words for m in self.models], dtype=float)


def read_milestones(tests: RunTests, least_occurrences: int) -> Milestones:
    """Reads what all models of a run were measured on.

    Raises:
        UserError: for a model that lacks a test or was measured on other words.
    """
    facts = [[_needed(m, name) for m in tests.kept] for name in tests.pair_names]
    accuracies = [
        Measure(name, [_interval(f["summary"]["accuracy"][NONE][ALL]["sum"]) for f in found])
        for name, found in zip(tests.pair_names, facts, strict=True)
    ]
    if tests.blind is None:
        return Milestones(tests.kept, [], accuracies, [], [])
    blind = [_needed(m, BLIND) for m in tests.kept]
    nats = [
        Measure(test, [_interval(f["summary"]["tests"][test]["nats_per_word"]) for f in blind])
        for test in tests.blind.tests
    ]
    columns = [FREQUENCY, LENGTH, *(n.name for n in tests.blind.norms)]
    curves = word_curves(tests.kept, tests.blind.tests, columns)
    start = math.log(blind[0]["summary"]["vocabulary"])
    words = [m.words for m in tests.kept]
    learned = []
    for test in tests.blind.tests:
        every = [c for c in curves if c.test == test]
        common = [c for c in every if c.occurrences >= least_occurrences]
        ages = [age_of(words, c.nats, c.tokens * start) for c in common]
        learned.append(Learned(test, common, ages, len(every) - len(common)))
    return Milestones(tests.kept, nats, accuracies, learned, columns)


def _needed(model: Kept, name: str) -> dict[str, Any]:
    found = facts_of(model, name)
    if found is None:
        raise UserError(f"{model.folder}: lacks {name}, or has an older one; measure it (without --share, all are)")
    return found


def _interval(values: Sequence[float | None]) -> Interval:
    mean, low, high = (math.nan if v is None else float(v) for v in values)
    return mean, low, high


def word_curves(models: Sequence[Kept], tests: Sequence[str], columns: Sequence[str]) -> list[WordCurve]:
    """The words of some tests, in the order in which they come, from the files of all models.

    Raises:
        UserError: naming a model that was measured on other words than the first.
    """
    curves: dict[tuple[str, str], WordCurve] = {}
    expected = ""
    for number, model in enumerate(models):
        path = model.folder / FOLDER / f"{BLIND}.csv"
        sums: dict[tuple[str, str], list[float]] = {}
        digest = hashlib.sha256()
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["test"] not in tests or not row["nats"]:
                    continue
                key = row["test"], row["word"]
                digest.update("\0".join((*key, row["item"], row["position"], row["tokens"])).encode())
                sums.setdefault(key, []).append(float(row["nats"]))
                if number == 0:
                    curve = curves.setdefault(key, _new(row, columns))
                    curve.occurrences += 1
                    curve.tokens += int(row["tokens"])
        expected = expected or digest.hexdigest()
        if digest.hexdigest() != expected:
            raise UserError(
                f"{path}: was measured on other words or tokens than {show(models[0].name)}; delete it, so that it is "
                "measured again"
            )
        for key, values in sums.items():
            curves[key].nats.append(float(np.mean(values)))
    for curve in curves.values():
        curve.tokens /= curve.occurrences
    return list(curves.values())


def _new(row: Mapping[str, str], columns: Sequence[str]) -> WordCurve:
    known = {c: float(row[c]) if row.get(c) else math.nan for c in columns}
    return WordCurve(row["test"], row["word"], row["class"], covariates=known)


def correlations(learned: Learned, columns: Sequence[str], way: str) -> dict[str, Correlation]:
    """Of the ages of acquisition, as log10 of words, with each column over the words that have both; a frequency f as
    ln(1 + f). A word that was there at the first milestone has the age of that milestone."""
    ages = [math.log10(c.words) if c.is_known else math.nan for c in learned.crossings(way)]
    found = {}
    for column in columns:
        values = [c.covariates[column] for c in learned.curves]
        found[column] = correlation(ages, [math.log1p(v) for v in values] if column == FREQUENCY else values)
    return found
