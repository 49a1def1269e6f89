"""`LlavaGPT2ForCausalLM`: a GPT-2 that also takes video; the model that the project began with, under its own name."""

from __future__ import annotations

from transformers import GPT2Config, GPT2LMHeadModel

from llava.model.registration import register
from llava.model.vlm import CACHE, LlavaCausalLMOutput, VisionCausalLM, VisionConfig

__all__ = ["CACHE", "LlavaCausalLMOutput", "LlavaGPT2Config", "LlavaGPT2ForCausalLM"]


class LlavaGPT2Config(VisionConfig, GPT2Config):
    """A GPT-2 config that also describes the tower, projector, resampler and visual tokens."""

    model_type = "llava_gpt2"


class LlavaGPT2ForCausalLM(VisionCausalLM, GPT2LMHeadModel):
    """GPT-2 with a vision tower, a projector and a fast/slow resampler; text-only when the config names no tower."""

    config_class = LlavaGPT2Config
    row_std = 0.2  # Of a fresh word embedding plus a position, whose tables are small beside it.


register(LlavaGPT2Config, LlavaGPT2ForCausalLM)
