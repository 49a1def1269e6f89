"""What a clip tells of the coordinates of its own answers: their loss after it and after another clip, in nats.

Letters in shapes: B batch, L positions, N captions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from llava.eval.statistics import bootstrap_ratio


@dataclass
class CoordinateNats:
    """Summed nats (N,) of the coordinates among every caption's targets, under each condition; their number (N,)."""

    nats: dict[str, list[float]] = field(default_factory=dict)
    counts: list[float] = field(default_factory=list)

    @classmethod
    def measured(cls, model: nn.Module) -> CoordinateNats | None:
        """Nothing yet; None for a model without coordinates."""
        return None if getattr(model, "coordinates", None) is None else cls()

    def add(self, condition: str, losses: torch.Tensor, targets: torch.Tensor) -> None:
        """The losses (B, L - 1) of a batch under a condition; `targets` (B, L - 1) says which are coordinates, and is
        the same under all of them.
        """
        if condition == "true":
            self.counts += targets.sum(dim=1).tolist()
        self.nats.setdefault(condition, []).extend(torch.where(targets, losses, 0.0).sum(dim=1).tolist())

    def join(self, more: Sequence[CoordinateNats | None]) -> CoordinateNats:
        """These and more, those of other ranks."""
        parts = [self, *(part for part in more if part is not None)]
        return CoordinateNats(
            {name: [x for part in parts for x in part.nats[name]] for name in self.nats},
            [x for part in parts for x in part.counts],
        )

    def summary(self, clips: Sequence[Any] | np.ndarray) -> dict[str, Any] | None:
        """Losses in nats a coordinate, and `gain`, that of another clip's video less that of the true one, with its
        95 % interval over clips (null ends for a single clip); None where no target is a coordinate.

        Args:
            clips: (N,) which clip each caption belongs to.
        """
        counts = np.array(self.counts)
        held = counts > 0
        if not held.any():
            return None
        difference = np.array(self.nats["other"]) - np.array(self.nats["true"])
        gain = bootstrap_ratio(difference[held].tolist(), counts[held].tolist(), np.asarray(clips)[held].tolist())
        return {
            "captions": int(held.sum()),
            "tokens": int(counts.sum()),
            "losses": {name: float(np.sum(nats) / counts.sum()) for name, nats in self.nats.items()},
            "gain": [None if math.isnan(x) else x for x in gain],
        }


def format_coordinates(found: Mapping[str, Any] | None) -> list[str]:
    """A summary as a line, or none."""
    if not found:
        return []
    gain, low, high = found["gain"]
    ends = "one clip" if low is None or high is None else f"{low:+.3f}, {high:+.3f}"
    true, other = found["losses"]["true"], found["losses"]["other"]
    return [
        f"  {found['tokens']} coordinates in {found['captions']} captions: loss {true:.3f} nats each, {other:.3f} with "
        f"another clip's video, gain {gain:+.3f} [{ends}]"
    ]
