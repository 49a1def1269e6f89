"""Pre-flight of the model's forward pass: numerics, features, start of the loss, layout, use of the video.

One forward pass of a few samples in evaluation mode, one a row and without labels, is what the others are compared
with: the same samples as training lays them out and with labels, and with other features in each stream. A quick
pre-flight compares in a model of its first blocks.

Letters in shapes: B batch, L positions, K positions before a target, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llava.constants import IGNORE_INDEX
from llava.data.collator import VISION_KEYS
from llava.data.features.quantised import dequantised
from llava.eval.loss import cross_entropies
from llava.model.builder import EMBEDDING_PART
from llava.train.preflight.data import Finding

Batch = dict[str, Any]
Context = Callable[[], Any]

NEAR_CHANCE = 0.5
"""Nats around ln(vocabulary) within which a fresh model starts."""
SMALLEST_EFFECT = 1e-6
"""Change of the logits, relative to their spread, below which a video is not used."""
LAYOUT_ERROR, LAYOUT_ERROR_AUTOCAST = 1e-4, 0.02
"""Mean difference in nats of a token's loss between two layouts: rounding gives 1e-6, and under bf16 autocast less than
0.004. Samples that see each other differ by more, though the loss of their batch hardly moves."""


@dataclass(frozen=True)
class Reference:
    """What the model says of a batch in evaluation mode, one sample a row, without being shown the labels.

    Attributes:
        positions: (K,), those that precede a target of some sample.
        logits: (B, K, V) in fp32.
        losses: (B, L - 1), the cross-entropy of every target in nats, 0 where nothing is supervised.
    """

    batch: Batch
    positions: torch.Tensor
    logits: torch.Tensor
    losses: torch.Tensor

    @property
    def supervised(self) -> torch.Tensor:
        """(B, L - 1) boolean."""
        return self.batch["labels"][:, 1:] != IGNORE_INDEX

    @property
    def loss(self) -> float:
        """The mean of `losses` where something is supervised."""
        return float(self.losses.sum() / self.supervised.sum())


def look(model: nn.Module, batch: Batch, context: Context) -> Reference:
    """The `Reference` of a batch."""
    targets = batch["labels"][:, 1:]
    positions = (targets != IGNORE_INDEX).any(dim=0).nonzero().squeeze(1)
    with torch.no_grad(), context():
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        logits = model(**inputs, logits_to_keep=positions, use_cache=False).logits.float()
    each = cross_entropies(logits, positions, batch, model.config.coordinate_token_ids)
    losses = each.new_zeros(targets.shape).index_copy(1, positions, each)
    return Reference(batch, positions, logits, losses)


def check_vision_inputs(batch: Batch, kind: str, clips: int) -> list[Finding]:
    """Whether vision inputs are finite and different clips have different ones; looks at tensors alone.

    Args:
        clips: how many different ones the batch holds.
    """
    key = next((k for k in VISION_KEYS if k in batch), None)
    if key is None:
        return []
    values = dequantised(batch)[key]
    if not bool(torch.isfinite(values).all()):
        rows = (~torch.isfinite(values.flatten(1)).all(dim=1)).nonzero().flatten().tolist()
        remedy = "the vision features or pixels are broken: --feature_cache off shows whether the cache is"
        words = f"{key} of {_owners(batch, key, rows)} are not finite"
        return [Finding(f"numerics, {kind}", "FAIL", words, remedy)]
    if clips < 2:
        return []
    values = values.float()
    if bool((values == values[:1]).all()):
        remedy = "the clips, the cache or the tower are broken: look at a clip with python -m llava.data.check"
        return [Finding(f"features, {kind}", "FAIL", "different clips have the same features", remedy)]
    within, between = values.std().item(), values.flatten(1).std(dim=0).mean().item()
    return [Finding(f"features, {kind}", "ok", f"differ between clips: spread {between:.2g} of {within:.2g} in all")]


@contextmanager
def watched_outputs(model: nn.Module) -> Iterator[list[str]]:
    """While active, notes the first module whose output is not finite; yields a list that holds its name then."""
    broken: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            real = isinstance(output, torch.Tensor) and output.is_floating_point() and output.numel()
            # Either end is NaN where a value is; all values at once would be copied as booleans.
            if real and not broken and not all(map(math.isfinite, map(float, output.detach().aminmax()))):
                broken.append(name)

        return hook

    handles = [m.register_forward_hook(watch(n)) for n, m in model.named_modules() if n and not list(m.children())]
    try:
        yield broken
    finally:
        for handle in handles:
            handle.remove()


def numerics(broken: Sequence[str], loss: float, kind: str) -> Finding:
    """Whether every module's output and the loss are finite; names the first that is not."""
    if broken or not math.isfinite(loss):
        words = f"the output of {broken[0]} is not finite" if broken else f"the loss is {loss}"
        remedy = "train in --bf16 or fp32, or look for broken weights in that module"
        return Finding(f"numerics, {kind}", "FAIL", words, remedy)
    return Finding(f"numerics, {kind}", "ok", f"features, activations and loss are finite (loss {loss:.2f})")


