"""Words of several models become curves; what goes with the ages of words."""

from __future__ import annotations

import math

import pytest

from llava.errors import UserError
from llava.eval.acquisition import age_of
from llava.eval.milestone_table import FIRST, FREQUENCY, Learned, WordCurve, correlations, word_curves
from llava.eval.milestone_tests import Kept
from llava.eval.result_files import csv_text

COLUMNS = ("test", "item", "position", "word", "class", "tokens", "nats", "frequency", "AOA")


def made(folder, name, nats, word="cane"):
    values = [
        ("t", "1", 0, word, "noun", 2, nats[0], 9.0, 3.5),
        ("t", "2", 0, word, "noun", 1, nats[1], 9.0, 3.5),
        ("t", "2", 1, "il", "function", 1, math.nan, 0.0, None),
        ("other", "1", 0, "re", "noun", 1, 1.0, 1.0, 1.0),
    ]
    (folder / name / "tests").mkdir(parents=True)
    text = csv_text(COLUMNS, [dict(zip(COLUMNS, v, strict=True)) for v in values])
    (folder / name / "tests" / "blind_words.csv").write_text(text)
    return Kept(folder / name, name, 100, 1)


def test_a_word_has_the_mean_of_its_occurrences_at_each_model(tmp_path):
    models = [made(tmp_path, "a", (8.0, 4.0)), made(tmp_path, "b", (2.0, 1.0))]
    (curve,) = word_curves(models, ["t"], ["frequency", "AOA", "length"])
    assert (curve.word, curve.kind, curve.occurrences, curve.tokens, curve.nats) == ("cane", "noun", 2, 1.5, [6.0, 1.5])
    assert curve.covariates["AOA"] == 3.5 and math.isnan(curve.covariates["length"])
    with pytest.raises(UserError, match=r"c.tests.blind_words\.csv: was measured on other words or tokens than a"):
        word_curves([*models, made(tmp_path, "c", (1.0, 1.0), "gatto")], ["t"], [])


def test_words_that_never_pass_are_in_no_correlation_and_frequencies_are_logarithms():
    words, curves = [10.0, 100.0, 1000.0, 10000.0], []
    for i in range(4):
        nats = [9.0 if n < i else 1.0 for n in range(4)]
        curves.append(WordCurve("t", f"w{i}", "noun", 5, 1, {FREQUENCY: math.expm1(8 - 2 * i), "AOA": i * i}, nats))
    curves.append(WordCurve("t", "never", "noun", 5, 1, {FREQUENCY: 1e9, "AOA": 0.0}, [9.0] * 4))
    learned = Learned("t", curves, [age_of(words, c.nats, 9.0) for c in curves], 0)
    assert learned.counts(FIRST)["never"] == 1 and [learned.share(w) for w in (10, 999, 10000)] == [0.2, 0.4, 0.8]
    found = correlations(learned, [FREQUENCY, "AOA"], FIRST)
    assert found[FREQUENCY].pairs == 4 and found[FREQUENCY].pearson[0] == pytest.approx(-1)
    assert found["AOA"].spearman[0] == 1 and found["AOA"].pearson[0] < 0.99
