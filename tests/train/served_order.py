"""The trainer, which also writes what each process is served: a line for each step into `served-RANK.jsonl`.

As torchrun starts processes, but for one thing: they are forked from this one, which has imported all that a run needs,
since that takes longer than a tiny run.

python tests/train/served_order.py '[4, ["--flag", "value"]]' '[2, ["--flag", "other"]]'
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers.models.dinov2 import modeling_dinov2  # noqa: F401 (imported before the processes are forked)
from transformers.models.gpt2 import modeling_gpt2  # noqa: F401

from llava.constants import FILLER_ID
from llava.train.train import main
from llava.train.trainer import LlavaTrainer


def writing(get_batch_samples: Callable[..., Any]) -> Callable[..., Any]:
    """`LlavaTrainer.get_batch_samples` that writes the step and the sample ids of its batches."""

    def get(trainer: LlavaTrainer, *args: Any, **kwargs: Any) -> Any:
        batches, items = get_batch_samples(trainer, *args, **kwargs)
        line = {"step": trainer.state.global_step + 1, "batches": [batch["sample_ids"] for batch in batches]}
        path = Path(trainer.args.output_dir) / f"served-{trainer.args.process_index}.jsonl"
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return batches, items

    return get


def served(folder: Path) -> tuple[dict[int, list[str]], set[tuple[int, int]]]:
    """The ids of each step of a run, sorted, over its processes; and how many processes and batches a step had."""
    steps: dict[int, list[str]] = defaultdict(list)
    files = sorted(folder.glob("served-*.jsonl"))
    divisions = set()
    for path in files:
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            steps[line["step"]] += [name for batch in line["batches"] for name in batch if name != FILLER_ID]
            divisions.add((len(files), len(line["batches"])))
    return {step: sorted(ids) for step, ids in steps.items()}, divisions


if __name__ == "__main__":
    LlavaTrainer.get_batch_samples = writing(LlavaTrainer.get_batch_samples)
    for processes, arguments in map(json.loads, sys.argv[1:]):
        config = LaunchConfig(
            1, 1, processes, run_id="order", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
            start_method="fork",
        )  # fmt: skip
        elastic_launch(config, main)(arguments)