def check_numerics(model: nn.Module, batch: Batch, kind: str, context: Context) -> tuple[Finding, Reference]:
    """`numerics` in the forward pass that others are compared with."""
    with watched_outputs(model) as broken:
        reference = look(model, batch, context)
    return numerics(broken, reference.loss, kind), reference


def check_loss(reference: Reference, loss: float, kind: str) -> list[Finding]:
    """Whether the loss of the model itself, shown the labels, is that of its logits; nothing when it is."""
    expected = reference.loss
    if abs(loss - expected) <= 0.02 * max(expected, 1.0):
        return []
    remedy = "the loss must be the mean cross-entropy of token t given the tokens before it (supervised_loss)"
    words = f"the model's loss is {loss:.3f}, the cross-entropy of its logits {expected:.3f}"
    return [Finding(f"loss, {kind}", "FAIL", words, remedy)]


def check_start(loss: float, kind: str, fresh: bool, parts: Sequence[str], vocabulary: int) -> Finding:
    """Loss at the start against ln(vocabulary).

    Args:
        fresh: whether the flags ask for weights that were just drawn.
        parts: the parts that train.
    """
    name = f"start of the loss, {kind}"
    chance = math.log(vocabulary)
    words = f"{loss:.2f}, ln(vocabulary) is {chance:.2f}"
    if abs(loss - chance) <= NEAR_CHANCE and not {"mm_language_model", EMBEDDING_PART} & set(parts):
        remedy = "add mm_language_model to --mm_tunable_parts, or start from a trained language model"
        words += ": the language model guesses and is frozen, so it will never learn a word"
        return Finding(name, "FAIL", words, remedy, loss)
    if abs(loss - chance) <= NEAR_CHANCE:
        return Finding(name, "ok", f"{words}: a fresh model guesses", nats=loss)
    if loss < chance:
        status = "warning" if fresh else "note"
        remedy = "check that --model_name_or_path is the fresh model that you mean" if fresh else ""
        return Finding(name, status, f"{words}: the weights know the text already", remedy, loss)
    remedy = "check that the tokenizer belongs to the model, and the scale of its embeddings"
    return Finding(name, "warning", f"{words}: worse than guessing", remedy, loss)


def check_layout(model: nn.Module, reference: Reference, training: Batch, context: Context) -> tuple[Finding, float]:
    """Whether the loss of every token is the same in the layout that it trains in, where samples may share rows, and
    the model's own loss.

    Args:
        reference: of the samples of `training` in its order, one a row.
        training: from `TrainingCollator`.
    """

    def own(batch: Batch) -> tuple[torch.Tensor, float]:
        with torch.no_grad(), context():
            output = model(**batch, return_logits=False, use_cache=False)
        return output.token_losses[batch["labels"][:, 1:] != IGNORE_INDEX], float(output.loss)

    def error(losses: torch.Tensor) -> float:
        return float((losses - reference.losses[reference.supervised]).abs().mean())

    with context():
        autocast = torch.is_autocast_enabled(training["input_ids"].device.type)
    limit = LAYOUT_ERROR_AUTOCAST if autocast else LAYOUT_ERROR
    # The model finds the targets itself here, so that a wrong loss is a finding and no error.
    losses, loss = own({k: v for k, v in training.items() if k != "supervised_positions"})
    found = error(losses)
    rows, samples = len(training["input_ids"]), len(training["sample_ids"])
    words = f"{samples} samples in {rows} rows of {training['input_ids'].shape[1]} positions"
    if found <= limit:
        return Finding("layout of batches", "ok", f"{words}: losses are those of one sample a row"), loss
    alone = error(own(reference.batch)[0])
    if not alone <= limit:
        words = f"the model's loss of a token is {alone:.2g} nats from the cross-entropy of its logits"
        remedy = "the loss must be the cross-entropy of token t given the tokens before it (supervised_loss)"
        return Finding("loss of a token", "FAIL", words, remedy), loss
    words += f": the loss of a token differs by {found:.2g} nats from that of one sample a row"
    remedy = "samples of a row see each other with this --attn_implementation: use sdpa, or --packing False"
    return Finding("layout of batches", "FAIL", words, remedy), loss


