"""Whether evaluation clips were trained on."""

from __future__ import annotations

from collections.abc import Sequence

from llava.data.features.content import ContentHashes
from llava.data.features.names import clip_names
from llava.data.records import Record
from llava.train.preflight.data import Finding


def check_held_out(
    records: Sequence[Record], evaluation: Sequence[Record], contents: ContentHashes | None = None
) -> Finding | None:
    """Whether evaluation clips are kept out of training; None when the evaluation has no clip."""
    shown = clip_names(evaluation, contents)
    if not shown:
        return None
    trained = set(clip_names(records, contents).values())
    both = sorted(str(clip[0] or clip[1]) for clip, name in shown.items() if name in trained)
    how = "by content" if contents is not None else "by path alone, since there is no feature cache"
    if both:
        words = (
            f"{len(both)} of {len(shown)} evaluation clips are trained on too ({how}; the first is {both[0]}): their "
            "figures say nothing about new clips"
        )
        return Finding("held-out clips", "warning", words, "take them out of --data_path or of --eval_data_path")
    return Finding("held-out clips", "ok", f"none of {len(shown)} evaluation clips is trained on, {how}")
