"""Where a batch's targets and visual tokens are, and whether the visual ones are those of its items.

Scattering rows into the wrong number of positions would shift every later row and train on noise without a word, so
the counts and the order of the tokens are compared before anything is written (the same guard as torchtitan's
`models/common/multimodal.py` and transformers' LLaVA).

Letters in shapes: B batch, L positions, N supervised positions of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llava.constants import IGNORE_INDEX
from llava.errors import UserError


def supervised_positions(labels: torch.Tensor) -> torch.Tensor:
    """Places (N,) of the targets in the flattened `labels` (B, L); position 0 of a row is never a target."""
    supervised = labels != IGNORE_INDEX
    supervised[:, 0] = False
    return supervised.flatten().nonzero().squeeze(1)


def visual_positions(input_ids: torch.Tensor, visual_ids: Sequence[int]) -> torch.Tensor:
    """Boolean mask (B, L): where `input_ids` (B, L) holds one of `visual_ids`."""
    return torch.isin(input_ids, torch.tensor(list(visual_ids), dtype=input_ids.dtype, device=input_ids.device))


def check_positions(
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    items: torch.Tensor,
    template: Sequence[int],
    kind: str,
    sample_ids: Sequence[str] | None = None,
    segment_ids: torch.Tensor | None = None,
) -> None:
    """Checks that each sample's visual positions are exactly those of its items.

    Args:
        input_ids: (B, L) token ids.
        positions: (B, L) boolean, the positions of this kind of item.
        items: how many items (videos or images) each sample brings: (B,), or of any number with `segment_ids`.
        template: the token ids of one item in order, one for each of its rows.
        kind: "video" or "image", for the message.
        sample_ids: names of the samples for the message; their places in the batch otherwise.
        segment_ids: (B, L) index of the sample that each position belongs to; each row is one sample when None.

    Raises:
        ValueError: naming the sample, the positions found and the rows expected, or the first token out of order.
    """
    rows = len(template)
    if segment_ids is None:
        segment_ids = torch.arange(len(input_ids), device=input_ids.device)[:, None].expand_as(input_ids)
    owners = segment_ids[positions]
    found = torch.bincount(owners, minlength=len(items)).tolist()
    expected = items.tolist()
    for b, (have, count) in enumerate(zip(found, expected, strict=True)):
        if have != count * rows:
            raise UserError(
                f"sample {_name(b, sample_ids)}: {have} {kind} positions in the text, but {count} {kind}(s) of {rows} "
                f"rows give {count * rows} feature rows; expand the placeholder with the VideoSpec that the model "
                "was built with, once for each file"
            )
    tokens = input_ids[positions].view(-1, rows)
    wrong = (tokens != torch.tensor(list(template), dtype=tokens.dtype, device=tokens.device)).any(dim=1)
    if wrong.any():
        owner = owners[:: max(rows, 1)][wrong][0]
        raise UserError(
            f"sample {_name(int(owner), sample_ids)}: the visual tokens of a {kind} are out of order: "
            "a span is <start>, patches, <end>, and a video is a fast span and then a slow one"
        )


def _name(index: int, sample_ids: Sequence[str] | None) -> str:
    return f"{sample_ids[index]!r}" if sample_ids is not None else f"{index} of the batch"
