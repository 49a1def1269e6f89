"""Whether a checkpoint is the model that it was saved from: it is loaded and asked for the loss of one batch."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava.errors import UserError

logger = logging.getLogger(__name__)

RELATIVE_ERROR, RELATIVE_ERROR_AUTOCAST = 1e-4, 0.01
"""Difference between the losses of one model on one batch that rounding explains."""


class ReloadError(UserError):
    """A checkpoint that is not the model that it was saved from."""


def check_saved(folder: Path, model: Any, batch: dict[str, Any], context: Callable[[], Any]) -> None:
    """`compare_saved`, and what it found in the log; a checkpoint that is another model loses its name.

    Raises:
        ReloadError: as `compare_saved`.
    """
    try:
        loss = compare_saved(folder, model, batch, context)
    except ReloadError:
        if folder.name.startswith("checkpoint-"):
            # Under its own name the next run would go on from it.
            folder.rename(folder.with_name(f"wrong-{folder.name}"))
        raise
    logger.info("%s was loaded again: its loss of a batch, %.4f, is that of the live model", folder, loss)


def compare_saved(folder: Path, model: Any, batch: dict[str, Any], context: Callable[[], Any]) -> float:
    """Loads `folder` beside the live model, which stays as it is, and returns the loss that both give.

    Args:
        batch: collated, on the model's device.
        context: of mixed precision.

    Returns:
        NaN, with a warning, where there is no memory for a second model, or the live model's loss is not finite.

    Raises:
        ReloadError: when the checkpoint cannot be loaded, or its loss is another; with both losses and the remedy.
    """
    device = batch["input_ids"].device

    def loss_of(one: nn.Module) -> float:
        with torch.no_grad(), context():
            return float(one(**batch, return_logits=False, use_cache=False).loss)

    remedy = "it would not resume or evaluate as this run does: look at save_pretrained, _save and from_pretrained"
    trained = model.training
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            try:
                saved = type(model).from_pretrained(
                    folder,
                    load_vision_tower=False,
                    dtype=model.dtype,
                    attn_implementation=model.config._attn_implementation,
                )
            except (ValueError, OSError, KeyError, RuntimeError) as error:
                raise ReloadError(f"{folder}: cannot be loaded ({error}): {remedy}") from error
            if saved.mm_projector is not None and saved.vision_tower is None:
                saved.vision_tower = model.vision_tower  # Kept by reference, and so no part of the checkpoint.
            model.eval()
            try:
                live, found = loss_of(model), loss_of(saved.to(device).eval())
            except torch.OutOfMemoryError:
                logger.warning("%s: loading it again was not measured: no memory for a second model", folder)
                return math.nan
    finally:
        model.train(trained)
    if not math.isfinite(live):
        logger.warning("%s: loading it again was not measured: the live model's loss is %s", folder, live)
        return math.nan
    with context():
        autocast = torch.is_autocast_enabled(device.type)
    limit = RELATIVE_ERROR_AUTOCAST if autocast or model.dtype != torch.float32 else RELATIVE_ERROR
    if not math.isclose(live, found, rel_tol=limit, abs_tol=limit):
        raise ReloadError(f"{folder}: gives a loss of {found:.5g} where the model that it was saved from gives "
                          f"{live:.5g}: {remedy}")  # fmt: skip
    return live
