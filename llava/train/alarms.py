"""When a run is in trouble: pure rules over what the monitor measures, each with the words for a tired reader.

Every alarm sounds once for each thing that it names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PLATEAU = 0.95
"""A loss above this share of ln(vocabulary) is no better than chance."""
PATIENCE = 50
"""Steps that a run is given to leave chance; its warm-up, when that is longer."""
SILENT = 3
"""Measurements in a row before a group without gradient or update is reported."""
WAITING = 0.3
"""Share of the time that may be spent waiting for data."""
WAITING_STEPS = 20
"""Steps over which that share is taken."""
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
        waited: share of the time since the last observation that went into waiting for data, over `waited_steps`.
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


@dataclass(frozen=True)
class Alarm:
    """`kind` is one of plateau, zero gradient, no update, visual targets, captions left behind, waiting for data, blind
    and not finite.
    """

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
    """

    def __init__(self, vocabulary: int, warmup_steps: int = 0) -> None:
        self.chance = math.log(vocabulary)
        self.patience = max(PATIENCE, warmup_steps)
        self.curve: list[tuple[float, float]] = []
        self.lowest = math.inf
        self.silent: dict[tuple[str, str], int] = {}
        self.sounded: set[str] = set()

    def update(self, seen: Observation) -> list[Alarm]:
        """The alarms that this observation gives rise to."""
        found = [*self._targets(seen), *self._groups(seen), *self._plateau(seen), *self._left_behind(seen)]
        found += self._waiting(seen)
        new = []
        for name, alarm in found:
            if name not in self.sounded:
                self.sounded.add(name)
                new.append(alarm)
        return new

    def state(self) -> dict[str, Any]:
        """What has been seen so far, as JSON takes it."""
        silent = [[*key, count] for key, count in self.silent.items()]
        return {"curve": self.curve, "lowest": self.lowest, "silent": silent, "sounded": sorted(self.sounded)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up a `state`."""
        self.curve = [(total, captions) for total, captions in state["curve"]]
        self.lowest, self.sounded = state["lowest"], set(state["sounded"])
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

    def _plateau(self, seen: Observation) -> list[tuple[str, Alarm]]:
        words = seen.caption_loss if seen.caption_loss is not None else seen.text_loss
        if words is None:
            return []
        self.lowest = min(self.lowest, words)
        if seen.step < self.patience or self.lowest < PLATEAU * self.chance:
            return []
        message = (
            f"after {seen.step} steps the loss of the words is {words:.2f}, still at ln(vocabulary) = "
            f"{self.chance:.2f}: the model guesses."
        )
        remedy = (
            "look whether the vocabulary (embeddings, tied to the head) trains and gets a gradient, and whether the "
            "learning rate has left its warm-up; python -m llava.train.preflight checks the first two."
        )
        return [("plateau", Alarm(seen.step, "plateau", message, remedy))]

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
        if seen.waited_steps < WAITING_STEPS or seen.waited < WAITING:
            return []
        message = f"{seen.waited:.0%} of the time goes into waiting for data."
        remedy = "raise --dataloader_num_workers, or let --feature_cache keep the vision features."
        return [("waiting", Alarm(seen.step, "waiting for data", message, remedy))]


def blind(step: int, gain: Sequence[float | None]) -> Alarm | None:
    """The alarm of a finished run whose visual information gain (mean, low, high; nats a caption) may be 0."""
    mean, low, high = gain
    if mean is None or low is None or high is None or low > 0:
        return None
    message = (
        f"at the end another clip's video costs a caption {mean:+.3f} nats [{low:+.3f}, {high:+.3f}]: nothing shows "
        "that the model uses the video."
    )
    remedy = (
        "train longer, see whether the captions say what their clips show, and compare the gradients of projector and "
        "resampler with those of the language model (--mm_projector_lr, --mm_vision_resampler_lr)."
    )
    return Alarm(step, "blind", message, remedy)


def _takes_part(group: str, seen: Observation) -> bool:
    """Whether the step's samples bring the group a gradient: the fast stream serves videos, the rest images too."""
    if group == "resampler fast":
        return seen.videos > 0
    if group in ("projector", "resampler slow", "tower"):
        return seen.videos + seen.images > 0
    return True


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
