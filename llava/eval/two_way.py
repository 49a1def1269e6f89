"""Paired differences of two arms over seeds and clusters, and how uncertain their mean is in both.

A training seed and a held-out item are both drawn from many that could have been drawn. The two-way t counts both: it
is a claim about new seeds *and* new items. Student's t over seeds counts seeds alone: a claim about these items.

Letters in shapes: S seeds, C clusters (a clip, a noun, a word: what items have in common), N items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from llava.errors import UserError, show

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """How far a mean difference moves: variances of the mean, in the square of its unit.

    `seed` is that of one seed (it falls as 1 / S), `cluster` that of the clusters at hand (no seed makes it smaller),
    `clusters` how many equal clusters these are worth.
    """

    seed: float
    cluster: float
    clusters: float


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; `p` is two-sided, of a true mean of zero.

    Ends, standard error and `p` are NaN where they cannot be known: with one seed, or one cluster.
    """

    mean: float
    low: float
    high: float
    standard_error: float
    degrees_of_freedom: float
    p: float
    seeds: int
    clusters: int
    per_seed: tuple[float, ...]
    spread: Spread | None = None

    @property
    def interval(self) -> tuple[float, float, float]:
        return self.mean, self.low, self.high


@dataclass(frozen=True)
class Paired:
    """Differences of two arms, each seed's beside each cluster's.

    `values` (S, C) are means over the units of a cluster (words, pairs) and `weights` (C,) how many units it has, so
    that a mean over clusters by weight is a mean over units: *nats a word, over words*.
    """

    values: np.ndarray
    weights: np.ndarray
    seeds: tuple[str, ...]
    clusters: tuple[str, ...]


