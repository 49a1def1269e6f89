"""How many seeds an effect needs to be seen, and which effect a number of seeds sees, from the spread of a study.

By the noncentral t: the standard error with S seeds is the root of (variance of a seed) / S + (variance of clusters),
of which only the first falls with more seeds.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import chdtri, ndtr, stdtrit

from llava.eval.two_way import CONFIDENCE, Spread

POWER = 0.8
QUANTILES = 2000
MOST_SEEDS = 1000
"""Beyond so many an effect counts as out of reach of more seeds."""


def power(effect: float, seeds: int, spread: Spread) -> float:
    """The chance that the 95 % interval excludes zero on the right side where the true mean is `effect`.

    Raises:
        ValueError: below two seeds, where there is no interval.
    """
    if seeds < 2:
        raise ValueError(f"{seeds} seeds: an interval needs two")
    by_seed = spread.seed / seeds
    total = by_seed + spread.cluster
    if total <= 0:
        return 1.0 if effect else (1 - CONFIDENCE) / 2
    below = by_seed**2 / (seeds - 1) + spread.cluster**2 / max(spread.clusters - 1, 1)
    degrees = total**2 / below
    return float(ndtr(abs(effect) / math.sqrt(total) - _reach(degrees)).mean())


@lru_cache(maxsize=64)
def _reach(degrees: float) -> np.ndarray:
    """How many true standard errors the half width of an interval is: its quantiles.

    scipy's noncentral t is NaN here and there (1.17: 2 degrees, 15 standard errors). This is its definition, a normal
    deviate over the root of a chi-square, so that a mean over quantiles of the latter is its distribution function.
    """
    scales = np.sqrt(chdtri(degrees, (np.arange(QUANTILES) + 0.5) / QUANTILES) / degrees)
    return stdtrit(degrees, (1 + CONFIDENCE) / 2) * scales


def seeds_needed(effect: float, spread: Spread, wanted: float = POWER) -> int | None:
    """The fewest seeds that see `effect` with the wanted power; None where more seeds alone do not, since the items are
    too few."""
    if power(effect, MOST_SEEDS, spread) < wanted:
        return None
    low, high = 1, 2
    while power(effect, high, spread) < wanted:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, middle, spread) >= wanted else (middle, high)
    return high


def detectable(seeds: int, spread: Spread, wanted: float = POWER) -> float:
    """The smallest effect, in the unit of the difference, that so many seeds see with the wanted power."""
    scale = math.sqrt(spread.seed / seeds + spread.cluster)
    if scale == 0:
        return 0.0
    return float(brentq(lambda effect: power(effect, seeds, spread) - wanted, 0.0, 60 * scale))
