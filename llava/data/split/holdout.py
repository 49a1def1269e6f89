"""The clips that a training run holds out by itself: which, what is recorded of them, and what is said of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava.config.groups import DEFAULT_SEED
from llava.data.columns import representatives
from llava.data.features.content import ContentHashes
from llava.data.records import Record
from llava.data.split.clips import Clips, clips_of, group_clips
from llava.data.split.core import FEWEST, MAXIMUM_SHARE, chained, split_clips, wanted_clips

SEED = DEFAULT_SEED
"""Of the choice. It is not that of training: runs over several seeds, and experiments on text and on video, are
compared on the same clips, so that no difference between them comes from the clips. `python -m llava.data.split` has
the same default.
"""
CONTENT, NAME = "content", "name"
HOW = "--val_fraction changes how many, 0 holds none out, --eval_data_path names others"


@dataclass(frozen=True)
class Holdout:
    """Which records are held out.

    Attributes:
        held_out: for each record, in their order, whether it is.
        noun: `clips`, or `texts` where no record names a clip.
        total, chosen: number of clips, and the keys of those held out.
        copies: by what copies of a clip were found: CONTENT, or NAME where a file could not be read.
    """

    held_out: list[bool]
    noun: str
    total: int
    chosen: frozenset[str]
    fraction: float
    copies: str

    @property
    def captions(self) -> int:
        """How many records are held out."""
        return sum(self.held_out)

    def summary(self) -> dict[str, Any]:
        """What a run's record keeps; `digest` is the same for the same clips, wherever they lie."""
        listed = "\n".join(sorted(self.chosen)).encode("utf-8", "surrogatepass")
        return {
            "fraction": self.fraction,
            "seed": SEED,
            "of": self.noun,
            "total": self.total,
            "held_out": len(self.chosen),
            "captions": self.captions,
            "copies": self.copies,
            "digest": hashlib.sha256(listed).hexdigest()[:32],
        }

    def __str__(self) -> str:
        """One line: what is held out, or that nothing is and what follows from it."""
        if self.chosen:
            told = "" if self.noun == "texts" else f", copies told by {self.copies}"
            return (
                f"held out for evaluation: {len(self.chosen):,} of {self.total:,} {self.noun}, {self.captions:,} of "
                f"{len(self.held_out):,} captions{told}; {HOW}"
            )
        if self.fraction <= 0:
            why = "nothing is held out (--val_fraction 0)"
        elif self.total < FEWEST:
            why = f"nothing is held out: {self.total} {self.noun} are fewer than {FEWEST}"
        else:
            why = f"nothing is held out: no group of {self.noun} that belong together is small enough"
        what = "sight and loss are" if self.noun == "clips" else "loss is"
        return (
            f"{why}; {what} measured on training {self.noun} only, not on unseen ones (--eval_data_path names others)"
        )


def plan(records: Sequence[Record], fraction: float, contents: ContentHashes | None = None) -> Holdout:
    """Which records a run holds out of training.

    Their clips are chosen by `split_clips` under `SEED`, by names that do not depend on where files lie, on extensions,
    or on the order of records. Clips of one record, segments of one clip and copies stay on one side. A fraction above
    a tenth is taken as it is.

    Args:
        records: with the videos and images that they name, though the run may train on their text alone.
        fraction: of the clips; 0 holds nothing out.
        contents: by which copies are found, where the files can be read. They are not decoded, and not opened when so
            few clips are there that none is held out.
    """
    firsts, index = representatives(records)
    clips = clips_of(firsts)
    if not clips.has_clips:
        clips, index = clips_of(records), np.arange(len(records))
    most = max(MAXIMUM_SHARE, fraction)
    copies: list[list[str]] = []
    by = NAME
    if contents is not None and wanted_clips(len(clips.paths), fraction, maximum_share=most):
        copies, by = _copies(clips, contents)
    groups = group_clips(clips, chained(copies))
    chosen = frozenset(split_clips(groups, fraction, maximum_share=most, seed=SEED))
    is_out = np.array([any(key in chosen for key in keys) for keys in clips.keys], dtype=bool)
    return Holdout(
        is_out[index].tolist(), "clips" if clips.has_clips else "texts", len(clips.paths), chosen, fraction, by
    )


def _copies(clips: Clips, contents: ContentHashes) -> tuple[list[list[str]], str]:
    """Groups of keys with equal files, and by what copies are told; that a file is missing is said elsewhere."""
    paths = [path for some in clips.paths.values() for path in some]
    hashes, errors = contents.resolve(paths)
    groups: dict[str, list[str]] = {}
    for key, some in clips.paths.items():
        for path in some:
            if path in hashes:
                groups.setdefault(hashes[path], []).append(key)
    return list(groups.values()), CONTENT if paths and not errors else NAME


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What is different between the summaries of a run and of the run that goes on with it; None where nothing is."""
    if before.get("digest") == now["digest"]:
        return None
    words = "{held_out} of {total} {of} at --val_fraction {fraction:g}, seed {seed}, copies told by {copies}".format
    return f"it held out {words(**before)}; now it would be {words(**now)}, and not the same"
