"""Pre-flight of the model: numerics, start of the loss, what targets see, use of the video, gradients, optimiser.

Every check takes the model as training will run it and leaves weights, gradients and random state as they were.

Letters in shapes: B batch, L positions, K positions before a target, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from llava.constants import IGNORE_INDEX
from llava.data.collator import VISION_KEYS
from llava.eval.loss import token_losses
from llava.model.builder import GROUPS, group_of, part_of
from llava.train.preflight_data import Finding

Batch = dict[str, Any]
Context = Callable[[], Any]

NEAR_CHANCE = 0.5
"""Nats around ln(vocabulary) within which a fresh model starts."""
SMALLEST_EFFECT = 1e-6
"""Change of the logits, relative to their spread, below which a video is not used."""
OVERFIT_STEPS = 100
OVERFIT_SHARE = 0.5
"""Share of the first loss that an over-fitted batch must come below."""


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


def expected_to_train(model: nn.Module, parts: Sequence[str], exempt: Mapping[str, str]) -> set[str]:
    """Names of the parameters that the flags let train; `exempt` are left out for the reason given there."""
    return {n for n, _ in model.named_parameters() if part_of(n) in parts and n not in exempt}


def check_trainable(model: nn.Module, parts: Sequence[str], exempt: Mapping[str, str]) -> list[Finding]:
    """Whether exactly what the flags name trains, and tied weights are tied."""
    wanted = expected_to_train(model, parts, exempt)
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    findings = []
    for names, words, remedy in (
        (
            wanted - trains,
            "frozen, though --mm_tunable_parts lets it train",
            "requires_grad_(True) was undone somewhere",
        ),
        (trains - wanted, "training, though --mm_tunable_parts freezes it", "freeze after loading (set_trainable)"),
    ):
        for group, listed in _by_group(names).items():
            if group == "embeddings" and "frozen" in words:
                words += ": the vocabulary cannot learn and the loss will stay near ln(vocabulary)"
                remedy = "the head is tied to the embeddings; freezing one freezes both"
            found = f"{', '.join(listed[:3])} is {words}"
            findings.append(Finding(f"what trains, {group}", "FAIL", found, remedy))
    tied = getattr(model.config, "tie_word_embeddings", True)
    same = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    if tied != same:
        words = (
            "the config ties head and embeddings, but they are two tensors" if tied else "head and embeddings are tied"
        )
        findings.append(Finding("tied weights", "FAIL", words, "call model.tie_weights() after loading and resizing"))
    if not findings:
        number = sum(p.numel() for p in model.parameters() if p.requires_grad)
        left = f"; {len(exempt)} tensors are left out: {'; '.join(sorted(set(exempt.values())))}" if exempt else ""
        words = f"{number:,} parameters in {len(trains)} tensors; head tied to the embeddings: {same}{left}"
        findings.append(Finding("what trains", "ok", words))
    return findings


def check_gradients(
    model: nn.Module,
    batches: Mapping[str, Batch],
    wanted: set[str],
    loss_of: Callable[[Batch], torch.Tensor],
    scale: float = 1.0,
) -> list[Finding]:
    """One forward and backward pass for each modality: who gets a gradient and who must not.

    Args:
        wanted: names of the parameters that must get a finite gradient that is not zero, from one modality at least.
        loss_of: the loss of a batch as training computes it.
        scale: what the loss is multiplied by, so that small gradients of fp16 do not vanish.
    """
    reached: dict[str, float] = {}
    findings: list[Finding] = []
    for kind, batch in batches.items():
        model.zero_grad(set_to_none=True)
        (loss_of(batch) * scale).backward()
        for name, parameter in model.named_parameters():
            grad = parameter.grad
            if grad is None:
                continue
            size = float(grad.float().norm()) / scale
            if not math.isfinite(size):
                words, remedy = f"the gradient of {name} is not finite", "train in --bf16 or fp32"
                findings.append(Finding(f"gradients, {kind}", "FAIL", words, remedy))
            elif name not in wanted and size > 0:
                words = f"{name} is frozen but gets a gradient"
                findings.append(Finding(f"gradients, {kind}", "FAIL", words, "freeze it with requires_grad_(False)"))
            reached[name] = max(reached.get(name, 0.0), size)
    model.zero_grad(set_to_none=True)
    # Softmax does not change with a key's bias, so its gradient is 0 but for rounding.
    silent = _by_group({n for n in wanted if not reached.get(n, 0.0) > 0.0 and not n.endswith("key.bias")})
    members = _by_group(wanted)
    for group in GROUPS:
        if group in silent:
            whole = "none of it" if len(silent[group]) == len(members[group]) else ", ".join(silent[group][:3])
            words = f"no gradient reaches {whole} ({len(silent[group])} of {len(members[group])} tensors)"
            remedy = "something between it and the loss is detached, frozen or unused; or leave it out of training"
            findings.append(Finding(f"gradients, {group}", "FAIL", words, remedy))
        elif group in members:
            norm = math.sqrt(sum(reached.get(n, 0.0) ** 2 for n in members[group]))
            words = f"all {len(members[group])} tensors get one; norm {norm:.2g}"
            findings.append(Finding(f"gradients, {group}", "ok", words))
    return findings


def check_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, rates: Mapping[str, float], peak: float
) -> Finding:
    """Whether every trainable tensor is in one group, with the learning rate of its part, and that is not zero.

    Args:
        rates: learning rate of each part.
        peak: the largest factor that the schedule will put on it.
    """
    names = {id(p): n for n, p in model.named_parameters()}
    seen: dict[str, list[dict[str, Any]]] = {}
    problems = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen.setdefault(names.get(id(parameter), "a tensor that is not the model's"), []).append(group)
    for name, parameter in model.named_parameters():
        groups = seen.get(name, [])
        rate = rates[part_of(name)]
        if parameter.requires_grad and len(groups) != 1:
            problems.append(f"{name} is in {len(groups)} groups")
        elif parameter.requires_grad and groups[0]["lr"] != rate:
            problems.append(f"{name} ({part_of(name)}) has learning rate {groups[0]['lr']:g} instead of {rate:g}")
        elif parameter.requires_grad and groups[0]["lr"] * peak == 0:
            problems.append(f"{name} ({part_of(name)}) has learning rate 0")
        elif not parameter.requires_grad and groups:
            problems.append(f"{name} is frozen, but in a group")
    if problems:
        words = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        remedy = "give the part a learning rate above 0 (--learning_rate, --mm_projector_lr, ...) or take it out of "
        remedy += "--mm_tunable_parts; groups are made by LlavaTrainer.create_optimizer"
        return Finding("optimiser", "FAIL", words, remedy)
    words = (
        f"{len(seen)} tensors, each in one of {len(optimizer.param_groups)} groups with the learning rate of its part"
    )
    return Finding("optimiser", "ok", words)


def check_overfit(
    model: nn.Module,
    batch: Batch,
    kind: str,
    optimizer_of: Callable[[nn.Module], torch.optim.Optimizer],
    context: Context,
    max_grad_norm: float,
) -> Finding:
    """Trains a copy of the model on one batch, for at most `OVERFIT_STEPS`, at the run's learning rates."""
    twin = copy.deepcopy(model).train()
    start = {n: p.detach().clone() for n, p in twin.named_parameters() if p.requires_grad}
    optimizer = optimizer_of(twin)
    losses: list[float] = []
    for _ in range(OVERFIT_STEPS):
        with context():
            loss = twin(**batch, return_logits=False, use_cache=False).loss
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]) or losses[-1] < 0.1 * losses[0]:
            break
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if max_grad_norm > 0:
            nn.utils.clip_grad_norm_(twin.parameters(), max_grad_norm)
        optimizer.step()
    still = _by_group({n for n, p in twin.named_parameters() if n in start and torch.equal(p.detach(), start[n])})
    if kind == "text":
        still = {g: n for g, n in still.items() if GROUPS[g][0].startswith(("transformer.", "lm_head."))}
    words = f"loss {losses[0]:.2f} → {losses[-1]:.2f} on one batch in {len(losses)} steps"
    if not losses[-1] < OVERFIT_SHARE * losses[0]:
        stuck = f"; weights that did not move: {', '.join(still)}" if still else "; all groups move"
        remedy = "raise the learning rate (or lower it when the loss rises); a batch that cannot be learned by heart"
        remedy += " is a fault of the model or the labels"
        return Finding(f"over-fit, {kind}", "FAIL", words + stuck, remedy)
    return Finding(f"over-fit, {kind}", "ok", words)


def _by_group(names: set[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(group_of(name), []).append(name)
    return groups


def _owners(batch: Batch, key: str, rows: Sequence[int]) -> str:
    """The samples that some rows (videos or images) of a batch belong to."""
    counts = batch["num_videos" if "video" in key else "num_images"].tolist()
    owner = [name for name, count in zip(batch["sample_ids"], counts, strict=True) for _ in range(count)]
    return ", ".join(dict.fromkeys(owner[row] for row in rows))
