"""Whether a run sees, measured at every evaluation and always at its end: on clips that were held out, else on others.

The controls are those of `llava.eval.controls`. A run without an evaluation set measures them on training clips, which
shows less, and says so.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from llava.data.features.content import ContentHashes
from llava.data.features.names import clip_names
from llava.data.records import Record
from llava.eval.controls import (
    CONTROLS_FILE,
    EVALUATION,
    TRAINING,
    choose_samples,
    control_losses,
    format_controls,
)
from llava.train.checkpoint.sharding import weights_are_spread
from llava.train.monitor.alarms import PATIENCE
from llava.train.monitor.blindness import blind, still_falls
from llava.train.monitor.run_monitor import keep_until

if TYPE_CHECKING:
    from llava.train.trainer import LlavaTrainer

logger = logging.getLogger(__name__)


def measure_at_end(trainer: LlavaTrainer, evaluation: dict[str, float]) -> None:
    """Measures sight on training clips when the last evaluation, whose metrics are given, did not measure any."""
    if any("_gain_" in name for name in evaluation) or not _sees(trainer):
        return
    logger.info("no evaluation clips: the controls are measured on training clips, which shows less")
    trainer.model.eval()
    # Their own, also where training showed others: whether it sees is asked alike of every run.
    gains = measure(trainer, trainer.train_dataset.own(), "train")
    if gains:
        trainer.log(gains)


def measure(trainer: LlavaTrainer, dataset: Any, prefix: str) -> dict[str, float]:
    """The gains in nats a caption, divided over the ranks, written to `controls.jsonl`; none when no two clips differ.

    Args:
        prefix: of the names of the gains, `eval` or `train`.
    """
    args, step = trainer.args, trainer.state.global_step
    if not _sees(trainer):
        return {}
    try:
        chosen, others = choose_samples(dataset.records, args.controls_samples)
    except ValueError as error:
        logger.warning("no controls: %s", error)
        return {}
    rank, ranks = args.process_index, args.world_size
    if weights_are_spread(args):
        rank, ranks = 0, 1  # Shares of unequal size would leave processes waiting for each other's weights.
    pairs = list(zip(chosen, others, strict=True))
    part = control_losses(
        trainer.model, dataset, trainer.collate_until_stopped, pairs[rank::ranks] or pairs[:1],
        args.per_device_eval_batch_size, trainer.compute_loss_context_manager,
    )  # fmt: skip
    if ranks > 1:
        parts = gather_object([(part, bool(pairs[rank::ranks]))])
        part, *more = [p for p, counted in parts if counted]
        part = part.join(more)
    clips = measured_on(
        [dataset.records[i] for i in chosen], trainer.train_dataset.records, getattr(dataset.cache, "contents", None)
    )
    summary = part.summary(step, clips)
    if trainer.is_world_process_zero():
        if step >= trainer.state.max_steps:  # Before, the line of the log has the gain of the video.
            logger.info("%s", format_controls(summary))
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        # The last evaluation may repeat that of the last step.
        keep_until(folder / CONTROLS_FILE, step - 1)
        with open(folder / CONTROLS_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(summary, ensure_ascii=False) + "\n")
    # Nobody asked for a measurement on training clips: a trial of a few steps has nothing to be blamed for.
    is_judged = (prefix == "eval" or step >= PATIENCE) and trainer.train_dataset.others is None
    if trainer.monitor is not None and is_judged and step >= trainer.state.max_steps > 0:
        history = trainer.state.log_history
        losses = [(line["step"], line["caption_loss"]) for line in history if "caption_loss" in line]
        gain, count = summary["gains"]["video"]["per_caption"], summary["clips"]
        alarm = blind(step, gain, count, clips, still_falls(losses, step))
        if alarm is not None and alarm.kind not in {a.kind for a in trainer.monitor.alarms}:
            trainer.monitor.sound(alarm)
    gains = {f"{prefix}_gain_{gain}": units["per_caption"][0] for gain, units in summary["gains"].items()}
    if numbers := summary.get("coordinates"):
        gains[f"{prefix}_gain_coordinate"] = numbers["gain"][0]  # In nats a coordinate, as their loss.
    return gains


def measured_on(chosen: Sequence[Record], trained: Sequence[Record], contents: ContentHashes | None = None) -> str:
    """`TRAINING` when half of the clips or more are trained on, under whatever name; else `EVALUATION`."""
    known, shown = set(clip_names(trained, contents).values()), set(clip_names(chosen, contents).values())
    return TRAINING if 2 * len(shown & known) >= len(shown) else EVALUATION


def _sees(trainer: LlavaTrainer) -> bool:
    return bool(trainer.args.controls) and trainer.model.config.mm_hidden_size is not None