def check_own_loss(model: nn.Module, batch: Batch, kind: str, context: Context) -> Finding:
    """Whether the loss, taken at supervised positions alone, is the one that the architecture's own class computes from
    the logits of every position, with whatever it puts after its head.

    Args:
        batch: words alone, one sample a row: vision changes nothing after the head, and has no logits to compare.
    """
    with torch.no_grad(), context():
        ours = float(model(**batch, return_logits=False, use_cache=False).loss)
        theirs = float(model.own_loss(**batch))
        autocast = torch.is_autocast_enabled(batch["input_ids"].device.type)
    name, limit = f"loss of the class, {kind}", LAYOUT_ERROR_AUTOCAST if autocast else LAYOUT_ERROR
    if abs(ours - theirs) <= limit:
        return Finding(name, "ok", f"{ours:.4f} on the words of a sample, as transformers computes it from all logits")
    words = f"the loss is {ours:.4f}, the class of {type(model).__name__} computes {theirs:.4f}"
    remedy = "the logits must be those of the class: what it does after its head (a scale, a soft cap) is left out"
    return Finding(name, "FAIL", words, remedy)


@contextmanager
def replaced_input(module: nn.Module, chosen: torch.Tensor) -> Iterator[list[int]]:
    """While active, the `chosen` (V,) rows of a module's first argument (V, ...) are those of other videos, or noise
    when they are the same.

    Yields a list that holds one entry for each call of the module.
    """
    calls: list[int] = []

    def exchange(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        calls.append(1)
        features = args[0]
        rolled = features.roll(1, 0)
        if torch.equal(rolled, features):
            rolled = torch.randn_like(features) * features.std() + features.mean()
        # A stream that serves images beside videos is exchanged whole for them.
        rows = chosen if len(chosen) == len(features) else torch.ones(len(features), dtype=torch.bool)
        where = rows.to(features.device).view(-1, *[1] * (features.dim() - 1))
        return torch.where(where, rolled, features), *args[1:]

    handle = module.register_forward_pre_hook(exchange)
    try:
        yield calls
    finally:
        handle.remove()


def check_use_of_video(model: nn.Module, reference: Reference, kind: str, context: Context) -> list[Finding]:
    """Whether other features, through each stream alone, change the logits at caption positions.

    With several samples, each stream is changed for some of them, in a single forward pass.
    """
    batch = reference.batch
    streams = {"slow": model.vision_resampler.slow}
    if kind == "video":
        streams = {"fast": model.vision_resampler.fast, **streams}
    samples = torch.arange(len(batch["input_ids"]))
    owners = samples.repeat_interleave(batch[f"num_{kind}s"].cpu())
    together = len(samples) >= len(streams)
    share = {s: samples % len(streams) == n if together else samples >= 0 for n, s in enumerate(streams)}
    changes: dict[str, float] = {}
    called: dict[str, bool] = {}

    def measure(changed: Sequence[str]) -> None:
        with ExitStack() as stack:
            calls = [stack.enter_context(replaced_input(streams[s], share[s][owners])) for s in changed]
            other = look(model, batch, context).logits
        for stream, count in zip(changed, calls, strict=True):
            called[stream] = bool(count)
            moved = (other - reference.logits)[share[stream].to(other.device)]
            changes[stream] = moved.square().mean().sqrt().item() / max(reference.logits.std().item(), 1e-12)

    for changed in [list(streams)] if together else [[s] for s in streams]:
        measure(changed)
    findings = []
    for stream, change in changes.items():
        name = f"use of the video, {stream} stream" if kind == "video" else "use of the image"
        if not called[stream]:
            words, remedy = f"the {stream} stream is never computed", "the resampler must run both streams"
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
