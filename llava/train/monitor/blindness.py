"""Whether a finished run is blind: what the gain of the video at its end says, in words for a tired reader."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from llava.eval.statistics import LEAST_CLUSTERS
from llava.train.monitor.alarms import FALLING, Alarm

NOTHING = 1e-3
"""Nats a caption below which another video makes no difference."""


def blind(
    step: int,
    gain: Sequence[float | None],
    count: int,
    clips: str = "evaluation clips",
    fell: tuple[float, float] | None = None,
) -> Alarm | None:
    """The alarm of a finished run whose visual information gain (mean, low, high; nats a caption) may be 0.

    Args:
        count: of the clips that it was measured on. Fewer than `LEAST_CLUSTERS` cannot tell a gain from chance, and
            show no more than that the video changes nothing at all.
        clips: which clips these are.
        fell: what `still_falls` says of the caption loss. That of a run which will never see falls, too, so this is a
            reason to train longer and none to be silent.
    """
    mean, low, high = gain
    if mean is None or low is None or high is None or low > 0:
        return None
    nothing = max(abs(low), abs(high)) < NOTHING
    if count < LEAST_CLUSTERS and not nothing:
        return None
    measured = f"at the end, on {count} {clips}, another clip's video costs a caption {mean:+.3f} nats"
    longer = "" if fell is None else "train longer, since the loss still falls; "
    remedy = (
        "see whether the captions say what their clips show, and compare the gradients of projector and resampler with "
        "those of the language model (--mm_projector_lr, --mm_vision_resampler_lr)."
    )
    if nothing:
        message = f"{measured}, less than {NOTHING:g} either way: what the model says does not depend on the video."
        remedy = (
            "python -m llava.train.preflight with the run's flags shows whether the video reaches it; where it does, "
            f"{longer}{remedy}"
        )
    elif high < 0:
        message = f"{measured} [{low:+.3f}, {high:+.3f}]: its own makes a caption less likely."
        remedy = "check that clips and captions belong together, on which it trains and on which it is measured."
    else:
        message = (
            f"{measured} [{low:+.3f}, {high:+.3f}], an interval that includes 0: it is not shown that the model uses "
            "the video."
        )
        remedy = longer + remedy
    if fell is not None:
        message += (
            f" So far: the caption loss still falls ({fell[0]:.2f} in the third quarter, {fell[1]:.2f} in the last)."
        )
    return Alarm(step, "blind", message, remedy)


def still_falls(losses: Sequence[tuple[int, float]], steps: int) -> tuple[float, float] | None:
    """The mean of a logged loss in the third and in the last quarter of a run, where it falls by more than 5 % between
    them; None where it does not, or where a quarter has no line.

    Args:
        losses: (step, loss) of each line.
    """
    quarters = [[loss for s, loss in losses if k * steps < 4 * s <= (k + 1) * steps] for k in (2, 3)]
    if not all(quarters):
        return None
    before, after = (statistics.fmean(quarter) for quarter in quarters)
    return (before, after) if after < FALLING * before else None
