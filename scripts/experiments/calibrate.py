"""Is the instrument right? Worlds in which it is known whether seeing helps, trained over and over and judged by it.

    python scripts/experiments/calibrate.py --output output/calibration             trains, and prints the table
    python scripts/experiments/calibrate.py --output output/calibration --table     the table of what is there

A *world* is drawn by `worlds.py`; a *run* trains a GPT-2 of 2 x 64 by the trainer's own loop, without pre-flight, and
leaves a line in `runs.jsonl`. A run that is there is not repeated, so that the command goes on where it stopped, and
several of it (`--share 1/2`) divide the work. A *replicate* is a study of a few seeds; replicates have no seed in
common. Each world says what is true:

    planted    the class of a rare noun is seen and never said: V beats M in the blind choice of its verb
    permuted   captions dealt out over the clips anew: V and M differ in nothing
    swapped    M against M with another exchange of clips: neither sees
    a/a        V against V of other seeds

An instrument passes when the two-way t holds a true zero in .88 of the replicates or more, finds the planted effect in
.8 of those of eight seeds or more, and is sharp; a share whose binomial interval reaches that far is no failure yet,
and its number of replicates says how much it proves. `--broken` judges with an instrument that is wrong, and must fail:
`unpaired` (each run against the other arm's run of another seed), `items` (every item of every seed an independent
draw), `same` (M was given V's clips).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import worlds  # noqa: E402

from llava.commands.make_model import main as make_model  # noqa: E402
from llava.config.commands import parse  # noqa: E402
from llava.config.ranges import COUNT  # noqa: E402
from llava.errors import UserError, run_command  # noqa: E402
from llava.eval.text_scores import TextScorer, plain_format  # noqa: E402
from llava.eval.two_way import Estimate, paired, students_t, two_way_t  # noqa: E402
from llava.train import run_flags  # noqa: E402
from llava.train.setup import prepare  # noqa: E402

STEPS, BATCH = 400, 32
BROKEN = ("unpaired", "items", "same")
LEAST_HELD, LEAST_FOUND = 0.88, 0.8
"""Shares of replicates: whose interval holds a true zero; of eight seeds, whose interval finds the planted effect."""
SHARPEST = 0.03
"""Nats of a caption: half an interval of three seeds where both arms saw strangers; three times as wide, unpaired."""
ARMS = {
    "V": {},
    "M": {"other_clips": 1},
    "N": {"other_clips": 2},
    "P": {"data": "permuted"},
    "Q": {"data": "permuted", "other_clips": 1},
    "T": {"text_only": True},
}
"""The flags of each arm: N is M with another exchange of clips, P and Q are V and M of permuted captions."""
MODEL = "--vocab_size 800 --n_layer 2 --n_embd 64 --n_head 2 --n_positions 64"
TOWER = "--vision_hidden_size 96 --vision_heads 3 --image_size 28"
FLAGS = (
    "--use_cpu True --model_max_length 64 --learning_rate 3e-3 --lr_scheduler_type cosine --warmup_steps 0.05 "
    "--logging_steps 1000 --save_strategy no --report_to none --disable_tqdm True --run_report False --val_fraction 0 "
    "--preflight off --run_monitor False --attn_implementation eager --text_start eos --group_by_modality_length False "
)
SEES = (
    "--num_frames 2 --mm_perceiver_latents 1 --mm_perceiver_latents_fast 1 --mm_perceiver_depth 0 --force_sample True "
    "--mm_vision_select_layer -1 --mm_tunable_parts mm_language_model,mm_mlp_adapter,mm_vision_resampler "
    "--blind_share 0.5 "
)


@dataclass
class CalibrateFlags:
    """What is trained."""

    ranges = {"seeds": COUNT, "steps": COUNT}

    output: Path = field(metadata={"help": "Folder of the worlds, the runs' results and the table."})
    seeds: int = field(default=24, metadata={"help": "Runs of every arm; more can be added later."})
    arms: str = field(default="VMNPQ", metadata={"help": f"Which arms to train, of {', '.join(ARMS)}."})
    steps: int = field(default=STEPS, metadata={"help": "Optimiser steps of a run."})
    share: str = field(default="1/1", metadata={"help": "K/N: every Nth run, from the Kth on."})
    table: bool = field(default=False, metadata={"help": "Train nothing."})
    broken: str = field(default="", metadata={"help": f"{', '.join(BROKEN)}: judge with this fault."})


def make_world(folder: Path) -> None:
    """Clips, captions and the tower, where they are not there."""
    if not (folder / "verbs_it.csv").exists():
        worlds.main(["--output_dir", str(folder)])
    make_model(["--make_vision_tower", str(folder / "dino"), *TOWER.split(), "--exist_ok"])


def settings_of(folder: Path, arm: str, seed: int, steps: int) -> Any:
    """The trainer's settings for a run, whose model is made when it is not there."""
    model = folder / "models" / f"seed{seed}"
    captions = folder / "train_vi_it.json"
    if not (model / "model.safetensors").exists():
        make_model(["--data_path", str(captions), "--output_dir", str(model), *MODEL.split(), "--seed", str(seed)])
    asked: dict[str, Any] = dict(ARMS[arm])
    data = folder / f"{asked.pop('data', 'train')}_vi_it.json"
    flags = f"{FLAGS} {'' if arm == 'T' else SEES}".split()
    if "other_clips" in asked:  # Drawn from the seed, so that no clip keeps its stranger over the seeds.
        asked["other_clips"] = 1000 * asked["other_clips"] + seed
    asked |= {
        "model_name_or_path": model, "data_path": data, "video_folder": folder / "clips",
        "output_dir": folder / "runs" / arm, "seed": seed, "max_steps": steps,
        "per_device_train_batch_size": BATCH,
    } | ({} if arm == "T" else {"vision_tower": folder / "dino"})  # fmt: skip
    return run_flags.parse_arguments([*flags, *(str(p) for k, v in asked.items() for p in (f"--{k}", v))])


