"""A training step: how many samples fit and pass in a second, where its time goes, what the device does meanwhile."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.clock import Marks, medians, repeated, seconds_of, traced
from benchmarks.gpu.parts import Row, Setting, measured, not_here, trying
from benchmarks.gpu.states import adamw, casting
from benchmarks.models import WORDS, Size, make_model, make_samples
from benchmarks.run import step_flops
from benchmarks.timing import Batch, peak_memory, to_device
from llava.data.packing import TrainingCollator
from llava.train.half_weights import HalfWeights

LADDER = (16, 32, 64, 128, 256, 512)
TRACED = 3
"""Steps of a profile."""
DISTINCT = 16
"""Samples with features of their own; more of them are these again."""


def host_batch(size: Size, number: int, model: Any, pinned: bool = False) -> Batch:
    """A batch of videos, on the host."""
    made = make_samples(size, min(number, DISTINCT))
    samples = [made[i % len(made)] | {"sample_id": str(i)} for i in range(number)]
    batch = TrainingCollator(0, model.visual_templates())(samples)
    return {k: v.pin_memory() if pinned and torch.is_tensor(v) else v for k, v in batch.items()}


class Step:
    """A step as the trainer makes it, in 16 bits: the batch to the device, forward, backward, clipping, optimiser.

    Args:
        made: of the model, an optimiser.
        compiled: of the model, what is called in its place.
        context: in which forward runs, where it is not the trainer's: weights cast to 16 bits at once, or by autocast
            where a compiler fuses the casts.
    """

    def __init__(
        self,
        setting: Setting,
        number: int,
        made: Callable[[Any], torch.optim.Optimizer] | None = None,
        compiled: Callable[[Any], Any] | None = None,
        context: Callable[[], Any] | None = None,
    ) -> None:
        self.setting = setting
        self.model = make_model(setting.size, device=setting.device).train()
        if context is None:
            cast = partial(casting, setting, HalfWeights(self.model, setting.half))
            context = cast if compiled is None else setting.autocast
        self.context = context
        self.call = self.model if compiled is None else compiled(self.model)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = adamw(self.model, fused=True) if made is None else made(self.model)
        self.batch = host_batch(setting.size, number, self.model, pinned=setting.device == "cuda")

    def __call__(self) -> dict[str, float]:
        """Seconds of its parts, by `Marks`."""
        mark = Marks(self.setting.device)
        self.run(mark)
        return mark.read()

    def run(self, mark: Callable[[str], None] = lambda name: None) -> None:
        device = self.setting.device
        batch = {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in self.batch.items()}
        mark("copy of the batch")
        with self.context():
            loss = self.call(**batch).loss
        mark("forward")
        loss.backward()
        mark("backward")
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0, foreach=True)
        mark("clipping")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        mark("optimiser")


def forget(device: str) -> None:
    """Gives the memory of what is no longer held back to the device."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def timed_step(setting: Setting, number: int, seconds: float, **options: Any) -> tuple[dict[str, float], float]:
    """Medians of the parts of a step of `number` samples, and the bytes that it takes at its peak beside the model."""
    step = Step(setting, number, **options)
    for _ in range(1 if setting.tiny else 3):
        step()
    times = medians(repeated(step, setting.repeats, seconds))
    return times, peak_memory(setting.device, step.run)


def flops_of_sample(size: Size, device: str) -> float:
    """Of forward and backward of one sample, counted without computing; attention over its whole square."""
    model = make_model(size, device=device)
    batch = to_device(host_batch(size, 1, model), "meta")
    return step_flops(model.to("meta").train(), batch)


