"""Train small video-language models from scratch; importing `llava` registers every `llava_<type>` with transformers."""

from llava.model.language_model.causal_lm import causal_lm_class
from llava.model.language_model.llava_gpt2 import LlavaGPT2Config, LlavaGPT2ForCausalLM

__version__ = "0.1.0"

__all__ = ["causal_lm_class", "LlavaGPT2Config", "LlavaGPT2ForCausalLM", "__version__"]
