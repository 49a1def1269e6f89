"""What the record of a run says of how its training records are shown, where that is not each with its own clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava.data.dataset import LazySupervisedDataset


def arm_record(dataset: LazySupervisedDataset) -> dict[str, Any] | None:
    """What a run's record keeps; None where every record is shown its own clips in every epoch.

    `clips` and `digest` are of the exchange of clips, `records` counts those that can be shown blind.
    """
    others, blind = dataset.others, dataset.blind
    if others is None and blind is None:
        return None
    return {
        "other_clips": others and {"seed": others.seed, "clips": len(others.named), "digest": others.digest},
        "blind": blind and {"share": blind.share, "seed": blind.seed, "records": int(blind.sees.sum())},
    }


def describe(arm: Mapping[str, Any] | None) -> str:
    """`arm_record` in words."""
    others, blind = (arm or {}).get("other_clips"), (arm or {}).get("blind")
    shown = "each record its own clip"
    if others:
        shown = f"each record another clip ({others['clips']:,} clips exchanged by content, seed {others['seed']})"
    if blind:
        shown += f"; without it {100 * blind['share']:g} % of {blind['records']:,} records, drawn anew each epoch"
    return shown


def flag_problems(other_clips: int | None, blind_share: float, sees: bool) -> list[str]:
    """What is wrong with the flags of these names in a run that sees, or does not."""
    asked = {"other_clips": other_clips, "blind_share": blind_share or None}
    return [
        f"--{name} {value}: says how videos are shown, but there is no --vision_tower, so that nothing is seen"
        for name, value in asked.items()
        if value is not None and not sees
    ]


def entropies_of(record: Mapping[str, Any], dataset: Any) -> dict[str, float]:
    """The unigram entropy in nats of the targets of "captions" and of "text", from the record of a run.

    Captions that are shown blind are texts: where the training `dataset` has no others, they have the captions' words.
    """
    counted = record.get("data", {}).get("train", {}).get("supervised", {})
    found = {kind: values["entropy"] for kind, values in counted.items()}
    if getattr(dataset, "alone", None) is not None and "captions" in found:
        found.setdefault("text", found["captions"])
    return found
