"""The same step in two ways: packing, compiling, types, logits, optimisers, features from the cache or in the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from statistics import median
from typing import Any

import torch
from transformers import Dinov2Config, Dinov2Model

from benchmarks import training
from benchmarks.gpu.attention import PACKED_WAYS, by_way
from benchmarks.gpu.clock import medians, repeated, seconds_of
from benchmarks.gpu.equality import collated, mixed_samples
from benchmarks.gpu.parts import Row, Setting, measured, not_here, paired, trying
from benchmarks.gpu.states import in_loop, muon_adamw, pixels_of
from benchmarks.gpu.step import Step, forget, host_batch, timed_step
from benchmarks.models import Size, make_model
from benchmarks.timing import Batch, full_logits, now, pass_of, peak_memory, to_device
from llava.model import vlm
from llava.model.multimodal_encoder.dinov2_encoder import DINOv2VisionTower

MODES = ("default", "reduce-overhead")
"""Of `torch.compile`; the second replays CUDA graphs."""
FEW = 64
"""Samples of a batch where the plain way needs much memory or time; for fewer, an H100 waits for the host."""
TEXTS = 4096, 1024
"""Short texts that are packed, and how many of them are a batch, so that the device has as much to do."""
TURNS = 3
"""Repeats of what takes several batches."""
TOWER_LAYERS = 24


def packing(setting: Setting) -> Iterator[Row]:
    """Texts of several lengths, padded, grouped by length, and in shared rows."""
    number, per_batch = (8, 4) if setting.tiny else TEXTS
    rows = training.packing(
        min(setting.repeats, TURNS), setting.device, setting.size, number, per_batch, setting.autocast
    )
    for row in rows:
        note = f"{row['note']}; pairs from {row['lowest']:.3g} to {row['highest']:.3g}"
        yield paired(row["measure"], row["plain"], row["fast"], "s", note)


def in_one_row(setting: Setting, way: str) -> Iterator[Row]:
    """Videos and texts in several rows with masks, and all in one row by a way that needs none."""
    model = make_model(setting.size, device=setting.device).train()
    number = max(2, min(FEW, setting.batch // 2))
    samples = mixed_samples(setting.size, videos=number, texts=3 * number)
    masked = collated(setting, model, samples, pack=True)

    def time(model: Any, batch: Batch) -> float:
        work = partial(pass_of, model, [batch], setting.autocast)
        return 1000 * median(seconds_of(work, setting.repeats, setting.seconds / 20))

    other, flat = by_way(setting, model, samples, way)
    note = f"forward and backward of {number} videos and {3 * number} texts"
    yield paired(f"packed with masks against one row by {way}", time(model, masked), time(other, flat), "ms", note)


def cast_once(setting: Setting) -> Iterator[Row]:
    """Weights cast to 16 bits by autocast in each pass, and all at once."""
    number = min(FEW, setting.batch)
    found, _ = timed_step(setting, number, setting.seconds / 20)
    plain, _ = timed_step(setting, number, setting.seconds / 20, context=setting.autocast)
    name = "weights cast by autocast against once a step"
    yield paired(name, 1000 * plain["step"], 1000 * found["step"], "ms", f"step of batch {number}")
    yield paired(f"{name}: the host asks", 1000 * plain["host"], 1000 * found["host"], "ms", f"step of batch {number}")


def compiling(setting: Setting) -> Iterator[Row]:
    """`torch.compile` of the model, in its modes; on CPU without a compiler, to see that it is traced."""
    eager, _ = timed_step(setting, setting.batch, setting.seconds / 12)
    forget(setting.device)
    for mode in MODES if setting.device == "cuda" else MODES[:1]:
        yield from trying(f"torch.compile, {mode}", partial(compiled_in, setting, mode, eager["step"]))
        forget(setting.device)


def compiled_in(setting: Setting, mode: str, eager: float) -> Iterator[Row]:
    options: dict[str, Any] = {"mode": mode} if setting.device == "cuda" else {"backend": "eager"}
    torch.compiler.reset()
    step = Step(setting, setting.batch, compiled=lambda model: torch.compile(model, **options))
    start = now()
    for _ in range(3):
        step()
    warm_up = now() - start
    found = medians(repeated(step, setting.repeats, setting.seconds / 12))["step"]
    pays = f"pays after {warm_up / (eager - found):.0f} steps" if found < eager else "never pays"
    note = f"step of batch {setting.batch}; {warm_up:.3g} s until the third step: {pays}"
    if setting.device == "cpu":
        note = "traced and not compiled: of no meaning as a time"
    yield paired(f"eager against torch.compile, {mode}", 1000 * eager, 1000 * found, "ms", note)


def precision(setting: Setting) -> Iterator[Row]:
    """fp32 and, where there is one, TF32, against 16 bits; the same few samples."""
    number = min(FEW, setting.batch)
    half, _ = timed_step(setting, number, setting.seconds / 12)
    kinds = {"fp32": "highest", "TF32": "high"}
    for name, products in kinds.items():
        if name == "TF32" and (setting.device == "cpu" or torch.cuda.get_device_capability() < (8, 0)):
            yield not_here("TF32 against 16 bits", "not in this device's hardware")
            continue
        forget(setting.device)
        torch.set_float32_matmul_precision(products)
        found, _ = timed_step(setting, number, setting.seconds / 12, context=nullcontext)
        note = f"step of batch {number}"
        yield paired(f"{name} against 16 bits", 1000 * found["step"], 1000 * half["step"], "ms", note)
    torch.set_float32_matmul_precision("highest")


def logits(setting: Setting) -> Iterator[Row]:
    """Logits of every position against those where there are labels: time and memory of a pass."""
    number = min(FEW, setting.batch)
    model = make_model(setting.size, device=setting.device).train()
    batch = to_device(host_batch(setting.size, number, model), setting.device)
    work = partial(pass_of, model, [batch], setting.autocast)
    ours, found = vlm.supervised_loss, {}
    try:
        for name, loss in (("all", full_logits), ("ours", ours)):
            vlm.supervised_loss = loss
            times = seconds_of(work, setting.repeats, setting.seconds / 12)
            found[name] = median(times), peak_memory(setting.device, work)
    finally:
        vlm.supervised_loss = ours
    note = f"forward and backward of batch {number}"
    name = "logits everywhere against where there are labels"
    yield paired(name, 1000 * found["all"][0], 1000 * found["ours"][0], "ms", note)
    peaks = [found[side][1] / 2**20 for side in ("all", "ours")]
    if min(peaks) > 0:
        yield paired(f"{name}, peak memory", *peaks, "MiB", f"{note}, beside the model")
    else:
        yield not_here(f"{name}, peak memory", "too small to be seen")


def optimisers(setting: Setting) -> Iterator[Row]:
    """The optimiser's part of a step, and its states, by AdamW and by Muon."""
    found: dict[str, tuple[float, float]] = {}
    makers: dict[str, Callable[[Any], torch.optim.Optimizer] | None] = {"AdamW": None, "Muon": muon_adamw}
    for name, made in makers.items():
        step = Step(setting, min(FEW, setting.batch), made=made)
        for _ in range(3):
            step()
        times = medians(repeated(step, setting.repeats, setting.seconds / 12))
        kept = [s for state in step.optimizer.state.values() for s in state.values() if torch.is_tensor(s)]
        size = sum(s.numel() * s.element_size() for s in kept) / 2**20
        found[name] = times["optimiser"], size
        yield measured(f"states of {name}", size, "MiB")
        del step
        forget(setting.device)
    times = [1000 * found[name][0] for name in makers]
    yield paired("optimiser: fused AdamW against Muon", *times, "ms", "neither depends on the batch")


