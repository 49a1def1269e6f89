"""When a model learns its words: ages of acquisition, words to a target, correlations with norms. Pure.

The age of acquisition is that of Chang and Bergen (2022, TACL 10, "Word acquisition in neural language models",
section 3): the amount of training at which the mean surprisal of a word passes half-way between chance (each token of
the vocabulary as likely as any other) and the lowest that the word gets to, read off a sigmoid over the logarithm of
training. Here training is counted in words served. The first milestone that passes stands beside it: it assumes nothing
of the shape, and is as coarse as the milestones are.

Letters in shapes: M milestones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares
from scipy.special import expit
from scipy.stats import norm, pearsonr, spearmanr

PASSED, BEFORE, NEVER, NOT_FITTED = "passed", "at or before the first", "never", "not fitted"
LEAST_FALL = math.log(2)
"""Nats below chance that a word must get to: one that is never twice as likely as chance is not acquired."""
LEAST_MILESTONES = 4
"""Of a fit, which has three parameters."""
GRID = 48
"""Places of the middle that a fit is begun from, the best of which is taken."""
LEAST_PAIRED = 4
"""Of a correlation, which has an interval from there on."""
CONFIDENCE = 0.95


class Crossing(NamedTuple):
    """After how many words a curve falls to a level; NaN unless `kind` is `PASSED` or `BEFORE`.

    `BEFORE`: it was there at the first milestone, whose words are given, and may have been earlier.
    """

    words: float
    kind: str

    @property
    def is_known(self) -> bool:
        return self.kind in (PASSED, BEFORE)


class Age(NamedTuple):
    """How a word was learned: levels in nats, the first milestone at the half-way level, and by the sigmoid."""

    chance: float
    lowest: float
    first: Crossing
    fitted: Crossing
    residual: float
    """Root of the mean square that the sigmoid leaves, in nats; NaN without a fit."""

    @property
    def half(self) -> float:
        return (self.chance + self.lowest) / 2


class Sigmoid(NamedTuple):
    """Nats over x = log10(words): `low + (high - low) / (1 + exp((x - middle) / width))`."""

    high: float
    low: float
    middle: float
    width: float

    def at(self, x: np.ndarray) -> np.ndarray:
        return self.low + (self.high - self.low) * expit((self.middle - x) / self.width)

    def crossing(self, level: float) -> float:
        """The x at a level; NaN where it never is there."""
        if not self.low < level < self.high:
            return math.nan
        return self.middle + self.width * math.log((self.high - level) / (level - self.low))


class Correlation(NamedTuple):
    """Of two columns: pairs of values, and each coefficient with the ends of its 95 % interval, NaN without one."""

    pairs: int
    spearman: tuple[float, float, float]
    pearson: tuple[float, float, float]


def _curve(words: Sequence[float], nats: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Words, their log10, and nats, of the milestones that were measured.

    Raises:
        ValueError: for words that do not rise from above 0, and curves of other lengths.
    """
    served, values = np.asarray(words, dtype=float), np.asarray(nats, dtype=float)
    if served.shape != values.shape or served.ndim != 1:
        raise ValueError(f"{served.shape} words and {values.shape} values: a value for each milestone is expected")
    if len(served) and not (served[0] > 0 and (np.diff(served) > 0).all()):
        raise ValueError("words of milestones must rise, from above 0")
    known = np.isfinite(values)
    return served[known], np.log10(served[known]), values[known]


def words_to(target: float, words: Sequence[float], nats: Sequence[float]) -> Crossing:
    """Where a curve first falls to a target, interpolated on the logarithm of words between two milestones.

    Args:
        words: (M,) rising; nats: (M,), NaN where it was not measured.
    """
    served, x, values = _curve(words, nats)
    reached = np.flatnonzero(values <= target)
    if not len(reached):
        return Crossing(math.nan, NEVER)
    i = int(reached[0])
    if i == 0:
        return Crossing(float(served[0]), BEFORE)
    share = (values[i - 1] - target) / (values[i - 1] - values[i])
    return Crossing(float(10 ** (x[i - 1] + share * (x[i] - x[i - 1]))), PASSED)


