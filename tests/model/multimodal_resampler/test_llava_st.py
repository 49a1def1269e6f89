"""Every weight of LLaVA-ST's packers has its place; their values are tested in test_stp.py."""

from __future__ import annotations

import torch

from llava.model.multimodal_resampler.llava_st import from_llava_st


def test_names_and_the_split_of_what_multihead_attention_joins():
    joined = torch.arange(12.0).view(6, 2)
    found = from_llava_st({
        "model.vision_resampler.token_packer_fast.devide_attention.attn.in_proj_weight": joined,
        "token_packer.devide_attention.to_v.2.bias": joined[0],
        "a.token_packer_slow.devide_attention.ln_k.weight": joined[1],
        "model.mm_projector.0.weight": joined,
        "token_packer.devide_attention.new.weight": joined[2],
    })  # fmt: skip
    assert set(found) == {
        "fast.query.weight", "fast.key.weight", "fast.value.weight", "base.value_mlp.2.bias", "slow.norm_key.weight",
        "base.new.weight",
    }  # fmt: skip
    for i, layer in enumerate(("query", "key", "value")):
        assert torch.equal(found[f"fast.{layer}.weight"], joined[2 * i : 2 * i + 2])
