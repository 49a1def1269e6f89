"""Features that are stored as int8 with a scale for each channel, back to fp16: on whatever device they lie.

Scales may stand as the bits of their fp32 values in int32, as batches carry them: what casts the floating-point inputs
of a model to its own type (DeepSpeed, FSDP) leaves those alone.

Letters in shapes: N items of a batch, T frames, P patches, Dv width of the tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def dequantise(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """(..., T, P, Dv) int8 and (..., Dv) fp32 or its bits to features in fp16, each rounded once from fp32."""
    scales = scales.view(torch.float32)
    while scales.dim() < values.dim():
        scales = scales.unsqueeze(-2)
    return (values * scales).half()


def dequantised(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch with features in fp16 in place of int8 and scales; as it is where it has none."""
    made = dict(batch)
    for kind in ("video", "image"):
        scales = made.pop(f"{kind}_scales", None)
        if scales is not None:
            made[f"{kind}_features"] = dequantise(made[f"{kind}_features"], scales)
    return made
