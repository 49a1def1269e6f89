"""Train small video-language models from scratch.

transformers' Auto classes know the models of this package after `import llava`, which loads none of them: data workers,
which need no model, would pay for it.
"""

from contextlib import suppress
from importlib import import_module
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

__version__ = "0.1.0"

_MODELS = "llava.model.language_model.causal_lm"


class _OnDemand(dict[str, Any]):
    """The configs that were registered with transformers; ours are made and registered when one is asked for."""

    def __contains__(self, model_type: object) -> bool:
        if not super().__contains__(model_type) and str(model_type).startswith("llava_"):
            with suppress(ValueError):  # There is no such language model: transformers says so.
                import_module(_MODELS).causal_lm_class(model_type)
        return super().__contains__(model_type)


CONFIG_MAPPING._extra_content = _OnDemand(CONFIG_MAPPING._extra_content)


def __getattr__(name: str) -> Any:
    if name.startswith("Llava"):
        return getattr(import_module(_MODELS), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