def paired(
    first: np.ndarray,
    second: np.ndarray,
    clusters: Sequence[str],
    seeds: Sequence[str],
    items: Sequence[str] | None = None,
    units: np.ndarray | None = None,
) -> Paired:
    """`first - second` item by item and seed by seed, averaged in each cluster over its units.

    Args:
        first, second: (S, N), the value of each item, a total over its units; row s of both is the same seed, column n
            the same item.
        clusters: (N,) what each item belongs to.
        seeds: (S,) their names.
        items: (N,) their names, for errors; their places by default.
        units: (N,) how many units (words) each item has; one by default.

    Raises:
        ValueError: when shapes differ.
        UserError: for a value that is not finite, which is named.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    shape = (len(seeds), len(clusters))
    if first.shape != shape or second.shape != shape or 0 in shape:
        raise ValueError(
            f"arms of {first.shape} and {second.shape} values, {shape[0]} seeds, {shape[1]} items: every item is "
            "needed in every seed of both arms"
        )
    for name, values in (("first", first), ("second", second)):
        if len(wrong := np.argwhere(~np.isfinite(values))):
            seed, item = wrong[0]
            called = show(items[item] if items is not None else item)
            raise UserError(
                f"{len(wrong)} values of the {name} arm are not finite: the first is {values[seed, item]} of item "
                f"{called} in seed {seeds[seed]}; look why that run measured it"
            )
    counted = np.ones(len(clusters)) if units is None else np.asarray(units, dtype=float)
    names, index = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    weights = np.bincount(index, weights=counted)
    sums = np.stack([np.bincount(index, weights=row) for row in first - second])
    return Paired(sums / weights, weights, tuple(map(str, seeds)), tuple(map(str, names)))


def two_way_t(values: np.ndarray, weights: np.ndarray | None = None) -> Estimate:
    """Mean over seeds and clusters with an interval that counts both as drawn at random.

    With mean squares of seeds, clusters and the rest, MSs = C var(seed means), MSc = S var(cluster means) and MSe, the
    variance of the mean is max(MSs + MSc - MSe, MSs, MSc) / (S C): the moments of a random-effects layout with one
    value a cell (Searle, Casella and McCulloch 1992, chapter 4), never below what either alone says. Degrees of freedom
    are Satterthwaite's (1946), (Var S C)^2 / (MSs^2 / (S - 1) + MSc^2 / (C - 1)).

    With weights the mean is over units, sum of w d over sum of w. Cells are then replaced by w (d - mean) / mean(w),
    the linear part of that ratio (Cochran 1977, chapter 6), and C - 1 by the number of equal clusters that the weights
    are worth, (sum w)^2 / sum w^2, less one (Kish 1965). Equal weights give the plain formula.

    Args:
        values: (S, C) differences.
        weights: (C,) units of each cluster; equal by default.

    Raises:
        ValueError: for no value, one that is not finite, or weights that do not fit.
    """
    values = np.asarray(values, dtype=float)
    weights = np.ones(values.shape[-1]) if weights is None else np.asarray(weights, dtype=float)
    if values.ndim != 2 or not values.size or weights.shape != values.shape[1:]:
        raise ValueError(f"seeds by clusters are needed with a weight a cluster: {values.shape} and {weights.shape}")
    if not np.isfinite(values).all() or not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError("differences and weights must be finite, and weights above 0")
    per_seed = values @ weights / weights.sum()
    parts = (values - per_seed.mean()) * weights / weights.mean()
    return from_parts(float(per_seed.mean()), per_seed, parts, float(weights.sum() ** 2 / (weights**2).sum()))


def from_parts(
    mean: float,
    per_seed: np.ndarray,
    parts: np.ndarray,
    worth: float | None = None,
    enlarged: np.ndarray | None = None,
) -> Estimate:
    """The two-way t of anything that is a mean of parts to first order: a ratio, a slope.

    Args:
        per_seed: (S,) the value of each seed.
        parts: (S, C), what each cluster adds in each seed, so that row means are `per_seed - mean`.
        worth: how many equal clusters they are worth; C by default.
        enlarged: (C,) what the means of clusters are multiplied by, where an estimate was fitted to them; 1 by default.
    """
    seeds, clusters = parts.shape
    worth = clusters if worth is None else worth
    one_by_one = tuple(float(v) for v in per_seed)
    if seeds < 2 or clusters < 2 or worth <= 1:
        nan = math.nan
        return Estimate(mean, nan, nan, nan, nan, nan, seeds, clusters, one_by_one)
    of_seeds, of_clusters = parts.mean(axis=1), parts.mean(axis=0)
    rest = parts - of_seeds[:, None] - of_clusters + parts.mean()
    by_seed = clusters * of_seeds.var(ddof=1)
    by_cluster = seeds * (of_clusters if enlarged is None else of_clusters * enlarged).var(ddof=1)
    noise = (rest**2).sum() / ((seeds - 1) * (clusters - 1))
    total = max(by_seed + by_cluster - noise, by_seed, by_cluster)
    # Where nothing varies there is no scale to divide by; the interval has no width at any number of degrees.
    below = by_seed**2 / (seeds - 1) + by_cluster**2 / (worth - 1)
    degrees = float(total**2 / below) if below > 0 else float(seeds - 1)
    size = seeds * clusters
    spread = Spread(float(max(by_seed, noise)) / clusters, float(max(by_cluster - noise, 0.0)) / size, worth)
    return _by_t(mean, math.sqrt(total / size), degrees, clusters, one_by_one, spread)


def students_t(per_seed: Sequence[float], clusters: int) -> Estimate:
    """Mean over seeds with Student's interval: a claim about new seeds on *these* items, not about new items.

    Args:
        per_seed: (S,) mean difference of each seed.
        clusters: how many clusters they were measured on.
    """
    values = tuple(float(v) for v in per_seed)
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, *(math.nan,) * 5, len(values), clusters, values)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return _by_t(mean, error, len(values) - 1, clusters, values, None)


def _by_t(
    mean: float, error: float, degrees: float, clusters: int, per_seed: tuple[float, ...], spread: Spread | None
) -> Estimate:
    half = float(stdtrit(degrees, (1 + CONFIDENCE) / 2)) * error
    p = 2 * float(stdtr(degrees, -abs(mean) / error)) if error > 0 else float(mean == 0)
    return Estimate(mean, mean - half, mean + half, error, degrees, p, len(per_seed), clusters, per_seed, spread)
