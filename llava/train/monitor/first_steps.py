"""What shows in a run's first steps whether it goes the right way: a loss that rises, steps that change nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

LEAST_POINTS, MOST_POINTS = 16, 40
"""Measurements of a loss from which, and up to which, it is judged; the first 20 are one a step."""
STARTS_BY = 20
"""Step by which the first of them was taken; later ones say nothing of the start."""
CERTAIN = 6.0
"""Slope of a line through the losses over its standard error (Student's t): batches that differ by chance alone exceed
it in 2 of 100,000 runs whose loss stands still, and a sound loss falls."""
LEAST_RISE, LEAST_RISE_SHARE = 0.1, 0.05
"""Nats per token, and share of the loss, that the line must rise by."""
SKIPPED_STEPS = 2
"""Steps without effect that are one too many."""
SAME_RATE = 0.5
"""Share of the lowest learning rate that moved weights, at which a step must move some: rounding needs no more room."""


def rise(points: Sequence[tuple[int, float]]) -> tuple[float, float] | None:
    """Where a straight line through (step, loss) begins and ends, when the loss rises beyond doubt; else None."""
    if not LEAST_POINTS <= len(points) <= MOST_POINTS or points[0][0] > STARTS_BY:
        return None
    steps, losses = np.array(points, dtype=float).T
    centred = steps - steps.mean()
    slope = float(centred @ losses / (centred @ centred))
    rest = losses - losses.mean() - slope * centred
    error = math.sqrt(float(rest @ rest) / (len(points) - 2) / float(centred @ centred))
    first, last = (float(losses.mean() + slope * centred[i]) for i in (0, -1))
    if slope <= CERTAIN * error or last - first < max(LEAST_RISE, LEAST_RISE_SHARE * first):
        return None
    return first, last


class SkippedSteps:
    """Steps that have gradients and a learning rate and move no weight, where a step like them did."""

    def __init__(self) -> None:
        self.lowest = math.inf
        """Lowest learning rate at which weights moved."""
        self.steps: list[int] = []

    def add(self, step: int, norms: Mapping[str, float], ratios: Mapping[str, float], rates: Mapping[str, float]) -> (
        list[int]
    ):  # fmt: skip
        """Takes a measured step (gradient norms, update ratios and learning rates by group); returns the steps without
        effect once they are too many. Loss scaling skips those whose gradient is not finite, which do not count.
        """
        given = [rates.get(g, 0.0) for g, norm in norms.items() if norm > 0 and g in ratios]
        if not given or max(given) <= 0 or not all(map(math.isfinite, norms.values())):
            return []
        if any(ratio != 0.0 for ratio in ratios.values()):
            self.lowest = min(self.lowest, max(given))
        elif max(given) >= SAME_RATE * self.lowest:
            self.steps.append(step)
        return self.steps if len(self.steps) >= SKIPPED_STEPS else []
