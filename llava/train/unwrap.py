"""A model out of what accelerate wraps it in, without a library that is not used."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel


def spare_deepspeed(accelerator: Any) -> None:
    """Has an accelerator give a model that nothing wraps as it is: it imports DeepSpeed, which takes more than a second
    of a CPU, to see whether the model is one of its engines.
    """
    if getattr(accelerator.state, "deepspeed_plugin", None) is not None:
        return
    unwrap = accelerator.unwrap_model

    def unwrap_model(model: Any, keep_fp32_wrapper: bool = True, keep_torch_compile: bool = True) -> Any:
        if keep_fp32_wrapper and isinstance(model, PreTrainedModel) and "_orig_mod" not in model.__dict__:
            return model
        return unwrap(model, keep_fp32_wrapper, keep_torch_compile)

    accelerator.unwrap_model = unwrap_model
