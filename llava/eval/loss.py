"""Caption loss of each sample: what a set's loss, its controls and their intervals are made of.

Letters in shapes: B batch, L positions, K positions that precede a target in some sample, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llava.constants import COORDINATE_AXES, IGNORE_INDEX, NUM_COORDINATES
from llava.errors import UserError


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
    losses = cross_entropies(logits.float(), positions, batch, model.config.coordinate_token_ids)
    each = torch.zeros(targets.shape, device=losses.device).index_copy(1, positions, losses)
    hits = logits.argmax(dim=-1) == targets[:, positions]
    return each, torch.zeros_like(targets, dtype=torch.bool).index_copy(1, positions, hits)


def cross_entropies(
    logits: torch.Tensor, positions: torch.Tensor, batch: Mapping[str, Any], ids: Mapping[str, int] | None
) -> torch.Tensor:
    """Cross-entropy in nats (B, K) of the targets after `positions`, 0 where nothing is supervised; of a number that is
    asked for, that of a target shared by the coordinates on both of its sides.

    Args:
        logits: (B, K, V) at these positions.
        positions: (K,).
        batch: with `labels` and, of records with numbers, `coordinates`, both (B, L).
        ids: of coordinate tokens by name; None of a model without.

    Raises:
        ValueError: for a number whose label is no coordinate.
    """
    targets = batch["labels"][:, 1:][:, positions]
    losses = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    ).view_as(targets)
    if ids is None or batch.get("coordinates") is None:
        return losses
    numbers = batch["coordinates"][:, 1:][:, positions]
    asked = (numbers >= 0) & (targets != IGNORE_INDEX)
    table = torch.tensor(
        [[ids[f"<{axis}-{k:03d}>"] for k in range(NUM_COORDINATES)] for axis in COORDINATE_AXES], device=logits.device
    )
    found = (targets[asked][:, None, None] == table).any(dim=-1)
    if not bool(found.any(dim=1).all()):
        raise UserError(
            "a number is asked for where the label is no coordinate: labels and numbers are of other samples"
        )
    own = table[found.int().argmax(dim=1)]
    place = numbers[asked].double() * (NUM_COORDINATES - 1)
    logs = logits[asked].log_softmax(-1)
    below, above = (
        logs.gather(1, own.gather(1, at.long()[:, None])).squeeze(1) for at in (place.floor(), place.ceil())
    )
    share = (place - place.floor()).to(logs.dtype)
    losses[asked] = -torch.lerp(below, above, share)
    return losses


def token_losses(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """The losses of `token_scores`."""
    return token_scores(model, batch)[0]


def caption_losses(model: nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy in nats and number of targets of each sample of a collated batch, both (B,) in fp32."""
    supervised = batch["labels"][:, 1:] != IGNORE_INDEX
    return token_losses(model, batch).sum(dim=1), supervised.sum(dim=1).float()


def coordinate_targets(model: nn.Module, labels: torch.Tensor) -> torch.Tensor:
    """Boolean (B, L - 1): the targets that are coordinates; of a model without them, none.

    Args:
        labels: (B, L), of a collated batch.
    """
    tables = getattr(model, "coordinates", None)
    if tables is None:
        return torch.zeros_like(labels[:, 1:], dtype=torch.bool)
    return torch.isin(labels[:, 1:], tables.token_ids)


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


SUMS = ("nats", "tokens", "common_nats", "common_tokens", "common_hits", "coordinate_nats", "coordinate_tokens")


def sums_of_samples(model: nn.Module, batch: dict[str, Any], visual_ids: Sequence[int]) -> torch.Tensor:
    """What each sample adds to `SUMS`, (B, 7) in fp64; arguments as in `token_scores` and `after_first_token`."""
    losses, hits = token_scores(model, batch)
    labels = batch["labels"]
    common, numbers = after_first_token(batch["input_ids"], labels, visual_ids), coordinate_targets(model, labels)
    parts = (
        losses, labels[:, 1:] != IGNORE_INDEX, losses * common, common, hits & common, losses * numbers, numbers,
    )  # fmt: skip
    return torch.stack([part.sum(1).double() for part in parts], dim=1)


def set_metrics(sums: Sequence[float], samples: int, prefix: str) -> dict[str, float]:
    """The loss of a set of samples in nats per supervised token, and its parts, by names that begin with `prefix`.

    `common` is what a text-only and a video run both predict, for their comparison; `coordinate` are the targets that
    are coordinates. What a set does not have is left out.

    Args:
        sums: of all samples, in the order of `SUMS`.
    """
    of = dict(zip(SUMS, sums, strict=True))
    found: dict[str, float] = {
        "loss": of["nats"] / of["tokens"], "nats_per_caption": of["nats"] / samples, "tokens": int(of["tokens"]),
        "samples": samples,
    }  # fmt: skip
    if of["common_tokens"]:
        found |= {
            "common_loss": of["common_nats"] / of["common_tokens"],
            "common_accuracy": of["common_hits"] / of["common_tokens"], "common_tokens": int(of["common_tokens"]),
        }  # fmt: skip
    if of["coordinate_tokens"]:
        found |= {
            "coordinate_loss": of["coordinate_nats"] / of["coordinate_tokens"],
            "coordinate_tokens": int(of["coordinate_tokens"]),
        }  # fmt: skip
    return {f"{prefix}_{name}": value for name, value in found.items()}