def train(folder: Path, arm: str, seed: int, steps: int) -> dict[str, Any]:
    """A run and what it knows at its end without a clip: `choice` of each rare noun, 1 for the right verb, and `blind`
    nats of each held-out caption.
    """
    start = time.process_time()
    run = prepare(settings_of(folder, arm, seed, steps))
    run.trainer.train()
    model = run.trainer.model.eval()
    scorer = TextScorer(run.tokenizer, model, plain_format(model, run.tokenizer, f"{arm}{seed}"), batch_size=240)
    asked = worlds.choices(0)
    nats = [scored.measured[0] for scored in scorer.score([row["sentence"] for row in asked])]
    found: dict[str, Any] = {"arm": arm, "seed": seed, "steps": steps, "choice": right_choices(asked, nats)}
    heldout = json.loads((folder / "heldout_vi_it.json").read_text(encoding="utf-8"))
    texts = [row["conversations"][1]["value"] for row in heldout]
    found["blind"] = [round(scored.measured[0], 5) for scored in scorer.score(texts)]
    found["cpu_seconds"] = round(time.process_time() - start, 1)
    return found


def right_choices(asked: Sequence[Mapping[str, Any]], nats: Sequence[float]) -> dict[str, float]:
    """1 for each noun whose own verb is the likeliest, 0 for another; a tie shares."""
    each: dict[str, list[tuple[float, int]]] = {}
    for row, value in zip(asked, nats, strict=True):
        each.setdefault(row["noun"], []).append((value, row["right"]))
    result = {}
    for noun, listed in each.items():
        best = [right for value, right in listed if value == min(v for v, _ in listed)]
        result[noun] = sum(best) / len(best)
    return result


def plan(flags: CalibrateFlags) -> Iterator[tuple[str, int]]:
    """(arm, seed) of this share, the seeds in turn, so that whatever is there is complete for its seeds."""
    part, parts = map(int, flags.share.split("/"))
    listed = [(arm, seed) for seed in range(flags.seeds) for arm in flags.arms]
    yield from listed[part - 1 :: parts]


