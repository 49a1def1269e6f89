"""CPU-seconds from the start of the process to the first step of the 12 x 768 recipe, with a full cache and pre-flight.

    python -m benchmarks.first_step                             a fresh run, and one that was killed and goes on
    python -m benchmarks.first_step --clips 64 10000            what distinct clips add
    python -m benchmarks.first_step --tower real --clips 6      random tower of 24 x 1024
    python -m benchmarks.first_step --against ../old            in turns with the code of another checkout
    python -m benchmarks.first_step --profile                   also prints where the time goes

One thread, fresh processes, imports included. Before, a first run of each checkout fills the cache, makes what is made
once of the data files, and is killed in its second step, after a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.preflight import ROOT, TOWERS, make_data

MARK = "CPU-seconds to the first step: "
KILLED = """
import cProfile, importlib.util, json, os, pstats, runpy, sys, time
script, flags, steps, shown, mark = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
profile = cProfile.Profile(time.process_time)
class Watched:
    def find_spec(self, name, path, target=None):
        if name == "transformers.trainer":
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            execute, spec.loader.exec_module = spec.loader.exec_module, lambda module: watch(execute, module)
            return spec
def watch(execute, module):
    execute(module)
    step, taken = module.Trainer.training_step, []
    def stop(*args, **kwargs):
        taken.append(1)
        if len(taken) <= steps:
            return step(*args, **kwargs)
        profile.disable()
        print(mark, time.process_time(), sep="")
        if shown == "True":
            pstats.Stats(profile).sort_stats("cumulative").print_stats(120)
        sys.stdout.flush()
        os._exit(0)
    module.Trainer.training_step = stop
sys.meta_path.insert(0, Watched())
sys.argv = [script, *flags]
if shown == "True":
    profile.enable()
runpy.run_path(script, run_name="__main__")
"""
"""A run of a checkout's script that is killed when it begins the step after `steps`."""


def run(flags: Sequence[str], checkout: Path, output: Path, steps: int, profile: bool = False) -> float:
    """CPU-seconds of a process until it is killed, after some steps."""
    settings = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive",
                "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    values = list(flags)
    values[values.index("--output_dir") + 1] = str(output)
    script = str(checkout / "llava" / "train" / "train.py")
    command = [sys.executable, "-c", KILLED, script, json.dumps(values), str(steps), str(profile), MARK]
    done = subprocess.run(command, capture_output=True, text=True, cwd=output, env=os.environ | settings)
    line = next((line for line in done.stdout.splitlines() if line.startswith(MARK)), None)
    if line is None or profile:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
    if line is None:
        raise SystemExit("the run ended before its first step")
    return float(line.removeprefix(MARK))


def measure(folder: Path, checkouts: dict[str, Path], flags: list[str], repeats: int, profile: bool) -> None:
    """Prints the CPU-seconds of fresh runs and of those that go on, in turns between the checkouts."""
    found: dict[tuple[str, str], list[float]] = {}
    own = {}
    for name, checkout in checkouts.items():
        own[name] = list(flags)
        own[name][own[name].index("--feature_cache") + 1] = str(folder / f"cache_{name}")
        run(own[name], checkout, folder / name / "killed", steps=1)
    for _ in range(repeats):
        for name, checkout in checkouts.items():
            for case in ("fresh", "goes on"):
                output = folder / name / ("killed" if case == "goes on" else "fresh")
                shutil.rmtree(folder / name / "fresh", ignore_errors=True)
                seconds = run(own[name], checkout, output, 0, profile)
                found.setdefault((name, case), []).append(seconds)
    for (name, case), values in found.items():
        print(f"  {name:8} {case:8} {median(values):8.2f} CPU-s ({min(values):.2f} to {max(values):.2f})")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", choices=TOWERS, default="small")
    parser.add_argument("--clips", type=int, nargs="+", default=[64], help="distinct clips, one record each")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=30_000)
    parser.add_argument("--batch", type=int, default=4, help="samples of a training batch (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--against", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder for the data, used again when it is there")
    args = parser.parse_args(argv)
    checkouts = {"here": ROOT} | ({"against": args.against.absolute()} if args.against else {})
    with tempfile.TemporaryDirectory() as temporary:
        for clips in args.clips:
            folder = ((args.keep or Path(temporary)) / f"{args.tower}_{clips}").absolute()
            saved = folder / "flags.json"
            if not saved.is_file():
                flags = make_data(folder, args.tower, clips, args.layers, args.width, args.vocabulary, args.batch)
                flags[flags.index("--max_steps") + 1] = "2"
                flags[flags.index("--save_strategy") + 1] = "steps"
                flags += ["--save_steps", "1", "--resume_from_checkpoint", "auto"]
                saved.write_text(json.dumps(flags))
            print(f"{clips:,} clips")
            for name in checkouts:
                shutil.rmtree(folder / name, ignore_errors=True)
            measure(folder, checkouts, json.loads(saved.read_text()), args.repeats, args.profile)


if __name__ == "__main__":
    main()
