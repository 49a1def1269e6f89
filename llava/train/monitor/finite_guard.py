"""Keeps weights from a gradient that is not finite, without waiting for the device in every step."""

from __future__ import annotations

from typing import Any

import torch


class FiniteGuard:
    """Looks at the gradient norm of every step.

    On CPU, and for optimisers that cannot skip an update on the device, the norm is read before the update. Fused
    optimisers on CUDA are told to skip a bad update (`found_inf`, the switch that loss scaling uses), and the norm is
    read a step later, when it has arrived, so that nothing waits.

    Args:
        optimizer: torch's own, not a wrapper.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.fused = bool(getattr(optimizer, "defaults", {}).get("fused"))
        self.arriving: tuple[torch.Tensor, Any, int] | None = None

    def bad_step(self, norm: torch.Tensor | float, step: int) -> int | None:
        """Takes the norm of `step`, before its update; returns a step whose norm is known not to be finite, if any.

        The weights are then those from before that step.
        """
        if not isinstance(norm, torch.Tensor) or norm.device.type != "cuda" or not self.fused:
            value = torch.as_tensor(norm)
            # DeepSpeed gives -1 for a norm that is not finite.
            return None if bool(torch.isfinite(value) & (value >= 0)) else step
        arrived, self.arriving = self.arriving, None
        if arrived is not None:
            flag, event, earlier = arrived
            event.synchronize()
            if bool(flag):
                return earlier
        bad = (~torch.isfinite(norm)).float()
        self.optimizer.found_inf = bad
        flag, event = torch.empty((), pin_memory=True), torch.cuda.Event()
        flag.copy_(bad, non_blocking=True)
        event.record()
        self.arriving = (flag, event, step)
        return None
