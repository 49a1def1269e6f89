"""A rank that is killed, again and again: the run ends as if untouched."""

from __future__ import annotations

import random

import pytest

from tests.audit.kills import kill_ranks


@pytest.mark.slow
def test_killed_ranks_leave_a_run_that_ends_as_if_untouched(assets, tmp_path):
    struck, unlike = kill_ranks(assets, tmp_path, 2, random.Random(1))
    assert len(struck) == 2
    assert unlike == []
