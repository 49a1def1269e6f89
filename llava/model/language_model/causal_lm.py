"""The vision-language class of any causal language model of transformers, made from the class of that model.

    from llava.model.language_model.causal_lm import LlavaLlamaForCausalLM, LlavaLlamaConfig

`llava_<type>` is the model type of the class for `<type>`; class and config are called as those of transformers are,
with `Llava` in front and `ForCausalLM` behind. They are made when they are asked for, under their names here or through
transformers' Auto classes.
"""

from __future__ import annotations

import importlib
import re
from functools import cache
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llava.errors import UserError
from llava.model.registration import register
from llava.model.vlm import PREFIX, VisionCausalLM, VisionConfig

OWN_FILES = {"gpt2": "llava.model.language_model.llava_gpt2"}
"""Types whose class has a file of its own, because users import it from there."""
HEADS = re.compile(r"(ForCausalLM|LMHeadModel)$")
"""How transformers' causal language models are called."""
FROM_THE_SOURCE = ("_can_set_attn_implementation", "_can_set_experts_implementation")
"""What transformers reads in the source file of a class, which is not the file of ours."""


def language_type(model_type: str) -> str:
    """The type of the language model alone: `llava_llama` and `llama` -> `llama`."""
    return model_type.removeprefix(PREFIX)


def causal_lm_class(model_type: str) -> type[VisionCausalLM]:
    """The class for a model type, such as `llama` or `llava_llama`; its config is its `config_class`.

    Raises:
        ValueError: for a type that transformers has no causal language model for, or one that is more than that.
    """
    return _made(language_type(model_type))


def plain_config_class(model_type: str) -> type[PreTrainedConfig]:
    """The config of the language model alone that transformers has for a model type.

    Raises:
        ValueError: as `causal_lm_class`.
    """
    return CONFIG_MAPPING[language_type(causal_lm_class(model_type).config_class.model_type)]


@cache
def _made(kind: str) -> type[VisionCausalLM]:
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if not isinstance(name, str) or not HEADS.search(name):
        found = "which transformers has no causal language model for" if name is None else f"a {name}"
        raise UserError(
            f"model type {kind!r}, {found}: expected one with a plain causal language model, such as "
            f"{', '.join(('gpt2', 'llama', 'qwen3', 'gemma3_text', 'mistral'))} (a model that has its own vision is "
            "not given another: save its language model alone)"
        )
    if kind in OWN_FILES:
        return getattr(importlib.import_module(OWN_FILES[kind]), _public(name, "ForCausalLM"))
    base = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[kind]]
    base_config = base.config_class
    if base_config.model_type != kind:
        if issubclass(CONFIG_MAPPING[kind], base_config):
            return _made(base_config.model_type)  # Another name for the same architecture.
        raise UserError(
            f"model type {kind!r} is more than the {base.__name__} that transformers has for it: save its language "
            f"model alone, as model type {base_config.model_type!r}"
        )
    here = {"__module__": __name__}
    config = type(f"Llava{base_config.__name__}", (VisionConfig, base_config), {**here, "model_type": PREFIX + kind})
    config.__doc__ = f"`{base_config.__name__}` that also describes tower, projector, resampler and visual tokens."
    sources = {member: _asked_of(base, member) for member in FROM_THE_SOURCE if hasattr(base, member)}
    model = type(_public(name, "ForCausalLM"), (VisionCausalLM, base), {**here, "config_class": config, **sources})
    model.__doc__ = f"`{base.__name__}` that also takes video; text-only when the config names no tower."
    globals().update({config.__name__: config, model.__name__: model})
    register(config, model)
    return model


def _asked_of(base: type, member: str) -> Any:
    """A class method that gives what another class's says."""
    return classmethod(lambda cls: getattr(base, member)())


def _public(name: str, ending: str) -> str:
    """`GPT2LMHeadModel` -> `LlavaGPT2ForCausalLM`."""
    return f"Llava{HEADS.sub('', name)}{ending}"


def __getattr__(name: str) -> Any:
    """Makes `Llava<...>ForCausalLM` and `Llava<...>Config` when they are asked for."""
    if name.startswith("Llava") and name.endswith("ForCausalLM"):
        for kind, base in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
            if isinstance(base, str) and HEADS.search(base) and _public(base, "ForCausalLM") == name:
                try:
                    return causal_lm_class(kind)
                except ValueError:
                    continue
    elif name.startswith("Llava") and name.endswith("Config"):
        for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            if f"Llava{CONFIG_MAPPING_NAMES.get(kind)}" == name:
                return causal_lm_class(kind).config_class
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
