"""Caption loss of each sample: what a set's loss, its controls and their intervals are made of.

Letters in shapes: B batch, L positions, K positions that precede a target in some sample, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llava.constants import IGNORE_INDEX


@torch.no_grad()
def caption_losses(model: nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy in nats and number of targets of each sample of a collated batch, both (B,) in fp32.

    Logits are computed only at positions before a target, (B, K, V).
    """
    targets = batch["labels"][:, 1:]
    supervised = targets != IGNORE_INDEX
    positions = supervised.any(dim=0).nonzero().squeeze(1)
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    logits = model(**inputs, logits_to_keep=positions, use_cache=False).logits
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), targets[:, positions].flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return losses.view(len(targets), -1).sum(dim=1), supervised.sum(dim=1).float()
