"""What a run's loss is judged by: guessing, the frequencies of its words, and the loss before the first step.

All are nats per supervised token, NaN where the run did not record them.
"""

from __future__ import annotations

import math
import re
from statistics import median

from llava.eval.controls import EVALUATION, TRAINING
from llava.report.plots import number
from llava.report.read import Run

HELD_OUT, TRAINED, UNCHECKED = "held out", "trained on", "not checked"
"""What the evaluation records of a run are: not trained on; trained on, half of them or more; or nobody looked."""
OTHER_VIDEO = ", other video"
"""How the names of sets of captions end that were written for another clip's video."""
LOOP = re.compile(r"([^\W\d_])\1{4}|\b(\w+(?:\W+\w+){0,2})(?:\W+\2\b){3}")
"""The same letter five times, or the same one to three words four times, on end."""


def chance(run: Run) -> float:
    """ln of the number of the model's outputs: the loss of guessing."""
    outputs = number((run.record.get("tokenizer") or {}).get("outputs"))
    return math.log(outputs) if outputs > 0 else math.nan


def word_entropy(run: Run, part: str, kind: str | None = None) -> float:
    """Unigram entropy of the targets of `part` ("train" or "eval"): the lowest loss of who knows no more than how
    frequent each word is there. Of one `kind` ("captions", "text"), or of all, weighed by their tokens.
    """
    counted = ((run.record.get("data") or {}).get(part) or {}).get("supervised") or {}
    chosen = [c for name, c in counted.items() if kind in (None, name) and number(c.get("tokens")) > 0]
    tokens = sum(number(c["tokens"]) for c in chosen)
    return sum(number(c["tokens"]) * number(c.get("entropy")) for c in chosen) / tokens if chosen else math.nan


def start_loss(run: Run) -> float:
    """The loss before the first step, as pre-flight measured it on training samples: of videos, else images or text."""
    checks = (run.preflight or {}).get("checks") or []
    found = {str(c.get("check")).rpartition(" ")[2]: number(c["nats"]) for c in checks if "nats" in c}
    return next((found[kind] for kind in ("video", "image", "text") if kind in found), math.nan)


def training_losses(run: Run) -> tuple[str, list[float]]:
    """The losses of captions that were logged, where there are any, else of all samples; and what they are of."""
    captions = [v for _, v in run.values("caption_loss") if math.isfinite(v)]
    if captions:
        return "captions", captions
    return "text" if text_alone(run) else "samples", [v for _, v in run.values("loss") if math.isfinite(v)]


def last_of(losses: list[float]) -> float:
    """The median of the last three, or of the last half where there are fewer than six; NaN without any."""
    return median(losses[-max(1, min(3, len(losses) // 2)) :]) if losses else math.nan


def text_alone(run: Run) -> bool:
    """Whether a run trains on text alone."""
    return bool(run.flags.get("text_only")) or ("vision_tower" in run.flags and run.flags["vision_tower"] is None)


def shown_others(run: Run) -> bool:
    """Whether a run was trained on other clips than its records' own, as an arm of an experiment."""
    return bool((run.record.get("arm") or {}).get("other_clips"))


def evaluated_on(run: Run) -> str:
    """Whether the records that a run was evaluated on are `HELD_OUT`, `TRAINED` on too, or `UNCHECKED`."""
    evaluation = (run.record.get("data") or {}).get("eval") or {}
    records, repeated = number(evaluation.get("records")), number(evaluation.get("repeated"))
    if evaluation.get("clips") == 0 and not (run.record.get("split") or {}).get("held_out"):
        return UNCHECKED if math.isnan(repeated) else TRAINED if 2 * repeated >= records else HELD_OUT
    measured = run.controls[-1].get("measured_on") if run.controls else None
    checks = (run.preflight or {}).get("checks") or []
    found = next((c.get("status") for c in checks if c.get("check") == "held-out clips"), None)
    if measured in (EVALUATION, TRAINING):
        return HELD_OUT if measured == EVALUATION else TRAINED
    if found is not None:
        return HELD_OUT if found == "ok" else TRAINED
    return HELD_OUT if (run.record.get("split") or {}).get("held_out") else UNCHECKED


def babbling(run: Run) -> tuple[int, int]:
    """How many of a run's captions are empty, or repeat a letter or words without end, where their reference does
    not; and of how many.
    """

    def loops(text: object) -> bool:
        return not str(text).strip() or LOOP.search(str(text)[:2000]) is not None

    sets = (run.captions or {}).get("captions") or {}
    listed = [c for name, items in sets.items() if not name.endswith(OTHER_VIDEO) for c in items or []]
    return sum(loops(c.get("caption", "")) and not loops(c.get("reference", "")) for c in listed), len(listed)
