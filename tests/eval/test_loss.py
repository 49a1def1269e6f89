"""Losses from logits are those that a model trains on, also of numbers that two coordinates share."""

from __future__ import annotations

import pytest
import torch

from llava.constants import IGNORE_INDEX
from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.coordinates import CoordinateTokens
from llava.data.prompt import pad_token_id
from llava.eval.loss import SUMS, coordinate_targets, set_metrics, sums_of_samples, token_losses
from llava.model.builder import add_coordinate_tokens

TEXTS = {
    "Il gatto {<TEMP-OUTPUT><TEMP-OUTPUT>}": (0.1234, 0.9),
    "In [<WIDTH-INPUT><HEIGHT-INPUT>] un gatto <TEMP-OUTPUT>": (0.3, 0.4, 1.0),
    "Un gatto nero": (),
}


@pytest.fixture
def spoken(build, tokenizer):
    """A model with coordinates, and a batch of `TEXTS`."""
    model = build(vision=False)
    add_coordinate_tokens(tokenizer, model)
    tokens = CoordinateTokens.of(tokenizer)
    samples = []
    for text, numbers in TEXTS.items():
        ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
        labels, placed = tokens.place(ids, ids.clone(), numbers)
        samples.append({"sample_id": text, "input_ids": ids, "labels": labels, "coordinates": placed})
    return model, DataCollatorForSupervisedDataset(pad_token_id(tokenizer))(samples)


def test_losses_from_logits_are_the_models_own(spoken):
    model, batch = spoken
    expected = model(**batch).token_losses
    assert torch.allclose(token_losses(model, batch), expected, atol=1e-5)
    hard = dict(batch)
    hard["labels"] = batch["labels"].clone()
    nearest = batch["coordinates"].clone()
    nearest[nearest >= 0] = (nearest[nearest >= 0] * 99).round() / 99
    hard["coordinates"] = nearest
    assert not torch.allclose(token_losses(model, hard), expected, atol=1e-3), "the share of the neighbour counts"


def test_coordinates_have_a_loss_of_their_own(spoken):
    model, batch = spoken
    numbers = coordinate_targets(model, batch["labels"])
    assert numbers.sum(dim=1).tolist() == [2, 1, 0]
    sums = sums_of_samples(model, batch, ()).sum(0).tolist()
    found = set_metrics(sums, 3, "eval")
    losses = token_losses(model, batch)
    assert found["eval_coordinate_loss"] == pytest.approx(float(losses[numbers].mean()), rel=1e-5)
    assert found["eval_coordinate_tokens"] == 3 and found["eval_samples"] == 3
    assert found["eval_tokens"] == int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
    assert found["eval_loss"] == pytest.approx(float(losses.sum()) / found["eval_tokens"], rel=1e-5)


def test_what_a_set_does_not_have_is_left_out(build, tokenizer):
    model = build(vision=False)
    assert not coordinate_targets(model, torch.arange(12)[None]).any()
    found = set_metrics([6.0, 3, 0, 0, 0, 0, 0], 2, "eval")
    assert found == {"eval_loss": 2, "eval_nats_per_caption": 3, "eval_tokens": 3, "eval_samples": 2}
    assert len(SUMS) == 7
