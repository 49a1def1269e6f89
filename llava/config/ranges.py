"""What every number among the flags may be: one table, one message for each that is outside.

transformers checks few of its numbers, some with a traceback, and uses others as they come: a negative accumulation
trains no step, a length of -1 drops the last word of every caption.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from llava.errors import UserError


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`, both allowed unless `above` or `below` says otherwise.

    Attributes:
        whole: whether fractions are refused.
        above, below: whether `least`, or `most`, is itself too small, or too large.
        also: a value outside that has a meaning of its own.
        share: whether numbers between 0 and 1 are allowed besides, as a share of all steps.
    """

    least: float = 0
    most: float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False
    also: float | None = None
    share: bool = False

    def holds(self, value: float) -> bool:
        """Whether the range has `value`; it never has NaN or infinity."""
        if value == self.also:
            return True
        if not math.isfinite(value):
            return False
        if self.share and 0 < value < 1:
            return True
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        return low and high and (not self.whole or value == int(value))

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low = f"{'above' if self.above else 'from'} {self.least:g}"
        if self.most < math.inf:
            words = f"{kind} {low} {'to below' if self.below else 'to'} {self.most:.10g}"
        else:
            words = f"{kind} above {self.least:g}" if self.above else f"{kind}, {self.least:g} or more"
        if self.share:
            words += ", or a share of all steps between 0 and 1"
        return words + (f", or {self.also:g}" if self.also is not None else "")


UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}


def amount(text: str, flag: str) -> int:
    """A number such as 1500, 100k, 2.5M or 1B.

    Raises:
        UserError: naming the flag, for anything else and for less than one.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb]?)", text.strip().casefold(), re.ASCII)
    number = Decimal(match[1]) * UNITS[match[2]] if match else Decimal(0)
    if number < 1 or number != int(number):
        raise UserError(f"{flag} {text}: no number; write 1500, 100k, 2.5M or 1B")
    return int(number)


COUNT = Range(1, whole=True)
AMOUNT = Range(0, whole=True)
RATE = Range(0)
EVERY = Range(1, whole=True, share=True)
LATENTS = Range(1, 65536, whole=True)
SEED = Range(0, 2**32 - 1, whole=True)

RANGES: dict[str, Range] = {
    # The model
    "mm_perceiver_latents": LATENTS,
    "mm_perceiver_latents_fast": LATENTS,
    "mm_perceiver_depth": Range(0, 1000, whole=True),
    "mm_perceiver_row_std": Range(0, 100, above=True),
    "mm_perceiver_temporal_factor": LATENTS,
    "mm_perceiver_width": LATENTS,
    "mm_perceiver_heads": Range(1, 1024, whole=True),
    "mm_vision_select_layer": Range(-10_000, 10_000, whole=True),
    "lora_r": Range(1, 65536, whole=True),
    "lora_alpha": Range(1, 65536, whole=True),
    "lora_dropout": Range(0, 1, below=True),
    # The data
    "num_frames": LATENTS,
    "video_fps": Range(0, 1e6),
    "frames_upbound": AMOUNT,
    "clip_timeout": Range(0, above=True),
    "val_fraction": Range(0, 1, below=True),
    "other_clips": SEED,
    "blind_share": Range(0, 1, below=True),
    "model_max_length": Range(2, whole=True),
    "pad_to_multiple_of": COUNT,
    # The batches
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "eval_accumulation_steps": COUNT,
    "dataloader_num_workers": Range(0, 4096, whole=True),
    "dataloader_prefetch_factor": COUNT,
    "seed": SEED,
    "data_seed": SEED,
    # How long
    "max_steps": Range(1, whole=True, also=-1),
    "num_train_epochs": Range(0, above=True),
    "logging_steps": EVERY,
    "save_steps": EVERY,
    "eval_steps": EVERY,
    "eval_delay": RATE,
    "save_total_limit": COUNT,
    "ddp_timeout": COUNT,
    "ddp_bucket_cap_mb": COUNT,
    "torch_empty_cache_steps": COUNT,
    # The optimiser
    "learning_rate": RATE,
    "mm_projector_lr": RATE,
    "mm_vision_resampler_lr": RATE,
    "mm_vision_tower_lr": RATE,
    "mm_embeddings_lr": RATE,
    "mm_coordinates_lr": RATE,
    "warmup_steps": RATE,
    "warmup_ratio": Range(0, 1, below=True),
    "weight_decay": RATE,
    "adam_beta1": Range(0, 1, below=True),
    "adam_beta2": Range(0, 1, below=True),
    "adam_epsilon": Range(0, above=True),
    "max_grad_norm": RATE,
    "label_smoothing_factor": Range(0, 1, below=True),
    "neftune_noise_alpha": RATE,
    # What is measured
    "show_samples": AMOUNT,
    "replay_every": COUNT,
    "controls_samples": Range(2, whole=True),
}


def out_of_range(values: Mapping[str, Any], ranges: Mapping[str, Range] = RANGES) -> dict[str, str]:
    """The flags whose numbers are outside their range, each with its message; None is a flag that was left out."""
    return {
        name: f"--{name} {values[name]:g}: {allowed}"
        for name, allowed in ranges.items()
        if values.get(name) is not None and not allowed.holds(float(values[name]))
    }