def fit_sigmoid(words: Sequence[float], nats: Sequence[float], chance: float) -> Sigmoid | None:
    """The sigmoid that falls from chance and is nearest to a curve in least squares; None with too few milestones.

    Its high end is not fitted: what nobody has trained yet knows nothing, and milestones seldom reach back to there.
    """
    _, x, values = _curve(words, nats)
    if len(x) < LEAST_MILESTONES:
        return None
    span, narrowest = float(x[-1] - x[0]), float(np.diff(x).min()) / 20
    ends = ((float(x[0]) - span, math.log(narrowest)), (float(x[-1]) + span, math.log(2 * span)))
    middles = np.linspace(ends[0][0], ends[1][0], GRID)[:, None, None]
    widths = np.exp(np.linspace(ends[0][1], ends[1][1], GRID // 4))[None, :, None]
    grid = expit((x - middles) / widths)
    left = chance - _drop(grid, chance - values, chance)[..., None] * grid - values
    i, j = np.unravel_index(int((left**2).sum(axis=-1).argmin()), left.shape[:2])

    def sigmoid(parameters: Sequence[float]) -> Sigmoid:
        middle, width = float(parameters[0]), math.exp(float(parameters[1]))
        low = chance - float(_drop(expit((x - middle) / width), chance - values, chance))
        return Sigmoid(chance, low, middle, width)

    start = np.clip((middles[i, 0, 0], math.log(widths[0, j, 0])), *ends)
    found = least_squares(lambda p: sigmoid(p).at(x) - values, start, bounds=ends, x_scale=(span, 1.0), max_nfev=40)
    return sigmoid(found.x)


def _drop(fallen: np.ndarray, below: np.ndarray, chance: float) -> np.ndarray:
    """(...) how far a sigmoid falls, from 0 to chance, by linear least squares (variable projection, Golub and Pereyra
    1973), where it has fallen by the shares `fallen` (..., M) and the curve lies `below` chance (M,)."""
    size = np.maximum((fallen**2).sum(axis=-1), 1e-12)
    return np.clip(fallen @ below / size, 0.0, chance)


def age_of(words: Sequence[float], nats: Sequence[float], chance: float) -> Age:
    """The age of acquisition of a word.

    Args:
        words: (M,) served at each milestone, rising; nats: (M,) the word's mean surprisal there, NaN where it was not
            measured; chance: the surprisal of the word where every token is equally likely.

    Returns:
        Without any crossing for a word that never gets `LEAST_FALL` below chance. A sigmoid that is at the half-way
        level before the first milestone counts as there: what was not measured is not extrapolated.
    """
    served, x, values = _curve(words, nats)
    nothing = Crossing(math.nan, NEVER)
    if not len(x):
        return Age(chance, math.nan, nothing, nothing, math.nan)
    lowest = float(values.min())
    sigmoid = fit_sigmoid(words, nats, chance)
    residual = math.nan if sigmoid is None else float(np.sqrt(np.mean((sigmoid.at(x) - values) ** 2)))
    if lowest > chance - LEAST_FALL:
        return Age(chance, lowest, nothing, nothing, residual)
    half = (chance + lowest) / 2
    i = int(np.flatnonzero(values <= half)[0])
    first = Crossing(float(served[i]), PASSED if i else BEFORE)
    if sigmoid is None:
        return Age(chance, lowest, first, Crossing(math.nan, NOT_FITTED), residual)
    place = sigmoid.crossing(half)
    if math.isnan(place) or place > x[-1]:
        fitted = Crossing(math.nan, NOT_FITTED)
    else:
        fitted = Crossing(float(10**place), PASSED) if place > x[0] else Crossing(float(served[0]), BEFORE)
    return Age(chance, lowest, first, fitted, residual)


def correlation(first: Sequence[float], second: Sequence[float]) -> Correlation:
    """Spearman's and Pearson's correlation over the pairs of which both are known.

    Intervals are by Fisher's z: Pearson's with variance 1 / (n - 3), Spearman's with (1 + r² / 2) / (n - 3) (Bonett and
    Wright 2000, Psychometrika 65). NaN with fewer than `LEAST_PAIRED` pairs, or where a column does not vary.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    both = np.isfinite(a) & np.isfinite(b)
    a, b, count = a[both], b[both], int(both.sum())
    if count < LEAST_PAIRED or np.ptp(a) == 0 or np.ptp(b) == 0:
        return Correlation(count, (math.nan,) * 3, (math.nan,) * 3)
    linear = pearsonr(a, b)
    ends = linear.confidence_interval(CONFIDENCE)
    rank = float(spearmanr(a, b).statistic)
    reach = float(norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt((1 + rank**2 / 2) / (count - 3))
    z = math.atanh(min(max(rank, -1 + 1e-12), 1 - 1e-12))
    return Correlation(
        count,
        (rank, math.tanh(z - reach), math.tanh(z + reach)),
        (float(linear.statistic), float(ends.low), float(ends.high)),
    )
