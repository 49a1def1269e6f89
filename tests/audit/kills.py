"""Kills ranks of a run of two processes at random moments, and compares its end with that of an untouched run.

    python -m tests.audit.kills --kills 10

Every step is saved. A kill (SIGKILL) strikes one of the two ranks: before the first new step, or after up to two of
them, wherever the run then is. The same command goes on; in the end weights, optimiser, random numbers and log must be
those of the untouched run, bit for bit. Prints a line a kill; the exit status is 1 when something differs.
`scripts/chaos.py` does this with one process, in more phases and by more signals.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from llava.train.checkpoint.files import list_checkpoints
from scripts.chaos import differences
from tests.conftest import make_assets
from tests.train.processes import children, rank_of, start, torchrun
from tests.train.runs import flags

DELAY = 0.3
"""Seconds after a checkpoint within which a kill strikes: a step and its saving take less."""
PATIENCE = 900.0
"""Seconds that an attempt may take before it counts as hanging."""


@dataclass(frozen=True)
class Kill:
    """`step` is the last that was saved when `rank` was killed; `status` is torchrun's."""

    rank: int
    step: int
    status: int


def last_step(folder: Path) -> int:
    """The step of the newest complete checkpoint; 0 where there is none."""
    listed = list_checkpoints(folder)
    return listed[-1][0] if listed else 0


def kill_ranks(assets: SimpleNamespace, folder: Path, kills: int, draw: random.Random) -> tuple[list[Kill], list[str]]:
    """The kills of one run, and in what it differs in the end from a run that was left alone.

    Raises:
        AssertionError: when an attempt fails by itself, hangs, leaves a rank alive, or does not name the killed one.
    """
    options = {
        "max_steps": 2 * kills + 4, "per_device_train_batch_size": 1, "save_strategy": "steps", "save_steps": 1,
        "save_total_limit": 2, "preflight": "off", "controls": False, "resume_from_checkpoint": "auto",
    }  # fmt: skip
    whole, cut = folder / "whole" / "run", folder / "cut" / "run"
    torchrun(flags(assets, whole, **options))
    struck: list[Kill] = []
    # An attempt that ends before its kill is the end of the run.
    while len(struck) < kills:
        kill = attempt(flags(assets, cut, **options), cut, draw)
        if kill is None:
            break
        struck.append(kill)
    torchrun(flags(assets, cut, **options))
    return struck, differences(whole, cut)


def attempt(arguments: list[str], folder: Path, draw: random.Random) -> Kill | None:
    """Starts the run and kills a rank of it; None when it ended first."""
    due_step, delay, rank = last_step(folder) + draw.randint(0, 2), draw.random() * DELAY, draw.randint(0, 1)
    process = start(arguments)
    ranks: dict[str, int] = {}
    due, end = None, time.monotonic() + PATIENCE
    try:
        while process.poll() is None and (due is None or time.monotonic() < due):
            assert time.monotonic() < end, "the run hangs"
            if due is None:
                ranks = {rank_of(pid): pid for pid in children(process.pid)}
                due = time.monotonic() + delay if ranks.keys() == {"0", "1"} and last_step(folder) >= due_step else None
            time.sleep(0.01)
        step = last_step(folder)
        if process.poll() is None:
            os.kill(ranks[str(rank)], signal.SIGKILL)
        output, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    left = [pid for pid in ranks.values() if Path(f"/proc/{pid}").exists()]
    assert not left, f"processes {left} outlive the run"
    if process.returncode == 0:
        return None
    # The one that was killed is named, and not the one that lost its partner.
    named = f"rank      : {rank} (local_rank: {rank})\n  exitcode  : -9"
    assert named in output and "Signal 9 (SIGKILL)" in output, output[-3000:]
    return Kill(rank, step, process.returncode)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        struck, unlike = kill_ranks(make_assets(folder / "assets"), folder, args.kills, random.Random(args.seed))
    for number, kill in enumerate(struck, start=1):
        print(f"kill {number}: rank {kill.rank} after step {kill.step}, status of torchrun {kill.status}")
    print(f"{len(struck)} kills, then " + (f"DIFFERENT in {', '.join(unlike)}" if unlike else "equal to the bit"))
    return int(bool(unlike) or len(struck) < args.kills)


if __name__ == "__main__":
    sys.exit(main())
