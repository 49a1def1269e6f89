"""The table of intervals in simulated worlds."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.experiments.intervals import COMPONENTS, WORDS, clip_words, main, shares


def test_in_every_mixture_the_two_way_t_is_the_calmest():
    two_way, alone, independent = shares(5, 30, "3 to 40", 60).T
    assert two_way.max() <= 0.15 and two_way.max() < alone.max() and two_way.max() < independent.max()
    assert len(two_way) == len(COMPONENTS) and np.all(two_way >= 0)


def test_the_table_has_a_row_for_each_size(capsys):
    main(2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 24 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| 2 | 12 | equal | ")


@pytest.mark.parametrize("kind", WORDS)
def test_the_true_mean_over_words_is_zero(kind):
    words, gains = clip_words(kind, 200_000, np.random.default_rng(1))
    assert abs((words * gains).sum() / words.sum()) < 0.02
