"""Caption loss of each sample: what a set's loss, its controls and their intervals are made of.

Letters in shapes: B batch, L positions, K positions that precede a target in some sample, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llava.constants import IGNORE_INDEX


@torch.no_grad()
def token_scores(model: nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy in nats of every target of a collated batch, (B, L - 1) in fp32, 0 where nothing is supervised, and
    whether the target has the largest logit, (B, L - 1) boolean.

    Column `i` belongs to the token at position `i + 1`. Computed from logits, (B, K, V) at the positions that precede
    a target, and so apart from the model's own loss.
    """
    targets = batch["labels"][:, 1:]
    positions = (targets != IGNORE_INDEX).any(dim=0).nonzero().squeeze(1)
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    logits = model(**inputs, logits_to_keep=positions, use_cache=False).logits
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), targets[:, positions].flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    each = torch.zeros(targets.shape, device=losses.device).index_copy(1, positions, losses.view(len(targets), -1))
    hits = logits.argmax(dim=-1) == targets[:, positions]
    return each, torch.zeros_like(targets, dtype=torch.bool).index_copy(1, positions, hits)


def token_losses(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """The losses of `token_scores`."""
    return token_scores(model, batch)[0]


def caption_losses(model: nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy in nats and number of targets of each sample of a collated batch, both (B,) in fp32."""
    supervised = batch["labels"][:, 1:] != IGNORE_INDEX
    return token_losses(model, batch).sum(dim=1), supervised.sum(dim=1).float()


def after_first_token(input_ids: torch.Tensor, labels: torch.Tensor, visual_ids: Sequence[int]) -> torch.Tensor:
    """Boolean (B, L - 1): the targets that a text-only and a video run both predict.

    Nothing stands before the first text token of a text-only sample, so it is no target there, while after a video it
    is one. Leaving out every sample's first text token makes the losses of the two runs comparable.

    Args:
        input_ids, labels: (B, L), of a collated batch.
        visual_ids: ids of the visual tokens; empty for text alone.
    """
    text = ~torch.isin(input_ids, torch.tensor(list(visual_ids), dtype=input_ids.dtype, device=input_ids.device))
    first = text & (text.cumsum(dim=1) == 1)
    return (labels[:, 1:] != IGNORE_INDEX) & ~first[:, 1:]
