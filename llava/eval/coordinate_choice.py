"""Which coordinate is written of those that a model finds likely: the median of the axis, or the likeliest one.

Letters in shapes: N texts or beams, A axes, K coordinates of an axis, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from llava.constants import COORDINATE_AXES, COORDINATE_TOKENS, NUM_COORDINATES

MEDIAN, ARGMAX = "median", "argmax"
CHOICES = (MEDIAN, ARGMAX)
HALF = 0.5 - 1e-6
"""Of the probability, but for rounding: half-way between two coordinates the lower one is the median."""


class MedianOfAxis(LogitsProcessor):
    """Gives the probability of an axis to the median of its coordinates.

    Whether a coordinate comes next, and of which axis, is decided by the probability of all of the axis together, and
    which one by the middle of it: the answer with the least expected distance, where the likeliest single coordinate of
    a broad or two-peaked distribution may lie at its edge. What is passed on is a distribution with the same sum, so
    that beams are compared as before and sampling is as likely to write a coordinate as before.

    Args:
        ids: of the coordinate tokens, by name.
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        every = torch.tensor([ids[name] for name in COORDINATE_TOKENS])
        self.ids = every.view(len(COORDINATE_AXES), NUM_COORDINATES)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (N, V), logits or log-probabilities, with one coordinate left of each axis."""
        self.ids = self.ids.to(scores.device)
        axes = scores[:, self.ids].float()  # (N, A, K)
        # An axis whose tokens are all excluded has no distribution.
        shares = axes.softmax(dim=-1).nan_to_num()
        median = (shares.cumsum(dim=-1) < HALF).sum(dim=-1, keepdim=True).clamp(max=NUM_COORDINATES - 1)
        kept = torch.full_like(axes, -torch.inf).scatter(-1, median, axes.logsumexp(dim=-1, keepdim=True))
        return scores.index_copy(1, self.ids.flatten(), kept.flatten(1).to(scores.dtype))


def chooser(choice: str, ids: Mapping[str, int] | None) -> LogitsProcessorList:
    """What transformers' `generate` takes as `logits_processor` for one of `CHOICES`; nothing for a model without
    coordinates, whose `ids` are None."""
    return LogitsProcessorList([MedianOfAxis(ids)] if ids and choice == MEDIAN else [])
