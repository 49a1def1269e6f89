"""The logits are those of the class, on architectures that do something after their head, or call it otherwise."""

from __future__ import annotations

import pytest
import torch

from tests.model.test_capabilities import tiny


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("granite", {"logits_scaling": 3.0, "embedding_multiplier": 2.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("gemma2", {"final_logit_softcapping": 0.1, "head_dim": 8}),
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 16, "dropout": 0.0}),
        ("mamba", {"state_size": 4}),
        ("bloom", {}),
        ("falcon", {"alibi": True}),
    ],
)
def test_logits_and_loss_are_those_of_the_class(kind, changes):
    model = tiny(kind, **changes)
    ids = torch.randint(2, 64, (2, 9), generator=torch.Generator().manual_seed(0))
    embeds = model.get_input_embeddings()(ids)
    own = super(type(model).__mro__[1], model).forward(inputs_embeds=embeds).logits
    found = model(ids, labels=ids)
    torch.testing.assert_close(found.logits, own)
    torch.testing.assert_close(found.loss, model.own_loss(ids, input_ids=ids), rtol=1e-5, atol=1e-6)
    trained = model.train()(ids, labels=ids)
    assert trained.logits is None
    torch.testing.assert_close(trained.loss, found.loss, rtol=1e-5, atol=1e-6)


def test_the_modules_stay_in_their_places():
    model = tiny("llama")
    before = dict(model.named_modules())
    model(torch.tensor([[2, 3, 4]]))
    assert dict(model.named_modules()) == before
    assert model.model is before["model"] and model.lm_head is before["lm_head"]
    with pytest.raises(RuntimeError):
        model.logits_of(model.states(torch.zeros(1, 2, 32)), torch.zeros(1, 2, 5))
    assert model.model is before["model"] and "model" not in vars(model)


@pytest.mark.parametrize(("kind", "changes"), [("llama", {}), ("gemma2", {"final_logit_softcapping": 0.1})])
def test_rows_of_the_head_that_are_padded_leave_the_logits_as_they_are(kind, changes):
    """What CUDA's kernels want; 60 entries are no multiple of 64."""
    model = tiny(kind, vocab_size=60, **changes)
    output = model.states(model.get_input_embeddings()(torch.tensor([[2, 3, 4]])))
    states = output.last_hidden_state[0]
    torch.testing.assert_close(model.logits_of(output, states, 64), model.logits_of(output, states))
