"""Steps that are computed twice: gradients that differ are corrupted, or something in the step is not deterministic.

A core or a memory that returns wrong numbers now and then (silent data corruption: Dixit et al. 2021, "Silent Data
Corruptions at Scale") raises nothing and trains on. The same batch on the same weights with the same random numbers has
the same gradients to the bit, so that the difference shows it, as in-production tests of large trainings do.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback

from llava.train.monitor.alarms import Alarm
from llava.train.monitor.run_monitor import RunMonitor

logger = logging.getLogger(__name__)

CHUNK = 1 << 17
"""Elements that are hashed at once: 1 MiB of 64-bit numbers, which stay in a core's cache."""
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int32}
"""What bits are read as, by the bytes of an element: of 64 the product below would lose the upper ones."""
MOST_ALARMS = 5
"""Alarms of a run; what differs in every replayed step fills no log."""
IN_BACKWARD = ("lomo", "adalomo", "layerwise")
"""Ends of the names of optimisers that change the weights while gradients are computed."""


@cache
def _factors(device: torch.device) -> torch.Tensor:
    """(CHUNK,) int64, odd and drawn once."""
    drawn = torch.randint(-(2**62), 2**62, (CHUNK,), generator=torch.Generator().manual_seed(0))
    return (drawn | 1).to(device)


def bit_hash(values: torch.Tensor) -> torch.Tensor:
    """() int64 on the device of `values`: their bits as integers, each times an odd number of its place, summed modulo
    2^64. One element that differs always changes it, several all but once in 2^32 times or more.
    """
    bits = values.detach().contiguous().flatten()
    bits = bits.view(INTEGERS[bits.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for number, part in enumerate(bits.split(CHUNK)):
        total += (part * _factors(bits.device)[: len(part)]).sum() * (2 * number + 1)
    return total


@contextmanager
def hashed_gradients(parameters: dict[str, nn.Parameter]) -> Iterator[dict[str, torch.Tensor]]:
    """Hashes of the gradients that backward passes inside bring, by name, before they are accumulated or reduced."""
    found: dict[str, torch.Tensor] = {}

    def take(name: str, gradient: torch.Tensor) -> None:
        # Re-computed segments (gradient checkpointing) may bring a gradient in several parts.
        found[name] = bit_hash(gradient) + 3 * found.get(name, 0)

    handles = [p.register_hook(partial(take, name)) for name, p in parameters.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def without_traces(model: nn.Module, device: torch.device) -> Iterator[None]:
    """What runs inside leaves gradients, buffers and all random numbers as they were."""
    gradients = [(p, p.grad) for p in model.parameters() if p.requires_grad]
    buffers = [(b, b.clone()) for b in model.buffers()]
    python, legacy = random.getstate(), np.random.get_state()
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
        random.setstate(python)
        np.random.set_state(legacy)


@dataclass(frozen=True)
class Differing:
    """A batch of a process whose two passes differ: the tensors with other gradients, of how many, and the loss."""

    rank: int
    batch: int
    tensors: list[str]
    total: int
    loss: bool

    def __str__(self) -> str:
        named = ", ".join(self.tensors[:3]) + (f" and {len(self.tensors) - 3} more" if len(self.tensors) > 3 else "")
        loss = "the loss too" if self.loss else "the loss is the same"
        return f"rank {self.rank}, batch {self.batch}: {len(self.tensors)} of {self.total} ({named}; {loss})"


class Replay(TrainerCallback):
    """Computes forward and backward of every so many steps twice; `LlavaTrainer` hands it each batch.

    The first pass leaves no trace. Each process compares the gradients of each batch before they are accumulated and
    reduced over the processes, so that the one that errs is known.

    Args:
        every: steps from one that is computed twice to the next.
        monitor: sounds the alarms, and counts the first pass as its own time.
        gather: lists of all processes, joined.
        rank: of this process.
    """

    def __init__(
        self,
        model: nn.Module,
        every: int,
        monitor: RunMonitor,
        gather: Callable[[list[Any]], list[Any]],
        rank: int = 0,
    ) -> None:
        self.model, self.every, self.monitor, self.gather, self.rank = model, every, monitor, gather, rank
        self.rehearsing = False
        """Whether the pass at hand is the one without traces."""
        self.passes: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []
        self.replayed = self.differed = 0

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def twice(self, run: Callable[[], torch.Tensor], alone: Callable[[], AbstractContextManager[Any]]) -> torch.Tensor:
        """The loss of a batch, whose forward and backward are `run`, the first time inside `alone`, which keeps the
        processes from reducing.
        """
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        device = next(iter(trained.values())).device
        self.rehearsing = True
        try:
            with (
                self.monitor.timed(), without_traces(self.model, device), alone(), hashed_gradients(trained) as first,
            ):  # fmt: skip
                first["loss"] = bit_hash(run())
        finally:
            self.rehearsing = False
        with hashed_gradients(trained) as second:
            loss = run()
        second["loss"] = bit_hash(loss)
        self.passes.append((first, second))
        return loss

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.due(state.global_step):
            return
        mine = [d for number, pair in enumerate(self.passes, 1) if (d := self._differing(number, *pair)) is not None]
        self.passes = []
        found: Sequence[Differing] = self.gather(mine)
        self.replayed += 1
        self.differed += bool(found)
        if not found or self.differed > MOST_ALARMS:
            return
        words = (
            "computed twice from the same weights, batch and random numbers, the step has gradients that differ: "
            f"{'; '.join(map(str, found[:4]))}{f'; and {len(found) - 4} more' if len(found) > 4 else ''}. So far "
            f"{self.differed} of {self.replayed} replayed steps differed."
        )
        remedy = (
            "where nearly all replayed steps differ, something in the step is not deterministic: --full_determinism "
            "True names or replaces it. Where few do, a core, a device or its memory returns wrong numbers: test it "
            "(dcgmi diag, memtester), leave the node out, and go on from a checkpoint before the first such alarm."
        )
        self.monitor.sound(Alarm(state.global_step, "replay", words, remedy))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.replayed:
            logger.info("%d steps were computed twice: the gradients of %d differed", self.replayed, self.differed)

    def _differing(
        self, number: int, first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]
    ) -> Differing | None:
        names = sorted(first.keys() & second.keys())
        pairs = torch.stack([torch.stack((first[name], second[name])) for name in names])
        changed = [name for name, differs in zip(names, (pairs[:, 0] != pairs[:, 1]).tolist(), strict=True) if differs]
        changed += sorted(first.keys() ^ second.keys())
        if not changed:
            return None
        tensors = [name for name in changed if name != "loss"]
        return Differing(self.rank, number, tensors, len(first.keys() | second.keys()) - 1, "loss" in changed)


def flag_problems(args: Any) -> list[str]:
    """Why `--replay_every` cannot work with the other flags, if it cannot."""
    if args.replay_every is None:
        return []
    optim = str(getattr(args.optim, "value", args.optim))
    why = [
        f"{flag} {value} {reason}"
        for flag, value, reason, holds in (
            ("--deepspeed", args.deepspeed, "reduces gradients while it computes them", bool(args.deepspeed)),
            ("--fsdp", args.fsdp, "spreads gradients over the processes", bool(args.fsdp)),
            ("--optim", optim, "changes the weights while gradients are computed", optim.endswith(IN_BACKWARD)),
            ("--run_monitor", False, "writes no alarms", not args.run_monitor),
        )
        if holds
    ]
    return [f"--replay_every {args.replay_every} cannot work, since {'; '.join(why)}: leave one out"] if why else []
