"""Ways to attend, beside the plain ones: loss and gradients of a training batch, row layouts included.

A way that these versions or this device do not have is named with the reason.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils import is_flash_attn_2_available

from benchmarks.gpu.equality import KERNELS, ROUNDED, Check, Result, collated, mixed_samples, passed, run_checks
from benchmarks.gpu.parts import NotHereError, Row, Setting, trying
from benchmarks.models import make_model, make_samples
from benchmarks.timing import Batch, to_device
from llava.data.packing import TrainingCollator
from llava.model.packed_attention import problem_of, take_way

PACKED_WAYS = ("varlen", "flex")
"""Of `--packed_attention`, those that need no mask of all pairs; the last one is compiled first, which takes long."""


def with_attention(model: Any, name: str) -> Any:
    """A copy of the model that attends by another implementation of transformers."""
    other = copy.deepcopy(model)
    other.set_attn_implementation(name)
    return other.train()


def by_kernels(setting: Setting, model: Any, batch: Batch, kernels: SDPBackend) -> Result:
    """A pass in which SDPA may take one kind of kernel alone."""
    if setting.device == "cpu":
        raise NotHereError("kernels of CUDA")
    try:
        with sdpa_kernel(kernels):
            return passed(model, batch, setting.autocast())
    except RuntimeError as error:
        if "No available kernel" in str(error):
            raise NotHereError(str(error)) from error
        raise


def by_way(setting: Setting, model: Any, samples: list[dict[str, Any]], way: str) -> tuple[Any, Batch]:
    """A copy of the model that takes all samples in one row, and the batch that it takes.

    Raises:
        NotHereError: where this device or torch has no such way.
    """
    if problem := problem_of(way, model, torch.device(setting.device), half=True):
        raise NotHereError(problem)
    other = copy.deepcopy(model)
    take_way(other, way)
    batch = TrainingCollator(0, model.visual_templates(), pack=True, flat=True)(samples)
    return other.train(), to_device(batch, setting.device)


def in_one_row(setting: Setting, model: Any, samples: list[dict[str, Any]], way: str) -> Result:
    """A pass of all samples in one row, in the device's 16 bits."""
    return passed(*by_way(setting, model, samples, way), setting.autocast())


def checks(setting: Setting) -> list[Check]:
    """Implementations, kernels and layouts."""
    size = setting.size
    model = make_model(size, device=setting.device).train()
    samples = mixed_samples(size, videos=2, texts=6)
    seen = collated(setting, model, make_samples(size, 2), pack=False)
    alone, packed = (collated(setting, model, samples, pack) for pack in (False, True))
    eager = with_attention(model, "eager")
    found = [
        Check("SDPA against eager", partial(passed, eager, seen), partial(passed, model, seen), ROUNDED),
        Check("SDPA against eager, packed", partial(passed, eager, packed), partial(passed, model, packed), ROUNDED),
    ]
    in_half = partial(passed, model, alone, setting.autocast())
    for name in ("flex_attention", "flash_attention_2"):
        for layout, batch in (("one a row", alone), ("packed", packed)):
            fast = partial(by_name, setting, model, name, batch)
            found.append(Check(f"{name} against SDPA, {layout}, 16 bits", in_half, fast, KERNELS))
    # Without vision, whose resampler has a mask that not all kernels take.
    words = make_model(size, vision=False, device=setting.device).train()
    text = collated(setting, words, make_samples(size, 2, vision=False), pack=False)
    for kernels in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        math, fast = (partial(by_kernels, setting, words, text, k) for k in (SDPBackend.MATH, kernels))
        name = f"SDPA by {kernels.name.lower()} against its plain product, 16 bits"
        found.append(Check(name, math, fast, KERNELS))
    one_by_one, together = (partial(segments, setting, by_varlen) for by_varlen in (False, True))
    found.append(Check("varlen_attn of torch against SDPA of each sample", one_by_one, together, KERNELS))
    for way in PACKED_WAYS:
        fast = partial(in_one_row, setting, model, samples, way)
        name = f"samples in one row by {way} against one sample a row, 16 bits"
        found.append(Check(name, in_half, fast, KERNELS))
    return found


def by_name(setting: Setting, model: Any, name: str, batch: Batch) -> Result:
    """A pass by an implementation of transformers that not every machine has."""
    if name == "flex_attention" and setting.device == "cpu":
        raise NotHereError("FlexAttention has no backward pass on CPU")
    if name == "flex_attention" and not model._supports_flex_attn:
        raise NotHereError(f"transformers {transformers.__version__} has none for {type(model).__name__}")
    if name == "flash_attention_2" and not is_flash_attn_2_available():
        raise NotHereError("the package flash_attn is not installed")
    return passed(with_attention(model, name), batch, setting.autocast())


def segments(setting: Setting, by_varlen: bool) -> Result:
    """A sum over the causal attention of three samples, and its gradients."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        raise NotHereError(f"torch {torch.__version__} has no torch.nn.attention.varlen")
    if setting.device == "cpu":
        raise NotHereError("kernels of CUDA")
    if torch.cuda.get_device_capability() < (8, 0):
        raise NotHereError("its kernels need compute capability 8.0")
    lengths, heads, width = (375, 17, 130), 12, 64
    generator = torch.Generator("cuda").manual_seed(0)
    rows = [
        torch.randn(sum(lengths), heads, width, device="cuda", dtype=torch.bfloat16, generator=generator)
        for _ in range(4)
    ]
    weight = rows.pop()
    for row in rows:
        row.requires_grad_()
    if by_varlen:
        attend = importlib.import_module("torch.nn.attention.varlen").varlen_attn
        bounds = torch.tensor([0, 375, 392, 522], device="cuda", dtype=torch.int32)
        # Causal has been a flag, and since torch 2.11 is a window that reaches back alone.
        causal = {"is_causal": True} if "is_causal" in attend.__annotations__ else {"window_size": (-1, 0)}
        found = attend(*rows, bounds, bounds, max(lengths), max(lengths), **causal)
    else:
        parts = zip(*(row.split(lengths) for row in rows), strict=True)
        attend = partial(torch.nn.functional.scaled_dot_product_attention, is_causal=True)
        found = torch.cat([attend(*(x.transpose(0, 1)[None] for x in part))[0].transpose(0, 1) for part in parts])
    loss = (found * weight).float().square().sum()
    loss.backward()
    return loss.detach(), {name: row.grad.float() for name, row in zip("qkv", rows, strict=True)}


def attention(setting: Setting) -> Iterator[Row]:
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")
    yield from trying("attention", lambda: run_checks(checks(setting)))
