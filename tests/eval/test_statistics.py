"""Intervals: whole clips are resampled, and seeds are as uncertain as Student says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llava.eval.statistics import (
    bootstrap_median,
    bootstrap_ratio,
    bootstrap_sums,
    holm,
)


def test_bootstrap_resamples_clips():
    generator = np.random.default_rng(0)
    clips = np.repeat(np.arange(50), 4)
    values = generator.normal(size=50)[clips]
    ratio, low, high = bootstrap_ratio(values, np.ones(200), clips)
    assert low < ratio < high
    naive = bootstrap_ratio(values, np.ones(200), np.arange(200))
    assert (high - low) > 1.6 * (naive[2] - naive[1]), "four captions of a clip are not four clips"
    standard = values[::4].std(ddof=1) / math.sqrt(50)
    assert (high - low) / 2 == pytest.approx(1.96 * standard, rel=0.15)
    with pytest.raises(ValueError, match="no caption"):
        bootstrap_ratio([], [], [])


def test_a_score_of_sums_is_resampled_by_clip():
    parts, clips = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), ["a", "a", "b"]
    assert bootstrap_sums(parts, clips, lambda s: s[0] / s[1]) == bootstrap_ratio(parts[:, 0], parts[:, 1], clips)
    whole, low, high = bootstrap_sums(parts, ["a"] * 3, lambda s: s[0])
    assert whole == 9 and math.isnan(low) and math.isnan(high)


def test_the_median_has_an_interval():
    median, low, high = bootstrap_median([1, 1, 2, 5, 9])
    assert (median, low, high) == (2, 1, 9)
    assert math.isnan(bootstrap_median([3])[1])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.5, 0.9]) == [1.0, 1.0]
    found = holm([0.01, math.nan, 0.03])
    assert found[0] == 0.02 and math.isnan(found[1]) and found[2] == 0.03
