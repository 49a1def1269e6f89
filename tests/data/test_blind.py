"""What is shown blind: a function of seed, record and epoch, of about the share that was asked for."""

from __future__ import annotations

import numpy as np

from llava.data.blind import BlindDraw
from llava.data.hashes import hash64

IDS = [f"clip{n}/caption" for n in range(4000)]
HASHES = np.array([hash64(name) for name in IDS], dtype=np.uint64)
ALL = np.ones(len(IDS), dtype=bool)


def test_the_draw_depends_on_seed_record_and_epoch_and_on_nothing_else():
    draw = BlindDraw(HASHES, ALL, 0.5, seed=1)
    assert np.array_equal(draw(3), draw(3))
    other = np.random.default_rng(0).permutation(len(IDS))
    assert np.array_equal(BlindDraw(HASHES[other], ALL, 0.5, seed=1)(3), draw(3)[other]), "whatever stands beside it"
    for same in (draw(0), draw(4), BlindDraw(HASHES, ALL, 0.5, seed=2)(3)):
        assert abs((same == draw(3)).mean() - 0.5) < 0.05, "drawn anew, so half are as before"


def test_the_share_is_met_and_what_has_no_video_is_never_drawn():
    for share in (0.1, 0.5, 0.9):
        found = np.mean([BlindDraw(HASHES, ALL, share, seed=5)(epoch).mean() for epoch in range(4)])
        assert abs(found - share) < 0.02
    sees = np.arange(len(IDS)) % 3 > 0
    drawn = BlindDraw(HASHES, sees, 0.5, seed=5)(0)
    assert not drawn[~sees].any() and np.array_equal(drawn, BlindDraw(HASHES, ALL, 0.5, seed=5)(0) & sees)
    assert not BlindDraw(HASHES, ALL, 0.0, seed=5)(0).any()


def test_the_draw_stays_what_it_is_for_runs_that_go_on():
    assert np.flatnonzero(BlindDraw(HASHES, ALL, 0.5, seed=0)(0))[:8].tolist() == [0, 2, 9, 11, 12, 13, 14, 22]
