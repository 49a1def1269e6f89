"""Kills runs at random moments, starts them again with the same command, and compares how they end.

    python scripts/chaos.py --output_dir chaos --seed 0 --kills 50

The demo's two experiments in a tiny size, over and over: a run gets a few kills (SIGKILL, SIGTERM, SIGUSR1) in phases
that the seed draws (train, evaluate, save, extract), is left to end, and must then equal a run that was never touched:
weights, optimiser, random numbers, log, metrics and controls, bit for bit. Prints a table with one line a kill; the
exit status is 1 when a run differs or an attempt ends in another way than it was told to.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers.trainer_pt_utils import safe_globals

from llava.config.commands import parse
from llava.config.ranges import COUNT
from llava.errors import STOPPED_STATUS, run_command
from llava.train import run_data
from llava.train import train as training
from llava.train.checkpoint.files import list_checkpoints
from llava.train.trainer import LlavaTrainer

SIGNALS = ("SIGKILL", "SIGTERM", "SIGUSR1")
PHASES = {1: ("train", "evaluate", "save"), 2: ("train", "evaluate", "save", "extract")}
KILLS_A_RUN = 5
PATIENCE = 600.0
"""Seconds that an attempt may take before it counts as hanging."""
TIMES = ("runtime", "per_second", "data_wait_share", "monitor_share")
CLIPS, STEPS = 16, 24


@dataclass
class Kill:
    """One kill: `phase` is where it struck, `resumed` what the next attempt went on from."""

    run: str
    sent: str
    phase: str
    status: int
    resumed: str = "?"
    ok: str = "?"


@dataclass
class Attempt:
    """How one start of a run went; `phases` are (name, seconds since the start) as they were entered."""

    status: int
    log: str
    struck: str | None = None
    phases: list[tuple[str, float]] = field(default_factory=list)


def differences(a: Path, b: Path) -> list[str]:
    """In what two finished runs differ, apart from what tells of time; their last checkpoints included."""
    found = [] if history(a) == history(b) else ["log"]
    if not same(load_file(a / "model.safetensors"), load_file(b / "model.safetensors")):
        found.append("weights")
    for name in ("eval_results.json", "controls.jsonl"):
        texts = [(folder / name).read_text() if (folder / name).exists() else None for folder in (a, b)]
        found += [name] if texts[0] != texts[1] else []
    found += [] if alarms(a) == alarms(b) else ["alarms.jsonl"]
    last = [listed[-1] if (listed := list_checkpoints(folder)) else None for folder in (a, b)]
    if last[0] is None or last[1] is None:
        return found
    if last[0][0] != last[1][0]:
        return [*found, f"last checkpoint ({last[0][0]} and {last[1][0]})"]
    for path in sorted(p for p in last[0][1].iterdir() if p.suffix in (".pt", ".pth")):
        with safe_globals():  # What numpy's random state is made of; nothing else is unpickled.
            states = [torch.load(folder / path.name, weights_only=True) for _, folder in last]
        found += [] if same(*states) else [path.name]
    return found


def history(folder: Path) -> list[dict[str, Any]]:
    """The log of a run without what tells of time."""
    entries = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [{k: v for k, v in entry.items() if not k.endswith(TIMES)} for entry in entries]


def alarms(folder: Path) -> list[dict[str, Any]]:
    """The alarms of a run without their time, and without those that tell of waiting."""
    path = folder / "alarms.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{k: v for k, v in line.items() if k != "time"} for line in lines if line["kind"] != "waiting for data"]


def same(a: Any, b: Any) -> bool:
    """Equality to the bit of nested tensors, arrays and plain values; tensors of two devices differ."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.device == b.device and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def make_demo(folder: Path) -> None:
    """Data and models of the demo, tiny; made once."""
    here = Path(__file__).resolve().parent
    small = "import sys; sys.path.insert(0, sys.argv.pop(1)); import make_demo_data as m; " \
        "m.SPLIT_SIZES = dict.fromkeys(m.SPLIT_SIZES, 6); m.main(sys.argv[1:])"  # fmt: skip
    commands = [
        [
            sys.executable, "-c", small, str(here), "--output_dir", str(folder / "data"), "--num_train", str(CLIPS),
            "--validation",
        ],
        [
            sys.executable, str(here / "make_model.py"), "--exist_ok", "--data_path",
            str(folder / "data" / "train_vi_it.json"), "--output_dir", str(folder / "gpt2"), "--vocab_size", "320",
            "--n_layer", "2", "--n_embd", "32", "--n_head", "2", "--n_positions", "96", "--dropout", "0.1",
            "--make_vision_tower", str(folder / "tower"), "--vision_hidden_size", "24", "--image_size", "56",
        ],
    ]  # fmt: skip
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"the demo could not be made:\n{done.stderr}")


