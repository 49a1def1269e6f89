"""Pre-flight of what training changes: who trains, who gets a gradient, the optimiser, learning one batch by heart.

Every check leaves weights, gradients and random state as they were.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from llava.model.builder import GROUPS, KEY_BIASES, LANGUAGE_GROUPS, parameter_groups, part_of, trainable_names
from llava.model.lora import LoraSettings, adapted_layers, awake, settings_of
from llava.train.preflight.data import Finding
from llava.train.preflight.isolation import shallow, told_blocks
from llava.train.preflight.model import Batch, Context, numerics, watched_outputs
from llava.train.preflight.reach import check_reach, watched

LOWEST_PEAK = 0.5
"""Share of its learning rate that a schedule should reach."""
LOWEST_AREA = 0.2
"""Share of its learning rate that a schedule should give on the mean of the run's steps."""
SLOWEST = 1e-3
"""Learning rate of a part, as a share of the largest, that looks like a slip."""
DROPOUT = 0.5
"""The largest probability of dropout that is in use: more than this leaves less than half of what a layer says."""
DROPOUT_NAMES = ("dropout", "dropout_p", "dropout_rate", "pdrop", "drop_prob", "layerdrop")
"""How attributes end in which modules of transformers keep a probability of dropout."""
OVERFIT_STEPS = 100
OVERFIT_SHARE = 0.5
"""Share of the first loss that an over-fitted batch must come below."""


def expected_to_train(model: nn.Module, parts: Sequence[str], exempt: Mapping[str, str]) -> set[str]:
    """Names of the parameters that the flags let train; `exempt` are left out for the reason given there."""
    return trainable_names(model, parts) - set(exempt)


def check_trainable(model: nn.Module, parts: Sequence[str], exempt: Mapping[str, str]) -> list[Finding]:
    """Whether exactly what the flags name trains, the base of adapters does not, and tied weights are tied."""
    wanted = expected_to_train(model, parts, exempt)
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    findings = []
    for names, words, remedy in (
        (
            wanted - trains,
            "frozen, though --mm_tunable_parts lets it train",
            "requires_grad_(True) was undone somewhere",
        ),
        (
            trains - wanted,
            f"training, though {'LoRA or ' if settings_of(model) else ''}--mm_tunable_parts freezes it",
            "freeze after loading (set_trainable)",
        ),
    ):
        for group, listed in _by_group(model, names).items():
            found, mend = f"{', '.join(listed[:3])} is {words}", remedy
            if group == "embeddings" and "frozen" in words:
                found += ": the vocabulary cannot learn and the loss will stay near ln(vocabulary)"
                mend = "the head is tied to the embeddings; freezing one freezes both"
            findings.append(Finding(f"what trains, {group}", "FAIL", found, mend))
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


def check_lora(model: nn.Module, flags: Mapping[str, Any]) -> list[Finding]:
    """Whether the model has the adapters that the run's flags ask for, in layers of the language model alone."""
    asked = None
    if flags.get("lora_enable"):
        asked = LoraSettings(**{name: flags[f"lora_{name}"] for name in asdict(LoraSettings())})
    has, layers = settings_of(model), adapted_layers(model)
    if has is None and asked is None:
        return []
    away = [name for name in layers if part_of(name) != "mm_language_model"]
    if has != asked or not layers or away:
        words = f"the flags ask for {asked or 'no adapters'}; the model has {len(layers)} ({has or 'no LoRA'})"
        words += f", of which {', '.join(away[:3])} are not the language model's" if away else ""
        remedy = "adapters are given by llava.model.lora.adapt, before the trainer is made"
        return [Finding("LoRA", "FAIL", words, remedy)]
    base = sum(p.numel() for n, p in model.named_parameters() if part_of(n) == "mm_language_model")
    own = sum(p.numel() for layer in layers.values() for n, p in layer.named_parameters() if ".default." in n)
    words = f"{len(layers)} layers have adapters ({own:,} parameters) beside {base - own:,} of the language model"
    return [Finding("LoRA", "ok", f"{words}; {has}")]


def check_dropout(model: nn.Module) -> Finding:
    """How much is dropped in training, of a model in training mode; all of it, and nothing behind it can learn."""
    found = dropouts(model)
    most = max(found.values(), default=0.0)
    if most <= DROPOUT:
        return Finding("dropout", "ok", f"at most {_percent(most)}" if most else "none")
    named = [name for name, share in found.items() if share == most]
    above = sum(share > DROPOUT for share in found.values())
    words = f"{named[0]} drops {_percent(most)} of what it is given"
    words += f", and {above - 1} more, each more than {DROPOUT:.0%}" if above > 1 else ""
    remedy = (
        "lower it (0 to 0.1 is usual): in the config.json of --model_name_or_path (keys that end in pdrop or dropout), "
        "by llava-make-model --dropout where the model is made, that of adapters by --lora_dropout"
    )
    return Finding("dropout", "FAIL" if most >= 1 else "warning", words, remedy)


