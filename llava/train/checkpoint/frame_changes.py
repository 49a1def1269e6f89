"""Whether a resumed run sees its clips as it did before: the same frames, by the same decoder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llava.config.video import VideoSpec
from llava.data.features.extract import distinct_clips
from llava.data.records import Record
from llava.data.video import FRAME_RULE
from llava.data.video.legacy import count_changed
from llava.data.video.select import spread_evenly
from llava.train.checkpoint.resume import recorded

logger = logging.getLogger(__name__)

MOST_CLIPS = 1000
"""Clips that are opened to see whether their frames changed; each is read once."""


def report_frame_changes(
    checkpoint: str | Path, run_record: dict[str, Any], records: Sequence[Record], spec: VideoSpec | None
) -> None:
    """Says in one line each when a resumed run reads its clips by another decoder or chooses other frames.

    Args:
        run_record: of the run that goes on from `checkpoint`.
        spec: None for a run on text alone, which sees nothing.
    """
    clips = list(distinct_clips(records)) if spec is not None else []
    if spec is None or not clips:
        return
    before = recorded(checkpoint).get("versions", {})
    old, new = before.get("decoders"), run_record["versions"]["decoders"]
    if old is not None and old != new:
        logger.warning(
            "%s was made with %s; its clips are read by %s from here on", checkpoint, _named(old), _named(new)
        )
    if before.get("frames", 1) < FRAME_RULE:
        chosen = np.unique(spread_evenly(len(clips), min(len(clips), MOST_CLIPS))).tolist()
        logger.warning(
            "%s was made when frames were chosen by the rate in a file's header and not by their times: of %d clips%s, "
            "%d are seen in other frames or pixels from here on",
            checkpoint,
            len(chosen),
            f" looked at (of {len(clips)})" if len(chosen) < len(clips) else "",
            count_changed([clips[i] for i in chosen], spec),
        )


def _named(decoders: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in decoders.items() if version != "none")
