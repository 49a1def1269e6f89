"""Runs of several processes, started as torchrun does but for one thing: they are forked from this one, which has
imported all that a run needs, since that takes longer than a tiny run.

python tests/train/forked.py '[4, ["--flag", "value"], ["tests.train.forked.follow"]]' '[2, ["--flag", "other"], []]'

The names are functions that each process calls before its run.
"""

from __future__ import annotations

import json
import pydoc
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers.models.dinov2 import modeling_dinov2  # noqa: F401 (imported before the processes are forked)
from transformers.models.gpt2 import modeling_gpt2  # noqa: F401

from llava.constants import FILLER_ID
from llava.train.monitor.replay import INTEGERS
from llava.train.train import main
from llava.train.trainer import LlavaTrainer


def follow(setattr: Any = setattr) -> None:
    """Has a run write what each process is served: a line for each step into `served-RANK.jsonl`."""
    get_batch_samples = LlavaTrainer.get_batch_samples

    def get(trainer: LlavaTrainer, *args: Any, **kwargs: Any) -> Any:
        batches, items = get_batch_samples(trainer, *args, **kwargs)
        line = {"step": trainer.state.global_step + 1, "batches": [batch["sample_ids"] for batch in batches]}
        path = Path(trainer.args.output_dir) / f"served-{trainer.args.process_index}.jsonl"
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return batches, items

    setattr(LlavaTrainer, "get_batch_samples", get)


def served(folder: Path) -> tuple[dict[int, list[str]], set[tuple[int, int]]]:
    """The ids of each step of a run that `follow` followed, sorted, over its processes; and how many processes and
    batches a step had.
    """
    steps: dict[int, list[str]] = defaultdict(list)
    files = sorted(folder.glob("served-*.jsonl"))
    divisions = set()
    for path in files:
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            steps[line["step"]] += [name for batch in line["batches"] for name in batch if name != FILLER_ID]
            divisions.add((len(files), len(line["batches"])))
    return {step: sorted(ids) for step, ids in steps.items()}, divisions


def flipped(values: torch.Tensor, bit: int = 0) -> torch.Tensor:
    """A copy of fp32 or bf16 values with a bit of the first one turned."""
    copy = values.detach().clone()
    copy.view(INTEGERS[values.element_size()]).view(-1)[0] ^= 1 << bit
    return copy


def flip_on_rank_1(setattr: Any = setattr) -> None:
    """Turns a bit of a gradient of the projector, in the first backward of the second process."""
    create = LlavaTrainer.create_optimizer

    def create_and_flip(trainer: LlavaTrainer, *args: Any, **kwargs: Any) -> Any:
        passes: list[int] = []

        def flip(gradient: torch.Tensor) -> torch.Tensor | None:
            passes.append(trainer.args.process_index)
            return flipped(gradient) if passes == [1] else None

        trainer.model.mm_projector[0].weight.register_hook(flip)
        return create(trainer, *args, **kwargs)

    setattr(LlavaTrainer, "create_optimizer", create_and_flip)


def run(arguments: Sequence[str], plants: Sequence[str]) -> None:
    for name in plants:
        pydoc.locate(name)()
    main(arguments)


if __name__ == "__main__":
    for processes, arguments, plants in map(json.loads, sys.argv[1:]):
        config = LaunchConfig(
            1, 1, processes, run_id="forked", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
            start_method="fork",
        )  # fmt: skip
        elastic_launch(config, run)(arguments, plants)