def _percent(share: float) -> str:
    """With three digits: 99.6 % is not all."""
    return f"{100 * share:.3g}%"


def dropouts(model: nn.Module) -> dict[str, float]:
    """The probability of each dropout of the modules that are in training mode, by its place: those of torch, and the
    numbers that others keep for it (`attention_dropout`, `drop_prob`).
    """
    found: dict[str, float] = {}
    for place, module in model.named_modules():
        if not module.training:
            continue
        if isinstance(module, nn.modules.dropout._DropoutNd):
            found[place] = float(module.p)
            continue
        own = {name: value for name, value in vars(module).items() if name.endswith(DROPOUT_NAMES)}
        found |= {f"{place}.{name}": float(value) for name, value in own.items() if type(value) in (int, float)}
    return found


@dataclass(frozen=True)
class Pass:
    """A batch of one modality on its way through the model, or through its first `blocks` blocks, in which the language
    model's own gradients are left out.

    `back` says whether gradients come back.
    """

    kind: str
    batch: Batch
    blocks: int | None = None
    back: bool = True


def check_gradients(
    model: nn.Module,
    passes: Sequence[Pass],
    wanted: set[str],
    loss_of: Callable[[Batch], torch.Tensor],
    scale: float = 1.0,
) -> tuple[list[Finding], dict[str, float]]:
    """Whether the numbers of some passes are finite, who gets a gradient from them and who must not, and what reaches a
    word; and the loss of the first pass of each modality whose numbers are all finite.

    Args:
        passes: those of a modality after each other; together they send every parameter its gradient.
        wanted: names of the parameters that must get a finite gradient that is not zero, from one pass at least.
        loss_of: the loss of a batch as training computes it.
        scale: what the loss is multiplied by, so that small gradients of fp16 do not vanish.
    """
    reached: dict[str, float] = {}
    losses: dict[str, float] = {}
    findings: list[Finding] = []
    broken_kinds: set[str] = set()
    for each in passes:
        if each.kind in broken_kinds:
            continue
        model.zero_grad(set_to_none=True)
        with awake(model), shallow(model, each.blocks), watched(model, each.batch, each.kind) as seen:
            with watched_outputs(model) as broken, torch.set_grad_enabled(each.back):
                loss = loss_of(seen.batch)
            finding = numerics(broken, float(loss.detach()), each.kind)
            if finding.status == "FAIL":
                findings.append(finding)
                broken_kinds.add(each.kind)
                losses.pop(each.kind, None)
                continue
            if each.kind not in losses:
                findings.append(finding)
                losses[each.kind] = float(loss.detach())
            if not each.back:
                continue
            inputs = None
            if each.blocks is not None:
                own = [p for n, p in model.named_parameters() if p.requires_grad and part_of(n) != "mm_language_model"]
                inputs = [*own, *seen.asked()]
            if loss.requires_grad:  # Else no gradient comes back to anything, which is told below.
                (loss * scale).backward(inputs=inputs)
        found = check_reach(seen, each.kind, told_blocks(model, each.blocks))
        findings += [f for f in found if f not in findings]
        for name, parameter in model.named_parameters():
            grad = parameter.grad
            if grad is None:
                continue
            size = float(grad.float().norm()) / scale
            if not math.isfinite(size):
                words, remedy = f"the gradient of {name} is not finite", "train in --bf16 or fp32"
                findings.append(Finding(f"gradients, {each.kind}", "FAIL", words, remedy))
            elif name not in wanted and size > 0:
                words, remedy = f"{name} is frozen but gets a gradient", "freeze it with requires_grad_(False)"
                findings.append(Finding(f"gradients, {each.kind}", "FAIL", words, remedy))
            reached[name] = max(reached.get(name, 0.0), size)
    model.zero_grad(set_to_none=True)
    if broken_kinds:
        return findings, losses
    silent = _by_group(model, {n for n in wanted if not reached.get(n, 0.0) > 0.0 and not n.endswith(KEY_BIASES)})
    members = _by_group(model, wanted)
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
    return findings, losses


