"""Train small video-language models from scratch.

transformers' Auto classes know the models of this package after `import llava`, which loads none of them: data workers,
which need no model, would pay for it.
"""

from importlib import import_module
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

__version__ = "0.1.0"

_MODELS = "llava.model.language_model.llava_gpt2"


class _OnDemand(dict[str, Any]):
    """The configs that were registered with transformers; ours register themselves when one is asked for."""

    def __contains__(self, model_type: object) -> bool:
        if not super().__contains__(model_type) and str(model_type).startswith("llava_"):
            import_module(_MODELS)
        return super().__contains__(model_type)


CONFIG_MAPPING._extra_content = _OnDemand(CONFIG_MAPPING._extra_content)


def __getattr__(name: str) -> Any:
    if name in ("LlavaGPT2Config", "LlavaGPT2ForCausalLM"):
        return getattr(import_module(_MODELS), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
