"""Clips that help their own captions less than another clip does: which, in which order, and how many are named."""

from __future__ import annotations

import numpy as np

from llava.eval import clip_gains
from llava.eval.clip_gains import clips_that_help_less


def test_clips_with_a_negative_mean_gain_are_listed_the_lowest_first(monkeypatch):
    true = np.array([5.0, 5.0, 3.0, 7.0, 2.0])
    other = np.array([6.0, 3.0, 1.0, 4.0, 2.0])
    clips, ids = ["a", "a", "b", "c", "d"], ["a0", "a1", "b0", "c0", "d0"]
    found = clips_that_help_less(true, other, clips, ids, [f"{clip}.mp4" for clip in clips])
    assert (found["clips"], found["less"]) == (4, 3), "a gain of 0 helps no less"
    assert found["listed"] == [
        {"path": "c.mp4", "ids": ["c0"], "gain": -3.0},
        {"path": "b.mp4", "ids": ["b0"], "gain": -2.0},
        {"path": "a.mp4", "ids": ["a0", "a1"], "gain": -0.5},
    ]
    monkeypatch.setattr(clip_gains, "LISTED", 1)
    short = clips_that_help_less(true, other, clips, ids, clips)
    assert short["less"] == 3 and [c["path"] for c in short["listed"]] == ["c"]
