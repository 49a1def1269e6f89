"""Pre-flight of the model's forward pass: numerics, features, start of the loss, what targets see, use of the video.

Letters in shapes: B batch, L positions, K positions before a target, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from llava.constants import IGNORE_INDEX
from llava.data.collator import VISION_KEYS
from llava.data.feature_store import TOLERANCES
from llava.data.records import Record
from llava.eval.loss import token_losses
from llava.train.preflight_data import Finding

Batch = dict[str, Any]
Context = Callable[[], Any]

NEAR_CHANCE = 0.5
"""Nats around ln(vocabulary) within which a fresh model starts."""
SMALLEST_EFFECT = 1e-6
"""Change of the logits, relative to their spread, below which a video is not used."""
LAYOUT_ERROR, LAYOUT_ERROR_AUTOCAST = 1e-4, 0.02
"""Mean difference in nats of a token's loss between two layouts: rounding gives 1e-6, and under bf16 autocast less than
0.004. Samples that see each other differ by more, though the loss of their batch hardly moves."""


def check_numerics(model: nn.Module, batch: Batch, kind: str, context: Context) -> Finding:
    """Whether vision inputs, every module's output and the loss are finite; names the first that is not."""
    for key in VISION_KEYS:
        if key in batch and not bool(torch.isfinite(batch[key]).all()):
            rows = (~torch.isfinite(batch[key].flatten(1)).all(dim=1)).nonzero().flatten().tolist()
            remedy = "the vision features or pixels are broken: --feature_cache off shows whether the cache is"
            words = f"{key} of {_owners(batch, key, rows)} are not finite"
            return Finding(f"numerics, {kind}", "FAIL", words, remedy)
    broken: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            real = isinstance(output, torch.Tensor) and output.is_floating_point()
            if real and not broken and not bool(torch.isfinite(output).all()):
                broken.append(name)

        return hook

    handles = [m.register_forward_hook(look(n)) for n, m in model.named_modules() if n and not list(m.children())]
    try:
        with torch.no_grad(), context():
            loss = float(model(**batch, return_logits=False, use_cache=False).loss)
    finally:
        for handle in handles:
            handle.remove()
    if broken or not math.isfinite(loss):
        words = f"the output of {broken[0]} is not finite" if broken else f"the loss is {loss}"
        return Finding(
            f"numerics, {kind}", "FAIL", words, "train in --bf16 or fp32, or look for broken weights in that module"
        )
    return Finding(f"numerics, {kind}", "ok", f"features, activations and loss are finite (loss {loss:.2f})")


def check_features_differ(batch: Batch, kind: str) -> Finding | None:
    """Whether different clips have different features; None when the batch has a single one."""
    key = next((k for k in VISION_KEYS if k in batch), None)
    if key is None or len(batch[key]) < 2:
        return None
    values = batch[key].float()
    if bool((values == values[:1]).all()):
        remedy = "the clips, the cache or the tower are broken: look at a clip with python -m llava.data.check"
        return Finding(f"features, {kind}", "FAIL", "different clips have the same features", remedy)
    within, between = values.std().item(), values.flatten(1).std(dim=0).mean().item()
    return Finding(f"features, {kind}", "ok", f"differ between clips: spread {between:.2g} of {within:.2g} in all")


def check_cache(dataset: Any, record: Record, tower: nn.Module) -> Finding:
    """Whether the cached features of a record's first video or image are those of its file."""
    cached = dataset[dataset.records.index(record)]
    if record.videos:
        path, pixels = record.videos[0], dataset.read_video(record.videos[0], record.split)
        found = cached["video_features"][0]
    else:
        path, pixels = record.images[0], dataset.read_image(record.images[0])[None]
        found = cached["image_features"][:1]
    device = next(tower.parameters()).device
    with torch.no_grad():
        expected = tower(pixels.to(device)).float().cpu()
    error = (found.float() - expected).norm().item() / max(expected.norm().item(), 1e-12)
    if not error <= TOLERANCES[dataset.cache.dtype]:
        words = f"the cached features of record {record.id!r} are not those of {path} (relative error {error:.2g})"
        return Finding(
            "feature cache", "FAIL", words, "the cache is stale or damaged: name a new folder with --feature_cache"
        )
    return Finding("feature cache", "ok", f"the features of {path} are those of the file (relative error {error:.1e})")


