"""Shares of pairs and their intervals, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llava.errors import UserError
from llava.eval.accuracy import clustered_share, correct


def test_ties_count_half():
    assert correct(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])).tolist() == [1, 0.5, 0]


def test_independent_pairs_have_wilsons_interval():
    """With 10,000 clusters t is z; the ends are those of Wilson's formula for 5,000 of 10,000."""
    share, low, high = clustered_share([0.0, 1.0] * 5000, range(10_000))
    half = 1.959964 * math.sqrt(0.25 / 10_000)
    assert (share, low, high) == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=1e-4)


def test_copies_of_a_pair_tell_nothing_new():
    values, clusters = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0] * 20, list(range(120))
    once = clustered_share(values, clusters)
    assert clustered_share(np.repeat(values, 5), np.repeat(clusters, 5)) == pytest.approx(once, abs=2e-3)
    narrow = clustered_share(np.repeat(values, 5), range(600))
    assert narrow[2] - narrow[1] < 0.5 * (once[2] - once[1]), "taken as independent they would"


def test_all_right_is_no_certainty():
    share, low, high = clustered_share([1.0] * 40, [i // 2 for i in range(40)])
    assert (share, high) == (1, 1) and 0.7 < low < 0.87, "twenty clusters, by Wilson 0.84 and less"
    assert clustered_share([0.0] * 40, range(40))[2] == pytest.approx(1 - clustered_share([1.0] * 40, range(40))[1])


def test_a_single_cluster_says_nothing_of_others():
    share, low, high = clustered_share([1.0, 0.0], ["a", "a"])
    assert share == 0.5 and math.isnan(low) and math.isnan(high)
    with pytest.raises(UserError):
        clustered_share([], [])


def test_the_interval_covers_the_truth():
    """Clusters of five that share a chance of their own around 0.7: 95 % cover it, and pairs alone would in 80 %."""
    generator = np.random.default_rng(0)
    clusters = np.repeat(np.arange(40), 5)
    covered = naive = 0
    for _ in range(400):
        chance = generator.beta(1.4, 0.6, 40)
        values = (generator.random(200) < np.repeat(chance, 5)).astype(float)
        covered += (lambda e: e[1] <= 0.7 <= e[2])(clustered_share(values, clusters))
        naive += (lambda e: e[1] <= 0.7 <= e[2])(clustered_share(values, range(200)))
    assert covered / 400 >= 0.93 and naive / 400 < 0.85, (covered, naive)
