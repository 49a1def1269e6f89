"""Share of pairs that are right, with an interval over clusters. Pure.

Letters in shapes: N pairs, C clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from llava.errors import UserError


def correct(good: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """(N,) 1 where the good sentence has fewer nats, 0 where it has more, 0.5 where both have the same.

    Args:
        good, bad: (N,) nats of the sentences: sums, or means of their tokens.
    """
    return np.where(good == bad, 0.5, good < bad).astype(float)


def clustered_share(values: Sequence[float], clusters: Sequence[Any]) -> tuple[float, float, float]:
    """Mean of values between 0 and 1 with a 95 % interval over clusters, which keeps within 0 and 1 and has a width
    where all are right.

    Wilson's interval (1927) with the effective number of pairs in place of their number (Korn and Graubard 1998): that
    with which independent pairs would have the variance that the clusters show, lowered for the degrees of freedom of
    C - 1, and no more than there are pairs. Where all pairs are alike no variance can be seen, and the clusters are
    counted.

    Args:
        values: (N,) of each pair; clusters: (N,) what it belongs to.

    Returns:
        The mean and the ends of its interval; the ends are NaN for a single cluster.

    Raises:
        ValueError: without any pair.
    """
    if not len(values):
        raise UserError("no pair to take a share of")
    given = np.asarray(values, dtype=float)
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    count, pairs, share = int(index.max()) + 1, len(given), float(given.mean())
    if count < 2:
        return share, math.nan, math.nan
    t, z = float(stdtrit(count - 1, 0.975)), float(stdtrit(math.inf, 0.975))
    residuals = np.bincount(index, weights=given - share)
    variance = count / (count - 1) * float((residuals**2).sum()) / pairs**2
    effective = min(share * (1 - share) / variance, float(pairs)) if variance > 0 else float(count)
    effective *= (z / t) ** 2
    centre = (share + z**2 / (2 * effective)) / (1 + z**2 / effective)
    half = z * math.sqrt(share * (1 - share) / effective + z**2 / (4 * effective**2)) / (1 + z**2 / effective)
    return share, max(0.0, centre - half), min(1.0, centre + half)
