"""Our classes in transformers' Auto classes, so that a checkpoint opens as theirs do after `import llava`."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from llava.model.processor import VisionCausalLMProcessor


def register(config: Any, model: Any) -> None:
    """Makes a config class, its model class and the processor known.

    Not where this is code that came with a checkpoint: the next checkpoint may bring another version of it.
    """
    if not __name__.startswith("llava."):
        return
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForCausalLM.register(config, model, exist_ok=True)
    AutoModelForImageTextToText.register(config, model, exist_ok=True)
    AutoProcessor.register(config, VisionCausalLMProcessor, exist_ok=True)
