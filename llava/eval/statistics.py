"""Means with intervals over clips by the bootstrap, and several tests at once.

Differences of arms over seeds, alone or with items, are in `two_way`.

Letters in shapes: N captions, C clips, R resamples, K sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
LEAST_CLUSTERS = 6
"""With fewer, all of them share a sign by chance more often than once in 40, so that no 95 % interval can exclude 0;
the bootstrap's, which is too narrow then, does."""


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
    return bootstrap_sums(np.column_stack([numerators, denominators]).astype(float), clusters, _ratio, seed)


def _ratio(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1])


def bootstrap_sums(
    parts: np.ndarray, clusters: Sequence[Any], score: Callable[[np.ndarray], float], seed: int = 0
) -> tuple[float, float, float]:
    """A score of summed parts, such as BLEU of n-gram counts, with a 95 % percentile interval over clusters.

    Args:
        parts: (N, K), what each caption adds to the K sums.
        clusters: (N,) which clip each caption belongs to.
        score: of the sums (K,).

    Returns:
        The score of all and the ends of its interval, which are NaN for a single cluster.
    """
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    columns = [np.bincount(index, weights=column) for column in parts.T]
    whole = score(np.array([column.sum() for column in columns]))
    count = len(columns[0])
    if count < 2:
        return whole, math.nan, math.nan
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    resampled = np.column_stack([weights @ column for column in columns])
    low, high = np.percentile([score(sums) for sums in resampled], [2.5, 97.5])
    return whole, float(low), float(high)


def bootstrap_median(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Median of independent values with a 95 % percentile interval; NaN ends for a single one."""
    median, count = float(np.median(values)), len(values)
    if count < 2:
        return median, math.nan, math.nan
    drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    low, high = np.percentile(np.median(np.asarray(values)[drawn], axis=1), [2.5, 97.5])
    return median, float(low), float(high)


def holm(p: Sequence[float]) -> list[float]:
    """p values of a family of tests, adjusted so that calling those below 0.05 real errs in at most 5 % of families
    (Holm 1979); valid however the tests depend on each other. NaN is not a test and stays."""
    order = sorted((value, i) for i, value in enumerate(p) if not math.isnan(value))
    adjusted, highest = list(p), 0.0
    for rank, (value, i) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * value))
        adjusted[i] = highest
    return adjusted
