"""The loss of coordinates under the own and another video: by hand, and of a model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llava.eval.coordinate_gains import CoordinateNats, format_coordinates


def added(*batches):
    """Batches of (losses under the true video, under another one, which targets are coordinates)."""
    found = CoordinateNats()
    for true, other, targets in batches:
        for name, losses in (("true", true), ("other", other)):
            found.add(name, torch.tensor(losses), torch.tensor(targets))
    return found


ONE = ([[1.0, 2.0, 9.0]], [[2.0, 4.0, 1.0]], [[True, True, False]])
TWO = ([[0.5, 7.0, 7.0], [3.0, 3.0, 3.0]], [[1.0, 7.0, 0.0], [9.0, 9.0, 9.0]], [[True, False, False], [False] * 3])


def test_the_gain_by_hand():
    found = added(ONE, TWO).summary(np.array(["a", "b", "b"]))
    assert (found["captions"], found["tokens"]) == (2, 3)
    assert found["losses"] == pytest.approx({"true": 3.5 / 3, "other": 7 / 3})
    gain, low, high = found["gain"]
    assert gain == pytest.approx(3.5 / 3) and low < gain < high
    assert format_coordinates(found) == [
        f"  3 coordinates in 2 captions: loss 1.167 nats each, 2.333 with another clip's video, gain +1.167 "
        f"[{low:+.3f}, {high:+.3f}]"
    ]


def test_one_clip_says_nothing_of_others_and_no_coordinate_is_no_line():
    found = added(ONE).summary(["a"])
    assert found["gain"][1:] == [None, None] and "[one clip]" in format_coordinates(found)[0]
    assert added(TWO).summary(["b", "b"])["captions"] == 1
    none = added(([[1.0]], [[2.0]], [[False]])).summary(["a"])
    assert none is None and format_coordinates(none) == []


def test_shares_of_ranks_are_joined():
    whole, joined = added(ONE, TWO), added(ONE).join([added(TWO), None])
    assert whole == joined and not math.isnan(joined.summary(["a", "b", "c"])["gain"][0])
