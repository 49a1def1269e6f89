"""Time on the device, and what a profile says of it: parts of a step by CUDA events, kernels and gaps by a trace.

Without CUDA the same functions read the processor's clock, so that the tests run them.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.timing import now

ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
"""Categories of a trace that are work of the device."""
WAITS = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"}
"""Calls in which the host waits for the device."""
WORK = "what is measured"
"""Name of the span of a trace in which waits count: a profile waits for the device itself, at its end."""
LEAST_REPEATS = 3


class Marks:
    """Moments of a step on the device's own clock: events in its stream, waited for when they are read."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.moments: list[tuple[str, Any]] = []
        self.host = time.perf_counter()
        self("start")

    def __call__(self, name: str) -> None:
        """What was done since the last moment was `name`."""
        moment: Any = time.perf_counter()
        if self.cuda:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        self.moments.append((name, moment))

    def read(self) -> dict[str, float]:
        """Seconds by name; `host` is how long it took to ask for all of it, `step` how long the device had it."""
        asked = time.perf_counter() - self.host
        if self.cuda:
            torch.cuda.synchronize()
        found = {"host": asked, "step": self._between(self.moments[0][1], self.moments[-1][1])}
        for (_, before), (name, after) in zip(self.moments, self.moments[1:], strict=False):
            found[name] = found.get(name, 0.0) + self._between(before, after)
        return found

    def _between(self, before: Any, after: Any) -> float:
        return before.elapsed_time(after) / 1000 if self.cuda else after - before


def medians(times: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each part."""
    return {name: median(t[name] for t in times) for name in times[0]}


def repeated(work: Callable[[], Any], repeats: int, seconds: float) -> list[Any]:
    """What `work` answers, `repeats` times or as often as `seconds` allow, but at least `LEAST_REPEATS` times."""
    start, found = now(), []
    while len(found) < repeats and (len(found) < min(LEAST_REPEATS, repeats) or now() - start < seconds):
        found.append(work())
    return found


def seconds_of(work: Callable[[], Any], repeats: int, seconds: float, warm_up: int = 2) -> list[float]:
    """Seconds that `work` takes, the device's included."""

    def once() -> float:
        start = now()
        work()
        return now() - start

    for _ in range(warm_up):
        once()
    return repeated(once, repeats, seconds)


def busy(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def read_trace(path: Path) -> dict[str, Any]:
    """What a trace of torch's profiler says: the device's `kernels` and `copies`, `span` and `busy` in seconds, from
    its first work to its last, the host's `waits` for it within `WORK`, and kernels by the `time` that they took.
    """
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("ph") == "X"]
    device = [e for e in events if e.get("cat") in ON_DEVICE]
    intervals = [(float(e["ts"]), float(e["ts"]) + float(e["dur"])) for e in device]
    span = max(end for _, end in intervals) - min(start for start, _ in intervals) if intervals else 0.0
    inside = [(e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") == "user_annotation" and e["name"] == WORK]
    by_name: Counter[str] = Counter()
    for e in device:
        by_name[e["name"]] += e["dur"]
    return {
        "kernels": sum(e["cat"] == "kernel" for e in device),
        "copies": sum(e["cat"] != "kernel" for e in device),
        "span": span / 1e6,
        "busy": busy(intervals) / 1e6,
        "waits": sum(e["name"] in WAITS and any(a <= e["ts"] < b for a, b in inside) for e in events),
        "operators": sum(e.get("cat") == "cpu_op" for e in events),
        "time": {name: time / 1e6 for name, time in by_name.most_common(12)},
    }


def traced(work: Callable[[], Any], device: str, path: Path) -> dict[str, Any]:
    """`read_trace` of `work`."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    now()
    with profile(activities=activities) as profiler:
        with record_function(WORK):
            work()
        if device == "cuda":
            torch.cuda.synchronize()
    profiler.export_chrome_trace(str(path))
    return read_trace(path)


def no_waiting(device: str) -> AbstractContextManager[Any]:
    """Inside, what makes the host wait for the device raises (as far as torch notices); nothing on CPU."""
    return _NoWaiting() if device == "cuda" else nullcontext()


class _NoWaiting:
    def __enter__(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
