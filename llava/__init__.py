"""Train small video-language models from scratch; importing `llava` registers `llava_gpt2` with transformers."""

from llava.model.language_model.llava_gpt2 import LlavaGPT2Config, LlavaGPT2ForCausalLM

__version__ = "0.1.0"

__all__ = ["LlavaGPT2Config", "LlavaGPT2ForCausalLM", "__version__"]
