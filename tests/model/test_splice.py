"""Splicing: exact positions, gradients, and every way in which counts can disagree."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava.data.positions import check_positions, visual_positions
from llava.model.splice import splice

TEMPLATE = [90, 91, 91, 92]
VISUAL = sorted(set(TEMPLATE))


def layout(items: list[int], text: int, width: int) -> torch.Tensor:
    """(B, L) ids: each sample has `text` words before each of its items, and words to the end."""
    rows = []
    for count in items:
        row = ([1] * text + TEMPLATE) * count
        rows.append(row + [2] * (width - len(row)))
    return torch.tensor(rows)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(0, 3))
def test_splice_equals_a_plain_loop(items, text):
    ids = layout(items, text, width=24)
    positions = visual_positions(ids, VISUAL)
    check_positions(ids, positions, torch.tensor(items), TEMPLATE, "video")
    embeds = torch.randn(*ids.shape, 5)
    rows = torch.randn(sum(items) * len(TEMPLATE), 5)
    expected, taken = embeds.clone(), 0
    for b in range(len(items)):
        for position in range(ids.shape[1]):
            if int(ids[b, position]) in VISUAL:
                expected[b, position] = rows[taken]
                taken += 1
    assert torch.equal(splice(embeds, positions, rows), expected)


def test_gradients_reach_rows_and_the_text_that_stays():
    ids = layout([1], text=1, width=6)
    embeds, rows = torch.randn(1, 6, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    splice(embeds, visual_positions(ids, VISUAL), rows).sum().backward()
    assert torch.equal(rows.grad, torch.ones(4, 3))
    assert embeds.grad.sum(-1).tolist() == [[3, 0, 0, 0, 0, 3]]


@pytest.mark.parametrize(("items", "found", "expected"), [([2, 1], 4, 8), ([0, 1], 4, 0)])
def test_a_count_mismatch_names_the_sample_and_both_numbers(items, found, expected):
    ids = layout([1, 1], text=1, width=8)
    with pytest.raises(ValueError, match=rf"'first': {found} video positions .* {expected} feature rows"):
        check_positions(ids, visual_positions(ids, VISUAL), torch.tensor(items), TEMPLATE, "video", ["first", "second"])


def test_equal_totals_in_the_wrong_samples_are_caught():
    ids = layout([1, 1], text=0, width=8)
    with pytest.raises(ValueError, match="sample 0 of the batch"):
        check_positions(ids, visual_positions(ids, VISUAL), torch.tensor([2, 0]), TEMPLATE, "video")


def test_equal_counts_in_the_wrong_order_are_caught():
    ids = torch.tensor([[90, 91, 91, 92], [90, 91, 92, 91]])
    with pytest.raises(ValueError, match="'b'.*out of order"):
        check_positions(ids, visual_positions(ids, VISUAL), torch.tensor([1, 1]), TEMPLATE, "video", ["a", "b"])


def test_splice_itself_refuses_another_number_of_rows():
    ids = layout([1], text=0, width=5)
    with pytest.raises(ValueError, match="4 visual positions .* 3 feature rows"):
        splice(torch.zeros(1, 5, 2), visual_positions(ids, VISUAL), torch.zeros(3, 2))
