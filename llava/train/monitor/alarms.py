"""When a run is in trouble: pure rules over what the monitor measures, each with the words for a tired reader.

Every alarm sounds once for each thing that it names.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from llava.train.monitor.first_steps import MOST_POINTS, SkippedSteps, rise
from llava.train.monitor.spikes import Spikes

KINDS = (
    "visual targets", "zero gradient", "no update", "skipped steps", "rising loss", "plateau", "spike",
    "captions left behind", "waiting for data", "blind", "not finite", "tensor without update", "word without update",
    "learning rate", "loss", "records served", "words served", "features served", "pixels served",
    "videos served", "replay",
)  # fmt: skip
"""What an alarm can be about; `docs/trust.md` says when each sounds."""
PLATEAU = 0.95
"""A loss above this share of ln(vocabulary) is no better than chance."""
PATIENCE = 50
"""Steps that a run is given to leave chance; its warm-up, when that is longer."""
COLLAPSE = 0.97
"""A smoothed loss above this share of the words' unigram entropy knows no more than how frequent each word is."""
COLLAPSE_PATIENCE = 200
"""Steps that a run is given to know more, as long as its loss stands still; its warm-up, when that is longer."""
FALLING, FALLING_PATIENCE = 0.95, 3
"""A smoothed loss below this share of what it was at half the steps still falls, which is waited for so many times as
long: a GPT-2 of 4 x 128 on real captions needs 180 steps at a learning rate of 5e-4, and 500 at 1e-4."""
SMOOTHING = 0.95
"""What a step leaves of the smoothed loss before it: 20 steps are its memory."""
LAST_STEPS = 20
"""The end of a run is judged by these, too, since what is smoothed lags behind a loss that falls."""
LEAST_ENTROPY = 0.5
"""Nats below which a smoothed loss cannot be told from the entropy: targets that are nearly all the same token."""
SILENT = 3
"""Measurements in a row before a group without gradient or update is reported."""
WAITING = 0.3
"""Share of the time that may be spent waiting for data."""
WAITING_STEPS, WAITING_SECONDS, WAITING_WINDOWS = 20, 5.0, 2
"""Steps and seconds over which that share is taken, at the least, and times in a row that it must be too large: one
pause of a busy machine can be half of five seconds, and a slow loader is slow again in the next five."""
BASELINE = 3
"""Measurements that the start and the present of a curve are averaged over."""


@dataclass(frozen=True)
class Observation:
    """What the monitor measured at one step; losses are in nats per token, averaged since the last observation.

    Attributes:
        loss: over all targets.
        caption_loss: over the words of samples with a video or image; None when there were none.
        text_loss: over the words of samples without; None when there were none.
        visual_targets: targets that are visual tokens, of which there must be none.
        other_targets: targets that `caption_loss` leaves out.
        videos, images: how many the step's batches had.
        grad_norms, update_ratios, learning_rates: of each group, at this step alone. The update ratio is the norm of
            the change of the weights over the norm of the weights; it belongs to the learning rate of the same step.
        waited: share of the time since the last observation that went into waiting for data, over `waited_steps` that
            took `waited_window` seconds.
        is_last: whether the run ends with this step.
    """

    step: int
    loss: float
    caption_loss: float | None = None
    text_loss: float | None = None
    visual_targets: int = 0
    other_targets: int = 0
    videos: int = 0
    images: int = 0
    grad_norms: Mapping[str, float] = field(default_factory=dict)
    update_ratios: Mapping[str, float] = field(default_factory=dict)
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    waited: float = 0.0
    waited_steps: int = 0
    waited_window: float = 0.0
    is_last: bool = False


@dataclass(frozen=True)
class Alarm:
    """Something is wrong at a step; `kind` is one of `KINDS`."""

    step: int
    kind: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"ALARM at step {self.step}, {self.kind}: {self.message} Remedy: {self.remedy}"


