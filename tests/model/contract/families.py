"""The families that the contract is asked of: a name in transformers, and what its config needs beside small sizes.

A new family is a line here.
"""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt_neox": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 16},
    "llama": {},
    "mistral": {"sliding_window": None},
    "mixtral": {"num_local_experts": 4},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "gemma2": {"final_logit_softcapping": 0.1, "query_pre_attn_scalar": 8},
    "gemma3_text": {"final_logit_softcapping": 0.1, "query_pre_attn_scalar": 8},
    "smollm3": {},
    "olmo2": {},
    "lfm2": {
        "layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "block_auto_adjust_ff_dim": False,
        "initializer_range": 0.1,
    },
}  # fmt: skip
"""The caps are small, so that they bend the small logits of fresh weights as they bend those of trained ones, and the
weights of convolutions are large, so that these mix words as trained ones do."""
LEAKING = {"opt", "lfm2"}
"""Those in which samples of a row see each other, however positions restart."""


def tiny_config(family: str, vocabulary: int, eos: int = 0, **changes: Any) -> PretrainedConfig:
    """A config of two layers of width 32 and 512 positions, without dropout."""
    config = CONFIG_MAPPING[family](
        **{
            "vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64, "max_position_embeddings": 512,
            "bos_token_id": eos, "eos_token_id": eos, "pad_token_id": None,
        } | FAMILIES[family] | changes
    )  # fmt: skip
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    return config
