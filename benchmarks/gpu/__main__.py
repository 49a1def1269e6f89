"""Correctness and speed on a GPU, in one command, without data or weights.

    python -m benchmarks.gpu --minutes 12

First that fast paths equal plain ones there (losses, gradients, resumed and spread runs), then what a step costs and
where its time goes. Writes gpu.json and gpu.md, to docs/ of this checkout. A part that fails, or whose time is over, is
on the page as failed, and the exit status is then 1. Without CUDA a tiny rehearsal runs on the CPU and writes cpu.json
and cpu.md to the working folder: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.gpu import attention, equality, loader, machine, runs, states, step, variants
from benchmarks.gpu.page import page
from benchmarks.gpu.parts import Outcome, Part, Setting, run_parts
from benchmarks.models import SIZES, Size

DOCS = Path(__file__).resolve().parents[2] / "docs"
TINY = Size(2, 32, 2, vocabulary=128, tower=16, image=28, fast=1, slow=4, batch=2, frames=2)
SIZE = "12x768"
# About how many seconds the part is expected to take with a model of SIZE, and tiny on a busy CPU.
PARTS = (
    Part("machine", "Device and ceilings", machine.machine, 8, 5),
    Part("equality", "Equal losses and gradients", equality.equality, 25, 5),
    Part("states", "Equal features and optimiser steps", states.states, 15, 5),
    Part("attention", "Equal attention", attention.attention, 60, 5),
    Part("resume", "Resumed to the bit", runs.resume, 30, 40),
    Part("runs", "Runs of the trainer", runs.runs, 100, 45),
    Part("zero", "DeepSpeed on one device", runs.zero, 50, 40),
    Part("fsdp2", "FSDP2 on one device", runs.fsdp2, 20, 1),
    Part("step", "A step", step.step, 40, 5),
    Part("profile", "Kernels and gaps", step.profiled, 10, 5),
    Part("variants", "Two ways beside each other", variants.variants, 90, 15),
    Part("compile", "torch.compile", variants.compiling, 120, 20),
    Part("loader", "The loader, and the trainer", loader.loader, 60, 15),
)
VARIABLES = {
    "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DS_BUILD_OPS": "0",
    # Imports ask whether there is a GPU: so they do not touch it, and what they were made in can be forked.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}  # fmt: skip


@contextmanager
def surroundings(device: str, folder: Path) -> Iterator[None]:
    """Environment of the parts' processes: no network, and of several GPUs the first; on CPU none. What torch builds
    of C++ is built in `folder`: a part that is ended while it builds leaves a lock, on which every later one waits.
    """
    before = dict(os.environ)
    first = (before.get("CUDA_VISIBLE_DEVICES") or "0").split(",")[0]
    os.environ |= VARIABLES | {
        "CUDA_VISIBLE_DEVICES": first if device == "cuda" else "", "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
    }  # fmt: skip
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def tell(outcome: Outcome) -> None:
    """A line when a part is over."""
    kinds = [row["kind"] for row in outcome.rows]
    equal = sum(row.get("equal", False) for row in outcome.rows)
    found = [f"{equal} of {kinds.count('compared')} equal"] * ("compared" in kinds)
    found += [f"{kinds.count('measured') + kinds.count('paired')} measured"]
    found += [f"{kinds.count('not here')} not here"] * ("not here" in kinds)
    state = "FAILED" if outcome.failures else "done"
    print(f"{outcome.name:10} {state:6} {outcome.seconds:5.0f} s of {outcome.limit:4.0f} s: {', '.join(found)}")
    for failure in outcome.failures:
        print(f"{'':10} {failure.splitlines()[0]}")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 1 where a part failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=12, help="for everything (default: %(default)s)")
    parser.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: cuda where there is one"
    )
    parser.add_argument("--size", choices=("auto", "tiny", SIZE), default="auto", help=f"auto: {SIZE} on cuda")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="some parts alone")
    parser.add_argument("--repeats", type=int, default=20, help="of each measurement (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder (default: docs on cuda, else the working folder)")
    args = parser.parse_args(argv)
    cuda = torch.cuda.is_available() if args.device == "auto" else args.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error(f"--device cuda: torch {torch.__version__} sees no CUDA device")
    if args.minutes <= 0 or args.repeats < 1:
        parser.error("--minutes must be above 0, --repeats at least 1")
    output = args.output or (DOCS if cuda else Path())
    if not cuda and output.resolve() == DOCS:
        parser.error(f"--output {output}: docs takes no page that was made without a GPU; name another folder")
    tiny = args.size == "tiny" or (args.size == "auto" and not cuda)
    size = TINY if tiny else SIZES[SIZE]
    chosen = [part for part in PARTS if not args.only or part.name in args.only]
    start = time.monotonic()
    device = "cuda" if cuda else "cpu"
    with tempfile.TemporaryDirectory() as folder, surroundings(device, Path(folder)):
        setting = Setting(device, Path(folder), size, tiny, size.batch, args.repeats)
        outcomes = run_parts(chosen, setting, args.minutes, tell)
    about = {
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *(sys.argv[1:] if argv is None else argv)]),
        "date": datetime.date.today().isoformat(), "device": setting.device, "cuda": cuda, "minutes": args.minutes,
        "took": (time.monotonic() - start) / 60,
    }  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    name = "gpu" if cuda else "cpu"
    found = {"about": about, "parts": [outcome.as_dict() for outcome in outcomes]}
    (output / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (output / f"{name}.md").write_text(page(outcomes, about), encoding="utf-8")
    failed = [outcome.name for outcome in outcomes if outcome.failures]
    print(
        f"{output / name}.md: {len(outcomes)} parts, " + (f"failed: {', '.join(failed)}" if failed else "none failed")
    )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
