"""Compares text-only with video runs over paired seeds; scripts/experiments/text_vs_video.sh makes the runs.

Losses are over the tokens that both experiments predict (`eval_common_loss`), on captions that neither trained on.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llava.config.commands import parse
from llava.config.video import VideoSpec
from llava.constants import VISUAL_TOKENS
from llava.data.forms import differing_forms
from llava.data.prompt import expand_turns, plain_lm_sample, visual_token_ids
from llava.data.records import Record, load_records
from llava.eval.comparison import different_targets
from llava.eval.statistics import paired_interval
from llava.report.page import Run, read_run

TARGET_SLACK = 1.05
LAST_NORMS = 10


def curve(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Steps and held-out loss of the tokens that both experiments predict.

    Raises:
        ValueError: when the run was not evaluated twice or more.
    """
    points = sorted(dict(run.values("eval_common_loss")).items())
    if len(points) < 2:
        raise ValueError(
            f"{run.folder}: {len(points)} evaluation(s); train with --eval_strategy steps --eval_data_path"
        )
    steps, losses = np.array(points).T
    return steps, losses


def area(run: Run) -> float:
    """Mean held-out loss over the run's steps, by the trapezoidal rule: the area under the curve over its width."""
    steps, losses = curve(run)
    return float(np.sum((losses[1:] + losses[:-1]) / 2 * np.diff(steps)) / (steps[-1] - steps[0]))


def steps_to(run: Run, target: float) -> float:
    """The step at which the held-out loss first comes down to a target, interpolated; NaN when it never does."""
    steps, losses = curve(run)
    below = np.flatnonzero(losses <= target)
    if not len(below):
        return math.nan
    first = int(below[0])
    if first == 0:
        return float(steps[0])
    share = (losses[first - 1] - target) / (losses[first - 1] - losses[first])
    return float(steps[first - 1] + share * (steps[first] - steps[first - 1]))


def last(run: Run, key: str, number: int = 1) -> float:
    """Mean of the last logged values of a key."""
    values = [value for _, value in run.values(key)][-number:]
    return sum(values) / len(values) if values else math.nan


def pair_runs(folders: Sequence[str]) -> list[tuple[int, Run, Run]]:
    """(seed, text-only run, video run) of each seed.

    Raises:
        ValueError: when a seed lacks one of the two, or the pair did not start from the same model, take the same
            number of steps, or predict the same tokens.
    """
    found: dict[int, dict[str, Run]] = {}
    for folder in folders:
        run = read_run(folder)
        kind = "video" if run.flags.get("vision_tower") else "text"
        found.setdefault(int(run.flags.get("seed", -1)), {})[kind] = run
    pairs = []
    for seed, runs in sorted(found.items()):
        if set(runs) != {"text", "video"}:
            raise ValueError(f"seed {seed}: only a {'/'.join(runs)} run; both experiments are needed")
        text, video = runs["text"], runs["video"]
        for what, values in {
            "--model_name_or_path": [r.flags.get("model_name_or_path") for r in (text, video)],
            "number of steps": [(r.state or {}).get("global_step") for r in (text, video)],
        }.items():
            if values[0] != values[1]:
                raise ValueError(f"seed {seed} is no pair: {what}: {values[0]} (text) and {values[1]} (video)")
        problem = different_targets({"text": text, "video": video})
        if problem:
            raise ValueError(f"seed {seed} is no pair: {problem} (has the tokenizer add_prefix_space?)")
        pairs.append((seed, text, video))
    return pairs


def check_forms(tokenizer: PreTrainedTokenizerBase, paths: Sequence[str]) -> None:
    """Whether records predict the same words with their videos and as text alone, asked before anything trains.

    Raises:
        ValueError: naming the first record that does not.
    """
    tokenizer.add_tokens(list(VISUAL_TOKENS), special_tokens=True)
    spec = VideoSpec(num_frames=2, fast_latents=1, slow_latents=1)

    def tokens(record: Record) -> tuple[torch.Tensor, torch.Tensor]:
        return plain_lm_sample(expand_turns(record.conversations, spec), tokenizer)

    visual_ids = list(visual_token_ids(tokenizer).values())
    for path in paths:
        records = [r for r in load_records(path, allow_absolute_paths=True)[0] if r.videos or r.images]
        wrong = differing_forms(records, tokens, tokenizer, visual_ids)
        if wrong:
            raise ValueError(
                f"{len(wrong)} of {len(records)} records predict other tokens with video than as text alone, so the "
                f"experiments cannot be compared: {wrong[0]}; make the tokenizer with llava-make-model, or give "
                "its own add_prefix_space=True"
            )


