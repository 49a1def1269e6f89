"""Numbers in words; the reasons against a verdict are in `test_answer`."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llava.eval.two_way import students_t, two_way_t
from llava.study.measure import Measured, Result
from llava.study.verdict import UNITS, interval, judge, p_text, signed


def result(values, test="captions", unit="nats", arms=("V", "M")):
    estimate = two_way_t(np.asarray(values, dtype=float))
    return Result(test, arms, "", unit, estimate, students_t(estimate.per_seed, estimate.clusters), 100, 700.0)


def judged(primary, sighted=-0.5, share=0.5, **options):
    generator = np.random.default_rng(1)
    seen = result(sighted + 0.01 * generator.normal(size=(primary.two_way.seeds, 20)))
    return judge(Measured(primary, seen, [], [], [], [], {}, []), share, **options)


def values(mean, unit="nats", seeds=5, clusters=20):
    generator = np.random.default_rng(0)
    drawn = 0.02 * generator.normal(size=(seeds, clusters))
    return result(drawn - drawn.mean() + mean, unit=unit)


@pytest.mark.parametrize(
    ("mean", "unit", "kind"),
    [(-0.1, "nats", "helps"), (0.1, "nats", "harms"), (0.0, "nats", "no difference shown"),
     (0.1, "correct", "helps"), (-0.1, "correct", "harms")],
)  # fmt: skip
def test_less_surprise_is_better_and_more_pairs_are(mean, unit, kind):
    assert judged(values(mean, unit)).kind == kind


def test_the_answer_has_its_numbers():
    said = judged(values(0.1, "correct", seeds=8), smallest=0.01)
    assert said.headline.startswith("Seeing helps: +10.0") and "percentage points, 8 seeds, 100 pairs" in said.headline
    assert "pilot" not in said.text and "to see one of 1 you would need about" in said.text
    none = judged(values(0.0))
    assert none.sentences[0].startswith("A help of more than 0.00") and "5 seeds are a pilot" in none.text


def test_several_reasons_are_all_said():
    said = judged(values(-0.1, seeds=2, clusters=4), share=0.0)
    assert said.kind == "no verdict" and all(w in said.headline for w in ("two seeds", "4 clips", "--blind_share 0"))
    assert "found something in up to 12 %" in said.headline


def test_more_seeds_do_not_replace_captions():
    generator = np.random.default_rng(0)
    clips = result(generator.normal(size=12) + 0.001 * generator.normal(size=(5, 1)) + 0.01 * np.zeros((5, 12)))
    assert "more held-out items are needed" in judged(clips).text


def test_numbers_have_true_minuses_and_two_figures_of_their_width():
    estimate = values(-0.1).two_way
    assert interval(estimate, UNITS["nats"]).startswith("−0.100") and "−" in interval(estimate, UNITS["nats"])
    assert signed(0.5) == "+0.500" and signed(math.nan) == "–"
    assert interval(two_way_t(np.array([[1.0, 2.0]])), UNITS["nats"]) == "+1.500 (no interval)"
    assert [p_text(p) for p in (1e-5, 0.0123, 0.5, math.nan)] == ["< 0.001", "= 0.012", "= 0.50", "–"]
