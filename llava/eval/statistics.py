"""Means with intervals: over clips by the bootstrap, over paired seeds by Student's t.

Letters in shapes: N captions, C clips, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

RESAMPLES = 2000


def bootstrap_ratio(
    numerators: Sequence[float], denominators: Sequence[float], clusters: Sequence[Any], seed: int = 0
) -> tuple[float, float, float]:
    """Sum of numerators over sum of denominators, with a 95 % percentile interval.

    Whole clusters are resampled (Davison and Hinkley 1997, section 3.8): captions of one clip are not independent.

    Args:
        numerators, denominators: (N,) of each caption.
        clusters: (N,) which clip each caption belongs to.

    Returns:
        The ratio and the ends of its interval; the ends are NaN for a single cluster, which says nothing about others.

    Raises:
        ValueError: without any caption.
    """
    if not len(numerators):
        raise ValueError("no caption to take a mean of")
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    top = np.bincount(index, weights=np.asarray(numerators, dtype=float))
    bottom = np.bincount(index, weights=np.asarray(denominators, dtype=float))
    ratio = float(top.sum() / bottom.sum())
    count = len(top)
    if count < 2:
        return ratio, math.nan, math.nan
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    resampled = (weights @ top) / (weights @ bottom)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return ratio, float(low), float(high)


def paired_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Mean of `second - first` over pairs, with a 95 % interval by Student's t; NaN ends for a single pair.

    Raises:
        ValueError: when the pairs do not match or there are none.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} values: pairs are needed")
    return mean_interval([b - a for a, b in zip(first, second, strict=True)])


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of independent values with a 95 % interval by Student's t; NaN ends for a single one."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan, math.nan
    t = float(stdtrit(len(values) - 1, 0.975))
    half = t * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half
