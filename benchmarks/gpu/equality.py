"""Fast paths beside the plain ones that they stand for: the same loss, the same gradients.

Whoever adds a path adds a `Check` to `checks`, and what it needs; where that is not there, the page says so.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.clock import no_waiting
from benchmarks.gpu.parts import NotHereError, Row, Setting, compared, not_here, trying
from benchmarks.models import Size, make_model, make_samples, make_texts
from benchmarks.timing import Batch, full_logits, to_device
from llava.data.packing import TrainingCollator
from llava.model import loss as losses
from llava.model import vlm

Result = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""The loss, and the gradient of each parameter by name."""

ROUNDED = 1e-4
"""Relative error of the same sums in another order, in fp32, through many layers."""
HALF = {torch.bfloat16: 0.2, torch.float16: 0.05}
"""Relative error of the gradients of a part in 16 bits against fp32. Rounding moves maxima of the resampler's pooling
to other patches, which is seen in the projector: 0.06 and 0.02 there on 12 x 128 on a CPU; in the blocks far less.
"""
KERNELS = 0.1
"""The same of two ways that both compute in 16 bits."""
LOSS_SCALE = 2.0**10
"""fp16 has no gradients below 6e-8."""


@dataclass(frozen=True)
class Check:
    """A fast path, which raises `NotHereError` where it cannot run; `allowed` bounds the relative error of loss and
    gradients.
    """

    name: str
    plain: Callable[[], Result]
    fast: Callable[[], Result]
    allowed: float = ROUNDED


