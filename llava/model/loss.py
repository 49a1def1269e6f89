"""The training objective: next-token cross-entropy at supervised positions, and nowhere else.

Letters in shapes: B batch, L positions, D width, V vocabulary, N supervised positions of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from llava.data.positions import supervised_positions
from llava.errors import UserError

CHUNK_LOGITS = 1 << 27
"""Logits (N x V) that are in memory at once: 512 MiB in fp32. More are computed in pieces, and again in the backward
pass."""
ALIGNMENT = 64
"""Multiple that the head's rows are padded to where matrix kernels want it (CUDA)."""


@dataclass(frozen=True)
class ClassHead:
    """What a class of language model makes of its states: more than its linear layer where logits are scaled or capped.

    Attributes:
        to_logits: (N, D) and the multiple that `head_logits` takes -> (N, V).
        out_features: V.
    """

    to_logits: Callable[[torch.Tensor, int], torch.Tensor]
    out_features: int

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return self.to_logits(states, 1)


@dataclass(frozen=True)
class SoftTargets:
    """Targets that are shared by two tokens: the label and another one.

    Attributes:
        others: (B, L), ids; any where the share is 0.
        shares: (B, L), of the other one: 0 where the label has all.
    """

    others: torch.Tensor
    shares: torch.Tensor

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Those at places (N,) of the flattened labels."""
        return self.others.flatten()[positions], self.shares.flatten()[positions]


def supervised_loss(
    hidden: torch.Tensor,
    labels: torch.Tensor,
    head: nn.Module | ClassHead,
    num_items: torch.Tensor | int | None = None,
    positions: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    soft: SoftTargets | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the next token at supervised positions only.

    Args:
        hidden: (B, L, D) states of the language model.
        labels: (B, L), unshifted; position 0 is never a target.
        head: a linear layer, or all that a class puts after its states, (..., D) -> (..., V); sees the states before
            supervised tokens and no others.
        num_items: what the sum is divided by; the number of supervised tokens here when None.
        positions: `supervised_positions(labels)`, when known: finding them waits for the device. Zeros after them
            count for nothing: they are there for a shape that stays the same.
        label_smoothing: share of each target's probability that is spread evenly over the vocabulary (Szegedy et al.
            2016, section 7); of one that is shared too, whose tokens divide the rest.
        soft: targets that the label shares with another token.

    Returns:
        The loss, and the detached cross-entropy of every token (B, L - 1), unsmoothed, 0 where nothing is supervised;
        of a shared target the mean over both tokens by their shares.

    Raises:
        ValueError: when no position is supervised, neither here nor, as `num_items` tells, in the rest of the step,
            where a mean would be NaN; or `positions` are those of other labels.
    """
    if positions is None:
        positions = supervised_positions(labels)
    elif can_look(labels) and not torch.equal(positions[positions > 0], supervised_positions(labels)):
        raise ValueError("the supervised positions given are not those of the labels: collate the batch again")
    if positions.shape[0] == 0 and (num_items is None or not num_items > 0):
        raise UserError("no position of the batch is supervised: every label is IGNORE_INDEX; check the captions")
    states, targets = hidden.flatten(0, 1)[positions - 1], labels.flatten()[positions]
    shared = None if soft is None else soft.at(positions)
    rows = max(1, CHUNK_LOGITS // head.out_features)
    if len(states) <= rows or not torch.is_grad_enabled():
        total, each = _cross_entropy(states, targets, head, label_smoothing, shared)
    else:
        # Without recomputing, every piece's logits would wait in memory for the backward pass.
        parts = [None] * -(-len(states) // rows)
        if shared is not None:
            parts = list(zip(*(of.split(rows) for of in shared), strict=True))
        pieces = [
            checkpoint(_cross_entropy, s, t, head, label_smoothing, o, use_reentrant=False)
            for s, t, o in zip(states.split(rows), targets.split(rows), parts, strict=True)
        ]
        total, each = torch.stack([t for t, _ in pieces]).sum(), torch.cat([e for _, e in pieces])
    spread = each.new_zeros(labels.numel()).index_copy(0, positions, each).view_as(labels)[:, 1:]
    return total / ((positions > 0).sum() if num_items is None else num_items), spread


def can_look(values: torch.Tensor) -> bool:
    """Whether a look at values costs nothing: they are in memory, and no graph of operations is being made."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _cross_entropy(
    states: torch.Tensor,
    targets: torch.Tensor,
    head: nn.Module | ClassHead,
    label_smoothing: float,
    shared: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss, and detached cross-entropy (N,) of every target, which another token has a share (N,) in."""
    logits = head_logits(states, head, ALIGNMENT if states.is_cuda else 1).float()
    losses = F.cross_entropy(logits, targets, reduction="none")
    more: torch.Tensor | float = 0.0
    if shared is not None:
        both = torch.stack([targets.clamp(min=0), shared[0]], dim=1)  # A place that is none has the label IGNORE_INDEX.
        label, other = logits.gather(1, both).unbind(1)
        more = shared[1] * (label - other)
        losses = losses + more
    if not label_smoothing:
        return losses.sum(), losses.detach()
    smooth = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
    if shared is not None:
        smooth = smooth + (1 - label_smoothing) * more.sum()  # type: ignore[union-attr]
    return smooth, losses.detach()


def head_logits(states: torch.Tensor, head: nn.Module | ClassHead, multiple: int = 1) -> torch.Tensor:
    """(..., D) -> (..., V); computed on the head's rows padded with zeros to a multiple, which leaves the logits as
    they are: a matrix product whose sizes are not multiples of the hardware's tiles is slower.
    """
    if isinstance(head, ClassHead):
        return head.to_logits(states, multiple)
    short = -head.out_features % multiple
    spread = head.weight.shape[0] != head.out_features  # ZeRO-3 brings a module's weights together when it is called.
    if not short or head.bias is not None or spread:
        return head(states)
    return F.linear(states, F.pad(head.weight, (0, 0, 0, short)))[..., :-short]
