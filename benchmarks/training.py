"""Packing, `torch.compile`, bf16, memory, and how a step's time grows: measures of `python -m benchmarks.run`."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.models import SIZES, Size, make_model, make_step, make_texts
from benchmarks.timing import Row, full_logits, in_turns, now, pass_of, peak_memory, row, to_device
from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.packing import TrainingCollator
from llava.data.sampler import grouped_order
from llava.model import vlm


def packing(
    repeats: int,
    device: str,
    size: Size = SIZES["12x768"],
    number: int = 128,
    per_batch: int = 32,
    context: Callable[[], Any] = nullcontext,
) -> list[Row]:
    """Supervised tokens a second on texts of 5 to 60 tokens, in layouts of the same samples.

    Args:
        context: in which passes run, such as autocast.
    """
    rows = []
    model = make_model(size, device=device).train()
    for lengths in ("uniform", "short"):
        texts = make_texts(size, number, lengths)
        tokens = sum(len(t["input_ids"]) for t in texts)
        one_a_row, packed = DataCollatorForSupervisedDataset(0), TrainingCollator(0, model.visual_templates())
        order = torch.randperm(number, generator=torch.Generator().manual_seed(0)).tolist()
        grouped = grouped_order([len(t["input_ids"]) for t in texts], ["text"] * number, per_batch,
                                torch.Generator().manual_seed(0))  # fmt: skip
        layouts = {}
        for name, collate, chosen in (
            ("one a row", one_a_row, order), ("grouped", one_a_row, grouped), ("packed", packed, order)
        ):  # fmt: skip
            parts = [chosen[i : i + per_batch] for i in range(0, number, per_batch)]
            layouts[name] = [to_device(collate([texts[i] for i in part]), device) for part in parts]
        times = in_turns({name: partial(pass_of, model, made, context) for name, made in layouts.items()}, repeats)
        mean = tokens / number
        for name, words in (("one a row", "padded to the batch's longest"), ("grouped", "length-grouped")):
            note = f"{number} texts, {mean:.0f} tokens on average, batch {per_batch}, {size.n_layer}x{size.n_embd}"
            rows.append(row(f"packed against {words}, {lengths} lengths", "s", times[name], times["packed"], note))
    return rows


def compiling(repeats: int, device: str) -> list[Row]:
    """A forward and backward pass of the compiled model, as `--torch_compile` compiles it."""
    rows = []
    for name in ("demo", "4x256"):
        model, batch = make_step(SIZES[name], device)
        compiled = torch.compile(model)
        start = now()
        pass_of(compiled, [batch])
        warm_up = now() - start
        times = in_turns({"eager": partial(pass_of, model, [batch]), "compiled": partial(pass_of, compiled, [batch])},
                         repeats)  # fmt: skip
        gain = median(times["eager"]) - median(times["compiled"])
        pays = f"pays after {warm_up / gain:.0f} steps" if gain > 0 else "never pays"
        note = f"one shape; {warm_up:.0f} s of warm-up: {pays}"
        rows.append(row(f"torch.compile against eager, {name}", "s", times["eager"], times["compiled"], note))
    return rows


def precision(repeats: int, device: str) -> list[Row]:
    """bf16 autocast against fp32."""
    rows = []
    for name in ("4x256", "12x768"):
        model, batch = make_step(SIZES[name], device)
        autocast = partial(torch.autocast, torch.device(device).type, torch.bfloat16)
        times = in_turns(
            {"fp32": partial(pass_of, model, [batch]), "bf16": partial(pass_of, model, [batch], autocast)}, repeats
        )
        rows.append(row(f"bf16 autocast against fp32, {name}", "s", times["fp32"], times["bf16"], "pass of one batch"))
    return rows


def _peak(name: str, full: bool, device: str, answer: Any) -> None:
    """Bytes above the model that a forward and backward pass takes at its peak, in a process of its own."""
    model, batch = make_step(SIZES[name], device)
    if full:
        vlm.supervised_loss = full_logits
    answer.send(peak_memory(device, partial(pass_of, model, [batch])))


def memory(device: str) -> list[Row]:
    """Peak memory of a pass with logits everywhere and where there are labels."""
    rows = []
    context = multiprocessing.get_context("spawn")
    for name in ("12x768", "4x256"):
        peaks = []
        for full in (True, False):
            ours, theirs = context.Pipe()
            process = context.Process(target=_peak, args=(name, full, device, theirs))
            process.start()
            theirs.close()
            peaks.append(ours.recv() / 2**20)
            process.join()
        note = f"batch {SIZES[name].batch}; gradients and activations, above the model itself"
        rows.append(row(f"peak memory of a pass, logits everywhere against where there are labels, {name}", "MiB",
                        [peaks[0]], [peaks[1]], note))  # fmt: skip
    return rows


def scaling(repeats: int, device: str) -> list[Row]:
    """How the time of a forward and backward pass grows when one number of the base doubles or triples."""
    base = replace(SIZES["4x256"], batch=4)
    others = {
        "batch 8 against 4": replace(base, batch=8),
        "batch 16 against 4": replace(base, batch=16),
        "8 frames against 4": replace(base, frames=8),
        "vocabulary 60,032 against 30,016": replace(base, vocabulary=60_032),
        "8 layers against 4": replace(base, n_layer=8),
        "width 512 against 256": replace(base, n_embd=512, n_head=8),
    }

    def prepared(size: Size) -> Callable[[], None]:
        model, batch = make_step(size, device)
        return partial(pass_of, model, [batch])

    rows, base_pass = [], prepared(base)
    for name, size in others.items():
        times = in_turns({"base": base_pass, "other": prepared(size)}, repeats)
        note = "ratio: times the base's 4x256, batch 4, 4 frames"
        rows.append(row(f"pass with {name}", "s", times["other"], times["base"], note))
    return rows
