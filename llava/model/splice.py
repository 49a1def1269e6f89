"""Vision rows into text embeddings, once `llava.data.positions` has checked where they belong.

Letters in shapes: B batch, L positions, D width of the language model, N visual rows of the whole batch.
"""

from __future__ import annotations

import torch


def splice(
    inputs_embeds: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor, checked: bool = False
) -> torch.Tensor:
    """Replaces the embeddings at `positions` by `rows`, in reading order.

    Args:
        inputs_embeds: (B, L, D) text embeddings.
        positions: (B, L) boolean.
        rows: (N, D) vision rows.
        checked: that there are as many positions as rows is known, and the device is not waited for to count them.

    Returns:
        (B, L, D), a new tensor; gradients flow to the rows and to the embeddings that stay.

    Raises:
        ValueError: when the number of positions is not N.
    """
    if not checked and (count := int(positions.sum())) != rows.shape[0]:
        raise ValueError(f"{count} visual positions in the batch but {rows.shape[0]} feature rows")
    # Not `masked_scatter`: on CUDA its backward pass waits for the device to count the positions. There are as many as
    # rows, and a stable sort says where.
    places = positions.flatten().to(torch.uint8).argsort(descending=True, stable=True)[: rows.shape[0]]
    return inputs_embeds.flatten(0, 1).index_copy(0, places, rows.to(inputs_embeds.dtype)).view_as(inputs_embeds)
