"""The median of the winning axis, in every way of generation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from llava.constants import COORDINATE_TOKENS
from llava.eval.coordinate_choice import MedianOfAxis, chooser

WORDS = 5
VOCABULARY = WORDS + 300 + 7
"""Words, coordinate tokens in another order than that of their numbers, and rows of padding."""
ORDER = np.random.default_rng(0).permutation(300)
IDS = {name: WORDS + int(place) for name, place in zip(COORDINATE_TOKENS, ORDER, strict=True)}


@settings(max_examples=8)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 1.0, 5.0]))
def test_the_median_against_a_loop(seed, scale):
    scores = torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * scale
    found = MedianOfAxis(IDS)(None, scores)
    shares, before = found.double().softmax(-1), scores.double().softmax(-1)
    assert torch.equal(found[:, :WORDS], scores[:, :WORDS]) and torch.equal(found[:, WORDS + 300 :], scores[:, 305:])
    for row in range(2):
        for axis in ("TEMP", "HEIGHT", "WIDTH"):
            ids = [IDS[f"<{axis}-{k:03d}>"] for k in range(100)]
            mass, total, median = float(before[row, ids].sum()), 0.0, None
            for k, token in enumerate(ids):
                total += float(before[row, token])
                if median is None and total >= mass / 2:
                    median = k
            left = [k for k, token in enumerate(ids) if torch.isfinite(found[row, token])]
            assert left == [median]
            assert float(shares[row, ids[median]]) == pytest.approx(mass, rel=1e-4), "the axis is as likely as before"


def test_two_peaks_are_answered_between_them_and_the_axis_wins_as_a_whole():
    scores = torch.full((1, VOCABULARY), -10.0)
    for k, logit in ((10, 2.0), (40, 1.9), (41, 1.9), (80, 1.8)):
        scores[0, IDS[f"<WIDTH-{k:03d}>"]] = logit
    scores[0, 0] = 2.5  # Likelier than each, less likely than all.
    assert int(MedianOfAxis(IDS)(None, scores).argmax()) == IDS["<WIDTH-040>"]
    scores[0, 0] = 9.0
    assert int(MedianOfAxis(IDS)(None, scores).argmax()) == 0


def test_an_axis_that_is_excluded_stays_so():
    scores = torch.randn(1, VOCABULARY)
    ids = [IDS[f"<TEMP-{k:03d}>"] for k in range(100)]
    scores[:, ids] = -torch.inf
    found = MedianOfAxis(IDS)(None, scores)
    assert bool((found[:, ids] == -torch.inf).all()) and not bool(found.isnan().any())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.lm_head.weight.normal_(std=1.0)
    return model


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True}, {"use_cache": False}])
def test_every_coordinate_that_is_generated_is_the_median_of_its_axis(model, options):
    torch.manual_seed(1)
    prompt = torch.tensor([[2, 3, 4], [3, 2, 2]])
    found = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, pad_token_id=1,
        logits_processor=chooser("median", IDS), **{"do_sample": False, **options},
    )  # fmt: skip
    with torch.no_grad():
        logits = model(found).logits
    seen = 0
    for row in range(2):
        for place in range(3, found.shape[1]):
            token = int(found[row, place])
            for axis in ("TEMP", "HEIGHT", "WIDTH"):
                ids = [IDS[f"<{axis}-{k:03d}>"] for k in range(100)]
                if token in ids:
                    shares = logits[row, place - 1, ids].softmax(0).cumsum(0)
                    at = ids.index(token)
                    assert shares[at] >= 0.5 - 1e-3 and (at == 0 or shares[at - 1] <= 0.5 + 1e-3)
                    seen += 1
    assert seen > 5


def test_the_likeliest_one_is_left_to_transformers():
    assert len(chooser("argmax", IDS)) == 0 and len(chooser("median", None)) == 0 and len(chooser("median", IDS)) == 1
