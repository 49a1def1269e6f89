"""Which code a run is made with, and on what machine."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import llava

CPU_INFO = Path("/proc/cpuinfo")


def code_commit(folder: Path = Path(llava.__file__).parent) -> str | None:
    """The commit of a package's checkout, with `-dirty` where tracked files differ from it; None without one, as when
    the package is installed, where its version says which code it is.
    """

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        # An installed package may lie inside the checkout of something else, whose commit says nothing.
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or None
    except (OSError, subprocess.SubprocessError):
        return None


def hardware(device: torch.device) -> dict[str, Any]:
    """The `device` that a process trains on, its `memory` in GiB (None for a CPU), the machine's `cpu` and `cores`."""
    cpu = cpu_name()
    name, memory = cpu, None
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        name, memory = found.name, round(found.total_memory / 2**30, 1)
    elif device.type != "cpu":
        name = device.type
    return {"device": name, "memory": memory, "cpu": cpu, "cores": os.cpu_count()}


def cpu_name(info: Path = CPU_INFO) -> str:
    """What the processor calls itself; its architecture where nobody says."""
    try:
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), platform.processor() or platform.machine())
