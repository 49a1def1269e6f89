"""LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685) through `peft`: adapters inside the language model.

Every linear layer of the language model's body, and no other, is given a sum of two small matrices, `B A`, which train
while its own weight stays. They are put into the model in place: its class stays what it is, its state dict gains the
adapters, and `config.lora` says how to put them there again before weights are loaded. `B` begins at zero, so that the
first step's model is the one without adapters, and `A` has no gradient before `B` has moved.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from llava.errors import NotInstalled, UserError

BIASES = ("none", "all", "lora_only")
MISSING = 'LoRA needs peft, which is not installed: pip install -e ".[lora]"'
MERGE = "python -m llava.commands.merge_lora DIR OUT"
AWAKE_STD = 0.02


@dataclass(frozen=True)
class LoraSettings:
    """What the adapters of a model are, by LLaVA's names without `lora_`.

    Attributes:
        r: rank of every adapter.
        alpha: an adapter is multiplied by alpha / r.
        dropout: of what an adapter sees, while it trains.
        bias: which biases of the body train beside: none, all, or those of the adapted layers (lora_only).
    """

    r: int = 64
    alpha: int = 16
    dropout: float = 0.05
    bias: str = "none"

    def __str__(self) -> str:
        return f"--lora_r {self.r} --lora_alpha {self.alpha} --lora_dropout {self.dropout:g} --lora_bias {self.bias}"


def is_installed() -> bool:
    """Whether `peft` is there."""
    return importlib.util.find_spec("peft") is not None


def settings_of(model: Any) -> LoraSettings | None:
    """What a model's config says of its adapters; None where it has none.

    Raises:
        ValueError: for a config that says it in other words.
    """
    values = getattr(getattr(model, "config", None), "lora", None)
    if values is None:
        return None
    try:
        return LoraSettings(**values)
    except TypeError as error:
        known = ", ".join(asdict(LoraSettings()))
        raise UserError(f"lora in config.json is {values!r:.80}, expected {known}: was it written by hand?") from error


def linear_layers(model: Any) -> list[str]:
    """Names within the language model's body of the layers that can be adapted, GPT-2's Conv1D among them."""
    return [name for name, module in model.base_model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]


def add_adapters(model: Any, settings: LoraSettings) -> None:
    """Gives every linear layer of the body an adapter, drawn from torch's global generator, and notes it in the config.

    Which parameters train is decided by `llava.model.builder.set_trainable`.

    Raises:
        ImportError: without `peft`.
        ValueError: for a body without linear layers, or one in which others than those were adapted.
    """
    if not is_installed():
        raise NotInstalled(f"{MISSING}; or merge the adapters where it is installed ({MERGE})")
    from peft import LoraConfig, inject_adapter_in_model

    body, names = model.base_model, linear_layers(model)
    if not names:
        raise UserError(f"{type(model).__name__} has no linear layer that LoRA could adapt: train it in full")
    options = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        bias=settings.bias,
        target_modules=list(names),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in body.modules()),
    )
    inject_adapter_in_model(options, body)
    model.config.lora = asdict(settings)
    prefix = f"{model.base_model_prefix}."
    other = set(adapted_layers(model)) ^ {prefix + name for name in names}
    if other:
        raise ValueError(f"peft adapted other layers than it was asked to: {sorted(other)[:5]}; use another version")


def adapt(model: Any, asked: LoraSettings | None, where: str) -> None:
    """Gives a model the adapters that the flags ask for; one that has them keeps them.

    Args:
        where: the flag that names the model, for the message.

    Raises:
        ValueError: when the model has adapters that the flags do not describe.
    """
    has = settings_of(model)
    if has is None and asked is not None:
        add_adapters(model, asked)
    elif has != asked:
        raise UserError(
            f"{where} has LoRA adapters ({has}), and the flags ask for {asked or 'none'}: go on with --lora_enable "
            f"True {has}, or merge them first ({MERGE}) and name OUT"
        )


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The layers with an adapter, by name; none, without a look at `peft`, where the config names none."""
    if settings_of(model) is None:
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def adapter_parameters(model: Any) -> set[str] | None:
    """Names of the language model's parameters that train with LoRA; None for a model without adapters."""
    settings = settings_of(model)
    if settings is None:
        return None
    trains = set()
    for prefix, layer in adapted_layers(model).items():
        names = [name for name, _ in layer.named_parameters()]
        trains |= {f"{prefix}.{name}" for name in names if not name.startswith("base_layer.")}
        if settings.bias == "lora_only":
            trains |= {f"{prefix}.{name}" for name in names if name == "base_layer.bias"}
    if settings.bias == "all":
        prefix = model.base_model_prefix
        trains |= {f"{prefix}.{name}" for name, _ in model.base_model.named_parameters() if name.endswith(".bias")}
    return trains


@contextmanager
def awake(model: nn.Module) -> Iterator[None]:
    """While active, adapters that have learnt nothing yet have a small `B` instead of zero, so that a gradient reaches
    `A` as it does from the second step on.
    """
    weights = [b.weight for layer in adapted_layers(model).values() for b in layer.lora_B.values()]
    asleep = [weight for weight in weights if not bool(weight.any())]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in asleep:
            weight.copy_(torch.randn(weight.shape, generator=generator) * AWAKE_STD)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight in asleep:
                weight.zero_()


@torch.no_grad()
def merge_adapters(model: Any) -> int:
    """Adds the adapters to the weights that they adapt and takes them out; returns how many there were.

    Raises:
        ValueError: for a model without adapters, or adapters that are not finite.
    """
    layers = adapted_layers(model)
    if not layers:
        raise UserError("the model has no LoRA adapters: there is nothing to merge")
    for name, layer in layers.items():
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(model.base_model, "peft_config"):
        del model.base_model.peft_config
    model.config.lora = None
    return len(layers)
