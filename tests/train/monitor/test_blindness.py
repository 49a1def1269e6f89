"""What is said of a finished run by the gain of its video."""

from __future__ import annotations

import pytest

from llava.train.monitor.blindness import blind, still_falls


def test_a_finished_run_that_does_not_see_is_blind():
    alarm = blind(9, [0.1, -0.1, 0.3], 6)
    assert (alarm.step, alarm.kind) == (9, "blind") and "longer" not in alarm.remedy
    assert "on 6 evaluation clips" in alarm.message and "+0.100 nats [-0.100, +0.300], an interval" in alarm.message
    assert blind(9, [0.3, 0.1, 0.5], 6) is None
    assert blind(9, [0.3, None, None], 1) is None, "one clip says nothing"
    assert "own makes a caption less likely" in blind(9, [-0.2, -0.3, -0.1], 6).message
    assert "does not depend on the video" in blind(9, [0.0, -1e-6, 1e-6], 6).message


def test_few_clips_show_no_more_than_that_the_video_changes_nothing():
    """Of two clips that see nothing, chance puts both on either side of 0."""
    for gain in ([0.1, -0.1, 0.3], [-0.2, -0.3, -0.1], [0.0, -0.01, 1e-6], [0.0, -1e-6, 0.01]):
        assert blind(9, gain, 5) is None and blind(9, gain, 6) is not None
    assert "does not depend on the video" in blind(9, [0.0, -1e-6, 1e-6], 2).message


def test_a_run_that_still_falls_is_blind_so_far():
    falls = [(s, 5.0 - 0.03 * s) for s in range(1, 101)]
    fell = still_falls(falls, 100)
    assert fell == pytest.approx((5 - 0.03 * 63, 5 - 0.03 * 88))
    alarm = blind(9, [0.1, -0.1, 0.3], 6, fell=fell)
    assert "still falls (3.11 in the third quarter, 2.36 in the last)" in alarm.message and alarm.remedy.startswith(
        "train longer"
    )
    alarm = blind(9, [0.0, 0.0, 0.0], 6, fell=fell)
    assert alarm.remedy.startswith("python -m llava.train.preflight") and "train longer" in alarm.remedy
    assert "longer" not in blind(9, [-0.2, -0.3, -0.1], 6, fell=fell).remedy, "what it learns is wrong"
    assert still_falls([(s, 2.0 - 0.001 * s) for s in range(1, 101)], 100) is None, "by less than 5 %"
    assert still_falls([(s, 2.0 + 0.03 * s) for s in range(1, 101)], 100) is None
    assert still_falls(falls[:75], 100) is None is still_falls([], 100), "a quarter without a line"
