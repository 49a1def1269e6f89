"""How a difference of two arms changes with a property of words: a slope, with frequency and length held.

Letters in shapes: S seeds, N words, K covariates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llava.eval.two_way import Estimate, from_parts

LEAST_LEFT = 1e-6
"""Of the variance of a norm, what covariates must leave unexplained."""
MOST_LEVERAGE = 0.99
"""Of a word: one that alone decides about a coefficient has a leverage of 1, and nothing is known without it."""


def slope(
    differences: np.ndarray, norm: np.ndarray, covariates: np.ndarray, clusters: Sequence[str]
) -> Estimate | None:
    """The slope of each seed's differences on a norm in least squares over words, with the covariates in the model.

    The norm is taken in its standard deviations over these words. The slope of a seed is a mean of the differences by
    weight, once the norm is replaced by its residual on the covariates (Frisch and Waugh 1933), so that the two-way t
    holds for it as for a mean: cells are the residuals of its model times those weights, summed in each cluster
    (Cameron and Miller 2015, section II). A model is drawn to its frequent words and leaves too little of them as
    residuals; their cluster means are enlarged to what a model without the word would have left, by its leverage (the
    jackknife over clusters, CR3: Bell and McCaffrey 2002; MacKinnon, Nielsen and Webb 2023). A norm is a property of a
    word and not of its occurrence; clusters are words, and the claim is about new words.

    Args:
        differences: (S, N); norm: (N,); covariates: (N, K); all finite. clusters: (N,) the word of each.

    Returns:
        None where the norm does not vary beside the covariates, or words are fewer than four.
    """
    count = len(norm)
    _, index = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    if count < 4 or norm.std() == 0:
        return None
    scaled = (norm - norm.mean()) / norm.std()
    others = np.column_stack([np.ones(count), covariates])
    free = scaled - others @ np.linalg.lstsq(others, scaled, rcond=None)[0]
    if (size := float(free @ free)) <= LEAST_LEFT * count:
        return None
    per_seed = differences @ free / size
    model = np.column_stack([others, scaled])
    fitted = model @ np.linalg.lstsq(model, differences.mean(axis=0), rcond=None)[0]
    weighted = (differences - fitted) * free / size
    cells = np.stack([np.bincount(index, weights=row) for row in weighted])
    leverage = np.bincount(index, weights=free**2)
    pulls = np.bincount(index, weights=(np.linalg.qr(model)[0] ** 2).sum(axis=1))
    # Row means must be the slopes less their mean; a word counts by what it adds to the sum that they are divided by.
    worth = float(leverage.sum() ** 2 / (leverage**2).sum())
    enlarged = 1 / (1 - np.minimum(pulls, MOST_LEVERAGE))
    return from_parts(float(per_seed.mean()), per_seed, cells * cells.shape[1], worth, enlarged)
