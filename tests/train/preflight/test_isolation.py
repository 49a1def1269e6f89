"""Groups of changed samples tell every pair apart, and a shallow model is the whole one again afterwards."""

from __future__ import annotations

import math

import pytest
import torch

from llava.train.preflight.isolation import codes, quick_blocks, samples_within, shallow


@pytest.mark.parametrize("samples", [1, 2, 3, 6, 7, 20, 64])
def test_no_sample_is_changed_wherever_another_is(samples):
    found = codes(samples)
    assert found.shape[1] == samples and found.any(0).all()
    assert len(found) <= 2 + math.log2(samples) + math.log2(samples + 1) / 2
    for i in range(samples):
        for j in range(samples):
            assert i == j or (found[:, i] & ~found[:, j]).any()


def test_a_shallow_model_comes_back_whole(build):
    model = build()
    names, ids = [n for n, _ in model.named_parameters()], torch.tensor([[5, 6, 7]])
    whole = model(ids).logits
    with shallow(model, 1):
        assert len(model.transformer.h) == 1 and not torch.equal(model(ids).logits, whole)
    assert [n for n, _ in model.named_parameters()] == names
    assert torch.equal(model(ids).logits, whole)
    with shallow(model, None):
        assert torch.equal(model(ids).logits, whole)


def test_a_batch_that_takes_too_long_is_checked_in_part(build):
    model = build()
    assert samples_within(model, 50, 16) == 16
    assert samples_within(model, 10**9, 16) == 2
    assert samples_within(model, 10**9, 1) == 1


def test_blocks_of_every_kind_of_attention_are_looked_at(build):
    model = build()
    assert quick_blocks(model) == 1
    model.config.layer_types = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    assert quick_blocks(model) == 3
