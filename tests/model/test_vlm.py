"""The logits are those of the class, on architectures that do something after their head, or call it otherwise."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from llava.model.vlm import TOWER_PREFIX
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


def test_a_class_whose_head_lies_within_another_module_is_refused():
    with pytest.raises(ValueError, match="LlavaBertForCausalLM: the class has no body .* or no head of its own"):
        tiny("bert", is_decoder=True)


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


@pytest.mark.parametrize("labelled", [False, True])
def test_outputs_come_as_a_tuple_where_that_is_asked_for(build, tokenizer, labelled):
    model = build(vision=False)
    inputs = {"input_ids": torch.tensor([tokenizer("Un gatto nero")["input_ids"]])}
    inputs |= {"labels": inputs["input_ids"]} if labelled else {}
    named, plain = model(**inputs), model(**inputs, return_dict=False)
    assert type(plain) is tuple and torch.equal(plain[0], named.loss if labelled else named.logits)
    model.config.return_dict = False
    assert torch.equal(model(**inputs)[0], plain[0]) and torch.equal(model(**inputs, return_dict=True)[0], plain[0])


@pytest.mark.parametrize("storage", ["reference", "checkpoint"])
def test_the_attention_that_is_asked_for_is_the_towers_too(build, tmp_path, storage):
    model = build(storage=storage)
    model.save_pretrained(tmp_path)

    def both(one):
        return one.config._attn_implementation, one.vision_tower.vision_model.config._attn_implementation

    assert both(type(model).from_pretrained(tmp_path)) == ("sdpa", "sdpa")
    eager = type(model).from_pretrained(tmp_path, attn_implementation="eager")
    assert both(eager) == ("eager", "eager")
    eager.set_attn_implementation("sdpa")
    assert both(eager) == ("sdpa", "sdpa")
    config = type(model.config).from_pretrained(tmp_path, attn_implementation="eager")
    assert both(type(model).from_pretrained(tmp_path, config=config)) == ("eager", "eager")


def test_a_tower_that_is_stored_later_has_the_names_of_its_own_checkpoint(build, assets, tmp_path):
    """Those are the same in all versions of transformers, which call the weights otherwise in memory."""
    model = build()
    model.save_pretrained(tmp_path / "first")
    loaded = type(model).from_pretrained(tmp_path / "first")
    loaded.config.mm_vision_tower_storage = "checkpoint"
    loaded.save_pretrained(tmp_path / "second")
    names = load_file(tmp_path / "second" / "model.safetensors")
    stored = {k.removeprefix(f"{TOWER_PREFIX}vision_model.") for k in names if k.startswith(TOWER_PREFIX)}
    assert stored == set(load_file(assets.tower / "model.safetensors"))
    again = type(model).from_pretrained(tmp_path / "second")
    assert again.vision_tower.checksum() == loaded.vision_tower.checksum()