def run_flags(demo: Path, output: Path, experiment: int, workers: int) -> list[str]:
    """The command of a run; the features go beside its folder."""
    kind = "vi" if experiment == 2 else "t"
    values: dict[str, Any] = {
        "model_name_or_path": demo / "gpt2", "output_dir": output, "use_cpu": True, "model_max_length": 96,
        "data_path": demo / "data" / f"train_{kind}_it.json",
        "eval_data_path": demo / "data" / f"validation_{kind}_it.json", "eval_strategy": "steps", "eval_steps": 6,
        "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "gradient_accumulation_steps": 2,
        "max_steps": STEPS, "save_strategy": "steps", "save_steps": 5, "save_total_limit": 2, "logging_steps": 3,
        "learning_rate": 1e-3, "report_to": "none", "disable_tqdm": True, "run_report": False,
        "dataloader_num_workers": workers, "resume_from_checkpoint": "auto",
    }  # fmt: skip
    if experiment == 2:
        values |= {
            "vision_tower": demo / "tower", "video_folder": demo / "data" / "clips", "force_sample": True,
            "mm_vision_select_layer": -1, "mm_perceiver_latents": 4, "mm_perceiver_latents_fast": 1,
        }  # fmt: skip
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def announced(name: str, original: Callable, enter: Callable[[str], None], stack: list[str]) -> Callable:
    """`original`, whose phase is reported when it begins, and the phase around it when it ends."""

    @wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        stack.append(name)
        enter(name)
        try:
            return original(*args, **kwargs)
        finally:
            stack.pop()
            enter(stack[-1])

    return call


def child(command: list[str], log: Path, pipe: Connection) -> None:
    """A process of its own that runs the trainer's command line and reports its phases."""
    os.setsid()
    with open(log, "ab", buffering=0) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(1)
    stack = ["start"]
    for name, owner, function in (
        ("train", LlavaTrainer, "train"), ("evaluate", LlavaTrainer, "evaluate"), ("extract", run_data, "fill_cache"),
        ("save", LlavaTrainer, "_save_checkpoint"), ("save", LlavaTrainer, "save_model"),
    ):  # fmt: skip
        setattr(owner, function, announced(name, getattr(owner, function), pipe.send, stack))
    run_command(lambda: training.main(command))