def big_tower(size: Size, device: str) -> DINOv2VisionTower:
    """A tower of the size of dinov2-large, random, in bf16 where the device has it."""
    layers = TOWER_LAYERS if size.tower >= 1024 else 1
    config = Dinov2Config(
        hidden_size=size.tower, num_hidden_layers=layers, num_attention_heads=max(1, size.tower // 64),
        image_size=size.image,
    )  # fmt: skip
    with torch.device(device):
        return DINOv2VisionTower(Dinov2Model(config), -1, "patch").to(device)


def vision(setting: Setting) -> Iterator[Row]:
    """Forward and backward from cached features, and with the tower in the loop; pixels are ready either way."""
    number = min(FEW, setting.batch)
    model = make_model(setting.size, device=setting.device).train()
    model.vision_tower = big_tower(setting.size, setting.device)
    model.vision_tower.precision = "bf16" if setting.half == torch.bfloat16 else "fp32"
    batch = to_device(host_batch(setting.size, number, model), setting.device)
    pixels = pixels_of(setting.size, number)
    passes = {"loop": in_loop(model, batch, pixels), "cache": batch}
    found = {}
    for name, made in passes.items():
        work = partial(pass_of, model, [made], setting.autocast)
        found[name] = median(seconds_of(work, setting.repeats, setting.seconds / 12))
    note = f"forward and backward of batch {number}, {number * setting.size.frames} frames; decoding comes on top"
    name = f"DINOv2 of {setting.size.tower} x {model.vision_tower.layers_run} in the loop against cached features"
    yield paired(name, 1000 * found["loop"], 1000 * found["cache"], "ms", note)


def variants(setting: Setting) -> Iterator[Row]:
    """Each pair; what one of them needs is given back before the next. What takes long comes last."""
    works: dict[str, Callable[[Setting], Iterator[Row]]] = {
        "cast once": cast_once, "precision": precision, "logits": logits, "optimisers": optimisers, "vision": vision,
        "packing": packing,
    }  # fmt: skip
    works |= {f"packed with masks against one row by {way}": partial(in_one_row, way=way) for way in PACKED_WAYS}
    for name, work in works.items():
        yield from trying(name, partial(work, setting))
        forget(setting.device)