def passed(model: Any, batch: Batch, context: Any = None, scale: float = 1.0) -> Result:
    """Loss and gradients of a batch."""
    model.zero_grad(set_to_none=True)
    with context or contextlib.nullcontext():
        loss = model(**batch).loss
    (scale * loss).backward()
    found = {n: p.grad.float() / scale for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.detach().float(), found


def error_of(plain: Result, fast: Result) -> tuple[float, str]:
    """The largest relative error, of the loss or of the gradients of a part of the model, and where it is: each part by
    itself, since the gradients of the embeddings would outweigh a wrong resampler.

    Raises:
        ValueError: where another set of parameters has gradients, or one is not finite.
    """
    if plain[1].keys() != fast[1].keys():
        raise ValueError(f"gradients on one side alone: {sorted(plain[1].keys() ^ fast[1].keys())[:4]}")
    for loss, gradients in (plain, fast):
        bad = [n for n, g in gradients.items() if not bool(torch.isfinite(g).all())]
        if bad or not bool(torch.isfinite(loss)):
            raise ValueError(f"not finite: {', '.join(bad[:4]) or 'the loss'}")
    sums: dict[str, list[float]] = {}
    for name, gradient in plain[1].items():
        total = sums.setdefault(".".join(name.split(".")[:2]), [0.0, 0.0])
        total[0] += float((gradient - fast[1][name]).double().square().sum())
        total[1] += float(gradient.double().square().sum())
    errors = {part: (off / size) ** 0.5 if size else (math.inf if off else 0.0) for part, (off, size) in sums.items()}
    worst = max(errors, key=lambda part: errors[part])
    loss = abs(float(fast[0] - plain[0])) / abs(float(plain[0]))
    return max(loss, errors[worst]), f"loss {loss:.1e}, gradients {errors[worst]:.1e} in {worst}"


def mixed_samples(size: Size, videos: int, texts: int) -> list[dict[str, Any]]:
    """Videos with their words, and texts of several lengths, which packing brings together."""
    return make_samples(size, videos) + [
        t | {"sample_id": f"t{t['sample_id']}"} for t in make_texts(size, texts, "short")
    ]


def collated(setting: Setting, model: Any, samples: list[dict[str, Any]], pack: bool) -> Batch:
    batch = TrainingCollator(0, model.visual_templates(), pack)(samples)
    if pack and "position_ids" not in batch:
        raise ValueError("no samples of this batch share a row: it shows nothing about packing")
    return to_device(batch, setting.device)


def with_loss(function: Any, work: Callable[[], Result]) -> Result:
    """`work` with another function in the place of the model's loss."""
    before, vlm.supervised_loss = vlm.supervised_loss, function
    try:
        return work()
    finally:
        vlm.supervised_loss = before


def in_pieces(work: Callable[[], Result], logits: int) -> Result:
    """`work` with at most so many logits in memory at once."""
    before, losses.CHUNK_LOGITS = losses.CHUNK_LOGITS, logits
    try:
        return work()
    finally:
        losses.CHUNK_LOGITS = before


def checkpointed(model: Any, batch: Batch) -> Result:
    other = copy.deepcopy(model)
    # The second is the name of old, which newer transformers warns of.
    (getattr(other, "activation_checkpointing_enable", None) or other.gradient_checkpointing_enable)()
    return passed(other.train(), batch)


def accumulated(model: Any, halves: list[Batch], items: int) -> Result:
    """The halves of a batch one after another, each divided by the words of both."""
    model.zero_grad(set_to_none=True)
    parts = [model(**half, num_items_in_batch=torch.tensor(items, device=model.device)).loss for half in halves]
    total = torch.stack(parts).sum()
    total.backward()
    found = {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return total.detach(), found


def checks(setting: Setting) -> list[Check]:
    """What is looked at, in fp32 unless a name says otherwise."""
    size = setting.size
    model = make_model(size, device=setting.device).train()
    samples = mixed_samples(size, videos=2, texts=6)
    packed, alone = (collated(setting, model, samples, pack) for pack in (True, False))
    seen = collated(setting, model, make_samples(size, 2), pack=False)
    halves = [collated(setting, model, part, pack=False) for part in (samples[:4], samples[4:])]
    words = sum(len(half["supervised_positions"]) for half in halves)
    unknown = {
        k: v for k, v in alone.items() if k not in ("video_positions", "image_positions", "supervised_positions")
    }
    plain = partial(passed, model, seen)
    found = [
        Check("packed against one sample a row", partial(passed, model, alone), partial(passed, model, packed)),
        Check("logits where there are labels against all", partial(with_loss, full_logits, plain), plain),
        Check("logits in pieces against at once", plain, partial(in_pieces, plain, 4 * size.vocabulary)),
        Check("positions from the collator against looked up", partial(passed, model, unknown),
              partial(passed, model, alone)),
        Check("a batch in two halves against at once", partial(passed, model, alone),
              partial(accumulated, model, halves, words)),
        Check("activations computed again against kept", plain, partial(checkpointed, model, seen)),
        Check("bf16 against fp32", plain, partial(in_bf16, setting, model, seen), HALF[torch.bfloat16]),
        Check("fp16 against fp32", plain, partial(passed, model, seen, setting.autocast(torch.float16), LOSS_SCALE),
              HALF[torch.float16]),
        Check("TF32 against fp32", plain, partial(tf32, setting, model, seen), HALF[torch.float16]),
        Check("packed against one sample a row, 16 bits", partial(passed, model, alone, setting.autocast()),
              partial(passed, model, packed, setting.autocast()), KERNELS),
    ]  # fmt: skip
    return found


def in_bf16(setting: Setting, model: Any, batch: Batch) -> Result:
    if setting.half != torch.bfloat16:
        raise NotHereError("the device has no bf16")
    return passed(model, batch, setting.autocast())


def tf32(setting: Setting, model: Any, batch: Batch) -> Result:
    if setting.device == "cpu" or torch.cuda.get_device_capability() < (8, 0):
        raise NotHereError("not in this device's hardware")
    torch.set_float32_matmul_precision("high")
    try:
        return passed(model, batch)
    finally:
        torch.set_float32_matmul_precision("highest")


def run_checks(found: list[Check]) -> Iterator[Row]:
    """A row for each; one that raises is a row, too, and the others go on."""

    def look(check: Check) -> Iterator[Row]:
        fast = check.fast()
        error, note = error_of(check.plain(), fast)
        yield compared(check.name, error, check.allowed, note)

    for check in found:
        yield from trying(check.name, partial(look, check))


def equality(setting: Setting) -> Iterator[Row]:
    """All of `checks`, then what is no pair of passes: steps of optimisers, cached features, waiting for the device."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield from run_checks(checks(setting))
    yield from trying("a step waits for the device", lambda: waiting(setting))


def waiting(setting: Setting) -> Iterator[Row]:
    """Forward and backward, packed and not: torch raises where the host waits."""
    if setting.device == "cpu":
        yield not_here("no wait for the device in a step", "there is none; the tests run a step on `meta`")
        return
    model = make_model(setting.size, device=setting.device).train()
    for pack in (True, False):
        batch = collated(setting, model, mixed_samples(setting.size, 2, 6), pack)
        for name, context in (("fp32", contextlib.nullcontext()), ("16 bits", setting.autocast())):
            passed(model, batch, context)
            model.zero_grad(set_to_none=True)
            items = torch.tensor(len(batch["supervised_positions"]), device=setting.device)
            with no_waiting(setting.device):
                with context:
                    loss = model(**batch, num_items_in_batch=items).loss
                loss.backward()
            yield compared(f"no wait for the device in a step, {'packed' if pack else 'one a row'}, {name}", 0.0, 0.0)
