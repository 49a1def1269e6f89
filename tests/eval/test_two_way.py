"""The two-way t: by hand, in worlds with known truth, and that a broken one fails there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llava.eval.two_way import Estimate, paired, students_t, two_way_t

WORLDS = 500
COMPONENTS = [(0, 0, 1), (0.3, 0, 1), (0, 1, 1), (0.3, 1, 1), (0.3, 1, 0), (1, 0, 0), (0.1, 0.1, 1)]
"""Standard deviations of seeds, clusters and the rest."""


def excluded(estimate, seeds, clusters, components, worlds=WORLDS, seed=0):
    """In which share of worlds without an effect the interval excludes zero."""
    generator, wrong = np.random.default_rng(seed), 0
    by_seed, by_cluster, noise = components
    for _ in range(worlds):
        world = noise * generator.normal(size=(seeds, clusters))
        world += by_seed * generator.normal(size=(seeds, 1)) + by_cluster * generator.normal(size=clusters)
        found = estimate(world)
        wrong += not found.low <= 0 <= found.high
    return wrong / worlds


def test_by_hand():
    """Seed means 1, 3; cluster means 1, 2, 3; residuals 0 but for a square of +-1 in two clusters."""
    values = np.array([[1.0, 1.0, 1.0], [1.0, 3.0, 5.0]])
    found = two_way_t(values)
    # MSs = 3 * 2, MSc = 2 * 1, MSe = (1 + 0 + 1 + 1 + 0 + 1) / 2.
    total = 6 + 2 - 2
    assert found.mean == 2 and found.per_seed == (1.0, 3.0)
    assert found.standard_error == pytest.approx(math.sqrt(total / 6))
    assert found.degrees_of_freedom == pytest.approx(total**2 / (6**2 / 1 + 2**2 / 2))
    assert (found.seeds, found.clusters) == (2, 3)
    assert found.spread.seed == pytest.approx(2) and found.spread.cluster == 0


@pytest.mark.parametrize("seeds", [3, 5, 8])
@pytest.mark.parametrize("components", COMPONENTS, ids=str)
def test_zero_is_excluded_as_seldom_as_promised(seeds, components):
    """At most 7 % in the long run; 500 worlds tell 7 from 10 % three times out of four."""
    assert excluded(two_way_t, seeds, 40, components) <= 0.095


def test_other_intervals_are_caught_by_these_worlds():
    """What must not be used: items taken as independent; pairs that are not paired; Student's t for new items."""

    def items_alone(world):
        mean, error = world.mean(), world.std(ddof=1) / math.sqrt(world.size)
        return Estimate(mean, mean - 1.96 * error, mean + 1.96 * error, error, world.size, 0, *world.shape, ())

    def seeds_alone(world):
        return students_t(world.mean(axis=1), world.shape[1])

    assert excluded(items_alone, 5, 40, (0.3, 1, 1)) > 0.2
    assert excluded(seeds_alone, 5, 40, (0.1, 1, 1)) > 0.2
    assert excluded(seeds_alone, 5, 40, (0.3, 0, 1)) <= 0.095, "right for these items"


def test_an_effect_is_seen_only_where_items_and_seeds_are_paired():
    """Items and seeds differ a hundred times more than arms do."""
    generator = np.random.default_rng(0)
    level = 5 * generator.normal(size=60) + generator.normal(size=(5, 1))
    blind, sees = (level + shift + 0.05 * generator.normal(size=level.shape) for shift in (0, -0.05))
    names, clips = list("abcde"), [f"clip{i:02}" for i in range(60)]
    together = paired(sees, blind, clips, names)
    assert two_way_t(together.values, together.weights).high < 0
    shuffled = paired(sees, blind[:, generator.permutation(60)], clips, names)
    assert two_way_t(shuffled.values).low < 0 < two_way_t(shuffled.values).high
    other = paired(sees, blind[generator.permutation(5)], clips, names)
    assert two_way_t(other.values).low < 0 < two_way_t(other.values).high


def test_the_mean_is_over_words_and_not_over_clips():
    """A clip of nine words counts nine times; the interval covers the mean over words, not that over clips."""
    first, second = np.array([[9.0, 2.0, 1.0], [9.0, 2.0, 0.0]]), np.zeros((2, 3))
    pairs = paired(first, second, ["long", "short", "short"], ["0", "1"], units=np.array([9, 1, 1]))
    assert pairs.clusters == ("long", "short") and pairs.weights.tolist() == [9, 2]
    assert pairs.values.tolist() == [[1.0, 1.5], [1.0, 1.0]]
    assert two_way_t(pairs.values, pairs.weights).mean == pytest.approx((12 / 11 + 11 / 11) / 2)

    generator, over_words, over_clips = np.random.default_rng(0), 0, 0
    sizes = np.arange(4, 24)
    true = (sizes * (sizes - 13.5)).sum() / sizes.sum() / 6  # A word of a long clip gains more.
    for _ in range(WORLDS):
        words = generator.choice(sizes, 80)
        world = (words - 13.5) / 6 + generator.normal(size=80) + 0.3 * generator.normal(size=(5, 1))
        world = world + generator.normal(size=(5, 80)) / np.sqrt(words)
        weighted, plain = two_way_t(world, words), two_way_t(world)
        over_words += weighted.low <= true <= weighted.high
        over_clips += plain.low <= true <= plain.high
    assert over_words / WORLDS >= 0.91 and over_clips / WORLDS < 0.6


