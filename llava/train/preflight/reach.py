"""Pre-flight of what reaches the words, by the gradients of one backward pass at the language model's input.

Letters in shapes: R rows, L positions, D width of the language model, V videos, T frames, P patches, Dv width of the
tower.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from llava.constants import IGNORE_INDEX
from llava.data.collator import VISION_KEYS
from llava.data.features.quantised import dequantised
from llava.train.preflight.data import Finding
from llava.train.preflight.model import Batch

FEATURES = ("video_features", "image_features")


@dataclass
class Seen:
    """A batch whose features ask for gradients, the embeddings (R, L, D) that the language model was given, and the
    rows (V, rows, D) of the resampler.
    """

    batch: Batch
    embeds: list[torch.Tensor] = field(default_factory=list)
    rows: list[torch.Tensor] = field(default_factory=list)

    def asked(self) -> list[torch.Tensor]:
        """Everything here that gradients are looked for at."""
        features = [self.batch[key] for key in FEATURES if key in self.batch]
        return [*features, *self.embeds, *self.rows]


def has_vision(batch: Batch) -> bool:
    """Whether a batch holds features or pixels."""
    return any(key in batch for key in VISION_KEYS)


@contextmanager
def watched(model: Any, batch: Batch, kind: str) -> Iterator[Seen]:
    """While active, what enters the language model keeps its gradient; train on `Seen.batch`."""
    seen = Seen(dequantised(batch))
    for key in FEATURES:
        if key in seen.batch:
            seen.batch[key] = seen.batch[key].detach().float().requires_grad_()

    def keep(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        embeds = kwargs.get("inputs_embeds")
        if embeds is None:
            return None
        if not embeds.requires_grad:
            embeds = embeds.detach().requires_grad_()
        embeds.retain_grad()
        seen.embeds.append(embeds)
        return args, {**kwargs, "inputs_embeds": embeds}

    def keep_rows(_: nn.Module, args: Any, rows: torch.Tensor) -> torch.Tensor:
        if seen.rows:
            return rows  # A blank one, that connects what the batch does not use.
        if not rows.requires_grad:
            rows = rows.detach().requires_grad_()
        rows.retain_grad()
        seen.rows.append(rows)
        return rows

    handles = [model.base_model.register_forward_pre_hook(keep, with_kwargs=True)]
    if has_vision(batch):
        # An image takes the slow stream alone.
        module = model.vision_resampler if kind == "video" else model.vision_resampler.slow
        handles.append(module.register_forward_hook(keep_rows))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def constant_rows(rows: torch.Tensor, features: torch.Tensor | None) -> int:
    """How many of the rows (V, rows, D) are equal for all clips; 0 where the features (V, ...) are equal too."""
    if features is None or len(rows) < 2 or torch.equal(features, features[:1].expand_as(features)):
        return 0
    return int((rows == rows[:1]).all(dim=-1).all(dim=0).sum())


def check_reach(seen: Seen, kind: str, layers: str = "") -> list[Finding]:
    """Whether the last target has no gradient at its own input but at the one before, and, where the batch has vision,
    every visual row and every frame has one; after the backward pass.

    Args:
        layers: says how many blocks of the model took part, where not all did.
    """
    if len(seen.embeds) != 1:
        words = "not measured: the language model is not called once with embeddings"
        return [Finding(f"targets, {kind}", "note", words)]
    batch, grad = seen.batch, seen.embeds[0].grad
    size = (torch.zeros_like(seen.embeds[0]) if grad is None else grad).detach().float().norm(dim=-1)
    if not bool(torch.isfinite(size).all()):
        return []  # The gradients of the weights say so.
    findings, rows = [], batch["labels"] != IGNORE_INDEX
    last = [row.nonzero().max() for row in rows.cpu()]
    places = torch.arange(len(last), device=size.device), torch.stack(last).to(size.device)
    name = f"targets, {kind}"
    if bool((size[places] > 0).any()):
        remedy = "labels must equal the ids, and the loss compare position t - 1 with the token at t, once"
        findings.append(
            Finding(name, "FAIL", "the model sees the token that it must predict (labels shifted by one?)", remedy)
        )
    elif not bool((size[places[0], places[1] - 1] > 0).all()):
        words = "the loss of a word does not depend on the word before it"
        findings.append(Finding(name, "FAIL", words, "the attention mask or the model hides the context"))
    else:
        findings.append(Finding(name, "ok", "depend on what stands before them, not on themselves"))
    if not has_vision(batch):
        return findings
    where = f" (in {layers})" if layers else ""
    frames = batch[f"{kind}_features"].grad if f"{kind}_features" in batch else None
    name, total = f"rows that reach the words, {kind}", sum(r.shape[0] * r.shape[1] for r in seen.rows)
    if not seen.rows or any(r.grad is None for r in seen.rows):
        return [*findings, Finding(name, "note", "not measured: no gradient comes back to the resampler")]
    # Those after the last target can have none; a record's last word stands after its last video.
    dead = sum(int((r.grad.float().norm(dim=-1) == 0).sum()) for r in seen.rows)
    remedy = "each latent must be spliced into its own position, and attention must reach it"
    if dead:
        words = f"{dead} of {total} latent rows have no influence on a caption's loss"
        return [*findings, Finding(name, "FAIL", words, remedy)]
    same = constant_rows(seen.rows[0], batch.get(f"{kind}_features"))
    if same:
        words = f"{same} of {seen.rows[0].shape[1]} latent rows are the same whatever the clip"
        return [*findings, Finding(name, "FAIL", words, "each latent must look at the features")]
    if frames is None:
        told = "frames not measured: there are pixels and no features"
        return [*findings, Finding(name, "ok", f"all {total} latent rows move the loss{where}; {told}")]
    # An image has no axis of frames; a module before the resampler that is frozen lets the gradient through.
    each = frames.float().flatten(2 if kind == "video" else 1).norm(dim=-1)
    if bool((each == 0).any()):
        words = f"{int((each == 0).sum())} of {each.numel()} frames have no influence on a caption's loss"
        remedy = "the resampler must look at every frame, and nothing between features and rows be detached"
        return [*findings, Finding(name, "FAIL", words, remedy)]
    words = f"all {total} latent rows and all {each.numel()} frames move the loss{where}"
    return [*findings, Finding(name, "ok", words)]
