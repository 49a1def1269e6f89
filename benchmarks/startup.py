"""What a run with many records costs before its first step: CPU-seconds and memory of each stage, in a fresh process.

    python -m benchmarks.startup                            10,000, 100,000 and 1,000,000 records of 10,000 clips
    python -m benchmarks.startup --records 100000 --clips 100 --lines    100 clips named 1,000 times each, as JSON lines

The clips' features are in the cache, as in every run but the first; the clips are files of a few bytes, which nothing
decodes. What is made once of the data files is made by a first run, and shown apart. `--profile` prints where the time
of the second run goes instead.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import json
import os
import pstats
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llava.commands import make_model
from llava.data.features import extract as features
from llava.data.records import load_records
from llava.model.builder import load_language_model
from llava.train import run_data, run_flags, run_model, setup, train
from llava.train.preflight import features as preflight_features
from llava.train.preflight.data import Finding

MARK = "measured: "
WORDS = ("il", "la", "un", "gatto", "cane", "palla", "rossa", "verde", "corre", "dorme", "sul", "nel", "prato", "libro")
STAGES = {
    "records": (setup, "read_splits"),
    "records: opened or made": (run_data, "load_prepared"),
    "tokens: opened or made": (run_data, "prepared_tokens"),
    "model": (setup, "make_model"),
    "cache: index": (setup, "make_cache"),
    "cache: what it lacks": (run_data, "fill_cache"),
    "cache and dataset": (setup, "make_data"),
    "trainer": (setup, "LlavaTrainer"),
}


def make_data(folder: Path, records: int, clips: int, lines: bool) -> list[str]:
    """Records, clips, models and a filled cache; returns the flags of a run."""
    generator = np.random.default_rng(0)
    rows = []
    for i in range(records):
        caption = " ".join(WORDS[w] for w in generator.integers(0, len(WORDS), 15)).capitalize() + "."
        turns = [{"from": "human", "value": "<video>"}, {"from": "gpt", "value": caption}]
        clip = i % clips
        rows.append({"id": f"r{i}", "video": f"{clip % 100:02}/{clip}.mp4", "conversations": turns})
    data = folder / f"data.json{'l' if lines else ''}"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows) if lines else json.dumps(rows, indent=1))
    for clip in range(clips):
        path = folder / "clips" / rows[clip]["video"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"clip %d" % clip)
    some = folder / "some.json"
    some.write_text(json.dumps(rows[:1000]))
    make_model.main([
        "--data_path", str(some), "--output_dir", str(folder / "gpt2"), "--vocab_size", "400", "--n_layer", "2",
        "--n_embd", "32", "--n_head", "2", "--make_vision_tower", str(folder / "tower"), "--image_size", "56",
        "--vision_hidden_size", "24",
    ])  # fmt: skip
    return [
        "--model_name_or_path", str(folder / "gpt2"), "--vision_tower", str(folder / "tower"), "--data_path", str(data),
        "--video_folder", str(folder / "clips"), "--output_dir", str(folder / "run"), "--num_frames", "2",
        "--mm_perceiver_latents", "4", "--mm_perceiver_latents_fast", "1", "--mm_vision_select_layer", "-1",
        "--feature_cache", str(folder / "cache"), "--max_steps", "1", "--use_cpu", "True", "--report_to", "none",
        "--save_strategy", "no", "--disable_tqdm", "True", "--run_report", "False", "--model_max_length", "128",
        "--per_device_train_batch_size", "16",
    ]  # fmt: skip


def fill_cache(flags: list[str], shape: tuple[int, int, int] = (2, 16, 24), together: int = 2000) -> None:
    """Writes features of noise for every clip, as extraction would those of the tower.

    Args:
        shape: (T, P, Dv), the tower's.
        together: clips of a file.
    """
    args = run_flags.parse_arguments(flags)
    records = load_records(args.data.data_path, video_folder=args.data.video_folder)[0]
    model = run_model.make_model(args, run_model.load_tokenizer(args), records).model
    cache = run_data.make_cache(args, model)
    assert cache is not None
    named = list(features.distinct_clips(records))
    contents, _ = cache.contents.resolve(path for path, _, _ in named)
    clips = [(features.join_key(contents[path], split), path) for path, split, _ in named]
    noise = np.random.default_rng(0).standard_normal((together, *shape)).astype(np.float16)
    for start in range(0, len(clips), len(noise)):
        part = clips[start : start + len(noise)]
        cache.write(part, noise[: len(part)])


def resident() -> float:
    """MiB that this process holds in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class FirstStep(Exception):
    """Ends a run where its first step would be made."""