def step(setting: Setting) -> Iterator[Row]:
    """Samples a second for batches of several sizes; the best one is what later parts measure with."""
    best: tuple[float, int, dict[str, float]] | None = None
    ladder = (setting.size.batch,) if setting.tiny else LADDER
    for number in ladder:
        try:
            times, peak = timed_step(setting, number, setting.seconds / 12)
        except torch.OutOfMemoryError:
            yield not_here(f"batch of {number}", "it does not fit into the device's memory")
            break
        finally:
            forget(setting.device)
        rate = number / times["step"]
        note = f"step of {1000 * times['step']:.3g} ms; {peak / 2**30:.3g} GiB at the peak beside model and optimiser"
        yield measured(f"batch of {number}", rate, "samples/s", note)
        if best is None or rate > best[0]:
            best = rate, number, times
    if best is None:
        raise RuntimeError("not even the smallest batch fits")
    rate, number, times = best
    size, name = setting.size, "bf16" if setting.half == torch.bfloat16 else "fp16"
    positions = size.spec.rows + WORDS
    setup = f"{size.n_layer} x {size.n_embd}, {size.frames} frames, {positions} positions, {name}, batch {number}"
    yield measured(
        "samples a second", rate, "samples/s", setup, sets={"batch": number, "rate": rate}, target=(">=", 1500)
    )
    yield measured("positions a second", rate * positions, "tokens/s", "videos' positions included")
    yield measured("supervised tokens a second", rate * WORDS, "tokens/s")
    yield from trying("share of the device's own ceiling", lambda: utilisation(setting, name, rate))
    for part in ("copy of the batch", "forward", "backward", "clipping", "optimiser"):
        share = 100 * times[part] / times["step"]
        yield measured(f"step: {part}", 1000 * times[part], "ms", f"{share:.3g} % of the step")
    yield from trying("host", lambda: launching(setting, times["step"]))
    yield from trying("vision", lambda: vision_alone(setting, number, times["step"]))


def utilisation(setting: Setting, name: str, rate: float) -> Iterator[Row]:
    """MFU: the FLOP of a sample, counted, by its time, by what large matrix products reach here."""
    measure = f"MFU, of measured {name} products"
    flops = flops_of_sample(setting.size, setting.device)
    yield measured("FLOP of a sample, forward and backward", flops / 1e9, "GFLOP", "attention over the whole square")
    ceiling = setting.ceilings.get(name)
    if not ceiling:
        raise RuntimeError("no ceiling was measured: the part machine failed, or was left out")
    size, length = setting.size, setting.size.spec.rows + WORDS
    # Two products of (L, L) by the width in forward, twice as many in backward, half of which causality leaves out.
    unseen = 6 * size.n_layer * length**2 * size.n_embd
    note = f"{100 * (flops - unseen) * rate / ceiling:.3g} % without the half of attention that is masked"
    yield measured(measure, 100 * flops * rate / ceiling, "%", note, target=(">=", 45))


def launching(setting: Setting, device: float) -> Iterator[Row]:
    """How long the host takes to ask for a step, on a batch so small that the device keeps up."""
    step = Step(setting, 1)
    for _ in range(2):
        step()
    host = medians(repeated(step, setting.repeats, setting.seconds / 12))["host"]
    note = f"batch of 1; {host / device:.2g} of the device's time for a step: from 1 on, the device waits for the host"
    yield measured("host asks for a step", 1000 * host, "ms", note)


def vision_alone(setting: Setting, number: int, whole: float) -> Iterator[Row]:
    """Projector and resampler, forward, as part of the step."""
    model = make_model(setting.size, device=setting.device).train()
    features = host_batch(setting.size, number, model)["video_features"].to(setting.device)

    def encode() -> None:
        with setting.autocast():
            model.encode_videos(video_features=features)

    found = min(seconds_of(encode, setting.repeats, setting.seconds / 12))
    yield measured("step: projector and resampler, forward", 1000 * found, "ms",
                   f"{100 * found / whole:.3g} % of the step, part of forward")  # fmt: skip


def profiled(setting: Setting) -> Iterator[Row]:
    """What the device does in a few steps: kernels, copies, idle time; and whether the host waits for it."""
    step = Step(setting, setting.batch)
    for _ in range(3):
        step()

    def some() -> None:
        for _ in range(TRACED):
            step.run()

    found = traced(some, setting.device, setting.folder / "trace.json")
    yield measured("operators of a step, on the host", found["operators"] / TRACED, "operators")
    if setting.device == "cpu":
        yield not_here("kernels and gaps", "of CUDA; operators are a proxy")
        return
    if not found["kernels"]:
        raise RuntimeError("the profiler saw no kernel: it needs CUPTI, and the right to use it")
    yield measured("kernels of a step", found["kernels"] / TRACED, "kernels")
    yield measured("copies and fills of a step", found["copies"] / TRACED, "")
    idle = 1 - found["busy"] / found["span"]
    yield measured(
        "the device is idle", 100 * idle, "%", f"of {TRACED} steps; a profile slows the host, not the device"
    )
    yield measured("waits of the host for the device in a step", found["waits"] / TRACED, "")
    for name, seconds in found["time"].items():
        short = name if len(name) <= 90 else name[:87] + "..."
        yield measured(f"kernel: {short}", 1000 * seconds / TRACED, "ms", f"{100 * seconds / found['busy']:.3g} %")
