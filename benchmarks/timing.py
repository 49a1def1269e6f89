"""Pairs of paths measured in turns, and the plain computations that fast paths are measured against."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from llava.constants import IGNORE_INDEX

Row = dict[str, Any]
Batch = dict[str, Any]


def now() -> float:
    """Seconds, once the device has done what it was given; one that nobody has used is left alone."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def in_turns(paths: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each path, measured in turns after one warm-up of each."""
    times: dict[str, list[float]] = {name: [] for name in paths}
    for turn in range(repeats + 1):
        for name, path in paths.items():
            start = now()
            path()
            took = now() - start
            if turn:
                times[name].append(took)
    return times


def row(measure: str, unit: str, slow: Sequence[float], fast: Sequence[float], note: str = "") -> Row:
    """How many times faster the fast path is: the median of the ratios of pairs, lowest and highest."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {
        "measure": measure, "plain": median(slow), "fast": median(fast), "unit": unit, "ratio": median(ratios),
        "lowest": min(ratios), "highest": max(ratios), "note": note,
    }  # fmt: skip


def full_logits(hidden: torch.Tensor, labels: torch.Tensor, head: Any, num_items: Any = None, *_: Any) -> tuple:
    """The plain computation: logits of every position."""
    logits = head(hidden[:, :-1]).float()
    loss = F.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )  # fmt: skip
    return loss / (labels[:, 1:] != IGNORE_INDEX).sum(), logits.new_zeros(labels[:, 1:].shape)


def pass_of(model: Any, batches: Sequence[Batch], context: Callable[[], Any] = nullcontext) -> None:
    """Forward and backward of every batch."""
    for batch in batches:
        model.zero_grad(set_to_none=True)
        with context():
            loss = model(**batch).loss
        loss.backward()


def to_device(batch: Batch, device: str) -> Batch:
    return {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}


def resident(field: str) -> int:
    """Bytes of this process that Linux calls VmRSS (now) or VmHWM (at the peak)."""
    words = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert words is not None
    return 1024 * int(words[1])


def peak_memory(device: str, work: Callable[[], Any]) -> int:
    """Bytes that `work` takes at its peak above what there was before; on CPU of the whole process."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # Forgets an earlier peak.
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before
