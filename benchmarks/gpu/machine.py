"""What is measured on, and what it can do at best: FLOP/s of large matrix products, bytes a second of copies."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.gpu.clock import seconds_of
from benchmarks.gpu.parts import Row, Setting, fact, measured, not_here, trying
from llava.train.provenance import code_commit, cpu_name

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "triton", "flash-attn")
SMI = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm", "pcie.link.gen.max")


def versions() -> dict[str, str]:
    """Of everything that a figure depends on; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found["cuda of torch"] = str(torch.version.cuda)
    return found | {"commit": code_commit() or "unknown", "cpu": cpu_name()}


def driver() -> dict[str, str]:
    """What `nvidia-smi` says of the device in use; a line that says why it says nothing."""
    place = os.environ.get("CUDA_VISIBLE_DEVICES") or "0"
    try:
        shown = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader", "-i", place],
            capture_output=True, text=True, check=True, timeout=20,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return {"driver_version": f"unknown: nvidia-smi: {type(error).__name__}"}
    return dict(zip(SMI, (word.strip() for word in shown.strip().split(",")), strict=False))


def machine(setting: Setting) -> Iterator[Row]:
    """Device, driver and versions; then the ceilings."""
    for name, value in versions().items():
        yield fact(name, value)
    if setting.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        yield fact("device", properties.name)
        yield fact("memory of the device", f"{properties.total_memory / 2**30:.1f} GiB")
        yield fact("compute capability", f"{properties.major}.{properties.minor}")
        yield fact("multiprocessors", properties.multi_processor_count)
        yield fact("cudnn", torch.backends.cudnn.version())
        for name, value in driver().items():
            yield fact(name, value)
    else:
        yield fact("device", f"CPU, {torch.get_num_threads()} threads")
    yield from trying("matrix products", lambda: ceilings(setting))
    yield from trying("copies", lambda: copies(setting))


def ceilings(setting: Setting) -> Iterator[Row]:
    """The best of several large products, for each type; TF32 is fp32 with the tensor cores' shorter mantissa."""
    sizes = (128, 256) if setting.tiny else (4096, 8192)
    kinds: dict[str, tuple[torch.dtype, str]] = {
        "bf16": (torch.bfloat16, "highest"), "fp16": (torch.float16, "highest"),
        "fp32": (torch.float32, "highest"), "tf32": (torch.float32, "high"),
    }  # fmt: skip
    best: dict[str, float] = {}
    for name, (dtype, precision) in kinds.items():
        if setting.device == "cpu" and name in ("fp16", "tf32"):
            yield not_here(f"matrix products, {name}", "not on CPU")
            continue
        if name == "bf16" and setting.half != dtype or name == "tf32" and torch.cuda.get_device_capability() < (8, 0):
            yield not_here(f"matrix products, {name}", "not in this device's hardware")
            continue
        torch.set_float32_matmul_precision(precision)
        best[name] = max(_product(n, dtype, setting) for n in sizes)
        torch.set_float32_matmul_precision("highest")
        yield measured(f"matrix products, {name}", best[name] / 1e12, "TFLOP/s", f"best of squares of {sizes}",
                       sets={"ceilings": dict(best)})  # fmt: skip


def _product(n: int, dtype: torch.dtype, setting: Setting) -> float:
    a, b = (torch.randn(n, n, device=setting.device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)

    def several() -> None:
        # One alone would be measured with the wait for it.
        for _ in range(4):
            torch.mm(a, b, out=out)

    return 4 * 2 * n**3 / min(seconds_of(several, setting.repeats, setting.seconds / 20))


def copies(setting: Setting) -> Iterator[Row]:
    """GB/s within the device's memory, and from the host's, pinned and not: what cached features come through."""
    count = 2**16 if setting.tiny else 2**27
    source = torch.zeros(count, dtype=torch.float16, device=setting.device)
    target = torch.empty_like(source)
    size = 2 * count

    def rate(work: Any) -> float:
        return size / min(seconds_of(work, setting.repeats, setting.seconds / 20)) / 1e9

    yield measured("copy within the device", rate(lambda: target.copy_(source)), "GB/s", f"{size / 2**20:.3g} MiB")
    if setting.device == "cpu":
        yield not_here("copy to the device", "there is none")
        return
    host = torch.zeros(count, dtype=torch.float16)
    pinned = host.pin_memory()
    yield measured("copy to the device, pinned", rate(lambda: target.copy_(pinned, non_blocking=True)), "GB/s")
    yield measured("copy to the device, not pinned", rate(lambda: target.copy_(host)), "GB/s")