def check_start(
    model: nn.Module, batch: Batch, kind: str, fresh: bool, parts: Sequence[str], context: Context
) -> Finding:
    """Loss at the start against ln(vocabulary), and against a plain computation from full logits.

    Args:
        fresh: whether the flags ask for weights that were just drawn.
        parts: the parts that train.
    """
    with torch.no_grad(), context():
        output = model(**batch, return_logits=False, use_cache=False)
        plain = token_losses(model, batch)
    count = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
    loss, expected = float(output.loss), float(plain.sum()) / count
    if abs(loss - expected) > 0.02 * max(expected, 1.0):
        remedy = "the loss must be the mean cross-entropy of token t given the tokens before it (supervised_loss)"
        words = f"the model's loss is {loss:.3f}, the cross-entropy of its logits {expected:.3f}"
        return Finding(f"start of the loss, {kind}", "FAIL", words, remedy)
    chance = math.log(model.config.vocab_size)
    words = f"{loss:.2f}, ln(vocabulary) is {chance:.2f}"
    if abs(loss - chance) <= NEAR_CHANCE and "mm_language_model" not in parts:
        remedy = "add mm_language_model to --mm_tunable_parts, or start from a trained language model"
        words += ": the language model guesses and is frozen, so it will never learn a word"
        return Finding(f"start of the loss, {kind}", "FAIL", words, remedy)
    if abs(loss - chance) <= NEAR_CHANCE:
        return Finding(f"start of the loss, {kind}", "ok", f"{words}: a fresh model guesses")
    if loss < chance:
        status = "warning" if fresh else "note"
        remedy = "check that --model_name_or_path is the fresh model that you mean" if fresh else ""
        return Finding(f"start of the loss, {kind}", status, f"{words}: the weights know the text already", remedy)
    remedy = "check that the tokenizer belongs to the model, and the scale of its embeddings"
    return Finding(f"start of the loss, {kind}", "warning", f"{words}: worse than guessing", remedy)


def check_layout(model: nn.Module, plain: Batch, training: Batch, context: Context) -> Finding:
    """Whether the loss of every token is the same in the layout that it trains in, where samples may share rows.

    Args:
        plain: samples collated one a row, in the order of `training`.
        training: the same samples from `TrainingCollator`.
    """

    def losses(batch: Batch) -> torch.Tensor:
        output = model(**batch, return_logits=False, use_cache=False)
        return output.token_losses[batch["labels"][:, 1:] != IGNORE_INDEX]

    with torch.no_grad(), context():
        limit = LAYOUT_ERROR_AUTOCAST if torch.is_autocast_enabled(model.device.type) else LAYOUT_ERROR
        error = float((losses(training) - losses(plain)).abs().mean())
    rows, samples = len(training["input_ids"]), len(training["sample_ids"])
    words = f"{samples} samples in {rows} rows of {training['input_ids'].shape[1]} positions"
    if not error <= limit:
        words += f": the loss of a token differs by {error:.2g} nats from that of one sample a row"
        remedy = "samples of a row see each other with this --attn_implementation: use sdpa, or --packing False"
        return Finding("layout of batches", "FAIL", words, remedy)
    return Finding("layout of batches", "ok", f"{words}: losses are those of one sample a row")


