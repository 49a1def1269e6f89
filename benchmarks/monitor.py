"""What the run monitor and the invariants cost: steps with and without them, in turns, within one run.

    python -m benchmarks.monitor                       the demo's size, and GPT-2 small with its default video
    python -m benchmarks.monitor --only demo --blocks 40

A block has as many steps as are logged together, so that each has one measured step; the first blocks, whose every
step is measured, are left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from benchmarks.models import SIZES, Size, make_model, make_samples
from llava.config.flags import TrainingArguments
from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.packing import TrainingCollator
from llava.train.trainer import LlavaTrainer

BLOCK = 10
RUNS = {"demo": SIZES["demo"], "12x768": replace(SIZES["12x768"], batch=1)}


class Turns(LlavaTrainer):
    """Switches its monitor and invariants off and on from block to block, and times the blocks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept, self.times, self.start = (self.monitor, self.invariants), {True: [], False: []}, 0.0

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        step = self.state.global_step
        if step % BLOCK == 0:
            now, on = time.perf_counter(), self.monitor is not None
            if step >= 4 * BLOCK:
                self.times[on].append((now - self.start) / BLOCK)
            self.monitor, self.invariants = (None, None) if on else self.kept
            for callback in self.kept:
                (self.pop_callback if on else self.add_callback)(callback)
            self.start = time.perf_counter()
        return super().get_batch_samples(*args, **kwargs)


def make_trainer(size: Size, blocks: int, folder: str) -> Turns:
    """A trainer of random weights, features and words."""
    model = make_model(size)
    samples = make_samples(size, 4 * size.batch)
    args = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=size.batch, max_steps=(2 * blocks + 4) * BLOCK + 1,
        logging_steps=BLOCK, save_strategy="no", report_to="none", disable_tqdm=True, learning_rate=1e-4,
        bf16=torch.cuda.is_available(),
    )  # fmt: skip
    trainer = Turns(
        model=model, args=args, train_dataset=samples, data_collator=DataCollatorForSupervisedDataset(0),
        training_collator=TrainingCollator(0, templates=model.visual_templates()),
        lengths=[len(s["input_ids"]) for s in samples], modalities=["video"] * len(samples), run_record={},
    )  # fmt: skip
    trainer.log = lambda *a, **k: None
    return trainer


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=RUNS, help="one size alone")
    parser.add_argument("--blocks", type=int, help="blocks of each kind (default: 20 for the demo, 3 for 12x768)")
    args = parser.parse_args(argv)
    for name, size in RUNS.items():
        if args.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                trainer = make_trainer(size, args.blocks or (20 if name == "demo" else 3), folder)
                trainer.train()
            on, off = trainer.times[True], trainer.times[False]
            ratios = [a / b for a, b in zip(on, off, strict=False)]
            with_it, without = median(on), median(off)
            monitor = trainer.kept[0]
            own = monitor.own / max(monitor.trained + monitor.waited, 1e-9)
            result = {
                "size": name, "step_ms_with": round(1e3 * with_it, 2), "step_ms_without": round(1e3 * without, 2),
                "ratio_of_medians": round(with_it / without, 4), "median_ratio": round(median(ratios), 4),
                "lowest_and_highest_ratio": [round(min(ratios), 4), round(max(ratios), 4)], "blocks": len(ratios),
                "own_share_of_time": round(own, 4), "threads": torch.get_num_threads(), "torch": torch.__version__,
            }  # fmt: skip
            print(json.dumps(result))


if __name__ == "__main__":
    main()
