"""The order of samples: a permutation, grouped, and a function of seed and epoch alone."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava.constants import FILLER_INDEX
from llava.data.sampler import ModalityLengthSampler, grouped_order

KINDS = st.sampled_from(["text", "video", "image"])


@given(st.lists(st.tuples(st.integers(1, 400), KINDS), max_size=60), st.integers(1, 9), st.integers(0, 99))
def test_every_sample_once_and_batches_of_one_modality(samples, batch_size, seed):
    lengths, kinds = [n for n, _ in samples], [k for _, k in samples]
    order = grouped_order(lengths, kinds, batch_size, torch.Generator().manual_seed(seed))
    assert sorted(order) == list(range(len(samples)))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    pure = sum(len({kinds[i] for i in b}) == 1 and len(b) == batch_size for b in batches)
    assert pure >= sum(kinds.count(k) // batch_size for k in set(kinds))


def test_batches_have_similar_lengths():
    lengths = [5, 100] * 40
    order = grouped_order(lengths, ["text"] * 80, 4, torch.Generator().manual_seed(0))
    assert all(len({lengths[i] for i in order[b : b + 4]}) == 1 for b in range(0, 80, 4))


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int, grouped: bool) -> list[int]:
        sampler = ModalityLengthSampler(list(range(50)), ["text"] * 50, 4, seed, grouped)
        sampler.set_epoch(epoch)
        return list(sampler)

    for grouped in (True, False):
        assert order(0, 1, grouped) == order(0, 1, grouped)
        assert order(0, 1, grouped) != order(0, 2, grouped)
        assert order(0, 1, grouped) != order(1, 1, grouped)


def test_the_last_step_is_left_out_where_it_is_not_whole():
    orders = [list(ModalityLengthSampler([1] * 11, ["text"] * 11, 4, 0, True, 2, drop)) for drop in (False, True)]
    assert orders[0] == [*orders[1], *orders[0][8:]] and len(orders[1]) == 8, "and nothing takes its place"


@given(st.integers(1, 30), st.integers(1, 8), st.booleans())
def test_fillers_complete_the_last_pass_and_every_record_stays_there_once(records, share, grouped):
    sampler = ModalityLengthSampler([1] * records, ["text"] * records, 2 * share, 0, grouped, share)
    order = list(sampler)
    assert len(order) == len(sampler)
    assert (len(order) % share, len(order) < records + share) == (0, True)
    assert sorted(order[:records]) == list(range(records))
    assert order[records:] == [FILLER_INDEX] * (len(order) - records)


def test_what_is_blind_has_no_influence_on_the_order():
    """So text alone, which draws nothing, is served in the order of what sees."""
    drawn = {epoch: np.arange(50) % (epoch + 2) == 0 for epoch in range(2)}
    for grouped in (True, False):
        plain, blind = (ModalityLengthSampler(list(range(50)), ["video"] * 50, 4, 3, grouped, blind=b)
                        for b in (None, drawn.__getitem__))  # fmt: skip
        for epoch in range(2):
            for sampler in (plain, blind):
                sampler.set_epoch(epoch)
            assert [i % 50 for i in blind] == list(plain)
            assert {i - 50 for i in blind if i >= 50} == set(np.flatnonzero(drawn[epoch]))
