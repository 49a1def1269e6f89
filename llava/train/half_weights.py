"""Weights in half precision, made once an optimiser step, all at once.

Autocast makes them weight by weight, again in every pass of an accumulated step, and turns each gradient back by
itself: two kernels for every matrix and bias. Here one operation makes all of them, and one turns all gradients back;
the values are the same bit for bit, and what autocast leaves in fp32 (norms, embeddings) stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

CASTING = (nn.Linear, Conv1D)
"""Modules whose weights autocast computes with in half precision, and that use them in no other way."""
ADAPTED = ("lora_", "base_layer")
"""In the names of modules whose weights an adapter computes with besides (DoRA takes their norms)."""


class _Cast(torch.autograd.Function):
    """Tensors in another type, and their gradients in the first one's."""

    @staticmethod
    def forward(ctx: Any, kind: torch.dtype, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.kind = weights[0].dtype
        return tuple(_as(kind, weights))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        found = iter(_as(ctx.kind, [grad for grad in grads if grad is not None]))
        return None, *(None if grad is None else next(found) for grad in grads)


def _as(kind: torch.dtype, tensors: Any) -> list[torch.Tensor]:
    found = [torch.empty_like(tensor, dtype=kind) for tensor in tensors]
    if found:
        torch._foreach_copy_(found, list(tensors))
    return found


class HalfWeights:
    """The matrices and biases of a model's linear layers, in half precision while a pass runs.

    Args:
        model: with the parameters that train already chosen; frozen ones are left to autocast.
        kind: bf16 or fp16, as autocast has it.
    """

    def __init__(self, model: nn.Module, kind: torch.dtype) -> None:
        self.model, self.kind = model, kind
        self.places = self._found()
        self.made: tuple[torch.Tensor, ...] | None = None
        self.versions: tuple[int, ...] = ()

    def _found(self) -> list[tuple[nn.Module, str, nn.Parameter]]:
        """Modules, and the names and weights that are theirs."""
        tables = {id(m.weight) for m in self.model.modules() if isinstance(m, nn.Embedding)}
        return [
            (module, name, weight)
            for path, module in self.model.named_modules()
            if type(module) in CASTING and not any(part in path for part in ADAPTED)
            for name, weight in module._parameters.items()
            if weight is not None and weight.requires_grad and weight.dtype == torch.float32
            and id(weight) not in tables  # A tied head's, which embeddings are looked up in.
        ]  # fmt: skip

    def forget(self) -> None:
        """The weights are about to change, or have changed."""
        self.made = None

    @contextmanager
    def used(self) -> Iterator[None]:
        """The modules compute with the half weights, made anew where weights were written to since."""
        if any(module._parameters.get(name) is not weight for module, name, weight in self.places):
            self.places, self.made = self._found(), None  # Others were put in their place.
        versions = tuple(weight._version for _, _, weight in self.places)
        if self.places and (self.made is None or versions != self.versions):
            self.made, self.versions = _Cast.apply(self.kind, *(weight for _, _, weight in self.places)), versions
        try:
            for (module, name, _), half in zip(self.places, self.made or (), strict=True):
                module._parameters[name] = half  # type: ignore[assignment]
            yield
        finally:
            for module, name, weight in self.places:
                module._parameters[name] = weight


def half_weights(model: nn.Module, args: Any, spread: bool) -> HalfWeights | None:
    """Weights cast once a step, where autocast alone would cast them: not where weights are `spread` over processes,
    gradients are sent while others are still computed, activations are computed again, or a compiler fuses the casts.
    """
    if not (args.bf16 or args.fp16) or spread or args.world_size > 1:
        return None
    if args.gradient_checkpointing or args.torch_compile:
        return None
    return HalfWeights(model, torch.bfloat16 if args.bf16 else torch.float16)