def check_no_peeking(model: nn.Module, batch: Batch, kind: str, context: Context) -> Finding:
    """Whether a target's loss is independent of that target in the input, and depends on the token before it.

    The last target of each sample is exchanged in the input alone: no loss may change. Then the token before it: the
    loss of the last target must change.
    """
    rows = torch.arange(len(batch["labels"]))
    last = torch.stack([(row != IGNORE_INDEX).nonzero().max() for row in batch["labels"].cpu()])
    visual = set((model.config.visual_token_ids or {}).values())
    words = [i for i in range(model.config.vocab_size) if i not in visual][:2]

    def losses(place: torch.Tensor | None) -> torch.Tensor:
        ids = batch["input_ids"].clone()
        if place is not None:
            old = ids[rows, place]
            ids[rows, place] = torch.where(old == words[0], words[1], words[0])
        with torch.no_grad(), context():
            return model(**batch | {"input_ids": ids}, return_logits=False, use_cache=False).token_losses

    before, peeked = losses(None), losses(last)
    name = f"targets, {kind}"
    if not torch.allclose(before, peeked, rtol=1e-3, atol=1e-3):
        remedy = "labels must equal the ids, and the loss compare position t - 1 with the token at t, once"
        return Finding(name, "FAIL", "the model sees the token that it must predict (labels shifted by one?)", remedy)
    movable = (batch["labels"].cpu()[rows, last - 1] != IGNORE_INDEX) & (last > 1)
    if movable.any():
        after = losses(last - 1)
        place = (rows[movable], last[movable] - 1)
        if torch.equal(before[place], after[place]):
            remedy = "the attention mask or the model hides the context"
            return Finding(name, "FAIL", "the loss of a word does not depend on the word before it", remedy)
    return Finding(name, "ok", "depend on what stands before them, not on themselves")


@contextmanager
def replaced_input(module: nn.Module) -> Iterator[list[int]]:
    """While active, a module's first argument (V, ...) is that of another video, or noise when there is one video.

    Yields a list that holds one entry for each call of the module.
    """
    calls: list[int] = []

    def exchange(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        calls.append(1)
        features = args[0]
        rolled = features.roll(1, 0)
        if torch.equal(rolled, features):
            rolled = torch.randn_like(features) * features.std() + features.mean()
        return rolled, *args[1:]

    handle = module.register_forward_pre_hook(exchange)
    try:
        yield calls
    finally:
        handle.remove()


def check_use_of_video(model: nn.Module, batch: Batch, kind: str, context: Context) -> list[Finding]:
    """Whether other features, through each stream alone, change the logits at caption positions."""
    positions = (batch["labels"][:, 1:] != IGNORE_INDEX).any(dim=0).nonzero().squeeze(1)
    inputs = {k: v for k, v in batch.items() if k != "labels"}

    def logits() -> torch.Tensor:
        with torch.no_grad(), context():
            return model(**inputs, logits_to_keep=positions, use_cache=False).logits.float()

    true = logits()
    streams = {"slow": model.vision_resampler.slow}
    if kind == "video":
        streams = {"fast": model.vision_resampler.fast, **streams}
    findings = []
    for stream, module in streams.items():
        with replaced_input(module) as calls:
            change = (logits() - true).square().mean().sqrt().item() / max(true.std().item(), 1e-12)
        name = f"use of the video, {stream} stream" if kind == "video" else "use of the image"
        if not calls:
            words, remedy = f"the {stream} stream is never computed", "FastSlowResampler must run both streams"
        elif not change > SMALLEST_EFFECT:
            words = f"other features in the {stream} stream leave the caption's logits as they are"
            remedy = "its rows do not reach the language model: look at the resampler's output, the splice, the mask"
        else:
            findings.append(
                Finding(name, "ok", f"other features move the caption's logits by {change:.1e} of their spread")
            )
            continue
        findings.append(Finding(name, "FAIL", words, remedy))
    return findings


def _owners(batch: Batch, key: str, rows: Sequence[int]) -> str:
    """The samples that some rows (videos or images) of a batch belong to."""
    counts = batch["num_videos" if "video" in key else "num_images"].tolist()
    owner = [name for name, count in zip(batch["sample_ids"], counts, strict=True) for _ in range(count)]
    return ", ".join(dict.fromkeys(owner[row] for row in rows))
