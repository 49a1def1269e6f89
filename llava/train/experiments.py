"""Two faults that a run can be given on purpose, to measure what they do (docs/masking.md).

They reproduce what a public fork did: visual placeholders as targets, and a vocabulary frozen by way of the head that
is tied to it. Pre-flight refuses such a run, so an experiment switches it off.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from llava.data.dataset import Preprocess
from llava.errors import UserError

FAULTS = ("unmasked_labels", "frozen_vocabulary")


def parse_faults(value: str | None) -> list[str]:
    """The faults that a comma-separated flag names.

    Raises:
        ValueError: for an unknown one.
    """
    faults = [f.strip() for f in (value or "").split(",") if f.strip()]
    unknown = sorted(set(faults) - set(FAULTS))
    if unknown:
        raise UserError(f"--experiment_faults: unknown {', '.join(unknown)}; use {', '.join(FAULTS)}")
    return faults


def give_faults(faults: list[str], model: nn.Module, preprocess: Preprocess) -> Preprocess:
    """Breaks the model as asked, and returns the preprocessing for training data, broken or not."""
    if "frozen_vocabulary" in faults:
        model.get_output_embeddings().weight.requires_grad_(False)
    if "unmasked_labels" not in faults:
        return preprocess

    def unmasked(*args: Any, **kwargs: Any) -> dict[str, Any]:
        sample = preprocess(*args, **kwargs)
        return {**sample, "labels": [ids.clone() for ids in sample["input_ids"]]}

    return unmasked