def measure(flags: list[str], profile: bool) -> None:
    """Runs up to the first step with every stage timed, and writes what was measured as JSON."""
    spent: dict[str, float] = {}

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return work(*args, **kwargs)
            finally:
                spent[name] = spent.get(name, 0.0) + time.process_time() - start

        return run

    for name, (module, function) in STAGES.items():
        if name != "trainer":
            setattr(module, function, timed(name, getattr(module, function)))
    begun: list[tuple[float, float]] = []

    class Trainer(setup.LlavaTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            begun.append((time.process_time(), resident()))
            raise FirstStep

    setup.LlavaTrainer = Trainer  # type: ignore[misc]
    train.run_preflight = timed("pre-flight", train.run_preflight)
    # It decodes one clip, whatever the number of records, and these cannot be decoded.
    preflight_features.check_cache = lambda *_: Finding("feature cache", "note", "left out")  # type: ignore[assignment]
    load_language_model(flags[1])  # What libraries hold once a model is loaded counts as the model's.
    before, start = resident(), time.process_time()
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    with contextlib.suppress(FirstStep):
        train.main(flags)
    profiler.disable()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    first, held = begun[0]
    found = {
        "stages": spent,
        "imports": start,
        "to the first step": first - start,
        "MiB at the first step": held - before,
        "MiB at most": peak - before,
    }
    print(MARK + json.dumps(found))
    if profile:
        pstats.Stats(profiler).sort_stats("cumulative").print_stats(60)


def run(flags: list[str], folder: Path, profile: bool = False) -> dict[str, Any]:
    """What `measure` writes, in a process of its own; its log is shown where it fails or is profiled."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        flags = list(flags)
        flags[flags.index("--output_dir") + 1] = str(folder / "runs" / Path(output).name)
        command = [sys.executable, "-m", "benchmarks.startup", "--measure", json.dumps(flags)]
        done = subprocess.run(command + ["--profile"] * profile, capture_output=True, text=True)
    if profile or done.returncode:
        print(done.stdout, done.stderr, sep="\n")
    done.check_returncode()
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith(MARK)).removeprefix(MARK))


def show(records: int, found: dict[str, dict[str, Any]]) -> None:
    """Prints a table of what was measured, by the name of the run."""
    print(f"\n{records:,} records{'':{28 - len(f'{records:,} records')}}" + "".join(f"{n:>24}" for n in found))
    for name in STAGES | {"pre-flight": ()}:
        if name != "trainer":
            print(f"  {name:26}" + "".join(f"{f['stages'].get(name, 0.0):18.2f} CPU-s" for f in found.values()))
    for name in ("imports", "to the first step"):
        print(f"  {name:26}" + "".join(f"{f[name]:18.2f} CPU-s" for f in found.values()))
    for name in ("MiB at the first step", "MiB at most"):
        print(f"  {name:26}" + "".join(f"{f[name]:20.0f} MiB" for f in found.values()))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--clips", type=int, default=10_000, help="distinct clips (at most one a record)")
    parser.add_argument("--lines", action="store_true", help="JSON lines instead of a JSON list")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder for the data, used again when it is there")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        measure(json.loads(args.measure), args.profile)
        return
    with tempfile.TemporaryDirectory() as temporary:
        for records in args.records:
            clips = min(args.clips, records)
            folder = (args.keep or Path(temporary)) / f"{records}_{clips}{'_lines' * args.lines}"
            saved = folder / "flags.json"
            if not saved.is_file():
                folder.mkdir(parents=True, exist_ok=True)
                flags = make_data(folder, records, clips, args.lines)
                fill_cache(flags)
                saved.write_text(json.dumps(flags))
            flags = json.loads(saved.read_text())
            shutil.rmtree(folder / "runs", ignore_errors=True)
            show(records, {
                "made once": run(flags, folder), "every run after it": run(flags, folder, args.profile)
            })  # fmt: skip


if __name__ == "__main__":
    main()
