"""Which clips help their own captions less than another clip does: where to look first for wrong pairs.

The mean gain of a set hides them: with 30 % of its captions at the wrong clip it is smaller, and still above 0.

Letters in shapes: N captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

LISTED = 100
"""Clips that are named, those with the lowest gain."""


def clips_that_help_less(
    true: np.ndarray, other: np.ndarray, clips: Sequence[str], ids: Sequence[str], paths: Sequence[str]
) -> dict[str, Any]:
    """Clips whose captions are likelier with another clip's video than with their own.

    Args:
        true, other: (N,) nats of every caption under its own and under another clip's video.
        clips: (N,) which clip each caption belongs to.
        ids, paths: (N,) its record's id, and the file or files that it names.

    Returns:
        `clips` (how many were measured), `less` (how many of them help less) and `listed`: at most `LISTED` of these,
        the lowest first, each with `path`, `ids` and `gain` in nats a caption.
    """
    members: dict[str, list[int]] = {}
    for index, clip in enumerate(clips):
        members.setdefault(str(clip), []).append(index)
    gains = {clip: float(np.mean(other[which] - true[which])) for clip, which in members.items()}
    less = sorted((clip for clip, gain in gains.items() if gain < 0), key=lambda clip: gains[clip])
    listed = [
        {
            "path": str(paths[members[clip][0]]),
            "ids": [str(ids[i]) for i in members[clip]],
            "gain": round(gains[clip], 4),
        }
        for clip in less[:LISTED]
    ]
    return {"clips": len(members), "less": len(less), "listed": listed}