def read_runs(output: Path, steps: int) -> list[dict[str, Any]]:
    """The runs of so many steps that are there; a line that a killed process left half-written is said, and its run is
    made again.
    """
    found, others = [], 0
    for path in sorted(output.glob("runs*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                run = json.loads(line)
            except ValueError:
                print(f"{path}:{number}: cut off, left out")
                continue
            if run.get("steps", steps) == steps:
                found.append(run)
            else:
                others += 1
    if others:
        print(f"{others} runs of other than {steps} steps are left out (--steps)")
    return found


def add_run(path: Path, run: Mapping[str, Any]) -> None:
    """Adds a line, on a line of its own whatever stands before it."""
    with open(path, "a+b") as file:
        file.seek(0)
        text = file.read()
        file.write((b"" if text.endswith(b"\n") or not text else b"\n") + json.dumps(run).encode() + b"\n")


@dataclass(frozen=True)
class World:
    """Two arms whose difference is known."""

    name: str
    first: str
    second: str
    is_zero: bool
    seeds: int
    """Of a replicate."""


WORLDS = (
    World("permuted", "P", "Q", True, 3),
    World("swapped", "M", "N", True, 3),
    World("a/a", "V", "V", True, 3),
    World("planted", "V", "M", False, 8),
    World("planted", "V", "M", False, 5),
    World("planted", "V", "M", False, 3),
)


def replicates(world: World, runs: Mapping[tuple[str, int], Any]) -> Iterator[list[tuple[Any, Any]]]:
    """Pairs of runs of each replicate; no two replicates share a run."""
    seeds = sorted(s for arm, s in runs if arm == world.first and (world.second, s) in runs)
    if world.first == world.second:  # One seed against the next.
        pairs = [(runs[world.first, a], runs[world.first, b]) for a, b in zip(seeds[::2], seeds[1::2], strict=False)]
    else:
        pairs = [(runs[world.first, s], runs[world.second, s]) for s in seeds]
    for start in range(0, len(pairs) - world.seeds + 1, world.seeds):
        yield pairs[start : start + world.seeds]


def judge(pairs: Sequence[tuple[Any, Any]], measure: str, broken: str = "") -> tuple[Estimate, Estimate]:
    """The two-way t and Student's t of a replicate."""
    first, second = (np.array([_values(pair[side], measure) for pair in pairs]) for side in (0, 1))
    if broken == "same":
        second = first
    elif broken == "unpaired":
        second = np.roll(second, 1, axis=0)
    names = [str(i) for i in range(first.shape[1])]
    values = paired(first, second, names, [str(i) for i in range(len(pairs))])
    estimate = two_way_t(values.values, values.weights)
    narrow = students_t(estimate.per_seed, len(names))
    if broken == "items":
        estimate = students_t((first - second).ravel(), first.size)
    return estimate, narrow


def _values(run: Mapping[str, Any], measure: str) -> list[float]:
    return list(run[measure].values()) if measure == "choice" else run[measure]


def table(runs: Sequence[Mapping[str, Any]], broken: str = "") -> list[dict[str, Any]]:
    """A row a world and measure: how many intervals hold the truth, or find the effect, with Wilson's interval (1927)
    of that share: as `llava.eval.accuracy`, and nearer to 95 % with few replicates than the exact one, which would let
    more broken instruments pass (Brown, Cai and DasGupta 2001).
    """
    known = {(run["arm"], run["seed"]): run for run in runs}
    rows = []
    for world in WORLDS:
        for measure in ("choice", "blind"):
            found = [judge(pairs, measure, broken) for pairs in replicates(world, known)]
            if not found:
                continue
            means = [two_way.mean for two_way, _ in found]
            row: dict[str, Any] = {
                "world": world.name, "measure": measure, "seeds": world.seeds, "replicates": len(found),
                "mean": float(np.mean(means)), "half": float(np.median([(e.high - e.low) / 2 for e, _ in found])),
            }  # fmt: skip
            for name, each in (("two-way t", 0), ("Student's t", 1)):
                estimates = [pair[each] for pair in found]
                if world.is_zero:
                    hits = sum(e.low <= 0 <= e.high for e in estimates)
                else:
                    hits = sum(e.low > 0 if measure == "choice" else e.high < 0 for e in estimates)
                interval = binomtest(hits, len(found)).proportion_ci(method="wilson")
                row[name] = (hits / len(found), interval.low, interval.high)
            rows.append(row)
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as Markdown."""
    lines = [
        "| world | measure | seeds | replicates | mean difference | half an interval | two-way t | Student's t |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        shares = ["{:.2f} [{:.2f}, {:.2f}]".format(*row[name]) for name in ("two-way t", "Student's t")]
        cells = [
            row["world"],
            row["measure"],
            row["seeds"],
            row["replicates"],
            f"{row['mean']:+.4f}",
            f"{row['half']:.4f}",
            *shares,
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def faults(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why an instrument does not pass, if it does not."""
    found = []
    zeros = {world.name for world in WORLDS if world.is_zero}
    for row in rows:
        name = f"{row['world']}, {row['measure']}, {row['seeds']} seeds, {row['replicates']} replicates"
        share, _, most = row["two-way t"]
        if row["world"] in zeros and share < LEAST_HELD and most < LEAST_HELD:
            found.append(f"{name}: a true zero is held in {share:.2f} (at most {most:.2f})")
        if row["world"] == "planted" and row["seeds"] == 8 and share < LEAST_FOUND and most < LEAST_FOUND:
            found.append(f"{name}: the planted effect is found in {share:.2f} (at most {most:.2f})")
        if row["world"] == "swapped" and row["measure"] == "blind" and row["half"] > SHARPEST:
            found.append(f"{name}: half an interval is {row['half']:.3f} nats, and {SHARPEST} is sharp")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what is missing and prints the table; returns the exit code."""
    (flags,) = parse(__doc__, CalibrateFlags, argv=argv, prog="python scripts/experiments/calibrate.py")
    if flags.broken and flags.broken not in BROKEN:
        raise UserError(f"--broken {flags.broken}: use {', '.join(BROKEN)}")
    if unknown := set(flags.arms) - set(ARMS):
        raise UserError(f"--arms: no arm {', '.join(sorted(unknown))}; there are {', '.join(ARMS)}")
    folder = flags.output / "world"
    if not flags.table:
        folder.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)
        make_world(folder)
        done = {(run["arm"], run["seed"]) for run in read_runs(flags.output, flags.steps)}
        path = flags.output / f"runs_{flags.share.replace('/', '_of_')}.jsonl"
        for arm, seed in plan(flags):
            if (arm, seed) in done:
                continue
            found = train(folder, arm, seed, flags.steps)
            add_run(path, found)
            right = float(np.mean(list(found["choice"].values())))
            print(f"{arm} seed {seed}: {right:.3f} of the verbs right, {found['cpu_seconds']} CPU-s", flush=True)
    rows = table(read_runs(flags.output, flags.steps), flags.broken)
    print(markdown(rows))
    wrong = faults(rows)
    print("\n".join(["the instrument does not pass:", *wrong]) if wrong else "the instrument passes")
    return int(bool(wrong))


if __name__ == "__main__":
    run_command(main)
