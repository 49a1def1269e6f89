"""The trainer and an epoch: a run of the real trainer from the cache, measures of `python -m benchmarks.run`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, TrainerCallback

from benchmarks.models import SIZES, WORDS, Size
from benchmarks.timing import Row, in_turns, now, pass_of, row, to_device
from llava.commands import make_model
from llava.train import run_flags
from llava.train.setup import Run, prepare

STEPS, SETTLING = 12, 3
"""Steps of a measured run, and how many of them at its start do not count: workers start, memory is claimed."""


class Clock(TrainerCallback):
    """Seconds of each step from end to end, and of its forward, backward and optimiser together."""

    def __init__(self, run: Run) -> None:
        self.spent = 0.0
        self.steps: list[tuple[float, float]] = []
        self.ended = now()
        trainer = run.trainer
        trainer.model.forward = self.timed(trainer.model.forward)
        trainer.accelerator.backward = self.timed(trainer.accelerator.backward)
        trainer.add_callback(self)

    def timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(work)
        def run(*args: Any, **kwargs: Any) -> Any:
            start = now()
            result = work(*args, **kwargs)
            self.spent += now() - start
            return result

        return run

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        optimizer.step = self.timed(optimizer.step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        end = now()
        self.steps.append((end - self.ended, self.spent))
        self.ended, self.spent = end, 0.0


def make_language_model(folder: Path, size: Size) -> None:
    """A GPT-2 of `size` as `llava-make-model` makes it, for words `w0`, `w1`, ..."""
    words = {f"w{i}": i for i in range(size.vocabulary - 16)}
    words |= {token: len(words) + i for i, token in enumerate(("<|endoftext|>", "<|pad|>"))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|pad|>"
    )
    fast.save_pretrained(folder)
    flags = make_model.LanguageFlags(["-"], folder, n_layer=size.n_layer, n_embd=size.n_embd, n_head=size.n_head)
    make_model.make_gpt2(fast, flags).save_pretrained(folder)


def make_data(folder: Path, clips: Sequence[Path], records: int, words: int = 30_000) -> None:
    """Records of random captions of `words` different words over the clips, repeated."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i, clip in enumerate(islice(cycle(clips), records)):
        caption = " ".join(f"w{w}" for w in torch.randint(0, words, (WORDS - 1,), generator=generator).tolist())
        turns = [{"from": "human", "value": "<video>"}, {"from": "gpt", "value": caption}]
        rows.append({"id": str(i), "video": clip.name, "conversations": turns})
    (folder / "data.json").write_text(json.dumps(rows))


def run_arguments(
    folder: Path, size: Size, name: str, clips: Path, use_cache: bool = True, **others: Any
) -> list[str]:  # fmt: skip
    """Flags of a run over `folder`'s data whose features come from the cache, or from decoding and the tower.

    Args:
        others: flags by name, in the place of these or beside them.
    """
    values: dict[str, Any] = {
        "model_name_or_path": folder / name, "vision_tower": folder / "tower", "data_path": folder / "data.json",
        "video_folder": clips, "output_dir": folder / "run", "val_fraction": 0,
        "feature_cache": folder / "cache" if use_cache else "off", "vision_precision": "fp32",
        "num_frames": size.frames, "mm_perceiver_latents": size.slow, "mm_perceiver_latents_fast": size.fast,
        "mm_perceiver_depth": size.depth, "force_sample": True, "per_device_train_batch_size": size.batch,
        "max_steps": STEPS, "dataloader_num_workers": 1, "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "model_max_length": 1024, "run_report": False, "preflight": "off",
    }  # fmt: skip
    return [part for name, value in (values | others).items() for part in (f"--{name}", str(value))]


def prepared(folder: Path, size: Size, name: str, clips: Path, use_cache: bool = True) -> Run:
    """The run of `run_arguments`, ready to start."""
    return prepare(run_flags.parse_arguments(run_arguments(folder, size, name, clips, use_cache)))


def trainer(clips: Path, names: Sequence[Path], layers: int, repeats: int, device: str) -> list[Row]:
    """What the trainer adds to forward, backward and optimiser, and an epoch with and without the cache.

    Args:
        clips: folder of the video files `names`.
        layers: of the tower of 1024 features.
    """
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_data(folder, names, STEPS * max(size.batch for size in SIZES.values()))
        make_model.main([
            "--make_vision_tower", str(folder / "tower"), "--vision_hidden_size", "1024", "--vision_heads", "16",
            "--vision_layers", str(layers), "--image_size", "224",
        ])  # fmt: skip
        for name in ("12x768", "4x256"):
            size = SIZES[name]
            make_language_model(folder / name, size)
            run = prepared(folder, size, name, clips)
            clock = Clock(run)
            run.trainer.train()
            steps = clock.steps[SETTLING:]
            whole, parts = [s for s, _ in steps], [p for _, p in steps]
            waited = run.trainer.monitor.waited / (run.trainer.monitor.waited + run.trainer.monitor.trained)
            rate = size.batch / median(whole)
            note = f"batch {size.batch}, 1 worker: {rate:.2f} samples/s, {rate * WORDS:.0f} supervised tokens/s; "
            note += f"{100 * waited:.2g} % of the time waiting for data, start of the worker included"
            rows.append(row(f"step of the trainer against forward, backward and optimiser, {name}", "s", whole, parts,
                            note))  # fmt: skip
        rows += epoch(folder, clips, repeats, device)
    return rows


def epoch(folder: Path, clips: Path, repeats: int, device: str) -> list[Row]:
    """Steps of 12x768 on one batch: decoding and the tower in the loop, from the cache, and from memory."""
    size = SIZES["12x768"]
    steps = {}
    for path, use_cache in (("loop", False), ("cache", True)):
        run = prepared(folder, size, "12x768", clips, use_cache)
        model, dataset = run.trainer.model.to(device).train(), run.trainer.train_dataset
        collate = run.trainer.training_collator

        def batch(dataset: Any = dataset, collate: Any = collate) -> dict[str, Any]:
            return to_device(collate([dataset[i] for i in range(size.batch)]), device)

        def step(model: Any = model, batch: Any = batch) -> None:
            pass_of(model, [batch()])

        steps[path] = step
        if use_cache:
            held = batch()
            steps["memory"] = lambda step=step, held=held: step(batch=lambda: held)
    times = in_turns(steps, repeats)
    note = f"forward and backward of batch {size.batch}, read in the loop itself with no worker; fp32"
    return [
        row("epoch with decoding and DINOv2 in the loop against one from the cache", "s", times["loop"],
            times["cache"], note),
        row("epoch from the cache against features in memory", "s", times["cache"], times["memory"], note),
    ]  # fmt: skip
