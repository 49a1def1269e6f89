"""A rank that is killed: the run ends as if untouched. `python -m tests.audit.kills` kills again and again."""

from __future__ import annotations

import random

import pytest

from tests.audit.kills import kill_ranks


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_rank_leaves_a_run_that_ends_as_if_untouched(assets, tmp_path):
    struck, unlike = kill_ranks(assets, tmp_path, 1, random.Random(1))
    assert len(struck) == 1
    assert unlike == []
