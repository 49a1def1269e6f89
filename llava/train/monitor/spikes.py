"""Steps whose loss or gradient norm leaves what is usual, told apart from the tail that sound runs have.

A loss is judged by itself. A gradient norm is not: norms of single steps are heavy-tailed (Zhang et al. 2020, "Why are
adaptive methods good for attention models?"). Where most batches have little left to teach, one that has something
makes a norm of several times theirs; clipping, and optimisers that divide by the norm (AdamW, Muon), keep the step at
its usual size, and the loss does not move. So a high norm is trouble when it is beyond such a tail, when the loss
moves with it, or when it stays.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

import numpy as np

SPIKE = 6.0
"""Standard deviations above the mean that are no chance (OLMo-core, `SkipStepOptimizer`, has the same)."""
SPIKE_STEPS = 128
"""Steps that they are taken over, and that a run has before one can sound."""
MOVES = 3.0
"""Standard deviations by which a loss moves with a gradient norm that is too high."""
LEAST_SHARE, LEAST_LOSS = 0.1, 0.1
"""A spike is also this share of the mean, and a loss this much (nats per token), above the mean: a curve that is flat
to the last digit has no deviation, and a loss of 1e-4 that doubles is no trouble."""
BEYOND = 10.0
"""Times the usual norm (the geometric mean) that a norm needs to sound by itself; it must be `SPIKE` deviations away on
a log scale, too. The highest in three sound runs of the demo is 6.3 times, 5.0 deviations."""
STAYS, BEFORE = 5, 16
"""Steps in a row that a norm must stay too high, and in which the loss may move with it; and steps before them that
the loss has fallen from when it is a standard deviation lower, which clears the norm."""
MOST_SPIKES = 20
"""Spikes that are reported; data that are known by then to be uneven fill no log."""

LOSS, NORM, TARGETS = "loss", "gradient norm", "targets"


@dataclass
class Suspect:
    """A step whose norm is too high, while it is open whether that matters."""

    step: int
    limit: float
    """The norm from which it is too high."""
    falling: float
    """The loss below which the run learns: a norm may rise as it leaves a plateau."""
    said: str
    batch: str
    above: int = 0
    """Steps since, this one included, whose norm was above the limit."""
    losses: float = 0.0
    """Their sum."""


class Spikes:
    """Takes every step in its order and says which begins a spike."""

    def __init__(self) -> None:
        self.recent: dict[str, deque[float]] = {}
        self.spiking, self.count = False, 0
        self.suspect: Suspect | None = None

    def add(self, step: int, loss: float, norm: float | None, targets: float, samples: Sequence[str]) -> str:
        """What is to be said of a step; empty when nothing is. A spike of several steps is told at its first.

        Args:
            loss: nats per supervised token of the step alone.
            norm: of the gradient before clipping; None where it is not known.
            targets: supervised tokens of the step. The noise of a mean grows as the root of what it is taken over
                shrinks, so that an incomplete batch has more room.
            samples: ids of the step's samples.
        """
        sizes = self.recent.setdefault(TARGETS, deque(maxlen=SPIKE_STEPS))
        room = math.sqrt(max(median(sizes) / max(targets, 1), 1.0)) if sizes else 1.0
        above, high = [], False
        usual = self._usual(LOSS, loss)
        batch = "The batch: " + ", ".join(map(repr, samples[:8]))
        batch += f" and {len(samples) - 8} more." if len(samples) > 8 else "."
        if usual is not None and loss > _limit(usual, SPIKE * room, LEAST_LOSS):
            above.append(_said(LOSS, loss, usual))
        norms = self._usual(NORM, norm)
        if norm is not None and norms is not None:
            high = norm / room > _limit(norms, SPIKE)
            if self._is_beyond(norm / room):
                above.append(_said(NORM, norm, norms))
            elif high and usual is not None and self.suspect is None and not self.spiking:
                falling = fmean(list(self.recent[LOSS])[-BEFORE:]) - usual[1]
                self.suspect = Suspect(step, _limit(norms, SPIKE), falling, _said(NORM, norm, norms), batch)
        told = f"{'; '.join(above)}. {batch}" if above else ""
        if self.suspect is not None:
            told = told or self._matters(self.suspect, step, loss, norm, room, usual)
            if told or step > self.suspect.step + STAYS - 2:
                self.suspect = None
        for what, value in ((LOSS, loss), (NORM, norm), (TARGETS, targets)):
            if value is not None and math.isfinite(value):
                self.recent.setdefault(what, deque(maxlen=SPIKE_STEPS)).append(value)
        began = bool(told) and not self.spiking
        self.spiking = bool(told) or (self.spiking and high)
        if not began or self.count >= MOST_SPIKES:
            return ""
        self.count += 1
        return told

    def _usual(self, what: str, value: float | None) -> tuple[float, float] | None:
        """Mean and standard deviation of the steps before; None where a value is not judged."""
        recent = self.recent.get(what, ())
        if value is None or not math.isfinite(value) or len(recent) < SPIKE_STEPS:
            return None
        return fmean(recent), float(np.std(recent, ddof=1))

    def _is_beyond(self, norm: float) -> bool:
        logs = [math.log(value) for value in self.recent[NORM] if value > 0]
        if norm <= 0 or len(logs) < SPIKE_STEPS // 2:
            return False
        return math.log(norm) > fmean(logs) + max(SPIKE * float(np.std(logs, ddof=1)), math.log(BEYOND))

    def _matters(
        self,
        suspect: Suspect,
        step: int,
        loss: float,
        norm: float | None,
        room: float,
        usual: tuple[float, float] | None,
    ) -> str:
        """What is to be said of a suspect after a step, its own included."""
        if usual is None or norm is None:
            return ""
        said = suspect.said if suspect.step == step else f"at step {suspect.step} {suspect.said}"
        if loss > _limit(usual, MOVES * room, LEAST_LOSS):
            return f"{said}; {_said(LOSS, loss, usual)}. {suspect.batch}"
        suspect.above += norm / room > suspect.limit
        suspect.losses += loss
        if suspect.above == STAYS and suspect.losses / STAYS > suspect.falling:
            return f"{said}; it stays above {suspect.limit:.3g} for {STAYS} steps. {suspect.batch}"
        return ""

    def state(self) -> dict[str, Any]:
        """What has been seen so far, as JSON takes it."""
        recent = {what: list(values) for what, values in self.recent.items()}
        suspect = None if self.suspect is None else asdict(self.suspect)
        return {"recent": recent, "spiking": self.spiking, "spikes": self.count, "suspect": suspect}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up a `state`, also one of an earlier commit, which knew no targets or nothing."""
        self.recent = {what: deque(values, SPIKE_STEPS) for what, values in state.get("recent", {}).items()}
        self.spiking, self.count = state.get("spiking", False), state.get("spikes", 0)
        suspect = state.get("suspect")
        self.suspect = None if suspect is None else Suspect(**suspect)


def _limit(usual: tuple[float, float], deviations: float, least: float = 0.0) -> float:
    mean, deviation = usual
    return mean + max(deviations * deviation, least, LEAST_SHARE * mean)


def _said(what: str, value: float, usual: tuple[float, float]) -> str:
    mean, deviation = usual
    return f"the {what} is {value:.3g}, that of the {SPIKE_STEPS} steps before {mean:.3g} ± {deviation:.2g}"