def attempt(command: list[str], log: Path, strike: tuple[str, str, int, float] | None = None) -> Attempt:
    """Starts a run and, when told, kills it.

    Args:
        strike: signal, phase, which time the phase is entered, and seconds after that.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    log.write_bytes(b"")
    process = context.Process(target=child, args=(command, log, theirs))
    process.start()
    theirs.close()
    result, start = Attempt(0, ""), time.monotonic()
    due, listening = math.inf, True
    while process.is_alive() and time.monotonic() - start < PATIENCE:
        wait = min(max(due - time.monotonic(), 0.0), 0.1)
        if not listening:
            process.join(wait)
        elif ours.poll(wait):
            try:
                result.phases.append((ours.recv(), time.monotonic() - start))
            except EOFError:
                listening = False
                continue
            names = [name for name, _ in result.phases]
            if strike and names[-1] == strike[1] and names.count(strike[1]) == strike[2] and result.struck is None:
                due = time.monotonic() + strike[3]
        elif strike and time.monotonic() >= due:
            result.struck, due = result.phases[-1][0], math.inf
            os.kill(process.pid or 0, getattr(signal, strike[0]))
    if process.is_alive():
        process.kill()
        result.struck = "hung"
    process.join()
    result.status = process.exitcode or 0
    result.log = log.read_text(errors="replace")
    return result


def durations(phases: Sequence[tuple[str, float]]) -> dict[str, list[float]]:
    """Seconds of each time that a phase was entered, until the next phase."""
    found: dict[str, list[float]] = {}
    for (name, start), (_, end) in zip(phases, phases[1:], strict=False):
        found.setdefault(name, []).append(end - start)
    return found


def expected(sent: str, status: int) -> bool:
    """Whether an attempt ended as it was told; before the handlers stand, a signal ends it by itself."""
    number = getattr(signal, sent)
    return status == -number or (sent != "SIGKILL" and status in (STOPPED_STATUS, 0)) or status == 0


def went_on_from(log: str) -> str:
    match = re.search(r"resuming from \S*?(checkpoint-\d+)", log)
    return match[1] if match else "the start"


def chaos(folder: Path, seed: int, kills: int) -> tuple[list[Kill], list[str]]:
    """The kills and what went wrong."""
    demo, draw = folder / "demo", random.Random(seed)
    make_demo(demo)
    whole: dict[int, dict[str, list[float]]] = {}
    for experiment in (1, 2):
        output = folder / f"whole_{experiment}" / "run"
        done = attempt(run_flags(demo, output, experiment, 0), folder / f"whole_{experiment}.log")
        if done.status:
            sys.exit(f"the uninterrupted run of experiment {experiment} failed:\n{done.log[-3000:]}")
        whole[experiment] = durations(done.phases)
    table: list[Kill] = []
    wrong: list[str] = []
    number = 0
    while len(table) < kills and len(wrong) < 5:
        experiment = 2 if number % 3 else 1
        name = f"run_{number}_exp{experiment}"
        number += 1
        output, log = folder / name / "run", folder / f"{name}.log"
        struck: list[Kill] = []
        todo = min(KILLS_A_RUN, kills - len(table))
        for _ in range(100):
            strike = None
            if len(struck) < todo:
                # Features are extracted before the first checkpoint alone.
                early = experiment == 2 and not list_checkpoints(output) and draw.random() < 0.6
                phase = "extract" if early else draw.choice(PHASES[experiment])
                known = whole[experiment][phase]
                # Early in a phase more often than late, since what is resumed enters it less often.
                entered = draw.randint(1, max(1, len(known) // 2))
                strike = (draw.choice(SIGNALS), phase, entered, draw.random() * known[entered - 1] * 1.2)
            done = attempt(run_flags(demo, output, experiment, draw.choice((0, 0, 2))), log, strike)
            if struck and struck[-1].resumed == "?":
                struck[-1].resumed = went_on_from(done.log)
            if done.struck is not None and strike is not None:
                struck.append(Kill(name, strike[0], done.struck, done.status))
            if not (expected(strike[0], done.status) if done.struck and strike else done.status == 0):
                wrong.append(f"{name}: status {done.status} after {strike}:\n{done.log[-3000:]}")
                break
            if done.status == 0:
                break
        verdict = "no"
        if done.status == 0:
            unlike = differences(folder / f"whole_{experiment}" / "run", output)
            wrong += [f"{name} differs in {', '.join(unlike)}"] if unlike else []
            verdict = "no" if unlike else "yes"
        for kill in struck:
            kill.ok = verdict
            kill.resumed = kill.resumed if kill.resumed != "?" else "(it had ended)"
        table += struck
        print(f"{name}: {len(struck)} kills, equal: {verdict}", flush=True)
        if verdict == "yes":
            shutil.rmtree(folder / name)
    return table, wrong


def show(table: Sequence[Kill]) -> str:
    """The kills as aligned text, with counts of signals and phases."""
    rows = [("kill", "run", "signal", "struck in", "status", "went on from", "same end")]
    rows += [
        (str(i), k.run, k.sent, k.phase, str(k.status), k.resumed, k.ok) for i, k in enumerate(table, start=1)
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    for label, values in (("signals", [k.sent for k in table]), ("phases", [k.phase for k in table])):
        lines.append(f"{label}: " + ", ".join(f"{v} {values.count(v)}" for v in sorted(set(values))))
    same_end = sum(k.ok == "yes" for k in table)
    return "\n".join([*lines, f"{same_end} of {len(table)} kills left a run that ended as if untouched"])


@dataclass
class ChaosFlags:
    """How much is killed, and where."""

    ranges = {"kills": COUNT}

    output_dir: Path = field(metadata={"help": "Folder for the runs, which this script makes."})
    seed: int = field(default=0, metadata={"help": "Of the moments and signals."})
    kills: int = field(default=50, metadata={"help": "Kills in all."})

    def __post_init__(self) -> None:
        if self.output_dir.exists():
            raise ValueError(f"--output_dir {self.output_dir}: is there already; name a new folder")


def main(argv: Sequence[str] | None = None) -> int:
    (args,) = parse(__doc__, ChaosFlags, argv=argv, prog="python scripts/chaos.py")
    args.output_dir.mkdir(parents=True)
    table, wrong = chaos(args.output_dir.resolve(), args.seed, args.kills)
    print(show(table))
    for problem in wrong:
        print(f"WRONG {problem}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    run_command(main)