class AlarmRules:
    """Takes observations in order and says what is wrong.

    Args:
        vocabulary: entries of the output distribution; ln of it is the loss of guessing.
        warmup_steps: steps before the learning rate is at its height.
        entropies: unigram entropy in nats of the supervised tokens of each of "captions" and "text"; one that is not
            there is not judged by it.
    """

    def __init__(self, vocabulary: int, warmup_steps: int = 0, entropies: Mapping[str, float] | None = None) -> None:
        self.chance = math.log(vocabulary)
        self.warmup_steps = warmup_steps
        self.entropies = dict(entropies or {})
        self.curve: list[tuple[float, float]] = []
        self.lowest: dict[str, float] = {}
        self.smoothed: dict[str, list[tuple[int, float]]] = {}
        self.last_steps: dict[str, list[tuple[int, float]]] = {}
        """Losses of the last `LAST_STEPS` at least, each over the steps since the one before."""
        self.spikes = Spikes()
        self.silent: dict[tuple[str, str], int] = {}
        self.starved = 0
        self.start: dict[str, list[tuple[int, float]]] = {}
        self.skipped = SkippedSteps()
        self.sounded: set[str] = set()

    def update(self, seen: Observation) -> list[Alarm]:
        """The alarms that this observation gives rise to."""
        found = [*self._targets(seen), *self._groups(seen), *self._plateau(seen), *self._left_behind(seen)]
        found += [*self._rising(seen), *self._skipping(seen), *self._waiting(seen)]
        new = []
        for name, alarm in found:
            if name not in self.sounded:
                self.sounded.add(name)
                new.append(alarm)
        return new

    def state(self) -> dict[str, Any]:
        """What has been seen so far, as JSON takes it."""
        return {
            "curve": self.curve,
            "lowest": self.lowest,
            "smoothed": self.smoothed,
            "last_steps": self.last_steps,
            **self.spikes.state(),
            "start": self.start,
            "skipped": [self.skipped.lowest if self.skipped.lowest < math.inf else None, self.skipped.steps],
            "silent": [[*key, count] for key, count in self.silent.items()],
            "sounded": sorted(self.sounded),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up a `state`, also one of an earlier commit, which had one lowest loss and no more than that."""
        self.curve = [(total, captions) for total, captions in state["curve"]]
        least = state["lowest"]
        self.lowest = dict(least) if isinstance(least, Mapping) else dict.fromkeys(("captions", "text"), least)
        self.smoothed = _losses(state, "smoothed")
        self.last_steps = _losses(state, "last_steps")
        self.spikes.restore(state)
        self.start = _losses(state, "start")
        lowest, self.skipped.steps = state.get("skipped", [None, []])
        self.skipped.lowest = math.inf if lowest is None else lowest
        self.sounded = set(state["sounded"])
        self.silent = {(what, group): count for what, group, count in state["silent"]}

    def _targets(self, seen: Observation) -> list[tuple[str, Alarm]]:
        if not seen.visual_targets:
            return []
        message = (
            f"{seen.visual_targets} visual tokens are targets of the loss beside the words; predicting a constant "
            "placeholder is trivial, so the total loss says nothing about captions."
        )
        remedy = "labels at visual tokens must be -100: preprocess with llava.train.train.preprocess_plain_lm."
        return [("visual targets", Alarm(seen.step, "visual targets", message, remedy))]

    def _groups(self, seen: Observation) -> list[tuple[str, Alarm]]:
        alarms = []
        for group, norm in seen.grad_norms.items():
            if not _takes_part(group, seen):
                continue
            if self._stays("gradient", group, norm == 0.0):
                message = f"no gradient reaches the {group}, so it does not learn."
                remedy = (
                    "something between it and the loss is detached, frozen or not used; "
                    "python -m llava.train.preflight with the run's flags shows where."
                )
                alarms.append((f"zero gradient {group}", Alarm(seen.step, "zero gradient", message, remedy)))
            rate = seen.learning_rates.get(group, 0.0)
            still = group in seen.update_ratios and seen.update_ratios[group] == 0.0 and norm > 0.0 and rate > 0.0
            if self._stays("update", group, still):
                message = f"the {group} has a gradient and a learning rate of {rate:g}, but does not move."
                remedy = "the optimiser does not hold these weights, or the rate is too small for their precision."
                alarms.append((f"no update {group}", Alarm(seen.step, "no update", message, remedy)))
        return alarms

    def _stays(self, what: str, group: str, holds: bool) -> bool:
        self.silent[what, group] = self.silent.get((what, group), 0) + 1 if holds else 0
        return self.silent[what, group] >= SILENT

    def spike(
        self, step: int, loss: float, grad_norm: float | None, targets: float, samples: Sequence[str]
    ) -> Alarm | None:
        """The alarm of one step, all of which are shown in their order; the arguments are those of `Spikes.add`."""
        message = self.spikes.add(step, loss, grad_norm, targets, samples)
        if not message:
            return None
        remedy = (
            "look at these samples (a caption that is no sentence, a clip that is broken); if they are sound and the "
            "loss does not come back, lower --learning_rate or --max_grad_norm, or warm up longer."
        )
        return Alarm(step, "spike", message, remedy)

    def _plateau(self, seen: Observation) -> list[tuple[str, Alarm]]:
        alarms = []
        for words, loss in (("captions", seen.caption_loss), ("text", seen.text_loss)):
            if loss is None:
                continue
            self.lowest[words] = min(self.lowest.get(words, math.inf), loss)
            curve = self.smoothed.setdefault(words, [])
            last, before = curve[-1] if curve else (seen.step, loss)
            kept = SMOOTHING ** max(seen.step - last, 0)
            curve.append((seen.step, kept * before + (1 - kept) * loss))
            recent = self.last_steps.setdefault(words, [])
            recent.append((seen.step, loss))
            while len(recent) > 2 and recent[1][0] <= seen.step - LAST_STEPS:
                del recent[0]
            said, falls = self._stuck(words, seen.step, loss, seen.is_last)
            if said:
                remedy = "train longer, since it still fell; and " if falls else ""
                remedy += (
                    "look whether the vocabulary (embeddings, tied to the head) trains and gets a gradient, and "
                    "whether learning rate, weight decay and dropout are what you mean; python -m "
                    "llava.train.preflight checks the first two."
                )
                alarms.append((f"plateau {words}", Alarm(seen.step, "plateau", said, remedy)))
        return alarms

    def _rising(self, seen: Observation) -> list[tuple[str, Alarm]]:
        alarms = []
        for words, loss in (("captions", seen.caption_loss), ("text", seen.text_loss)):
            start = self.start.setdefault(words, [])
            if loss is None or len(start) == MOST_POINTS:
                continue
            start.append((seen.step, loss))
            line = rise(start)
            if line is not None:
                message = (
                    f"from step {start[0][0]} to {seen.step} the loss of {words} rises from {line[0]:.2f} to "
                    f"{line[1]:.2f} (the ends of a line through it): training goes the wrong way."
                )
                remedy = (
                    "look whether the sign of the loss or of the gradients is turned (an optimiser that maximises, a "
                    "hook); where it is not, lower --learning_rate or warm up longer."
                )
                alarms.append((f"rising {words}", Alarm(seen.step, "rising loss", message, remedy)))
        return alarms

    def _skipping(self, seen: Observation) -> list[tuple[str, Alarm]]:
        steps = self.skipped.add(seen.step, seen.grad_norms, seen.update_ratios, seen.learning_rates)
        if not steps:
            return []
        message = (
            f"steps {', '.join(map(str, steps))} have gradients and a learning rate, and no weight moves, where other "
            "steps move them: the optimiser's step is skipped."
        )
        remedy = "something replaces or skips the optimiser's step: the run takes fewer steps than it counts."
        return [("skipped steps", Alarm(seen.step, "skipped steps", message, remedy))]

    def _stuck(self, words: str, step: int, loss: float, is_last: bool) -> tuple[str, bool]:
        """What is to be said of a loss that shows nothing learned, and whether it still falls; empty when it shows
        something, or when it is too early. At the end of a run there is nothing left to wait for.
        """
        if step >= max(PATIENCE, self.warmup_steps) and self.lowest[words] >= PLATEAU * self.chance:
            return (
                f"after {step} steps the loss of {words} is {loss:.2f}, still at ln(vocabulary) = {self.chance:.2f}: "
                "the model guesses."
            ), False
        curve, entropy = self.smoothed[words], self.entropies.get(words, 0.0)
        smoothed, patience = curve[-1][1], max(COLLAPSE_PATIENCE, self.warmup_steps)
        waited = step >= FALLING_PATIENCE * patience
        if waited:
            del curve[:-1]  # What it fell from is asked no more.
        reached = min(smoothed, _mean_of_last_steps(self.last_steps[words])) if is_last else smoothed
        if step < patience or entropy < LEAST_ENTROPY or reached < COLLAPSE * entropy:
            return "", False
        earlier = next((value for s, value in reversed(curve) if s <= step / 2), math.inf)
        falls = not waited and smoothed < FALLING * earlier
        if falls and not is_last:
            return "", True
        of = "smoothed" if reached == smoothed else f"mean of {LAST_STEPS} steps"
        return (
            f"after {step} steps{', at the end of the run,' if is_last else ''} the loss of {words} is {reached:.2f} "
            f"({of}), not below their unigram entropy of {entropy:.2f}: the model knows at most how frequent each word "
            "is, and nothing of what stands before it."
        ), falls

    def _left_behind(self, seen: Observation) -> list[tuple[str, Alarm]]:
        """The total falls by far more than the caption loss: on a log scale, more than twice as far."""
        if seen.caption_loss is None or not seen.other_targets or min(seen.loss, seen.caption_loss) <= 0:
            return []
        self.curve.append((math.log(seen.loss), math.log(seen.caption_loss)))
        if len(self.curve) < 2 * BASELINE:
            return []
        total, captions = (_mean(c[:BASELINE]) - _mean(c[-BASELINE:]) for c in zip(*self.curve, strict=True))
        if total < 0.5 or captions > total / 2:
            return []
        message = (
            f"the total loss fell by a factor of {math.exp(total):.1f}, the caption loss by "
            f"{math.exp(captions):.2f}: other targets are learned, captions are not."
        )
        remedy = "judge the run by caption_loss; if the other targets are text alone, change the mixture of the data."
        return [("left behind", Alarm(seen.step, "captions left behind", message, remedy))]

    def _waiting(self, seen: Observation) -> list[tuple[str, Alarm]]:
        if seen.waited_steps < WAITING_STEPS or seen.waited_window < WAITING_SECONDS:
            return []
        self.starved = self.starved + 1 if seen.waited >= WAITING else 0
        if self.starved < WAITING_WINDOWS:
            return []
        message = f"{seen.waited:.0%} of the time goes into waiting for data."
        remedy = "raise --dataloader_num_workers, or let --feature_cache keep the vision features."
        return [("waiting", Alarm(seen.step, "waiting for data", message, remedy))]


def _losses(state: Mapping[str, Any], name: str) -> dict[str, list[tuple[int, float]]]:
    """The (step, loss) of a `state` by whose words they are; JSON has lists for pairs."""
    return {words: [(step, loss) for step, loss in kept] for words, kept in state.get(name, {}).items()}


def _mean_of_last_steps(losses: Sequence[tuple[int, float]]) -> float:
    """Of (step, mean loss since the one before) from the one that the last `LAST_STEPS` begin after."""
    spans = [(s - before, loss) for (before, _), (s, loss) in pairwise(losses)]
    return sum(n * loss for n, loss in spans) / sum(n for n, _ in spans) if spans else losses[-1][1]


def _takes_part(group: str, seen: Observation) -> bool:
    """Whether the step's samples bring the group a gradient: the fast stream serves videos, the rest images too. Tables
    of coordinates are read where patches have places, and elsewhere only if a text has one.
    """
    if group == "resampler fast":
        return seen.videos > 0
    if group in ("projector", "resampler base", "resampler slow", "tower", "coordinates input"):
        return seen.videos + seen.images > 0
    return True


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)