def compare(pairs: Sequence[tuple[int, Run, Run]], target: float | None) -> dict[str, dict[str, list[float] | float]]:
    """Each measure: `text` and `video` by seed, and the mean of video - text with its 95 % interval."""
    finals = [last(r, "eval_common_loss") for _, *two in pairs for r in two]
    target = target if target is not None else TARGET_SLACK * max(finals)
    measures: dict[str, Callable[[Run], float]] = {
        "held-out loss at the end, nats a token": lambda r: last(r, "eval_common_loss"),
        "mean held-out loss over training (area under the curve)": area,
        f"steps to held-out loss {target:.3f}": lambda r: steps_to(r, target),
        "held-out token accuracy at the end": lambda r: last(r, "eval_common_accuracy"),
        f"gradient norm, last {LAST_NORMS} logged": lambda r: last(r, "grad_norm", LAST_NORMS),
    }
    result: dict[str, dict[str, list[float] | float]] = {}
    for name, measure in measures.items():
        text, video = [measure(t) for _, t, _ in pairs], [measure(v) for _, _, v in pairs]
        result[name] = {"text": text, "video": video, "video - text": list(paired_interval(text, video))}
    return result


def table(result: dict, seeds: Sequence[int]) -> str:
    """A Markdown table."""
    one = f"Seed {seeds[0]} alone: no interval, and no difference here is told from that between seeds (SEEDS='0 1 2')."
    several = f"Seeds {', '.join(map(str, seeds))}. Intervals are 95 %, paired over seeds (Student's t)."
    lines = [
        one if len(seeds) == 1 else several,
        "",
        "| | text only | video and text | video - text |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, row in result.items():
        digits, missing = (0, "not reached") if name.startswith("steps") else (3, "not measured")
        mean, low, high = row["video - text"]
        interval = f" [{low:+.{digits}f}, {high:+.{digits}f}]" if math.isfinite(low) else ""
        sides = (", ".join(_number(v, f".{digits}f", missing) for v in row[side]) for side in ("text", "video"))
        lines.append(f"| {name} | {' | '.join(sides)} | {_number(mean, f'+.{digits}f', missing)}{interval} |")
    return "\n".join(lines)


def _number(value: float, form: str, missing: str) -> str:
    return missing if math.isnan(value) else f"{value:{form}}"


@dataclass
class ComparisonFlags:
    """The runs, and how they are compared."""

    folders: list[str] = field(
        default_factory=list,
        metadata={"positional": True, "metavar": "RUN", "help": "Output folders of both experiments, for each seed."},
    )
    check: list[str] = field(
        default_factory=list,
        metadata={"help": "Before training: a model and files of records; do both forms predict the same words?"},
    )
    output: Path = field(default=Path("."), metadata={"help": "Folder for the table."})
    target: float | None = field(
        default=None, metadata={"help": "Loss for `steps to`; by default 5 %% above the worst final loss."}
    )

    def __post_init__(self) -> None:
        if not (self.folders or self.check):
            raise ValueError("name the output folders of the runs")
        if len(self.check) == 1:
            raise ValueError(f"--check {self.check[0]}: a model, and then files of records")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the comparison and writes text_vs_video.md and text_vs_video.json."""
    (args,) = parse(main.__doc__, ComparisonFlags, argv=argv, prog="python scripts/experiments/text_vs_video.py")
    if args.check:
        check_forms(AutoTokenizer.from_pretrained(args.check[0]), args.check[1:])
        return
    pairs = pair_runs(args.folders)
    result = compare(pairs, args.target)
    text = table(result, [seed for seed, *_ in pairs])
    output = args.output
    output.mkdir(parents=True, exist_ok=True)
    (output / "text_vs_video.md").write_text(text + "\n", encoding="utf-8")
    clean = json.dumps(result, indent=1).replace("NaN", "null")
    (output / "text_vs_video.json").write_text(clean + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"ERROR: {error}")
