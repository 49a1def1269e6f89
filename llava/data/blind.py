"""Captions that are shown without their video: which ones, drawn anew in each epoch.

A draw is a function of seed, record and epoch alone: no worker, process or resumed run needs to know what was drawn
before, and runs that differ in what they see draw the same.

Letters in shapes: N records.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llava.data.hashes import hash64


@dataclass(frozen=True)
class BlindDraw:
    """Which records an epoch shows without their videos and images.

    Args:
        id_hashes: (N,) uint64, `hash64` of the records' ids.
        sees: (N,) bool, which records have a video or image: the others have nothing to be shown without.
        share: of these, 0 to 1; each is drawn by itself, so that an epoch has about this share.
    """

    id_hashes: np.ndarray
    sees: np.ndarray
    share: float
    seed: int

    def __call__(self, epoch: int) -> np.ndarray:
        """(N,) bool."""
        drawn = _mixed(self.id_hashes ^ np.uint64(hash64(f"blind/{self.seed}/{epoch}")))
        return self.sees & ((drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53 < self.share)


def _mixed(values: np.ndarray) -> np.ndarray:
    """(N,) uint64 to numbers of which every bit depends on all of the values' bits (the finaliser of SplitMix64; Steele
    et al. 2014).
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
