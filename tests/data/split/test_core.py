"""Properties of the split: whole groups, the same for every order, never more than is wanted."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.data.split.core import (
    chained,
    connected,
    near_pairs,
    radius_of,
    split_clips,
    unit_rows,
    wanted_clips,
)

SIZES = st.lists(st.integers(1, 12), max_size=60)


def make_groups(sizes: list[int]) -> list[list[str]]:
    return [[f"{g}/{i}" for i in range(n)] for g, n in enumerate(sizes)]


@pytest.mark.parametrize(
    ("total", "wanted"),
    [(0, 0), (9, 0), (10, 1), (30, 3), (100, 10), (319, 31), (320, 32), (1600, 32), (1601, 33), (7110, 143)],
)
def test_two_percent_at_least_32_and_at_most_a_tenth(total: int, wanted: int) -> None:
    assert wanted_clips(total) == wanted


def test_a_fraction_of_zero_holds_nothing_out() -> None:
    assert wanted_clips(1000, 0) == 0 and split_clips(make_groups([1] * 50), 0) == set()


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 5), st.floats(0.01, 0.5), st.randoms(use_true_random=False))
def test_groups_stay_whole_in_every_order(sizes: list[int], seed: int, fraction: float, order: random.Random) -> None:
    groups = make_groups(sizes)
    held_out = split_clips(groups, fraction, seed=seed)
    assert all(held_out.isdisjoint(g) or held_out.issuperset(g) for g in groups)
    assert len(held_out) <= wanted_clips(sum(sizes), fraction) <= sum(sizes) / 10
    if set(sizes) == {1}:
        assert len(held_out) == wanted_clips(sum(sizes), fraction)
    shuffled = [order.sample(g, len(g)) for g in order.sample(groups, len(groups))]
    assert split_clips(shuffled, fraction, seed=seed) == held_out


def test_another_seed_holds_out_others_and_a_new_clip_changes_little() -> None:
    groups = make_groups([1] * 400)
    first = split_clips(groups, seed=0)
    assert first != split_clips(groups, seed=1)
    assert len(first - split_clips([*groups, ["new"]], seed=0)) <= 1


def test_a_group_that_is_too_large_stays_in_training() -> None:
    groups = [[f"a{i}" for i in range(90)], *([f"b{i}"] for i in range(10))]
    for seed in range(8):
        assert split_clips(groups, seed=seed) == {f"b{i}" for i in range(10)}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=20))
def test_connected_components(pairs: list[tuple[int, int]]) -> None:
    groups = connected(range(16), pairs)
    assert sorted(i for g in groups for i in g) == list(range(16))
    owner = {i: n for n, g in enumerate(groups) for i in g}
    assert all(owner[a] == owner[b] for a, b in pairs)
    assert len(groups) >= 16 - len(pairs)


def test_chains_connect_all_members() -> None:
    assert connected("abcd", chained(["abc"])) == [["a", "b", "c"], ["d"]]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 3.0))
def test_near_pairs_are_all_those_within_the_radius(seed: int, radius: float) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(40, 24)).astype(np.float32) * generator.choice([0.3, 1.0], size=(40, 1))
    rows[7] = rows[3]
    apart = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
    expected = {(i, j) for i in range(40) for j in range(i + 1, 40) if apart[i, j] <= radius and j != 7 and i != 7}
    found = {(int(i), int(j)) for i, j in near_pairs(rows, radius)}
    assert (3, 7) in found and {p for p in found if 7 not in p} == expected


def test_cosines_are_of_what_clips_do_not_share() -> None:
    generator = np.random.default_rng(0)
    rows = 100 + generator.normal(size=(30, 16))
    rows[9] = rows[4] + 0.01 * generator.normal(size=16)
    assert [(int(i), int(j)) for i, j in near_pairs(unit_rows(rows), radius_of(0.98))] == [(4, 9)]
