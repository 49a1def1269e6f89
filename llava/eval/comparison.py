"""Whether runs may be laid over each other: text-only and video runs compare where both predict the same words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava.errors import UserError


def predicted(run: Any) -> tuple[str | None, int | None]:
    """(hash of the words of the evaluation set, number of tokens that both experiments predict) of a
    `llava.report.page.Run`; None for what it does not say.
    """
    evaluation = (run.record.get("data") or {}).get("eval") or {}
    counts = [int(n) for _, n in run.values("eval_common_tokens") if n == n]
    return evaluation.get("targets"), counts[-1] if counts else None


def different_targets(runs: Mapping[str, Any]) -> str | None:
    """What two of the runs predict that cannot be compared; None when nothing speaks against it."""
    seen: list[dict[Any, str]] = [{}, {}]
    for name, run in runs.items():
        for names, value in zip(seen, predicted(run), strict=True):
            if value is not None:
                names.setdefault(value, name)
    words, counts = seen
    if len(counts) > 1:
        listed = ", ".join(f"{count} ({name})" for count, name in list(counts.items())[:4])
        return f"other numbers of tokens that both predict: {listed}"
    if len(words) > 1:
        return f"other words of the evaluation set: {' and '.join(list(words.values())[:4])}"
    return None


def comparable(runs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The runs, where they may stand on one page.

    Raises:
        ValueError: when both experiments are among them and do not predict the same words.
    """
    kinds = {bool(run.flags.get("vision_tower")) for run in runs.values() if run.flags}
    problem = different_targets(runs) if len(kinds) > 1 else None
    if problem:
        raise UserError(
            f"text-only and video runs cannot be compared: {problem}; evaluate both on the same captions with the same "
            "tokenizer and --model_max_length, or write a report of each"
        )
    return runs
