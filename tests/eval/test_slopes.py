"""Slopes on norms: those of least squares, with intervals that hold for new words."""

from __future__ import annotations

import numpy as np
import pytest

from llava.eval.slopes import slope
from llava.eval.two_way import two_way_t


def world(generator, seeds=5, words=40, tokens=400, effect=0.0, by_seed=0.1, by_word=0.2):
    """Differences of tokens of words; the norm goes with frequency, and so does the difference."""
    frequency = generator.normal(size=words)
    norm = 0.7 * frequency + generator.normal(size=words)
    word = np.concatenate([np.arange(words), generator.choice(words, tokens - words, p=_often(frequency))])
    values = 0.5 * frequency + effect * norm + by_word * generator.normal(size=words)
    slopes = by_seed * generator.normal(size=(seeds, 1)) * norm
    each = (values + slopes)[:, word] + 0.5 * generator.normal(size=(seeds, tokens))
    return each, norm[word], frequency[word][:, None], word.astype(str)


def _often(frequency):
    return np.exp(frequency / 2) / np.exp(frequency / 2).sum()


def test_each_seed_has_the_slope_of_least_squares():
    differences, norm, covariates, words = world(np.random.default_rng(0))
    found = slope(differences, norm, covariates, words)
    model = np.column_stack([np.ones(len(norm)), norm / norm.std(), covariates])
    expected = np.linalg.lstsq(model, differences.T, rcond=None)[0][1]
    assert found.per_seed == pytest.approx(tuple(expected)) and found.mean == pytest.approx(expected.mean())
    assert found.seeds == 5 and found.clusters == 40


def test_the_interval_holds_for_new_words_and_covariates_are_held():
    generator, wrong, confounded = np.random.default_rng(1), 0, 0
    for _ in range(300):
        differences, norm, covariates, words = world(generator)
        found = slope(differences, norm, covariates, words)
        wrong += not found.low <= 0 <= found.high
        bare = slope(differences, norm, covariates[:, :0], words)
        confounded += not bare.low <= 0 <= bare.high
    assert wrong / 300 < 0.09
    assert confounded / 300 > 0.5, "the difference goes with frequency, and the norm goes with it"


@pytest.mark.parametrize("words", [6, 12, 60])
def test_the_interval_holds_for_words_as_unequal_as_those_of_a_text(words):
    """Words by Zipf's law: the model follows the frequent ones, and leaves little of them. Without the correction for
    leverage zero is excluded in a fifth of the worlds of six words, and in a tenth of the others.
    """
    generator, wrong = np.random.default_rng(5), 0
    share = 1 / np.arange(1, words + 1)
    for _ in range(300):
        word = np.concatenate([np.arange(words), generator.choice(words, 7 * words, p=share / share.sum())])
        norm, others = generator.normal(size=words), generator.normal(size=(words, 2))
        values = generator.normal(size=words)[word] + 0.3 * generator.normal(size=(5, len(word)))
        found = slope(values, norm[word], others[word], word.astype(str))
        wrong += not found.low <= 0 <= found.high
    assert wrong / 300 <= 0.08


def test_an_effect_is_found():
    found = slope(*world(np.random.default_rng(2), effect=-0.5))
    assert found.high < 0


def test_words_as_independent_tokens_would_be_too_sure():
    generator, wrong = np.random.default_rng(3), 0
    for _ in range(200):
        differences, norm, covariates, words = world(generator, by_word=0.6)
        found = slope(differences, norm, covariates, [f"{w} {i}" for i, w in enumerate(words)])
        wrong += not found.low <= 0 <= found.high
    assert wrong / 200 > 0.15


def test_of_a_norm_of_two_equal_halves_it_is_half_the_difference_of_means():
    generator = np.random.default_rng(4)
    values = generator.normal(size=(4, 20))
    norm = np.repeat([0.0, 1.0], 10)
    found = slope(values, norm, np.zeros((20, 0)), [str(i) for i in range(20)])
    assert found.mean == pytest.approx((values[:, 10:].mean() - values[:, :10].mean()) / 2)
    assert found.standard_error == pytest.approx(two_way_t(values).standard_error, rel=0.6)


def test_what_cannot_be_estimated_is_none():
    ones, words = np.ones((2, 6)), list("abcdef")
    assert slope(ones, np.ones(6), np.zeros((6, 0)), words) is None
    norm = np.arange(6.0)
    assert slope(ones, norm, norm[:, None] * 2 + 1, words) is None
    assert slope(ones[:, :3], norm[:3], np.zeros((3, 0)), words[:3]) is None
