"""The data path beside the step: samples a second of the trainer's own loader, and the trainer on the device.

Features are noise, written by the store's own code; the words are random.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.gpu.parts import Row, Setting, measured, trying
from benchmarks.loop import SETTLING, make_data, make_language_model, run_arguments
from benchmarks.startup import fill_cache
from benchmarks.timing import now, to_device
from llava.commands import make_model
from llava.train import run_flags
from llava.train.setup import prepare

BATCHES = 48
"""Of the data: as many as are counted in no rate before `MOST_WORKERS` give one, and more."""
MOST_WORKERS = 16
WORTH = 1.1
"""How many times as many samples more workers must bring, for still more to be tried."""


def make_run(setting: Setting) -> list[str]:
    """Clips, records, features, tokenizer and language model; the flags of a run over them."""
    size, folder = setting.size, setting.folder / "loader"
    clips, records, steps = (4, 32, 6) if setting.tiny else (128, BATCHES * setting.batch, 24)
    names = [folder / "clips" / f"{i}.mp4" for i in range(clips)]
    (folder / "clips").mkdir(parents=True)
    for name in names:
        name.write_bytes(f"clip {name.stem}".encode())
    make_data(folder, names, records, words=size.vocabulary - 16)
    make_language_model(folder / "lm", size)
    make_model.main([
        "--make_vision_tower", str(folder / "tower"), "--vision_hidden_size", str(size.tower), "--vision_heads",
        str(max(1, size.tower // 64)), "--vision_layers", "1", "--image_size", str(size.image),
    ])  # fmt: skip
    half = "bf16" if setting.half == torch.bfloat16 else "fp16"
    arguments = run_arguments(
        folder, size, "lm", folder / "clips", mm_vision_select_layer=-1, max_steps=steps, logging_steps=steps,
        per_device_train_batch_size=setting.batch, use_cpu=setting.device == "cpu",
        **({half: True} if setting.device == "cuda" else {}),
    )  # fmt: skip
    fill_cache(arguments, (size.frames, (size.image // 14) ** 2, size.tower), together=min(clips, 16))
    return arguments


def workers_to_try(tiny: bool) -> tuple[int, ...]:
    cores = os.cpu_count() or 1
    return (0, 1) if tiny else tuple(n for n in (0, 1, 2, 4, 8, MOST_WORKERS) if n <= cores)


def rate_of(loader: Any, device: str, seconds: float, settling: int = 1) -> tuple[float, int]:
    """Samples a second that come to the device after so many batches, and how many were counted."""
    samples, start, end = 0, 0.0, 0.0
    for i, batch in enumerate(loader, 1):
        to_device(batch, device)
        end = now()
        if i <= settling:
            start = end
            continue
        samples += len(batch["sample_ids"])
        if end - start > seconds:
            break
    if not samples:
        raise ValueError(f"the data ended within the first {settling} batches, which are not counted")
    return samples / (end - start), samples


def loader(setting: Setting) -> Iterator[Row]:
    """The loader alone for several numbers of workers, until more of them bring little more; then the trainer with the
    best of them.
    """
    arguments = make_run(setting)
    best: tuple[float, int] = (0.0, 0)
    run = prepare(run_flags.parse_arguments(arguments))
    options = run.trainer.args
    for workers in workers_to_try(setting.tiny):
        options.dataloader_num_workers = workers
        options.dataloader_persistent_workers = workers > 0
        # What workers made before anyone asked is no rate.
        batches = run.trainer.get_train_dataloader()
        rate, samples = rate_of(batches, setting.device, setting.seconds / 20, 2 * workers + 1)
        note = f"{samples} samples in batches of {setting.batch}, copied to the device"
        if setting.rate:
            note += f"; {rate / setting.rate:.3g} of what the step takes"
        yield measured(f"loader, {workers} workers", rate, "samples/s", note)
        gain, best = rate / best[0] if best[0] else WORTH, max(best, (rate, workers))
        if gain < WORTH and workers > 1:
            break
    yield from trying("trainer", partial(train, setting, arguments, best[1]))


class Ends(TrainerCallback):
    """When each step ended for the host, which asks ahead of the device and is not made to wait for it."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (SETTLING, state.max_steps):
            now()
        self.moments.append(time.perf_counter())


def train(setting: Setting, arguments: list[str], workers: int) -> Iterator[Row]:
    """Steps of the trainer itself, and how much of its time it waits for data."""
    run = prepare(run_flags.parse_arguments([*arguments, "--dataloader_num_workers", str(workers)]))
    ends = Ends()
    run.trainer.add_callback(ends)
    run.trainer.train()
    monitor, steps = run.trainer.monitor, len(ends.moments) - SETTLING
    rate = steps * setting.batch / (ends.moments[-1] - ends.moments[SETTLING - 1])
    note = f"{workers} workers, {steps} steps of batch {setting.batch}, run monitor on"
    if setting.rate:
        note += f"; {100 * rate / setting.rate:.3g} % of the step alone"
    yield measured("trainer", rate, "samples/s", note)
    waited = monitor.waited / (monitor.waited + monitor.trained)
    yield measured("trainer: waits for data", 100 * waited, "%", "start of the workers included", target=("<=", 1))
