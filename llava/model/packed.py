"""Samples that share a row, without waiting for the device.

transformers finds them by positions that restart, and in every forward pass looks on the device whether there are any.
The data know it before. Its other ways to be told (a mask of four dimensions, an attention without masks) would keep
the plain causal kernel, or sliding windows, from being used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import masking_utils

LOOKED_UP = "find_packed_sequence_indices"
"""The function of `transformers.masking_utils` that looks."""


@contextmanager
def known_layout(packed: bool) -> Iterator[None]:
    """Has transformers take `packed` for an answer to whether samples share rows."""
    before = getattr(masking_utils, LOOKED_UP)
    setattr(masking_utils, LOOKED_UP, segments if packed else _none)
    try:
        yield
    finally:
        setattr(masking_utils, LOOKED_UP, before)


def segments(position_ids: torch.Tensor) -> torch.Tensor:
    """(B, L) the number of the sample in its row that each position belongs to: one more wherever positions restart."""
    steps = torch.diff(position_ids, prepend=position_ids[:, :1] - 1, dim=-1)
    return (steps != 1).cumsum(-1)


def _none(position_ids: torch.Tensor) -> None:
    return None