cells = arrays(float, st.tuples(st.integers(2, 5), st.integers(2, 8)), elements=st.floats(-100, 100).map(round))


@settings(max_examples=60)
@given(cells, st.floats(-5, 5), st.integers(1, 9), st.randoms(use_true_random=False))
def test_what_must_not_matter_does_not(values, shift, weight, random):
    """The order of seeds and clusters, one weight for all, a shift, the sign, and whether a cluster is cut in two."""
    found = two_way_t(values)
    seeds, clusters = list(range(values.shape[0])), list(range(values.shape[1]))
    random.shuffle(seeds)
    random.shuffle(clusters)
    near = {"rel": 1e-6, "abs": 1e-6}
    for other in (two_way_t(values[seeds][:, clusters]), two_way_t(values, np.full(values.shape[1], weight))):
        assert (other.low, other.high) == pytest.approx((found.low, found.high), **near)
    moved, mirrored = two_way_t(values + shift), two_way_t(-values)
    assert moved.low == pytest.approx(found.low + shift, **near)
    assert (-mirrored.high, mirrored.p) == pytest.approx((found.low, found.p), **near)
    assert found.low <= found.mean <= found.high and 0 <= found.p <= 1
    assert found.mean == pytest.approx(values.mean(), **near)
    assert found.p > 0.05 or not found.low < 0 < found.high
    total = values.shape[0] * values.shape[1] * found.standard_error**2
    assert total >= values.shape[1] * values.mean(axis=1).var(ddof=1) - 1e-6, "never surer than seeds alone allow"


def test_one_seed_or_one_cluster_has_no_interval():
    for values in ([[1.0, 2.0]], [[1.0], [2.0]]):
        found = two_way_t(np.array(values))
        assert math.isfinite(found.mean) and math.isnan(found.low) and math.isnan(found.p) and found.spread is None
    assert math.isnan(students_t([1.0], 5).high)
    same = two_way_t(np.full((3, 4), 2.0))
    assert (same.low, same.high, same.p) == (2, 2, 0) and two_way_t(np.zeros((3, 4))).p == 1


def test_wrong_values_are_named():
    values = np.zeros((2, 3))
    values[1, 2] = math.nan
    with pytest.raises(ValueError, match="1 values of the second arm.*nan of item c in seed 7"):
        paired(np.zeros((2, 3)), values, ["x", "x", "y"], ["3", "7"], items=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 2\)"):
        paired(np.zeros((2, 3)), np.zeros((2, 2)), ["x", "x", "y"], ["3", "7"])
    with pytest.raises(ValueError, match="finite"):
        two_way_t(values)
    with pytest.raises(ValueError, match="above 0"):
        two_way_t(np.zeros((2, 3)), np.array([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="seeds by clusters"):
        two_way_t(np.zeros(3))


def test_student_over_seeds():
    found = students_t([-1.0, -2.0, -0.5], 7)
    assert found.high - found.mean == pytest.approx(4.30265 * np.std([1, 2, 0.5], ddof=1) / math.sqrt(3), rel=1e-5)
    assert (found.clusters, found.per_seed, found.degrees_of_freedom) == (7, (-1.0, -2.0, -0.5), 2)


def test_the_interval_over_seeds_is_students():
    mean, low, high = students_t([1.0, 2.0, 0.5], 1).interval
    assert mean == pytest.approx(7 / 6)
    assert (high - mean) == pytest.approx(4.30265 * np.std([1, 2, 0.5], ddof=1) / math.sqrt(3), rel=1e-5)
    assert low == pytest.approx(2 * mean - high)
    assert math.isnan(students_t([1.0], 1).low)
    with pytest.raises(ValueError, match="every item is needed in every seed"):
        paired(np.array([[1.0]]), np.empty((1, 0)), ["a"], ["0"])


@pytest.mark.parametrize(("count", "t"), [(2, 12.7062), (16, 2.13145), (17, 2.11991), (31, 2.04227), (1001, 1.96234)])
def test_the_interval_of_any_number_of_seeds_is_students(count, t):
    """Quantiles from Fisher and Yates' table; a normal distribution gives intervals 8 % too narrow at 17."""
    values = np.arange(count, dtype=float)
    mean, low, high = students_t(values, 1).interval
    assert high - mean == pytest.approx(t * values.std(ddof=1) / math.sqrt(count), rel=1e-5)
    assert mean - low == pytest.approx(high - mean)
