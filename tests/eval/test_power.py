"""Seeds for an effect, and the effect for a number of seeds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import nctdtr, stdtrit

from llava.eval.power import detectable, power, seeds_needed
from llava.eval.two_way import Spread, two_way_t

SEEDS_ALONE = Spread(seed=1.0, cluster=0.0, clusters=1e9)


@pytest.mark.parametrize(("seeds", "effect"), [(3, 3.264), (5, 1.682), (8, 1.156), (12, 0.889)])
def test_without_items_it_is_the_paired_t_test(seeds, effect):
    """As tables of the paired t test have it, in standard deviations of the difference, for 80 %."""
    assert detectable(seeds, SEEDS_ALONE) == pytest.approx(effect, abs=1e-3)
    assert seeds_needed(effect + 1e-2, SEEDS_ALONE) == seeds
    assert seeds_needed(effect - 1e-2, SEEDS_ALONE) == seeds + 1


@settings(max_examples=30)
@given(st.floats(1e-4, 10), st.floats(0, 1), st.integers(5, 2000), st.floats(0.05, 5))
def test_one_is_the_inverse_of_the_other(seed, cluster, clusters, effect):
    spread = Spread(seed**2, cluster**2, clusters)
    needed = seeds_needed(effect, spread)
    if needed is None:
        assert detectable(1000, spread) > effect
        return
    assert detectable(needed, spread) <= effect * (1 + 1e-6)
    assert needed == 2 or detectable(needed - 1, spread) > effect * (1 - 1e-6)


@pytest.mark.parametrize("seeds", [2, 3, 5, 9, 30])
def test_it_is_the_noncentral_t(seeds):
    for shift in (0.1, 1.0, 2.5, 5.0):
        expected = 1 - nctdtr(seeds - 1, shift, stdtrit(seeds - 1, 0.975))
        assert power(shift / seeds**0.5, seeds, SEEDS_ALONE) == pytest.approx(expected, abs=2e-4)


def test_more_seeds_do_not_replace_items():
    few = Spread(seed=1e-4, cluster=0.01, clusters=20)
    assert seeds_needed(0.2, few) is None, "the standard error never falls below 0.1"
    assert seeds_needed(0.4, few) == 2
    assert power(0.0, 5, SEEDS_ALONE) == pytest.approx(0.025, abs=1e-4)
    assert power(1e9, 3, SEEDS_ALONE) == 1.0
    with pytest.raises(ValueError, match="1 seeds"):
        power(1.0, 1, SEEDS_ALONE)


def test_the_power_foretold_is_the_power_had():
    """Worlds with the variances of the foretold: the effect for 80 % of eight seeds is found in about 80 %."""
    generator = np.random.default_rng(0)
    seeds, clusters, by_seed, by_cluster, noise = 8, 60, 0.3, 0.5, 1.0
    spread = Spread(by_seed**2 + noise**2 / clusters, by_cluster**2 / clusters, clusters)
    effect, found = detectable(seeds, spread), 0
    for _ in range(600):
        world = generator.normal(effect, noise, (seeds, clusters))
        world += by_seed * generator.normal(size=(seeds, 1)) + by_cluster * generator.normal(size=clusters)
        found += two_way_t(world).low > 0
    assert 0.76 < found / 600 < 0.86
