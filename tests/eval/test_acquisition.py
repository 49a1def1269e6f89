"""Ages of acquisition: planted curves are recovered, and what cannot be known is said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.eval.acquisition import (
    BEFORE,
    LEAST_FALL,
    NEVER,
    NOT_FITTED,
    PASSED,
    Sigmoid,
    age_of,
    correlation,
    fit_sigmoid,
    words_to,
)

CHANCE = math.log(30_000)
WORDS = 10.0 ** np.linspace(3, 8, 16)


@settings(max_examples=25)
@given(st.floats(3.5, 6.5), st.floats(0.15, 0.4), st.floats(0.5, 6))
def test_a_planted_sigmoid_is_recovered(middle, width, low):
    planted = Sigmoid(CHANCE, low, middle, width)
    nats = planted.at(np.log10(WORDS))
    age = age_of(WORDS, nats, CHANCE)
    assert age.residual < 1e-3 and age.fitted.kind == PASSED
    assert math.log10(age.fitted.words) == pytest.approx(planted.crossing(age.half), abs=0.005)
    assert math.log10(age.fitted.words) == pytest.approx(middle, abs=0.1), "the lowest is not quite the low end"
    assert age.lowest == pytest.approx(float(nats.min()))


@settings(max_examples=25)
@given(st.floats(4, 6.5), st.integers(0, 1000))
def test_noise_moves_it_little(middle, seed):
    planted = Sigmoid(CHANCE, 3.0, middle, 0.3)
    noise = np.random.default_rng(seed).normal(0, 0.25, len(WORDS))
    age = age_of(WORDS, planted.at(np.log10(WORDS)) + noise, CHANCE)
    assert math.log10(age.fitted.words) == pytest.approx(middle, abs=0.25)
    assert 0.05 < age.residual < 0.5


falling = st.lists(st.floats(0, 10.3), min_size=4, max_size=8).map(lambda values: sorted(values, reverse=True))


@settings(max_examples=25)
@given(falling)
def test_of_a_curve_that_falls_the_first_milestone_is_below_and_the_one_before_above(nats):
    words = 10.0 ** np.arange(3, 3 + len(nats))
    age = age_of(words, nats, CHANCE)
    if age.lowest > CHANCE - LEAST_FALL:
        assert (age.first.kind, age.fitted.kind) == (NEVER, NEVER)
        return
    i = words.tolist().index(age.first.words)
    assert nats[i] <= age.half and (age.first.kind == BEFORE if i == 0 else nats[i - 1] > age.half)
    if age.fitted.is_known:
        assert words[0] * 0.999 <= age.fitted.words <= words[-1] * 1.001


@settings(max_examples=25)
@given(falling, st.sampled_from([0.01, 1000.0]))
def test_ages_go_with_the_unit_of_words(nats, factor):
    words = 10.0 ** np.arange(3, 3 + len(nats))
    one, other = age_of(words, nats, CHANCE), age_of(words * factor, nats, CHANCE)
    assert (one.first.kind, one.lowest) == (other.first.kind, other.lowest)
    if one.first.is_known:
        assert other.first.words / one.first.words == pytest.approx(factor)


def test_with_three_milestones_nothing_is_fitted():
    age = age_of([1e3, 1e4, 1e5], [10.0, 6.0, 2.0], CHANCE)
    assert (age.first.words, age.first.kind) == (pytest.approx(1e4), PASSED)
    assert age.fitted.kind == NOT_FITTED and math.isnan(age.fitted.words) and math.isnan(age.residual)
    assert fit_sigmoid([1e3, 1e4, 1e5], [10.0, 6.0, 2.0], CHANCE) is None
    # A milestone at which the word was not measured is none.
    assert age_of([1e3, 1e4, 1e5, 1e6], [10.0, math.nan, 6.0, 2.0], CHANCE).fitted.kind == NOT_FITTED
    assert age_of([1e3], [math.nan], CHANCE).first.kind == NEVER


def test_a_word_that_is_never_twice_as_likely_as_chance_is_not_acquired():
    barely = age_of([1e3, 1e4, 1e5, 1e6], [CHANCE, CHANCE + 1, CHANCE - LEAST_FALL + 0.01, CHANCE], CHANCE)
    assert (barely.first.kind, barely.fitted.kind) == (NEVER, NEVER)
    just = age_of([1e3, 1e4, 1e5, 1e6], [CHANCE, CHANCE, CHANCE - LEAST_FALL - 0.01, CHANCE - 0.5], CHANCE)
    assert (just.first.words, just.first.kind) == (pytest.approx(1e5), PASSED)


def test_a_word_that_was_learned_before_the_first_milestone_is_not_extrapolated():
    planted = Sigmoid(CHANCE, 2.0, 2.0, 0.3)
    age = age_of(WORDS, planted.at(np.log10(WORDS)), CHANCE)
    assert age.first == age.fitted == (pytest.approx(1e3), BEFORE)


def test_words_to_a_target_by_hand():
    words, nats = [1e4, 1e5, 1e6, 1e7], [6.0, 5.0, 5.5, 4.0]
    assert words_to(5.5, words, nats) == (pytest.approx(10**4.5), PASSED)
    assert words_to(5.0, words, nats) == (pytest.approx(1e5), PASSED), "the first of two passes"
    assert words_to(4.75, words, nats) == (pytest.approx(10**6.5), PASSED)
    assert words_to(6.0, words, nats) == (pytest.approx(1e4), BEFORE)
    never = words_to(3.9, words, nats)
    assert never.kind == NEVER and math.isnan(never.words) and not never.is_known
    assert words_to(4.5, words, [6.0, math.nan, 5.0, 4.0]) == (pytest.approx(10**6.5), PASSED)


@pytest.mark.parametrize(("words", "nats"), [([1e4, 1e4], [1, 2]), ([0, 1], [1, 2]), ([1, 2], [1])])
def test_what_is_no_curve_is_refused(words, nats):
    with pytest.raises(ValueError, match=r"must rise|for each milestone"):
        words_to(1.0, words, nats)


def test_correlations_by_hand_and_their_intervals_cover():
    found = correlation([1, 2, 3, 4, math.nan], [1, 4, 9, 16, 5])
    assert found.pairs == 4 and found.spearman[0] == 1 and found.pearson[0] == pytest.approx(0.98437, abs=1e-5)
    assert math.isnan(correlation([1, 2, 3], [1, 2, 3]).pearson[0]), "too few"
    assert math.isnan(correlation([1, 2, 3, 4], [1, 1, 1, 1]).spearman[0])
    generator, inside, true = np.random.default_rng(0), np.zeros(2), 0.6
    ranks = 6 / math.pi * math.asin(true / 2)  # Spearman's of two normal variables, Pearson 1907.
    for _ in range(200):
        a, b = generator.normal(size=(2, 60))
        found = correlation(a, true * a + 0.8 * b)
        inside += [found.spearman[1] <= ranks <= found.spearman[2], found.pearson[1] <= true <= found.pearson[2]]
    assert (inside / 200 > 0.9).all() and (inside / 200 < 0.99).all()
