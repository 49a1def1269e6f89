"""Differences, classes and slopes of a table."""

from __future__ import annotations

import numpy as np
import pytest

from llava.study.measure import adjusted, difference, measure, slopes_of
from llava.study.results import Table


def table(test="captions", unit="nats", seeds=4, arms="VMT", clips=12, words=6):
    generator, count = np.random.default_rng(0), clips * words
    frequency = generator.integers(1, 100, count).astype(float)
    return Table(
        test, unit, tuple(map(str, range(seeds))), [f"c{i // words}" for i in range(count)],
        [f"clip{i // words // 2}" for i in range(count)], [f"Parola{i % 20}" for i in range(count)],
        ["noun" if i % 3 else "verb" for i in range(count)], np.ones(count),
        {arm: generator.normal(3, 1, (seeds, count)) for arm in arms},
        {"frequency": frequency, "length": np.full(count, 5.0), "seen": generator.normal(size=count),
         "same": np.log1p(frequency)},
    )  # fmt: skip


def test_a_difference_is_over_words():
    made = table()
    found = difference(made, ("V", "M"))
    expected = (made.values["V"] - made.values["M"]).mean(axis=1)
    assert found.two_way.per_seed == pytest.approx(tuple(expected)) and found.two_way.clusters == 6
    assert (found.items, found.units, found.contrast) == (12, 72, "V − M")
    assert found.seeds_alone.mean == pytest.approx(found.two_way.mean)


def test_everything_beside_the_primary_is_one_family():
    found = measure(
        [table(), table("pairs_x", "correct"), table("sighted_captions", arms="VM")], "captions", "captions"
    )
    assert [r.test for r in found.tests] == ["pairs_x"] and [r.part for r in found.classes] == ["noun", "verb"]
    assert [r.part for r in found.slopes] == ["seen"] and found.family == 4
    assert found.remarks[1].startswith("same: no slope") and "20 different" in found.remarks[0]
    raw = sorted(r.two_way.p for r in (*found.tests, *found.classes, *found.slopes))
    assert min(r.p for r in (*found.tests, *found.classes, *found.slopes)) == pytest.approx(min(1, 4 * raw[0]))
    assert np.isnan(found.primary.p) and [r.test for r in found.costs] == ["captions", "pairs_x"]
    assert found.levels["sighted_captions"].keys() == {"V", "M"}
    with pytest.raises(KeyError, match="captions, pairs_x"):
        measure([table(), table("pairs_x", "correct")], "blimp", "captions")
    assert adjusted([[], []]) == [[], []]


def test_a_covariate_that_no_word_has_is_left_out():
    made = table()
    made.covariates["length"] = np.full(72, np.nan)
    assert [r.part for r in slopes_of(made)[0]] == ["seen"]
    made.covariates["frequency"] = np.full(72, np.nan)
    assert [r.part for r in slopes_of(made)[0]] == ["seen", "same"]