def check_optimizer(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    rates: Mapping[str, tuple[str, float]],
    peak: float = 1.0,
    area: float = 1.0,
) -> list[Finding]:
    """Whether every trainable tensor is in one group, with the learning rate of its part, and that is not zero; and
    whether the schedule lets it act.

    Args:
        rates: of each parameter, the part by whose learning rate it trains, and that rate.
        peak, area: the largest and the mean factor that the schedule will put on it.
    """
    names = {id(p): n for n, p in model.named_parameters()}
    seen: dict[str, list[dict[str, Any]]] = {}
    problems = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen.setdefault(names.get(id(parameter), "a tensor that is not the model's"), []).append(group)
    for name, parameter in model.named_parameters():
        groups = seen.get(name, [])
        part, rate = rates[name]
        if parameter.requires_grad and len(groups) != 1:
            problems.append(f"{name} is in {len(groups)} groups")
        elif parameter.requires_grad and groups[0]["lr"] != rate:
            problems.append(f"{name} ({part}) has learning rate {groups[0]['lr']:g} instead of {rate:g}")
        elif parameter.requires_grad and (groups[0]["lr"] == 0 or peak == 0):
            problems.append(f"{name} ({part}) has learning rate 0")
        elif not parameter.requires_grad and groups:
            problems.append(f"{name} is frozen, but in a group")
    if problems:
        words = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        remedy = "give the part a learning rate above 0 (--learning_rate, --mm_projector_lr, ...) or take it out of "
        remedy += "--mm_tunable_parts; groups are made by LlavaTrainer.create_optimizer"
        return [Finding("optimiser", "FAIL", words, remedy)]
    words = (
        f"{len(seen)} tensors, each in one of {len(optimizer.param_groups)} groups with the learning rate of its part"
    )
    orthogonal = sum(len(group["params"]) for group in optimizer.param_groups if group.get("muon"))
    words += f"; {orthogonal} matrices by Muon" if orthogonal else ""
    findings = [Finding("optimiser", "ok", words)]
    words = f"the schedule reaches {peak:.0%} of the learning rate, and gives {area:.0%} on the mean of the steps"
    if peak < LOWEST_PEAK:
        words = f"the schedule reaches only {peak:.0%} of the learning rate within the run"
        findings = [Finding("optimiser", "warning", words, "shorten the warm-up (--warmup_steps) or train longer")]
    elif area < LOWEST_AREA:
        words += ": most steps hardly change a weight"
        remedy = "give the decay as many steps as the run has (--lr_scheduler_type, --lr_scheduler_kwargs)"
        findings.append(Finding("schedule", "warning", words, remedy))
    elif not math.isnan(peak):
        findings.append(Finding("schedule", "ok", words))
    else:
        words = "not measured: it follows what is measured in the run, not the step alone"
        findings.append(Finding("schedule", "note", words))
    used = dict(rates[n] for n, p in model.named_parameters() if p.requires_grad)
    fastest = max(used.values(), default=0.0)
    slow = [f"{part} ({rate:g})" for part, rate in used.items() if rate <= SLOWEST * fastest]
    if slow:
        words = f"{', '.join(slow)} has a thousandth of the largest learning rate ({fastest:g}) or less"
        remedy = "it will hardly learn: is an exponent wrong in --mm_projector_lr, --mm_vision_resampler_lr, "
        remedy += "--mm_vision_tower_lr or --learning_rate?"
        findings.append(Finding("learning rates", "warning", words, remedy))
    return findings


def schedule_shape(scheduler: Any, steps: int) -> tuple[float, float]:
    """The largest and the mean share of the learning rate that a schedule gives in `steps` steps; NaN when it cannot
    be told.
    """
    factors = getattr(scheduler, "lr_lambdas", None)
    if not factors or steps < 1:
        return math.nan, math.nan
    places = sorted({round(i * (steps - 1) / 200) for i in range(201)})
    shapes = [[float(factor(step)) for step in places] for factor in factors]
    return max(map(max, shapes)), max(sum(shape) / len(shape) for shape in shapes)


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
    still = _by_group(twin, {n for n, p in twin.named_parameters() if n in start and torch.equal(p.detach(), start[n])})
    if kind == "text":
        still = {g: n for g, n in still.items() if g in LANGUAGE_GROUPS}
    words = f"loss {losses[0]:.2f} → {losses[-1]:.2f} on one batch in {len(losses)} steps"
    if not losses[-1] < OVERFIT_SHARE * losses[0]:
        stuck = f"; weights that did not move: {', '.join(still)}" if still else "; all groups move"
        remedy = "raise the learning rate (or lower it when the loss rises); a batch that cannot be learned by heart"
        remedy += " is a fault of the model or the labels"
        return Finding(f"over-fit, {kind}", "FAIL", words + stuck, remedy)
    return Finding(f"over-fit, {kind}", "ok", words)


def _by_group(model: Any, names: set[str]) -> dict[str, list[str]]:
    groups_of = parameter_groups(model)
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(groups_of[name], []).append(name)
    return groups
