"""What is asked of the modules of a language model, on architectures that differ in it."""

from __future__ import annotations

import sys

import pytest
import torch

from llava.model.capabilities import (
    attention_for,
    embedding_names,
    embedding_std,
    keeps_samples_apart,
    max_positions,
)
from llava.model.language_model.causal_lm import causal_lm_class

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 1}  # fmt: skip
CONVOLUTIONS = {"layer_types": ["conv", "full_attention"], "num_key_value_heads": 4, "intermediate_size": 64,
                "block_auto_adjust_ff_dim": False, "conv_L_cache": 3}  # fmt: skip


def tiny(kind: str, **changes):
    torch.manual_seed(0)
    cls = causal_lm_class(kind)
    return cls(cls.config_class(**SMALL | changes)).eval()


@pytest.mark.parametrize(
    ("kind", "changes", "apart"),
    [("llama", {}, True), ("gptj", {"rotary_dim": 4}, True), ("bloom", {}, False), ("mpt", {}, False),
     ("mamba", {"state_size": 4}, False), ("opt", {"ffn_dim": 64}, False), ("lfm2", CONVOLUTIONS, False),
     ("lfm2", CONVOLUTIONS | {"conv_L_cache": 2}, False), ("lfm2", CONVOLUTIONS | {"conv_L_cache": 1}, True)],
)  # fmt: skip
def test_who_keeps_samples_of_a_row_apart(kind, changes, apart):
    model = tiny(kind, **changes).train()
    assert keeps_samples_apart(model) is apart
    assert model.training


def test_positions_without_a_bound_have_none():
    assert max_positions(tiny("bloom")) == sys.maxsize
    assert max_positions(tiny("llama", max_position_embeddings=77)) == 77
    assert max_positions(tiny("gpt2", n_positions=78)) == 78


def test_the_spread_of_embeddings_is_that_after_their_modules_scale():
    assert embedding_std(tiny("llama")) == pytest.approx(0.02, rel=0.1)
    assert embedding_std(tiny("gemma", head_dim=8)) == pytest.approx(0.02 * 32**0.5, rel=0.1)


def test_embeddings_are_found_wherever_they_lie():
    assert embedding_names(tiny("gpt2")) == ("transformer.wte.", "transformer.wpe.")
    assert embedding_names(tiny("gpt_neox")) == ("gpt_neox.embed_in.",)
    assert embedding_names(tiny("opt", ffn_dim=64)) == ("model.decoder.embed_tokens.", "model.decoder.embed_positions.")


def test_attention_is_eager_where_there_is_no_sdpa():
    assert attention_for(causal_lm_class("gemma2"), "sdpa") == "eager"
    assert attention_for(causal_lm_class("gemma2"), "flash_attention_2") == "flash_attention_2"
    assert attention_for(causal_lm_class("llama"), "sdpa") == "sdpa"
